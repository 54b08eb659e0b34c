# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
How detectors and segmenters narrow: by the narrowing of their backbone's family.

The layers after the backbone keep their width. Layers that read its feature maps follow the backbone; the models build
them so.
"""

from collections.abc import Sequence

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from ..messages import shorten
from .narrowing import supported_model_types
from .registry import STAGES, Narrow, find_narrowing, register_family


@register_family("detr", "conditional_detr", "deformable_detr", "maskformer", "mask2former")
def _narrow_backbone(config: PreTrainedConfig, narrow: Narrow) -> None:
    backbone = config.backbone_config
    narrowing = find_narrowing(backbone.model_type)
    if narrowing is None:
        backbones = sorted(MODEL_FOR_BACKBONE_MAPPING_NAMES.keys() & set(supported_model_types()))
        raise TypeError(
            f"The backbone of this {config.model_type} can't be narrowed: `config.backbone_config` is of model type "
            f"{backbone.model_type!r}, but must be of one with a narrowing, {shorten(backbones)}; docs/models.md has "
            "the list. Replace a timm backbone by a `backbone_config` of transformers, such as `ResNetConfig`."
        )
    narrowing(backbone, narrow)


@register_family("rt_detr", "d_fine")
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    # The models are built from the backbone and only count these channels, but this keeps the config consistent.
    is_backbones_own = list(config.encoder_in_channels) == _feature_channels(config.backbone_config)
    _narrow_backbone(config, narrow)
    if is_backbones_own:
        config.encoder_in_channels = _feature_channels(config.backbone_config)


def _pooled(config: PreTrainedConfig) -> list[int]:
    # The last feature map, and what each pooling makes of it.
    return [_feature_channels(config.backbone_config)[-1]] + [config.hidden_size] * len(config.pool_scales)


def _auxiliary(config: PreTrainedConfig) -> list[int]:
    # The third feature map, and what the auxiliary head made of it.
    return [_feature_channels(config.backbone_config)[2], config.auxiliary_channels]


@register_family(
    "upernet",
    parts={
        r"decode_head\.bottleneck\.conv\.weight": {1: _pooled},
        r"auxiliary_head\.conv_cat\.conv\.weight": {1: _auxiliary},
    },
)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    _narrow_backbone(config, narrow)
    if config.auxiliary_in_channels is not None:
        config.auxiliary_in_channels = _feature_channels(config.backbone_config)[2]


@register_family("rt_detr_resnet", depth=STAGES)
def _(config: PreTrainedConfig, narrow: Narrow) -> None:
    # The stem begins with half of its count, and a bottleneck has a quarter inside.
    minimum = 4 if config.layer_type == "bottleneck" else 2
    config.embedding_size, *config.hidden_sizes = narrow(
        [config.embedding_size, *config.hidden_sizes], minimum=minimum
    )


def _feature_channels(backbone: PreTrainedConfig) -> Sequence[int]:
    """Channels of the feature maps that a backbone returns."""
    if hasattr(backbone, "hidden_sizes"):
        stages = list(backbone.hidden_sizes)
    elif hasattr(backbone, "depths"):  # such as Swin
        stages = [backbone.embed_dim * 2**stage for stage in range(len(backbone.depths))]
    else:  # such as DINOv2, where each block is a stage
        stages = [backbone.hidden_size] * backbone.num_hidden_layers
    channels = [getattr(backbone, "embedding_size", stages[0]), *stages]
    # An index may be negative. Counted from the end, since some backbones have no stem among their stages.
    names = len(backbone.stage_names)
    return [channels[index % names - names] for index in backbone.out_indices]
