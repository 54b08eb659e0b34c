# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Training arguments with the settings of GradAug."""

import os
from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from .messages import as_numbers
from .settings import GradAugSettings


@dataclass
class GradAugConfig(GradAugSettings, TrainingArguments):
    """
    `TrainingArguments` with the settings of GradAug, for [`GradAugTrainer`].

    `HfArgumentParser` parses all fields from the command line, a `.json` file or a `.yaml` file.

    Args:
        num_subnetworks (`int`, *optional*, defaults to `3`), subnetwork_kind, min_survival, min_width, width_choices,
        scales, rotations, subnetwork_targets, subnetwork_loss_weight, temperature, width_divisor,
        subnetwork_batch_fraction, subnetwork_every, cuda_graphs, nonfinite_loss:
            See [`GradAugSettings`].
        lr_milestones (`list[float]`, *optional*):
            Fractions of the run, each in (0, 1). At each of them, the learning rate is divided by 10. Needs
            `lr_scheduler_type="constant"`, because transformers has no step schedule.
        logging_nan_inf_filter (`bool`, *optional*):
            Leaves NaN and infinite losses out of the logged loss, as in `TrainingArguments`. The Trainer then waits for
            the device in each step. If not given, it is `True` without sub-networks, with `nonfinite_loss="skip"` or in
            fp16, else `False`.
        output_dir (`str`) and all others:
            See `TrainingArguments`.

    Raises:
        `ValueError`: If a setting is out of range, or `lr_milestones` are given with another scheduler.
    """

    lr_milestones: list[float] | None = field(
        default=None,
        metadata={
            "help": "Fractions of the run, each in (0, 1). At each of them, the learning rate is divided by 10. "
            "Needs lr_scheduler_type constant."
        },
    )

    logging_nan_inf_filter: bool | None = field(
        default=None,
        metadata={
            "help": "Leave NaN and infinite losses out of the logged loss. The Trainer then waits for the device in "
            "each step. If not given, this is on without sub-networks, with nonfinite_loss skip or in fp16."
        },
    )

    def __post_init__(self):
        GradAugSettings.__post_init__(self)
        if self.logging_nan_inf_filter is None:
            # Off only where a non-finite loss stops the run: it would make every later logged loss NaN. In fp16 the
            # gradient scaler skips such a step, and the run goes on.
            is_fp16 = self.fp16 or (not self.bf16 and os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16")
            self.logging_nan_inf_filter = self.num_subnetworks == 0 or self.nonfinite_loss == "skip" or is_fp16
        TrainingArguments.__post_init__(self)
        if not 0 <= self.label_smoothing_factor <= 1:
            raise ValueError(f"`label_smoothing_factor` must be in [0, 1], but is {self.label_smoothing_factor}.")
        if self.lr_milestones is None:
            return
        self.lr_milestones = as_numbers(
            "lr_milestones", self.lr_milestones, "fractions of the run in (0, 1)", lambda share: 0 < share < 1
        )
        if self.lr_scheduler_type != SchedulerType.CONSTANT:
            raise ValueError(
                f"`lr_scheduler_type` must be 'constant' with `lr_milestones`, but is '{self.lr_scheduler_type.value}'."
            )
