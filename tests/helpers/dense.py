# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Tiny detectors and segmenters, with all that is random in them turned off but their weights; batches for them."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from detection.common import new_backbone
from transformers import (
    ConvNextConfig,
    HGNetV2Config,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    RTDetrResNetConfig,
    SwinConfig,
)

from helpers.tiny import tiny_trainer
from hf_gradaug import GradAugTrainer


NUM_LABELS = 3
SIZE = (64, 128)

_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_BACKBONES = {
    "resnet": lambda: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1] * 4, layer_type="basic", out_features=_STAGES
    ),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 10, 12, 16], depths=[1, 1, 2, 1], out_features=_STAGES),
    "swin": lambda: SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[2, 2, 4, 4], window_size=4, drop_path_rate=0.0, out_features=_STAGES
    ),
    "rt_detr_resnet": lambda: RTDetrResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 2, 1, 1]),
    "hgnet_v2": lambda: HGNetV2Config(
        **{"stem_channels": [3, 10, 8], "hidden_sizes": [16, 20, 24, 28], "depths": [1] * 4, "embedding_size": 8},
        **{"stage_in_channels": [8, 16, 20, 24], "stage_mid_channels": [6, 6, 8, 8], "stage_num_blocks": [1] * 4},
        **{"stage_out_channels": [16, 20, 24, 28], "stage_downsample": [False, True, True, True]},
        **{"stage_light_block": [False, True, True, False], "stage_kernel_size": [3] * 4},
        **{"stage_numb_of_layers": [1, 2, 1, 1]},
    ),
}
_DETR = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "num_queries": 6},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "dropout": 0.0},
}
_RT_DETR = {
    **{"d_model": 16, "encoder_hidden_dim": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 6},
    **{"decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_denoising": 0},
    **{"decoder_in_channels": [16] * 3, "hidden_expansion": 0.5, "freeze_backbone_batch_norms": False},
}
_MASK2FORMER = {
    **{"feature_size": 32, "mask_feature_size": 16, "hidden_dim": 32, "encoder_feedforward_dim": 16, "num_queries": 6},
    **{
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "dim_feedforward": 16,
        "train_num_points": 64,
    },
}
_UPERNET = {"hidden_size": 8, "auxiliary_channels": 8, "pool_scales": (1, 2)}

# Class names without `Config`, the task, the backbone, and the config's fields.
MODELS = {
    "detr-resnet": ("Detr", "ObjectDetection", "resnet", _DETR),
    "detr-convnext": ("Detr", "ObjectDetection", "convnext", _DETR),
    "conditional_detr": ("ConditionalDetr", "ObjectDetection", "convnext", _DETR),
    "deformable_detr": (
        "DeformableDetr",
        "ObjectDetection",
        "convnext",
        {
            **_DETR,
            "d_model": 32,
            "num_feature_levels": 3,
            "encoder_n_points": 2,
            "decoder_n_points": 2,
            "with_box_refine": True,
        },
    ),
    "rt_detr": ("RTDetr", "ObjectDetection", "rt_detr_resnet", {**_RT_DETR, "encoder_in_channels": [24, 32, 40]}),
    "d_fine": ("DFine", "ObjectDetection", "hgnet_v2", {**_RT_DETR, "encoder_in_channels": [20, 24, 28]}),
    "maskformer": ("MaskFormer", "InstanceSegmentation", "resnet", {"fpn_feature_size": 32, "mask_feature_size": 16}),
    "maskformer-swin": (
        "MaskFormer",
        "InstanceSegmentation",
        "swin",
        {"fpn_feature_size": 32, "mask_feature_size": 16},
    ),
    "mask2former": ("Mask2Former", "UniversalSegmentation", "resnet", _MASK2FORMER),
    "mask2former-swin": ("Mask2Former", "UniversalSegmentation", "swin", _MASK2FORMER),
    "upernet": ("UperNet", "SemanticSegmentation", "convnext", {**_UPERNET, "auxiliary_in_channels": 12}),
    "upernet-concatenated": (
        "UperNet",
        "SemanticSegmentation",
        "resnet",
        {**_UPERNET, "auxiliary_concat_input": True},
    ),
    "segformer": (
        "Segformer",
        "SemanticSegmentation",
        None,
        {
            **{"hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 2, 2, 4], "depths": [1] * 4},
            **{
                "mlp_ratios": [2] * 4,
                "decoder_hidden_size": 16,
                "drop_path_rate": 0.0,
                "classifier_dropout_prob": 0.0,
            },
        },
    ),
    "beit": (
        "Beit",
        "SemanticSegmentation",
        None,
        {
            **{"image_size": list(SIZE), "patch_size": 16, "hidden_size": 20, "intermediate_size": 32},
            **{"num_hidden_layers": 4, "num_attention_heads": 5, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]},
            **{"drop_path_rate": 0.0, "auxiliary_channels": 8, "auxiliary_concat_input": True},
        },
    ),
}

