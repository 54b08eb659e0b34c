# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Sub-networks with fewer residual blocks, the paper's second kind.

The config of such a sub-network has fewer blocks. Its names are mapped to the names of the kept blocks.
"""

import copy
from collections.abc import Callable, Iterable, Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..messages import shorten
from .registry import FAMILIES, Block, Depth


# For each stage, the indices of the blocks that a sub-network keeps.
KeptBlocks = Sequence[Sequence[int]]


def config_with_blocks(config: PreTrainedConfig) -> PreTrainedConfig:
    """
    The part of a config that has the residual blocks. For detectors and segmenters, this is the backbone's config.

    Only backbones with stages count. In other backbones, blocks have the same names as the detector's own layers.
    """
    backbone = getattr(config, "backbone_config", None)
    if _depth_of(config) or backbone is None:
        return config
    depth = _depth_of(backbone)
    return backbone if depth is None or depth.has_stages else config


def _depth_of(config: PreTrainedConfig) -> Depth | None:
    family = FAMILIES.get(config.model_type)
    return family and family.depth


def block_finder(config: PreTrainedConfig) -> Callable[[str], Block | None]:
    """Finds the residual block in the name of a module or parameter of a model with this config, see [`Depth`]."""
    return _depth_of(config_with_blocks(config)).find


def droppable_model_types() -> list[str]:
    """The `model_type` of every family whose residual blocks can be dropped."""
    return sorted(name for name, family in FAMILIES.items() if family.depth)


def depths_of(config: PreTrainedConfig) -> list[int]:
    """
    Numbers of residual blocks by stage. A model without stages counts as one. For detectors and segmenters, the
    numbers are the backbone's.

    Raises:
        `TypeError`: If the family's blocks aren't registered.
    """
    config = config_with_blocks(config)
    depth = _depth_of(config)
    if depth is None:
        raise TypeError(
            f"It isn't known which blocks of model type {config.model_type!r} can be dropped. `subnetwork_kind` "
            f"'depth' and 'width_depth', and `kept_blocks`, are for: {shorten(droppable_model_types())}; docs/models.md has the list. "
            "To add yours, see `hf_gradaug.register_depth`."
        )
    depths = getattr(config, depth.field)
    return [depths] if isinstance(depths, int) else list(depths)


def leading_blocks(
    config: PreTrainedConfig, num_blocks: int | Sequence[int] | None = None
) -> tuple[tuple[int, ...], ...]:
    """
    The residual blocks that a sub-network most likely keeps in training: the first ones.

    Args:
        config (`PreTrainedConfig`):
            Config with all blocks.
        num_blocks (`int` or `Sequence[int]`, *optional*):
            How many to keep. One number per stage, each 1 or more, keeps the leading blocks of each stage. A single
            number counts the blocks of the whole model, at least one per stage. Earlier blocks are kept first, because
            they are likelier to survive. If not given, all blocks are kept.

    Returns:
        `tuple[tuple[int, ...], ...]`: The `kept_blocks`: for each stage, the indices of the blocks to keep, ascending.

    Raises:
        `ValueError`: If the model has fewer blocks, or a stage would have none.
        `TypeError`: If the family's blocks aren't registered.

    Example:

    ```python
    leading_blocks(config, [2, 2, 3, 2])  # ((0, 1), (0, 1), (0, 1, 2), (0, 1))
    ```
    """
    depths = depths_of(config)
    numbers = [num_blocks] if isinstance(num_blocks, int) else list(depths if num_blocks is None else num_blocks)
    if len(numbers) == 1 and len(depths) <= numbers[0] <= sum(depths):
        spare, numbers = numbers[0] - len(depths), [1] * len(depths)
        for stage, depth in enumerate(depths):
            numbers[stage] += min(spare, depth - 1)
            spare -= numbers[stage] - 1
    if len(numbers) != len(depths) or not all(1 <= number <= depth for number, depth in zip(numbers, depths)):
        raise ValueError(
            f"`num_blocks` must be a number per stage, from 1 to {depths}, or one number for the whole model, from "
            f"{len(depths)} to {sum(depths)}, but is {num_blocks}."
        )
    return tuple(tuple(range(number)) for number in numbers)


def shallower_config(config: PreTrainedConfig, kept_blocks: KeptBlocks) -> PreTrainedConfig:
    """
    The config of a sub-network with some of the blocks.

    Args:
        config (`PreTrainedConfig`):
            Config with all blocks. It is not changed.
        kept_blocks (`Sequence[Sequence[int]]`):
            For each stage, the indices of the blocks to keep, ascending, the first one always.

    Returns:
        `PreTrainedConfig`: A copy with fewer blocks.

    Raises:
        `ValueError`: If `kept_blocks` doesn't fit the config.
        `TypeError`: If the family's blocks aren't registered.
    """
    depths, kept = depths_of(config), [list(blocks) for blocks in kept_blocks]
    fits = len(kept) == len(depths) and all(
        blocks[:1] == [0] and blocks == sorted(set(blocks)) and blocks[-1] < depth
        for blocks, depth in zip(kept, depths)
    )
    if not fits:
        raise ValueError(
            "`kept_blocks` must list the indices of the kept blocks per stage, ascending from 0, but is "
            f"{kept}. The stages have {depths} blocks."
        )
    if (backbone := config_with_blocks(config)) is not config:
        config = copy.copy(config)
        config.backbone_config = shallower_config(backbone, kept)
        return config
    field = _depth_of(config).field
    lengths = [len(blocks) for blocks in kept]
    # The kinds of numbers and lists are those of the config, whose own checks run at the assignment.
    depths = getattr(config, field)
    config = copy.copy(config)
    setattr(config, field, lengths[0] if isinstance(depths, int) else type(depths)(lengths))
    return config


def kept_names(names: Iterable[str], config: PreTrainedConfig, kept_blocks: KeptBlocks | None) -> dict[str, str]:
    """
    Maps a sub-network's names of modules, parameters or buffers to the full network's names.

    Args:
        names (`Iterable[str]`):
            Names in the full network.
        config (`PreTrainedConfig`):
            Its config. The family's blocks must be registered if `kept_blocks` are given.
        kept_blocks (`Sequence[Sequence[int]]`, *optional*):
            For each stage, the indices of the blocks that the sub-network keeps. Not given: all.

    Returns:
        `dict[str, str]`: The full network's name by the sub-network's name, in the full network's order.
    """
    if kept_blocks is None:
        return {name: name for name in names}
    kept, find_block = {}, block_finder(config)
    for name in names:
        block = find_block(name)
        if block is None:
            kept[name] = name
            continue
        blocks = list(kept_blocks[block.stage])
        if block.index in blocks:
            kept[f"{block.before}{blocks.index(block.index)}{block.after}"] = name
    return kept


def dropped_parameters(model: PreTrainedModel, kept_blocks: KeptBlocks) -> list[nn.Parameter]:
    """The trainable parameters of the full network that a sub-network with these blocks doesn't use."""
    parameters = dict(model.named_parameters())
    kept = set(kept_names(parameters, model.config, kept_blocks).values())
    return [parameter for name, parameter in parameters.items() if name not in kept and parameter.requires_grad]
