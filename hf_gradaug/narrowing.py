# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""From a config to that of a sub-network: which fields scale with the width, one short function a model family."""

import copy
import functools
from collections.abc import Callable, Sequence

from transformers import PreTrainedConfig


# A narrowing edits a config in place; `narrow` maps a list of channel counts to narrower ones.
Narrow = Callable[..., list[int]]
Narrowing = Callable[[PreTrainedConfig, Narrow], None]

_NARROWINGS: dict[str, Narrowing] = {}


def narrow_channels(channels: Sequence[int], width: float, divisor: int = 1, minimum: int = 1) -> list[int]:
    """
    Channel counts of a sub-network.

    Each is `int(count * width / divisor + 0.5) * divisor`, the paper's code for `divisor` 1. Equal counts stay equal, and
    different counts stay different (the larger one gives way upwards), because residual blocks have a projection
    shortcut where counts differ and none where they are equal. No count is below `minimum`, nor above the full
    network's.

    Args:
        channels (`Sequence[int]`):
            Channel counts of the full network that belong together.
        width (`float`):
            Width multiplier, in (0, 1].
        divisor (`int`, *optional*, defaults to `1`):
            The counts are multiples of it, except those that the full network has too.
        minimum (`int`, *optional*, defaults to `1`):
            The least count that the family can take.

    Returns:
        `list[int]`: As many counts as `channels`.
    """
    narrowed: dict[int, int] = {}
    least = max(divisor, minimum)
    for count in sorted(set(channels)):
        narrowed[count] = min(count, max(int(count * width / divisor + 0.5) * divisor, least))
        least = narrowed[count] + divisor
    return [narrowed[count] for count in channels]


def register_narrowing(*model_types: str) -> Callable[[Narrowing], Narrowing]:
    """
    Registers how the configs of a model family are narrowed, as a decorator.

    The function gets a copy of the config to edit in place, and `narrow`, which maps a list of channel counts to a list of
    narrower ones: equal counts stay equal and different counts different, so pass the counts that belong together in one
    call. `narrow(counts, minimum=4)` keeps every count at 4 or more.

    Args:
        model_types (`str`):
            Values of `config.model_type`.

    Example:

    ```python
    @register_narrowing("my_model")
    def _(config, narrow):
        config.hidden_sizes = narrow(config.hidden_sizes)
    ```
    """

    def register(narrowing: Narrowing) -> Narrowing:
        _NARROWINGS.update(dict.fromkeys(model_types, narrowing))
        return narrowing

    return register


def supported_model_types() -> list[str]:
    """The `model_type` of every family with a registered narrowing."""
    return sorted(_NARROWINGS)


def check_width(width: float, name: str = "width") -> None:
    """Raises a `ValueError` that names the argument if the width multiplier is outside (0, 1]."""
    if not 0 < width <= 1:
        raise ValueError(f"`{name}` is a width multiplier and must be in (0, 1], but is {width}.")


def narrow_config(config: PreTrainedConfig, width: float, divisor: int = 1) -> PreTrainedConfig:
    """
    The config of a sub-network.

    Args:
        config (`PreTrainedConfig`):
            Config of the full network; it is left alone.
        width (`float`):
            Width multiplier, in (0, 1].
        divisor (`int`, *optional*, defaults to `1`):
            Channel counts are rounded to multiples of it, see [`narrow_channels`].

    Returns:
        `PreTrainedConfig`: A narrower copy. At width 1 it is an equal copy, whatever the divisor.

    Raises:
        `ValueError`: If `width` is outside (0, 1] or `divisor` below 1.
        `TypeError`: If the config's family has no narrowing.
    """
    check_width(width)
    if divisor < 1:
        raise ValueError(f"`width_divisor` must be 1 or more, but is {divisor}.")
    narrowing = _NARROWINGS.get(config.model_type)
    if narrowing is None:
        raise TypeError(
            f"No narrowing is known for model type {config.model_type!r}. Supported: {supported_model_types()}. To add "
            "yours, tell which config fields scale with the width:\n\n"
            f'    @hf_gradaug.register_narrowing("{config.model_type}")\n'
            "    def _(config, narrow):\n"
            "        config.hidden_sizes = narrow(config.hidden_sizes)\n"
        )
    # The names of the labels can be tens of thousands; no narrowing edits them.
    labels = [config.__dict__.get("id2label"), config.__dict__.get("label2id")]
    config = copy.deepcopy(config, memo={id(names): names for names in labels})
    if width < 1:
        narrowing(config, functools.partial(narrow_channels, width=width, divisor=divisor))
    return config


@register_narrowing("convnext", "convnextv2")
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    config.hidden_sizes = narrow(config.hidden_sizes)


@register_narrowing("resnet")
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    stem, sizes = config.embedding_size, list(config.hidden_sizes)
    if config.layer_type == "bottleneck" and stem == sizes[0] // 4:
        # The usual stem is as wide as the first bottleneck's inner layers, for which the model takes a quarter of the
        # outer count, rounded down. At 0.9 that is 57 of 64 beside 230 of 256, where rounding by itself gives 58.
        config.hidden_sizes = narrow(sizes, minimum=4)
        config.embedding_size = config.hidden_sizes[0] // 4
    else:
        minimum = 4 if config.layer_type == "bottleneck" else 1
        config.embedding_size, *config.hidden_sizes = narrow([stem, *sizes], minimum=minimum)
