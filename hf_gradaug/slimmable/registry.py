# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The registered model families: how a config narrows, and where its residual blocks are."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from transformers import PreTrainedConfig


def narrow_channels(
    channels: Sequence[int], width: float, divisor: int = 1, minimum: int = 1, multiple: int | Sequence[int] = 1
) -> list[int]:
    """
    Channel counts of a sub-network.

    Each is `int(count * width / divisor + 0.5) * divisor`, which is the paper's code for `divisor` 1. Equal counts
    stay equal, and different counts stay different, by rounding the larger one up. This matters because residual
    blocks have a projection shortcut only where counts differ. No count is below `minimum` or above the full network's.

    Args:
        channels (`Sequence[int]`):
            Channel counts of the full network that belong together.
        width (`float`):
            Width multiplier, in (0, 1].
        divisor (`int`, *optional*, defaults to `1`):
            Counts are multiples of it, except counts that equal the full network's.
        minimum (`int`, *optional*, defaults to `1`):
            Smallest count that the family can take.
        multiple (`int` or `Sequence[int]`, *optional*, defaults to `1`):
            Channels of an attention head or group, which the family narrows by: one number for all counts, or one per
            count. Counts are multiples of it and of `divisor`. A count that isn't a multiple in the full network
            doesn't change.

    Returns:
        `list[int]`: As many counts as `channels`.
    """
    multiples = [multiple] * len(channels) if isinstance(multiple, int) else multiple
    units: dict[int, int] = {}
    for count, unit in zip(channels, multiples, strict=True):
        units[count] = math.lcm(units.get(count, 1), unit)
    narrowed: dict[int, int] = {}
    least = minimum
    for count, whole in sorted(units.items()):
        unit = math.lcm(whole, divisor)
        rounded = max(int(count * width / unit + 0.5), math.ceil(least / unit)) * unit
        narrowed[count] = count if count % whole else min(count, rounded)
        least = narrowed[count] + 1
    return [narrowed[count] for count in channels]


@dataclass(frozen=True)
class Narrow:
    """[`narrow_channels`] with the width multiplier and the divisor of a sub-network; the argument of a narrowing."""

    width: float
    divisor: int = 1

    def __call__(self, channels: Sequence[int], minimum: int = 1, multiple: int | Sequence[int] = 1) -> list[int]:
        return narrow_channels(channels, self.width, self.divisor, minimum, multiple)


# A narrowing edits a config in place.
Narrowing = Callable[[PreTrainedConfig, Narrow], None]

Sizes = Callable[..., Sequence[int]]


@dataclass(frozen=True)
class IfTheyFit:
    """Sizes that apply only if they add up to the layer's size. Otherwise it is a user's own, of that name and one part."""

    sizes: Sizes

    def __call__(self, config: PreTrainedConfig, *numbers: int) -> Sequence[int]:
        return self.sizes(config, *numbers)


# By pattern of a parameter or buffer name and by dimension: into how many equal parts, or into which sizes, it divides. A
# function computes the sizes from the config and the numbers that the pattern's groups matched.
Parts = Mapping[str, Mapping[int, int | Sizes]]


class Block(NamedTuple):
    """The residual block that a name belongs to: `before` and `after` are the name around the block's index."""

    stage: int  # 0 if the model has no stages
    index: int
    before: str
    after: str


@dataclass(frozen=True)
class Depth:
    """
    Where the residual blocks of a family are.

    Args:
        field (`str`): Field of the config with the number of blocks, one number or one for each stage.
        blocks (`str`): Pattern for the names of the blocks. Its last group is the index of the block. If there are
            stages, the group before it is the index of the stage.
    """

    field: str
    blocks: str

    @property
    def has_stages(self) -> bool:
        return re.compile(self.blocks).groups > 1

    def find(self, name: str) -> Block | None:
        """The block that the name of a module, parameter or buffer belongs to, if any."""
        match = re.search(rf"(?:^|\.){self.blocks}(?=\.|$)", name)
        if match is None:
            return None
        *stage, index = map(int, match.groups())
        start, end = match.span(match.lastindex)
        return Block(stage[0] if stage else 0, index, name[:start], name[end:])


