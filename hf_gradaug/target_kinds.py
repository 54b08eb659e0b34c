# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What sub-networks learn from the full network, by `GradAugSettings.subnetwork_targets`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .dense.queries import check_has_query_targets, query_loss, query_targets
from .losses import check_has_soft_targets, get_logits, soft_target_loss, soft_targets


@dataclass(frozen=True)
class TargetKind:
    """
    Args:
        check (`Callable`): raises a `ValueError` if a model has no such targets.
        targets (`Callable`): of the model, the full network's outputs and the temperature. A tensor, or something that
            tensors of row numbers index likewise.
        loss (`Callable`): of the model, a sub-network's outputs, the targets and the temperature.
    """

    check: Callable[[nn.Module], None]
    targets: Callable[[nn.Module, Any, float], Any]
    loss: Callable[[nn.Module, Any, Any, float], Tensor]


# With "labels" there are none.
TARGET_KINDS = {
    "soft": TargetKind(
        check_has_soft_targets,
        lambda model, outputs, temperature: soft_targets(get_logits(outputs), temperature),
        lambda model, outputs, targets, temperature: soft_target_loss(get_logits(outputs), targets, temperature),
    ),
    "queries": TargetKind(check_has_query_targets, query_targets, query_loss),
}
