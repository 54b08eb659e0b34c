# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What sub-networks learn from: the kinds of `GradAugSettings.subnetwork_targets`."""

from typing import Any

from torch import Tensor, nn

from .dense.queries import QueryTargets, check_has_query_targets, query_loss, query_targets
from .losses import (
    binary_soft_target_loss,
    binary_soft_targets,
    check_has_soft_targets,
    get_logits,
    soft_target_loss,
    soft_targets,
)
from .settings import GradAugSettings


class LabelTargets:
    """The batch's labels, with the model's own loss."""

    learns_from_labels = True

    def __init__(self, model: nn.Module, settings: GradAugSettings):
        pass

    def from_outputs(self, outputs: Any) -> None:
        """Returns `None`: the labels are the targets."""


class SoftTargets:
    """
    The full network's predictions as class probabilities (paper, section 3).

    With `problem_type` "multi_label_classification", each label has a probability of its own (ours, not the paper's).

    Args:
        model (`nn.Module`): The full network.
        settings ([`GradAugSettings`]): Its `temperature` divides the logits. It may change between steps.

    Raises:
        `ValueError`: If the model is not a classifier.
    """

    learns_from_labels = False

    def __init__(self, model: nn.Module, settings: GradAugSettings):
        check_has_soft_targets(model)
        self.config, self.settings = model.config, settings

    @property
    def _is_multi_label(self) -> bool:
        # The head itself decides at the first labels.
        return getattr(self.config, "problem_type", None) == "multi_label_classification"

    def from_outputs(self, outputs: Any) -> Tensor:
        """Targets of shape `(batch_size, num_labels)`, detached, from the full network's outputs."""
        make = binary_soft_targets if self._is_multi_label else soft_targets
        return make(get_logits(outputs), self.settings.temperature)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Loss of a sub-network's outputs, a scalar; 0 if they equal the targets."""
        loss = binary_soft_target_loss if self._is_multi_label else soft_target_loss
        return loss(get_logits(outputs), targets, self.settings.temperature)


class QuerySoftTargets:
    """
    The full network's prediction for each query of a detector or segmenter: see [`~hf_gradaug.dense.queries`].

    Args:
        model (`nn.Module`): The full network.
        settings ([`GradAugSettings`]): Its `temperature` divides the class logits. It may change between steps.

    Raises:
        `ValueError`: If query i of a sub-network isn't query i of the full network.
    """

    learns_from_labels = False

    def __init__(self, model: nn.Module, settings: GradAugSettings):
        check_has_query_targets(model)
        self.model, self.settings = model, settings

    def from_outputs(self, outputs: Any) -> QueryTargets:
        return query_targets(self.model, outputs, self.settings.temperature)

    def loss(self, outputs: Any, targets: QueryTargets) -> Tensor:
        return query_loss(self.model, outputs, targets, self.settings.temperature)


TARGETS = {"soft": SoftTargets, "labels": LabelTargets, "queries": QuerySoftTargets}
