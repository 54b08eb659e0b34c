# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""GradAug for the Hugging Face Trainer: sub-networks as regularization, on unmodified models."""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0"

__all__ = [
    "Compose",
    "DistillationTrainer",
    "GradAug",
    "GradAugConfig",
    "GradAugMixin",
    "GradAugPass",
    "GradAugSettings",
    "GradAugTrainer",
    "HubMixin",
    "HubPushError",
    "PixelClassifier",
    "PyramidNetConfig",
    "PyramidNetForImageClassification",
    "PyramidNetModel",
    "RandomRotation",
    "RandomScale",
    "RobustnessResults",
    "RobustnessSettings",
    "StopOnSignal",
    "StreamMixin",
    "TrainingStream",
    "WideResNetConfig",
    "WideResNetForImageClassification",
    "WideResNetModel",
    "convert_authors_checkpoint",
    "corrupt_image",
    "create_subnetwork_card",
    "evaluate_robustness",
    "evaluate_widths",
    "export_subnetwork",
    "export_widths",
    "format_widths",
    "leading_blocks",
    "load_classifier",
    "load_settings",
    "make_slimmable",
    "mean_corruption_error",
    "narrow_config",
    "plot_robustness",
    "plot_training_curves",
    "plot_widths",
    "recalibrate_batchnorm",
    "register_depth",
    "register_narrowing",
    "save_settings",
    "soft_label_cross_entropy",
    "soft_target_loss",
    "soft_targets",
    "subnetwork_state_dict",
    "supported_model_types",
    "to_authors_state_dict",
]

if TYPE_CHECKING:
    from .data import TrainingStream
    from .distillation import DistillationTrainer
    from .export import (
        convert_authors_checkpoint,
        create_subnetwork_card,
        evaluate_widths,
        export_subnetwork,
        export_widths,
        format_widths,
        load_classifier,
        plot_widths,
        recalibrate_batchnorm,
        to_authors_state_dict,
    )
    from .gradaug_config import GradAugConfig
    from .gradaug_trainer import GradAugMixin, GradAugTrainer
    from .losses import soft_label_cross_entropy, soft_target_loss, soft_targets
    from .models import (
        PyramidNetConfig,
        PyramidNetForImageClassification,
        PyramidNetModel,
        WideResNetConfig,
        WideResNetForImageClassification,
        WideResNetModel,
    )
    from .passes import GradAug, GradAugPass
    from .reporting import plot_training_curves
    from .robustness import (
        PixelClassifier,
        RobustnessResults,
        RobustnessSettings,
        corrupt_image,
        evaluate_robustness,
        mean_corruption_error,
        plot_robustness,
    )
    from .settings import GradAugSettings, load_settings, save_settings
    from .slimmable import (
        leading_blocks,
        make_slimmable,
        narrow_config,
        register_depth,
        register_narrowing,
        subnetwork_state_dict,
        supported_model_types,
    )
    from .training import HubMixin, HubPushError, StopOnSignal, StreamMixin
    from .transforms import Compose, RandomRotation, RandomScale

_MODULES = {
    "DistillationTrainer": "distillation",
    "GradAug": "passes",
    "GradAugConfig": "gradaug_config",
    "GradAugMixin": "gradaug_trainer",
    "GradAugPass": "passes",
    "GradAugSettings": "settings",
    "GradAugTrainer": "gradaug_trainer",
    "HubMixin": "training",
    "HubPushError": "training",
    "PixelClassifier": "robustness",
    "PyramidNetConfig": "models",
    "PyramidNetForImageClassification": "models",
    "PyramidNetModel": "models",
    "RobustnessResults": "robustness",
    "RobustnessSettings": "robustness",
    "StreamMixin": "training",
    "TrainingStream": "data",
    "WideResNetConfig": "models",
    "WideResNetForImageClassification": "models",
    "WideResNetModel": "models",
    "convert_authors_checkpoint": "export",
    "corrupt_image": "robustness",
    "create_subnetwork_card": "export",
    "evaluate_robustness": "robustness",
    "evaluate_widths": "export",
    "export_subnetwork": "export",
    "export_widths": "export",
    "format_widths": "export",
    "leading_blocks": "slimmable",
    "load_classifier": "export",
    "load_settings": "settings",
    "make_slimmable": "slimmable",
    "mean_corruption_error": "robustness",
    "narrow_config": "slimmable",
    "plot_robustness": "robustness",
    "plot_training_curves": "reporting",
    "plot_widths": "export",
    "recalibrate_batchnorm": "export",
    "register_depth": "slimmable",
    "register_narrowing": "slimmable",
    "save_settings": "settings",
    "soft_label_cross_entropy": "losses",
    "soft_target_loss": "losses",
    "soft_targets": "losses",
    "subnetwork_state_dict": "slimmable",
    "supported_model_types": "slimmable",
    "to_authors_state_dict": "export",
    "Compose": "transforms",
    "RandomRotation": "transforms",
    "RandomScale": "transforms",
    "StopOnSignal": "training",
}


def __getattr__(name: str):
    # PyTorch and transformers take seconds to import: whoever only imports the package doesn't wait for them.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
