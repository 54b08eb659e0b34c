# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Train an instance segmenter on data in COCO format. Without `--gradaug`, the script trains the plain baseline.

On the embedded scenes of handwritten digits, a small Mask2Former from scratch:

    accelerate launch examples/run_instance_segmentation.py --gradaug --output_dir out --do_train --do_eval

On your own images, from a pretrained MaskFormer or Mask2Former:

    accelerate launch examples/run_instance_segmentation.py --gradaug --output_dir out --do_train --do_eval \
        --train_dir coco/train2017 --train_annotations coco/annotations/instances_train2017.json \
        --validation_dir coco/val2017 --validation_annotations coco/annotations/instances_val2017.json \
        --model_name_or_path facebook/mask2former-swin-tiny-coco-instance --ignore_mismatched_sizes

`--backbone outputs/digits` initializes the backbone of a new segmenter with a classifier that GradAug trained.
"""

from typing import Any

from detection.common import DenseTask, main
from transformers import (
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)


# For the embedded scenes, where the command doesn't say otherwise.
DEFAULTS = {
    "image_square_size": 112,
    "num_train_epochs": 6,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 50,
    "learning_rate": 1e-3,
    "warmup_steps": 100,
    "lr_scheduler_type": "cosine",
    "num_subnetworks": 1,
    "min_width": 0.8,
    "scales": [1.0, 6 / 7],  # on fewer pixels the smallest digits are unreadable
    "save_strategy": "no",
    "logging_steps": 20,
}


def new_model(backbone_config: PreTrainedConfig, labels: dict[str, Any]) -> PreTrainedModel:
    """A small Mask2Former on all stages of the backbone, of which it needs three or more."""
    stages = len(backbone_config.stage_names) - 1  # the first name is the stem's
    backbone_config.out_indices = list(range(1, stages + 1))
    config = Mask2FormerConfig(
        backbone_config=backbone_config,
        feature_strides=[4 * 2**stage for stage in range(stages)],
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=128,
        encoder_layers=1,
        decoder_layers=3,  # one fewer attend to feature maps: here to the two coarsest
        num_attention_heads=4,
        dim_feedforward=128,
        num_queries=20,
        train_num_points=200,
        # Classes weigh far more than for COCO, also where queries are matched: masks are soon learned here, and with the
        # usual weights nothing else is.
        class_weight=6.0,
        mask_weight=1.5,
        dice_weight=1.5,
        no_object_weight=0.3,
        **labels,
    )
    return AutoModelForUniversalSegmentation.from_config(config)


TASK = DenseTask(
    name="image-segmentation",
    auto_class=AutoModelForUniversalSegmentation,
    with_masks=True,
    new_processor=lambda side, **settings: Mask2FormerImageProcessor(
        size={"height": side, "width": side}, size_divisor=16, **settings
    ),
    new_model=new_model,
    defaults=DEFAULTS,
)

if __name__ == "__main__":
    main(TASK)
