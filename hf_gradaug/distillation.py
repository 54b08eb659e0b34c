# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Distillation from a separately trained network, as a baseline for GradAug's soft targets."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from .data.class_names import get_class_names, match_classes
from .losses import check_has_soft_targets, get_label_rows, get_logits, soft_label_cross_entropy, soft_targets
from .messages import last_part
from .reporting.model_card import ModelCardMixin, is_hub_name
from .settings import GradAugSettings
from .training.durable import DurableTrainerMixin
from .training.shared import SharedTrainerMixin
from .training.step_log import LossParts


class DistillationTrainer(SharedTrainerMixin, ModelCardMixin, DurableTrainerMixin, Trainer):
    """
    Trains a model on its labels and on the soft predictions of a separately trained teacher.

    The loss is the label loss plus `teacher_weight` times the cross-entropy with the teacher's probabilities. The
    teacher sees the model's own batch, with its augmentation and mixing. The log has both parts: `loss_labels`, and
    `loss_teacher` before its weight. Evaluation uses the label loss alone.

    The teacher is frozen, runs in eval mode and under the model's autocast, and is not saved. Its forward counts in
    `total_flos`.

    Args:
        *args, **kwargs:
            The Trainer's. `args` may be a [`GradAugConfig`] with 0 sub-networks.
        teacher (`PreTrainedModel`):
            An image classifier with the model's classes, matched by name, for images that are normalized alike. It is
            frozen in place and moved to the training device.
        teacher_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the teacher's part, 0 or more. With 0 the teacher isn't run, and this is exactly plain training.

    Raises:
        `ValueError`: If the settings have sub-networks or a `temperature` other than 1, a custom loss function is set,
            the weight is negative, the model is not an image classifier, or the teacher has other classes. Nothing is
            written before the error.
    """

    def __init__(self, *args, teacher: PreTrainedModel, teacher_weight: float = 1.0, **kwargs):
        if not (math.isfinite(teacher_weight) and teacher_weight >= 0):
            raise ValueError(f"`teacher_weight` must be 0 or more, but is {teacher_weight}.")
        # It divides by a number of items, which the teacher's part doesn't have.
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("`compute_loss_func` must be None with a teacher, but is given.")
        self.teacher = teacher.eval().requires_grad_(False)
        self.teacher_weight = teacher_weight
        super().__init__(*args, **kwargs)

    @property
    def gradaug_settings(self) -> GradAugSettings:
        """The settings in `args`, without sub-networks."""
        return self.args if isinstance(self.args, GradAugSettings) else GradAugSettings(num_subnetworks=0)

    def _new_step_log(self) -> LossParts:
        return LossParts("loss_labels", "loss_teacher")

    def create_accelerator_and_postprocess(self) -> None:
        if (count := self.gradaug_settings.num_subnetworks) > 0:
            raise ValueError(
                f"`num_subnetworks` must be 0 with a teacher, which replaces the sub-networks, but is {count}."
            )
        if (temperature := self.gradaug_settings.temperature) != 1:
            raise ValueError(
                f"`temperature` must be 1 with a teacher, but is {temperature}. It is for the sub-networks' targets."
            )
        if self.model is not None:
            self._check_teacher(self.model)
        super().create_accelerator_and_postprocess()
        self.teacher.to(self.accelerator.device)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        self._check_teacher(model)
        return model

    def _check_teacher(self, model: nn.Module) -> None:
        for network in (self.teacher, model):
            check_has_soft_targets(network, multi_label=False)
        classes, own = get_class_names(self.teacher.config), get_class_names(model.config)
        numbers = match_classes(self.teacher.name_or_path or "teacher", classes, "the model", own)
        self._teacher_numbers = torch.tensor(numbers, device=self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        images = {name: value for name, value in inputs.items() if name not in self.label_names}
        if (labels := get_label_rows(inputs, self.model.config.num_labels)) is None or self._takes_own_loss:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        else:
            self._settle_problem_type(self.model.config, labels)
            # The labels may have shown that the model is a multi-label one.
            check_has_soft_targets(self.model, multi_label=False)
            loss, outputs = self._soft_label_loss(model, inputs, labels)
        if model.training and self.teacher_weight > 0:
            with torch.no_grad(), self.accelerator.autocast():
                targets = soft_targets(get_logits(self.teacher(**images))[:, self._teacher_numbers])
            teacher_loss = soft_label_cross_entropy(get_logits(outputs), targets)
            weight = 1 / self.current_gradient_accumulation_steps
            parts = [part.detach().mean() * weight for part in (loss, teacher_loss)]
            self._step_log.add(parts, weight, self.args.logging_nan_inf_filter)
            loss = loss + self.teacher_weight * teacher_loss
        return (loss, outputs) if return_outputs else loss

    def _own_settings(self) -> dict[str, Any]:
        if self.teacher_weight == 0:
            return {}
        name = self.teacher.name_or_path or type(self.teacher).__name__
        return {"teacher": name if is_hub_name(name) else last_part(name), "teacher_weight": self.teacher_weight}

    def floating_point_ops(self, inputs: dict[str, Tensor | Any]) -> int:
        flops = super().floating_point_ops(inputs)
        images = inputs.get(self.teacher.main_input_name)
        if images is None or self.teacher_weight == 0:
            return flops
        # The Trainer counts 6 for each input and parameter, of which a forward is a third.
        return flops + 2 * images.numel() * self.teacher.num_parameters(exclude_embeddings=True)
