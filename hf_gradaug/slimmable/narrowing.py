# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Makes the config of a sub-network. One short function per model family says which fields scale with the width."""

import copy
from numbers import Integral

from transformers import PreTrainedConfig

from ..messages import shorten
from .registry import FAMILIES, Narrow, find_narrowing


def supported_model_types() -> list[str]:
    """The `model_type` of every family with a registered narrowing, in alphabetical order."""
    return sorted(name for name, family in FAMILIES.items() if family.narrowing)


def check_width(width: float, name: str = "width") -> None:
    """Raises a `ValueError` that names the argument if the width multiplier is outside (0, 1]."""
    if not 0 < width <= 1:
        raise ValueError(f"`{name}` must be a width multiplier in (0, 1], but is {width}.")


def narrow_config(config: PreTrainedConfig, width: float, width_divisor: int = 1) -> PreTrainedConfig:
    """
    The config of a sub-network.

    Args:
        config (`PreTrainedConfig`):
            Config of the full network. It is not changed.
        width (`float`):
            Width multiplier, in (0, 1].
        width_divisor (`int`, *optional*, defaults to `1`):
            Channel counts are rounded to multiples of it, see [`narrow_channels`].

    Returns:
        `PreTrainedConfig`: A narrower copy. At width 1 it is an equal copy, whatever the divisor.

    Raises:
        `ValueError`: If `width` is outside (0, 1] or `width_divisor` is not a whole number, 1 or more, or the
            family can't take this width.
        `TypeError`: If the config's family has no narrowing.
    """
    check_width(width)
    if not isinstance(width_divisor, Integral) or width_divisor < 1:
        raise ValueError(f"`width_divisor` must be a whole number, 1 or more, but is {width_divisor!r}.")
    narrowing = find_narrowing(config.model_type)
    if narrowing is None:
        raise TypeError(
            f"GradAug has no sub-networks for model type {config.model_type!r}. Supported: "
            f"{shorten(supported_model_types())}, all for images; docs/models.md has the list. Set `num_subnetworks=0` to train without GradAug. To add an image model of yours, say which config "
            "fields scale with the width:\n\n"
            f'    @hf_gradaug.register_narrowing("{config.model_type}")\n'
            "    def _(config, narrow):\n"
            "        config.hidden_sizes = narrow(config.hidden_sizes)\n"
        )
    # The names of the labels can be tens of thousands; no narrowing edits them.
    labels = [config.__dict__.get("id2label"), config.__dict__.get("label2id")]
    config = copy.deepcopy(config, memo={id(names): names for names in labels})
    if width < 1:
        narrowing(config, Narrow(width, width_divisor))
    return config