@dataclass(frozen=True)
class Family:
    """A registered model family. `depth` is `None` if its blocks can't be dropped. `is_users`: not this package's."""

    narrowing: Narrowing | None = None
    parts: Parts = field(default_factory=dict)
    depth: Depth | None = None
    is_users: bool = False


FAMILIES: dict[str, Family] = {}


def find_narrowing(model_type: str) -> Narrowing | None:
    """The narrowing of a model family, if it has one: its random depth alone may be registered."""
    family = FAMILIES.get(model_type)
    return None if family is None else family.narrowing


# Most families of transformers have their blocks here.
STAGES = Depth("depths", r"stages\.(\d+)\.layers\.(\d+)")


def register_family(
    *model_types: str, parts: Parts | None = None, depth: Depth | None = None, is_users: bool = False
) -> Callable[[Narrowing], Narrowing]:
    """[`register_narrowing`] and [`register_depth`] in one, for the families that this package knows."""

    def register(narrowing: Narrowing) -> Narrowing:
        for name in model_types:
            known = FAMILIES.get(name) or Family()
            FAMILIES[name] = Family(narrowing, parts or {}, depth or known.depth, is_users)
        return narrowing

    return register


def register_narrowing(*model_types: str, parts: Parts | None = None) -> Callable[[Narrowing], Narrowing]:
    """
    Registers how the configs of a model family are narrowed, as a decorator.

    The function gets a copy of the config to edit in place, and `narrow`, which maps channel counts to narrower
    counts. Equal counts stay equal and different counts stay different, so pass counts that belong together in one
    call. `narrow(counts, minimum=4)` keeps every count at 4 or more. `narrow(counts, multiple=64)` removes whole heads
    or groups of 64 channels (see [`narrow_channels`]). `narrow.width` is the width multiplier.

    A sub-network uses the leading entries of every dimension. This is wrong for a layer that takes a concatenation, or
    whose output is split: the leading columns of a layer on `cat(a, b)` all belong to `a`. `parts` says how such
    dimensions divide, and each part narrows to its own leading entries.

    Args:
        model_types (`str`):
            Values of `config.model_type`.
        parts (`dict[str, dict[int, int or Callable]]`, *optional*):
            Maps a pattern (a regular expression) to the dimensions that divide. The pattern matches the end of a
            parameter's or buffer's name, from a dot on. A dimension divides into a number of equal parts, or into the
            sizes that a function returns. The function gets a config, once the full network's and once the
            sub-network's, and the numbers that the pattern's groups matched.

    Returns:
        `Callable`: The decorator. It returns the function unchanged.

    Example:

    ```python
    @register_narrowing("my_model", parts={r"fusion\\.weight": {1: 2}})  # nn.Linear on two feature maps, concatenated
    def _(config, narrow):
        config.hidden_sizes = narrow(config.hidden_sizes)
    ```
    """

    return register_family(*model_types, parts=parts, is_users=True)


def register_depth(*model_types: str, field: str, blocks: str) -> None:
    """
    Registers where the residual blocks of a model family are, so that sub-networks can drop some.

    The first block of each stage is never dropped, because it may change size and channels. Every other block must be
    a residual block, whose output has the shape of its input.

    Args:
        model_types (`str`):
            Values of `config.model_type`. They need a narrowing too (see [`register_narrowing`]).
        field (`str`):
            Field of the config with the number of blocks: one number, or one for each stage.
        blocks (`str`):
            Pattern (a regular expression) for the names of the blocks. Its last group is the index of the block. If
            there are stages, the group before it is the index of the stage.

    Example:

    ```python
    register_depth("my_model", field="depths", blocks=r"stages\\.(\\d+)\\.layers\\.(\\d+)")
    ```
    """
    for name in model_types:
        FAMILIES[name] = replace((FAMILIES.get(name) or Family()), depth=Depth(field, blocks))
