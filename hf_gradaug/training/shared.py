# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What the trainers of this package share."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from ..losses import ProblemTypeCheck, get_logits, has_own_loss, soft_label_cross_entropy
from ..settings import GradAugSettings, save_settings
from .distributed import shard_as_one_unit
from .step_log import LossParts, StepLog


def is_training_line(logs: dict[str, float]) -> bool:
    """Whether a log line is the Trainer's own line of training, which every process logs."""
    return "loss" in logs and "learning_rate" in logs


class SharedTrainerMixin:
    """
    Settings beside the saved weights, the parts of the loss in log lines, and two corrections of the Trainer.

    The corrections are of its loss scaling and of its FSDP2 wrapping: see [`~hf_gradaug.gradaug_trainer.GradAugMixin`].
    """

    gradaug_settings: GradAugSettings
    _needs_trainer_fixes = True

    def __init__(self, *args, **kwargs):
        self._step_log = self._new_step_log()
        self._settle_problem_type = ProblemTypeCheck()
        super().__init__(*args, **kwargs)
        # A Trainer that says that its own loss is scaled already gets the number of items, by which it scales.
        if self._needs_trainer_fixes and not getattr(self, "loss_is_scaled_for_ga", None):
            # These heads take `**kwargs`, from which the Trainer concludes that they scale their loss by
            # `num_items_in_batch`. They don't, or count other items: it would grow with the accumulation steps and the
            # processes.
            self.model_accepts_loss_kwargs = False

    def _new_step_log(self) -> StepLog | LossParts:
        """A fresh sum of the steps until the Trainer's next log line."""
        raise NotImplementedError

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        # Accelerate itself fails on models without input embeddings, such as these.
        if self._needs_trainer_fixes and self.accelerator.is_fsdp2:
            shard_as_one_unit(self.model, self.accelerator.state.fsdp_plugin)
        return super().create_optimizer(model)

    def _inner_training_loop(self, *args, **kwargs) -> TrainOutput:
        # Without what an earlier run left, or an attempt that `auto_find_batch_size` repeats.
        self._step_log = self._new_step_log()
        return super()._inner_training_loop(*args, **kwargs)

    @property
    def _takes_own_loss(self) -> bool:
        """Whether the loss is one that a user set on the model. The Trainer's label smoothing replaces it."""
        return self.label_smoother is None and has_own_loss(self.model)

    def _soft_label_loss(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], labels: Tensor
    ) -> tuple[Tensor, Any]:
        """Loss and outputs of a batch whose labels are class probabilities. A head would take them for multi-label."""
        outputs = model(**{name: value for name, value in inputs.items() if value is not labels})
        return soft_label_cross_entropy(get_logits(outputs), labels, self.args.label_smoothing_factor), outputs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._step_log and is_training_line(logs):
            logs.update(self._step_log.means(self.accelerator))
            self._step_log = self._new_step_log()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._save_beside_weights(output_dir or self.args.output_dir)

    def _save_beside_weights(self, folder: str) -> None:
        save_settings(self.gradaug_settings, folder)
