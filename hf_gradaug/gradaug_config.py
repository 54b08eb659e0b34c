# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Training arguments with the settings of GradAug."""

from dataclasses import dataclass

from transformers import TrainingArguments

from .settings import GradAugSettings


@dataclass
class GradAugConfig(GradAugSettings, TrainingArguments):
    """
    `TrainingArguments` with the settings of GradAug, for [`GradAugTrainer`].

    All fields parse from the command line, a `.json` and a `.yaml` file with `HfArgumentParser`.

    Args:
        num_subnetworks (`int`, *optional*, defaults to `3`), subnetwork_kind, min_survival, min_width, width_choices,
        scales, rotations, subnetwork_loss_weight, temperature, width_divisor, subnetwork_batch_fraction,
        subnetwork_every, nonfinite_loss:
            See [`GradAugSettings`].
        output_dir (`str`) and all others:
            See `TrainingArguments`.

    Raises:
        `ValueError`: If a setting is out of range.
    """

    def __post_init__(self):
        GradAugSettings.__post_init__(self)
        TrainingArguments.__post_init__(self)
