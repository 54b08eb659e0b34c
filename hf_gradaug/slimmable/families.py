# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
How each model family narrows. The rules follow transformers' configuration and modeling files.

Attention narrows by whole heads and grouped layers by whole groups. So a sub-network's heads and groups are heads and
groups of the full network. If one config field sets all stages, they lose the same fraction of their heads or groups.
"""

import math
from collections.abc import Sequence

from transformers import PreTrainedConfig

from . import dense_families  # noqa: F401  its import registers the models on top of these
from .registry import STAGES, Depth, IfTheyFit, Narrow, register_family


# Without `depth`: mobilenet_v1, mobilenet_v2 and mobilevit, whose configs don't have the number of blocks; efficientnet,
# levit and swiftformer, whose lists have layers between of another size or kind; cvt, whose second and third stage can't
# be built with fewer than two and three blocks.
_LAYERS_OF_BLOCKS = Depth("depths", r"layers\.(\d+)\.blocks\.(\d+)")
_BLOCKS_OR_STAGES = Depth("depths", r"(?:block|stages)\.(\d+)\.(?:blocks\.)?(\d+)")
_ONE_STAGE = Depth("num_hidden_layers", r"layers?\.(\d+)")


@register_family("poolformer", depth=_BLOCKS_OR_STAGES)
@register_family("convnext", "convnextv2", depth=STAGES)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    config.hidden_sizes = narrow(config.hidden_sizes)


@register_family("resnet", depth=STAGES)
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


@register_family("regnet", depth=STAGES)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    stem, sizes = config.embedding_size, list(config.hidden_sizes)
    groups = [1] + [config.groups_width] * len(sizes)
    # Squeeze-and-excitation takes a quarter of the count.
    config.embedding_size, *config.hidden_sizes = narrow([stem, *sizes], minimum=4, multiple=groups)


@register_family("bit", depth=STAGES)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    # The model rounds a stage and the quarter of it inside its blocks to multiples of 8, and group normalization has
    # one number of groups for all layers: the smallest reduction keeps all of these whole.
    groups, sizes = config.num_groups, list(config.hidden_sizes)
    if config.width_factor != 1 or any(size % 32 for size in sizes):
        raise ValueError(
            "`width_factor` and `hidden_sizes` must be 1 and multiples of 32 for sub-networks of bit, but are "
            f"{config.width_factor} and {sizes}."
        )
    step = math.lcm(*(32 * groups // math.gcd(32 * groups, size) for size in sizes))
    step = math.lcm(step, groups // math.gcd(groups, config.embedding_size))
    units = groups // step
    kept = _kept_units(config, narrow, sizes[0], units, f"groups ({step} of {groups})")
    config.num_groups = groups * kept // units
    config.embedding_size = config.embedding_size * kept // units
    config.hidden_sizes = [size * kept // units for size in sizes]


@register_family("mobilenet_v1")
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    # The first count is 32 times the multiplier, and the others are its doubles.
    (first,) = narrow([int(32 * config.depth_multiplier)])
    config.depth_multiplier = first / 32


@register_family("mobilenet_v2")
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import apply_depth_multiplier

    def joined_counts() -> list[int]:
        return [apply_depth_multiplier(config, count) for count in (32, 64, 96, 160, 320)]

    full = joined_counts()
    _check_own_multiple(config, narrow, config.depth_divisible_by)
    config.depth_multiplier *= narrow.width
    if len(set(joined_counts())) != len(set(full)):
        raise ValueError(
            f"`width` must be larger for mobilenet_v2, but is {narrow.width}. Rounding would make some of the channel "
            f"counts {full} equal, which adds shortcuts that the full network doesn't have."
        )


@register_family("efficientnet")
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    from transformers.models.efficientnet.modeling_efficientnet import round_filters

    _check_own_multiple(config, narrow, config.depth_divisor)
    config.width_coefficient *= narrow.width
    config.hidden_dim = round_filters(config, 1280)


@register_family("swiftformer")
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    config.embed_dims = narrow(config.embed_dims, minimum=2)  # the stem takes half of the first


def _aggregated(config: PreTrainedConfig, stage: int, block: int) -> list[int]:
    # Each block ends with a convolution on its input and the outputs of all its layers.
    block_input = config.stage_in_channels[stage] if block == 0 else config.stage_out_channels[stage]
    return [block_input] + [config.stage_mid_channels[stage]] * config.stage_numb_of_layers[stage]


@register_family(
    "hgnet_v2",
    parts={
        r"embedder\.stem3\.convolution\.weight": {1: 2},
        r"stages\.(\d+)\.blocks\.(\d+)\.aggregation\.0\.convolution\.weight": {1: _aggregated},
    },
    depth=Depth("stage_num_blocks", r"stages\.(\d+)\.blocks\.(\d+)"),
)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    fields = ("stage_in_channels", "stage_mid_channels", "stage_out_channels", "hidden_sizes")
    images, *stem = config.stem_channels
    # All together: a stage's input is the output before it. Stem and blocks have layers of half the count.
    counts = iter(narrow([*stem, *(count for name in fields for count in getattr(config, name))], minimum=2))
    config.stem_channels = [images, *(next(counts) for _ in stem)]
    for name in fields:
        setattr(config, name, [next(counts) for _ in getattr(config, name)])


def _modulation(config: PreTrainedConfig, stage: int) -> list[int]:
    # Query, context, and a gate for each focal level and for the global one.
    channels = config.embed_dim * 2**stage
    return [channels, channels, config.focal_levels[stage] + 1]


@register_family(
    "focalnet", parts={r"stages\.(\d+)\..*projection_in\.(?:weight|bias)": {0: _modulation}}, depth=STAGES
)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    (config.embed_dim,) = narrow([config.embed_dim])


def _pooled(config: PreTrainedConfig) -> list[int]:
    # The last feature map, and what each pooling makes of it.
    return [config.hidden_size] * (1 + len(config.pool_scales))


# The segmenter's heads concatenate feature maps.
@register_family(
    "beit",
    parts={
        r"decode_head\.psp_bottleneck\.convolution\.weight": {1: _pooled},
        r"decode_head\.fpn_bottleneck\.convolution\.weight": {1: 4},
        r"auxiliary_head\.conv_cat\.convolution\.weight": {
            1: lambda config: [config.hidden_size, config.auxiliary_channels]
        },
    },
    depth=_ONE_STAGE,
)
@register_family("vit", "deit", depth=_ONE_STAGE)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    pooler_is_as_wide = getattr(config, "pooler_output_size", None) == config.hidden_size
    _narrow_one_attention(config, narrow)
    (config.intermediate_size,) = narrow([config.intermediate_size])
    if pooler_is_as_wide:
        config.pooler_output_size = config.hidden_size


# The classifier sees the class token and the mean of the others. A user's own may see less.
# In transformers 5.17, SwiGLU has both halves in one layer.
@register_family(
    "dinov2",
    parts={
        r"classifier\.weight": {1: IfTheyFit(lambda config: [config.hidden_size] * 2)},
        r"mlp\.weights_in\.(?:weight|bias)": {0: 2},
    },
    depth=_ONE_STAGE,
)
def _narrow_one_attention(config: PreTrainedConfig, narrow: Narrow) -> None:
    heads, size = config.num_attention_heads, config.hidden_size
    config.num_attention_heads = _kept_units(config, narrow, size, heads, "heads")
    config.hidden_size = size * config.num_attention_heads // heads


# Patch merging concatenates the channels of four neighbours.
@register_family(
    "swin",
    "maskformer-swin",
    parts={r"downsample\.reduction\.weight": {1: 4}, r"downsample\.norm\.(?:weight|bias)": {0: 4}},
    depth=_LAYERS_OF_BLOCKS,
)
@register_family("swinv2", parts={r"downsample\.reduction\.weight": {1: 4}}, depth=_LAYERS_OF_BLOCKS)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    _narrow_doubling_attention(config, narrow, 2)


@register_family("hiera", parts={r"attn\.qkv\.(?:weight|bias)": {0: 3}}, depth=STAGES)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    _narrow_doubling_attention(config, narrow, config.embed_dim_multiplier)


@register_family("pvt_v2", depth=_LAYERS_OF_BLOCKS)
@register_family("segformer", depth=_BLOCKS_OR_STAGES)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    config.hidden_sizes, config.num_attention_heads = _narrow_stages(
        narrow, config.hidden_sizes, config.num_attention_heads
    )


@register_family("cvt")
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    config.embed_dim, config.num_heads = _narrow_stages(narrow, config.embed_dim, config.num_heads)


@register_family("levit")
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    # The fused projections are laid out head by head, so that leading heads are leading entries.
    keys = [heads * key for heads, key in zip(config.num_attention_heads, config.key_dim)]
    _, config.num_attention_heads = _narrow_stages(narrow, keys, config.num_attention_heads)
    # The stem begins with an eighth. Between stages, the config makes a head of each `key_dim` channels.
    config.hidden_sizes = narrow(config.hidden_sizes, minimum=max(8, config.key_dim[0]))
    for operation, size in zip(config.down_ops, config.hidden_sizes):
        if operation[0] == "Subsample":
            operation[2] = size // operation[1]


# Each of these layers ends with a convolution on its input and its features.
@register_family("mobilevit", parts={r"fusion\.convolution\.weight": {1: 2}})
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    heads, sizes = config.num_attention_heads, list(config.hidden_sizes)
    # One number of heads for all stages: rounding what their head sizes have in common rounds each.
    common = math.gcd(*(size // heads for size in sizes))
    kept = _kept_units(config, narrow, heads * common, heads, "heads")
    config.num_attention_heads = kept
    config.hidden_sizes = [size * kept // heads for size in sizes]
    config.neck_hidden_sizes = narrow(config.neck_hidden_sizes)


def _narrow_doubling_attention(config: PreTrainedConfig, narrow: Narrow, factor: float) -> None:
    """For stages that are each `factor` times as wide as the one before."""
    heads = list(config.num_heads)
    units = math.gcd(*heads)
    kept = _kept_units(config, narrow, config.embed_dim, units, f"heads, in all stages alike ({heads})")
    config.embed_dim = config.embed_dim * kept // units
    config.num_heads = [count * kept // units for count in heads]
    config.hidden_size = int(config.embed_dim * factor ** (len(heads) - 1))


def _narrow_stages(narrow: Narrow, sizes: Sequence[int], heads: Sequence[int]) -> tuple[list[int], list[int]]:
    """Channel counts and numbers of heads of stages that narrow by their own heads; a stage with one head stays."""
    head_sizes = [size // count for size, count in zip(sizes, heads)]
    narrowed = narrow(sizes, multiple=head_sizes)
    return narrowed, [size // head_size for size, head_size in zip(narrowed, head_sizes)]


def _kept_units(config: PreTrainedConfig, narrow: Narrow, size: int, units: int, what: str) -> int:
    """The number of heads or groups that a sub-network keeps, of `units` with `size` channels together."""
    if units < 2:
        raise ValueError(
            f"{config.model_type} narrows by whole {what}, and this config has no narrower sub-network: its {size} "
            "channels can't be divided."
        )
    (kept,) = narrow([size], multiple=size // units)
    return kept * units // size


def _check_own_multiple(config: PreTrainedConfig, narrow: Narrow, multiple: int) -> None:
    if multiple % narrow.divisor:
        raise ValueError(
            f"`width_divisor` must divide {multiple}, to whose multiples {config.model_type} rounds its channel "
            f"counts by itself, but is {narrow.divisor}."
        )
