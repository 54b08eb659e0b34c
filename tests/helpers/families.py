# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Tiny models of every supported family, with all that is random in them turned off but their weights."""

import copy

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from helpers.tiny import FAMILIES as CONVOLUTIONAL
from helpers.tiny import NUM_LABELS, SIZE, tiny_config
from hf_gradaug import models


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_VIT = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": SIZE, "patch_size": 8}
_SWIN = {
    **{"image_size": SIZE, "patch_size": 4, "window_size": 4, "embed_dim": 32, "depths": [2, 1], "num_heads": [4, 8]},
    **{"mlp_ratio": 2.0, "drop_path_rate": 0.0},
}
_PYRAMID = {
    **{"hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 2]},
    **{
        "mlp_ratios": [2, 2, 2, 2],
        "sr_ratios": [4, 2, 1, 1],
        "strides": [2, 2, 2, 2],
        "drop_path_rate": 0.0,
        "classifier_dropout_prob": 0.0,
    },
}

# Class names without `Config` and `ForImageClassification`, and the config's fields.
_MORE = {
    "regnet-x": (
        "RegNet",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "groups_width": 4, "layer_type": "x"},
    ),
    "regnet-y": ("RegNet", {"embedding_size": 16, "hidden_sizes": [16, 24], "depths": [1, 2], "groups_width": 4}),
    "bit": ("Bit", {"num_groups": 4, "embedding_size": 16, "hidden_sizes": [128, 256], "depths": [1, 2]}),
    "mobilenet_v1": ("MobileNetV1", {"depth_multiplier": 0.25, "min_depth": 2, "classifier_dropout_prob": 0.0}),
    "mobilenet_v2": (
        "MobileNetV2",
        {"depth_multiplier": 0.75, "finegrained_output": False, "classifier_dropout_prob": 0.0},
    ),
    "efficientnet": (
        "EfficientNet",
        {
            **{"width_coefficient": 0.5, "depth_coefficient": 1.0, "hidden_dim": 640, "in_channels": [32, 16]},
            **{"out_channels": [16, 24], "kernel_sizes": [3, 5], "strides": [1, 2], "num_block_repeats": [1, 2]},
            **{"expand_ratios": [1, 6], "dropout_rate": 0.0, "drop_connect_rate": 0.0},
        },
    ),
    "mobilevit": (
        "MobileViT",
        {
            **{"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "image_size": SIZE},
            **{"hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0, "output_stride": 8},
        },
    ),
    "swin": ("Swin", _SWIN),
    "swin-positions": ("Swin", {**_SWIN, "use_absolute_embeddings": True}),
    "swinv2": ("Swinv2", _SWIN),
    "vit": ("ViT", {**_VIT, "intermediate_size": 48}),
    "deit": ("DeiT", {**_VIT, "intermediate_size": 48}),
    "beit": (
        "Beit",
        {**_VIT, "intermediate_size": 48, "use_relative_position_bias": True, "drop_path_rate": 0.0, **_NO_DROPOUT},
    ),
    "dinov2": ("Dinov2", {**_VIT, "mlp_ratio": 2}),
    "dinov2-swiglu": ("Dinov2", {**_VIT, "mlp_ratio": 2, "use_swiglu_ffn": True}),
    "focalnet": (
        "FocalNet",
        {
            **{"image_size": SIZE, "embed_dim": 10, "depths": [1, 2], "focal_levels": [2, 1], "focal_windows": [3, 3]},
            **{"mlp_ratio": 2.0, "drop_path_rate": 0.0, "use_layerscale": True},
        },
    ),
    "cvt": (
        "Cvt",
        {
            **{"embed_dim": [16, 32], "num_heads": [2, 4], "depth": [1, 2], "cls_token": [False, True]},
            **{"mlp_ratio": [2.0, 2.0], "drop_path_rate": [0.0, 0.0]},
        },
    ),
    "pvt_v2": ("PvtV2", {**_PYRAMID, "image_size": SIZE}),
    "poolformer": (
        "PoolFormer",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 2], "mlp_ratio": 2.0, "strides": [2, 2, 2, 2]},
    ),
    "levit": (
        "Levit",
        {
            **{"image_size": 128, "hidden_sizes": [32, 48, 64], "num_attention_heads": [4, 6, 8]},
            **{"key_dim": [8, 8, 8], "depths": [1, 1, 1]},
        },
    ),
    "segformer": ("Segformer", _PYRAMID),
    "hiera": (
        "Hiera",
        {
            **{"image_size": [SIZE, SIZE], "embed_dim": 32, "num_heads": [4, 8], "depths": [1, 2], "mlp_ratio": 2.0},
            **{"num_query_pool": 1, "masked_unit_size": [4, 4], "masked_unit_attention": [True, False]},
        },
    ),
    "hgnet_v2": (
        "HGNetV2",
        {
            **{"stem_channels": [3, 10, 8], "hidden_sizes": [16, 24], "depths": [1, 2], "stage_in_channels": [8, 16]},
            **{"stage_mid_channels": [6, 10], "stage_out_channels": [16, 24], "stage_num_blocks": [1, 2]},
            **{"stage_downsample": [False, True], "stage_downsample_strides": [2, 2], "stage_kernel_size": [3, 3]},
            **{"stage_light_block": [False, True], "stage_numb_of_layers": [2, 3], "use_learnable_affine_block": True},
        },
    ),
    "swiftformer": (
        "SwiftFormer",
        {"embed_dims": [8, 16, 16, 24], "depths": [1, 2, 1, 1], "downsamples": [True, True, False, True]},
    ),
    # Its first stage is as wide as the first convolution, so that the first layer has no projection shortcut.
    "wide_resnet": ("WideResNet", {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [2, 1, 1]}),
    "pyramidnet": ("PyramidNet", {"embedding_size": 8, "alpha": 11, "depths": [2, 1, 1]}),
}


CLASSES = {
    **{"resnet": "ResNet", "convnext": "ConvNext", "convnextv2": "ConvNextV2"},
    **{family: name for family, (name, _) in _MORE.items()},
}
FAMILIES = [*CONVOLUTIONAL, *_MORE]


def _find(name: str) -> type:
    return getattr(models if hasattr(models, name) else transformers, name)


def image_size(family: str) -> int:
    return 128 if family == "levit" else SIZE  # at 32 pixels its second stage has one token


def family_config(family: str) -> PreTrainedConfig:
    if family in CONVOLUTIONAL:
        return tiny_config(family)
    name, fields = _MORE[family]
    return _find(f"{name}Config")(**copy.deepcopy(fields), num_labels=NUM_LABELS)


def model_class(family: str) -> type[PreTrainedModel]:
    name = CLASSES.get(family) or CLASSES[family.split("-")[0]]
    return _find(f"{name}ForImageClassification")


def family_model(family: str, seed: int = 0, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """With random weights that keep signals of the same size, so that no activation dies and no attention saturates."""
    model = model_class(family)(family_config(family) if config is None else config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.5 + 0.1 * noise)
    return model