# The models themselves, and backbones that are for nothing else.
DENSE_TYPES = {
    *("detr", "conditional_detr", "deformable_detr", "rt_detr", "d_fine", "maskformer", "mask2former", "upernet"),
    *("rt_detr_resnet", "maskformer-swin"),
}


def dense_config(name: str) -> PreTrainedConfig:
    family, _, backbone, fields = MODELS[name]
    fields = {**copy.deepcopy(fields), "num_labels": NUM_LABELS}
    if backbone is not None:
        fields["backbone_config"] = _BACKBONES[backbone]()
    if family in ("RTDetr", "DFine", "DeformableDetr"):
        fields["backbone_config"].out_indices = [2, 3, 4]
    if family == "MaskFormer":
        fields["decoder_config"] = {"model_type": "detr", **_DETR}
    return getattr(transformers, f"{family}Config")(**fields)


def dense_class(name: str) -> type[PreTrainedModel]:
    family, task, _, _ = MODELS[name]
    return getattr(transformers, f"{family}For{task}")


def dense_model(name: str, seed: int = 0, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """With random weights that keep signals of the same size, so that no activation dies."""
    model = dense_class(name)(dense_config(name) if config is None else config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.5 + 0.1 * noise)
    return model


def dense_example(name: str, index: int, size: tuple[int, int] = SIZE) -> dict:
    """An image with two objects, left and right, and its labels as the model takes them."""
    height, width = size
    generator = torch.Generator().manual_seed(index)
    image = torch.randn(3, height, width, generator=generator)
    classes = torch.tensor([index % NUM_LABELS, (index + 1) % NUM_LABELS])
    masks = torch.zeros(2, height, width)
    masks[0, 8 : 8 + height // 2, 4 : width // 2] = 1
    masks[1, height // 4 :, width // 2 + 2 :] = 1
    image += masks[0] - masks[1]
    task = MODELS[name][1]
    if task == "SemanticSegmentation":
        labels = torch.full(size, 255)
        for mask, label in zip(masks, classes, strict=True):
            labels[mask > 0] = label
        return {"pixel_values": image, "labels": labels}
    if task == "ObjectDetection":
        boxes = torch.tensor([[0.3, 0.4, 0.4, 0.5], [0.75, 0.6, 0.45, 0.75]])
        return {"pixel_values": image, "labels": {"class_labels": classes, "boxes": boxes}}
    return {"pixel_values": image, "mask_labels": masks, "class_labels": classes}


def collate(examples: list[dict]) -> dict:
    """Images in one tensor with their padding mask; labels as a list where each image has its own number of them."""
    batch = {name: [example[name] for example in examples] for name in examples[0]}
    batch["pixel_values"] = torch.stack(batch["pixel_values"])
    if isinstance(batch.get("labels", [None])[0], torch.Tensor):
        batch["labels"] = torch.stack(batch["labels"])
    else:
        batch["pixel_mask"] = torch.ones(len(examples), *batch["pixel_values"].shape[-2:], dtype=torch.long)
    return batch


def dense_batch(name: str, size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float32) -> dict:
    return _cast(collate([dense_example(name, index, size) for index in range(2)]), dtype)


def _cast(value, dtype: torch.dtype):
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    return value.to(dtype) if value.is_floating_point() else value


def dense_trainer(output_dir, name: str, model: PreTrainedModel | None = None, **args) -> GradAugTrainer:
    """A trainer of one step of two images, in which Adam moves every parameter that has a gradient."""
    settings = {"max_steps": 1, "scales": [0.5], "min_width": 0.5, "per_device_train_batch_size": 2}
    settings |= {"remove_unused_columns": False, "optim": "adamw_torch", "adam_epsilon": 1e-12, "learning_rate": 0.01}
    data = {"train_dataset": [dense_example(name, index) for index in range(2)], "eval_dataset": None}
    return tiny_trainer(
        output_dir,
        dense_model(name) if model is None else model,
        trainer_kwargs={**data, "data_collator": collate},
        **settings | args,
    )


def save_small_model(task: Any, folder: Path, class_names: Sequence[str]) -> str:
    """Saves the new model of a script's `DenseTask`, and its image processor. Returns the folder."""
    labels = {"id2label": dict(enumerate(class_names))}
    task.new_model(new_backbone(), labels).save_pretrained(folder)
    task.new_processor(64).save_pretrained(folder)
    return str(folder)
