# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Train a detector on data in COCO format. Without `--gradaug`, the script trains the plain baseline.

On the embedded scenes of handwritten digits, a small RT-DETR from scratch:

    accelerate launch examples/run_object_detection.py --gradaug --output_dir out --do_train --do_eval

On your own images, from a pretrained detector:

    accelerate launch examples/run_object_detection.py --gradaug --output_dir out --do_train --do_eval \
        --train_dir coco/train2017 --train_annotations coco/annotations/instances_train2017.json \
        --validation_dir coco/val2017 --validation_annotations coco/annotations/instances_val2017.json \
        --model_name_or_path PekingU/rtdetr_r50vd --ignore_mismatched_sizes --scales 1 0.8 0.6

Initialize the backbone of a new detector with a classifier that GradAug trained, as in the paper's transfer experiment:

    accelerate launch examples/run_object_detection.py --output_dir out --do_train --do_eval --backbone outputs/digits
"""

from typing import Any

import torch
from detection.common import DenseTask, main
from transformers import (
    AutoBackbone,
    AutoModelForObjectDetection,
    PreTrainedConfig,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrImageProcessor,
)


# For the embedded scenes, where the command doesn't say otherwise.
DEFAULTS = {
    "image_square_size": 112,
    "num_train_epochs": 9,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 50,
    "learning_rate": 2e-3,
    "warmup_steps": 100,
    "lr_scheduler_type": "cosine",
    "num_subnetworks": 1,
    "min_width": 0.8,
    "save_strategy": "no",
    "logging_steps": 20,
}


def new_model(backbone_config: PreTrainedConfig, labels: dict[str, Any]) -> PreTrainedModel:
    """A small RT-DETR on the last two feature maps of the backbone, each half as large as the one before."""
    last = len(backbone_config.depths)
    backbone_config.out_indices = [last - 1, last]
    with torch.device("meta"):
        channels = AutoBackbone.from_config(backbone_config).channels
    config = RTDetrConfig(
        backbone_config=backbone_config,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=channels,
        feat_strides=[2**last, 2 ** (last + 1)],
        encode_proj_layers=[1],
        num_feature_levels=2,
        d_model=64,
        encoder_hidden_dim=64,
        decoder_in_channels=[64, 64],
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        hidden_expansion=0.5,
        decoder_layers=2,
        num_queries=30,
        num_denoising=20,
        **labels,
    )
    return AutoModelForObjectDetection.from_config(config)


TASK = DenseTask(
    name="object-detection",
    auto_class=AutoModelForObjectDetection,
    with_masks=False,
    new_processor=lambda side, **settings: RTDetrImageProcessor(size={"height": side, "width": side}, **settings),
    new_model=new_model,
    defaults=DEFAULTS,
)

if __name__ == "__main__":
    main(TASK)
