# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Names that users import stay importable: from the top, from documented subpackages, and from pickled arguments. The
Trainer's methods keep its arguments.
"""

import importlib
import inspect
import pickle

import pytest
from transformers import Trainer

import hf_gradaug


# Written out: a name that goes missing has to be missed here.
TOP = [
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
BELOW = {
    "data": """DataArguments ImageCollator ImageData TrainingStream decode_image get_class_names get_eval_transform
        get_image_size get_pixel_map get_streaming_arguments get_train_transform load_digits_dataset load_image_data
        make_image_processor match_classes""",
    "export": """convert_authors_checkpoint create_subnetwork_card evaluate_widths export_subnetwork export_widths
        format_widths load_classifier plot_widths recalibrate_batchnorm to_authors_state_dict""",
    "gradaug_config": "GradAugConfig",
    "models": """PyramidNetConfig PyramidNetForImageClassification PyramidNetModel WideResNetConfig
        WideResNetForImageClassification WideResNetModel""",
    "reporting": """ModelCardMixin describe_machine describe_versions find_device is_hub_name new_figure
        plot_training_curves""",
    "robustness": """PixelClassifier RobustnessResults RobustnessSettings corrupt_image evaluate_robustness
        mean_corruption_error plot_robustness""",
    "settings": "GradAugSettings SETTINGS_NAME save_settings",
    "slimmable": """leading_blocks make_slimmable narrow_config register_depth register_narrowing subnetwork_state_dict
        supported_model_types""",
    "training": """DurableTrainerMixin FaultToleranceMixin HubMixin HubPushError StopOnSignal StreamMixin find_checkpoint
        find_damage""",
    "transforms": "Compose RandomRotation RandomScale",
}


def test_names_of_the_top():
    assert sorted(hf_gradaug.__all__) == TOP and set(TOP) <= set(dir(hf_gradaug))
    for name in TOP:
        assert getattr(hf_gradaug, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        hf_gradaug.no_such_name  # noqa: B018


@pytest.mark.parametrize("module", BELOW)
def test_names_of_a_subpackage(module):
    found = vars(importlib.import_module(f"hf_gradaug.{module}"))
    assert not set(BELOW[module].split()) - set(found)
    # What is at the top too is the same object.
    assert all(getattr(hf_gradaug, name) is found[name] for name in BELOW[module].split() if name in TOP)


@pytest.mark.parametrize("module", ["data", "export", "models", "reporting", "robustness", "slimmable", "training"])
def test_a_subpackage_publishes_its_own(module):
    """Helpers that several parts share aren't part of the API."""
    found = importlib.import_module(f"hf_gradaug.{module}")
    modules = {name: getattr(getattr(found, name), "__module__", found.__name__) for name in found.__all__}
    assert not {name: home for name, home in modules.items() if not home.startswith(found.__name__)}


def test_subpackages_say_what_they_are_for():
    for module in BELOW:
        assert len(importlib.import_module(f"hf_gradaug.{module}").__doc__.split()) > 5


def test_pickled_arguments_of_earlier_runs_load():
    # As training_args.bin names the class.
    assert pickle.loads(b"chf_gradaug.gradaug_config\nGradAugConfig\n.") is hf_gradaug.GradAugConfig


# These pass on what they get: constructors of mixins, and methods whose arguments depend on the version or don't matter.
PASSED_ON = {"__init__", "evaluate", "_inner_training_loop", "_run_epoch", "init_hf_repo"}


def test_overridden_methods_show_the_arguments_of_the_trainer():
    """IDEs and the API reference show the signature of the override."""
    classes = {*hf_gradaug.GradAugTrainer.__mro__, *hf_gradaug.DistillationTrainer.__mro__}
    compared = []
    for own in (one for one in classes if one.__module__.startswith("hf_gradaug.")):
        for name in (vars(own).keys() & vars(Trainer).keys()) - PASSED_ON:
            if inspect.isfunction(vars(own)[name]):
                ours, stock = (
                    [(item.name, item.default) for item in inspect.signature(vars(one)[name]).parameters.values()]
                    for one in (own, Trainer)
                )
                # An older transformers has fewer.
                assert [item for item in ours if item in stock] == stock, f"{own.__name__}.{name}"
                compared.append(name)
    assert compared.count("_init_training_state") == 3
    assert {"evaluation_loop", "get_batch_samples", "_save_checkpoint"} < set(compared)
