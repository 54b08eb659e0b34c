# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What is checked of model and settings before training."""

import logging

from torch import nn

from .losses import get_logits
from .settings import GradAugSettings
from .slimmable.depth import depths_of
from .slimmable.image_size import meta_outputs
from .slimmable.model import SlimmableModel
from .slimmable.skeleton import shapes_of
from .transforms import Transform


logger = logging.getLogger(__name__)


def checked_settings(settings: GradAugSettings | None) -> GradAugSettings:
    """The settings, or the defaults. Raises an error if they are of another kind or have values that aren't allowed."""
    if settings is None:
        return GradAugSettings()
    if not isinstance(settings, GradAugSettings):
        raise TypeError(f"`settings` must be `GradAugSettings`, but is a {type(settings).__name__}.")
    GradAugSettings.__post_init__(settings)  # a search of settings may have changed them
    return settings


def check_transform(transform: Transform | None, settings: GradAugSettings) -> None:
    """Raises an error if a transformation of one's own can't be called, or its settings were changed beside it."""
    if transform is not None and not callable(transform):
        raise TypeError(f"`transform` must be a function (images, generator) -> images, but is {transform!r}.")
    default = GradAugSettings()
    for name in ("scales", "rotations"):
        value = getattr(settings, name)
        if transform is not None and value != getattr(default, name):
            raise ValueError(f"`{name}` must keep its default with a `transform`, which replaces it, but is {value}.")


def check_smallest(model: SlimmableModel, settings: GradAugSettings) -> None:
    """Raises an error if the model can't have its smallest sub-network; warns if that is the full network."""
    config, blocks = model.config, None
    if settings.draws_depth:
        depths = depths_of(config)
        if max(depths) == 1:
            raise ValueError(
                f"`subnetwork_kind` must be 'width' for this {config.model_type}, but is {settings.subnetwork_kind!r}. There is "
                f"no block to drop: its stages have {depths} blocks, and the first of each is kept."
            )
        blocks = [[0]] * len(depths)
    width, divisor = settings.smallest_width, settings.width_divisor
    model.subnetwork(width, divisor, blocks)
    # Whole heads and groups, and a large divisor, may leave nothing between the width and the full network. Some classes
    # round channel counts themselves, and a user's may not follow its config.
    if width < 1 and shapes_of(model.subnetwork(width, divisor).skeleton) == shapes_of(model):
        logger.warning(
            f"`min_width` {width} rounds to the full network, because this {config.model_type} narrows in larger steps, or "
            "its class or `build` doesn't follow its config. Sub-networks will have the full width and differ only in "
            "their images. Use a smaller `min_width`, or build every layer from the config."
        )


def check_trains(model: nn.Module) -> None:
    """Raises a `ValueError` if a model is in eval mode. Single layers may be, such as frozen BatchNorm layers."""
    if not model.training:
        raise ValueError(
            f"`model` must be in train mode, but this {type(model).__name__} is in eval mode, as `from_pretrained` and an "
            "evaluation leave it. Call `model.train()` before each epoch. To freeze BatchNorm or dropout, call `eval()` on "
            "these layers afterwards."
        )


def check_logits(skeleton: nn.Module) -> None:
    """Raises an error if a model has no logits, such as a backbone, before the first step would."""
    # Other models may need other inputs, or larger images.
    size = getattr(skeleton.config, "image_size", None) or 224
    outputs = meta_outputs(skeleton, (size, size) if isinstance(size, int) else tuple(size))
    if outputs is not None:
        get_logits(outputs)
