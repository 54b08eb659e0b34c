# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Values that log lines show beside the Trainer's own: the parts of the loss, and GradAug's passes."""

import torch
from accelerate import Accelerator
from torch import Tensor

from ..passes import GradAugPass


class LossParts:
    """
    Means of the parts of a loss, over the steps since the last log line.

    Args:
        *names (`str`): Names of the parts.
    """

    def __init__(self, *names: str):
        self.names = names
        self._sums: Tensor | None = None  # of the weighted parts, then of the weights

    def __bool__(self) -> bool:
        return self._sums is not None

    def add(self, parts: list[Tensor], weight: float, only_finite: bool) -> None:
        """Adds the detached parts of a batch, already multiplied by its `weight`: 1 / gradient accumulation steps."""
        values = torch.stack([*parts, torch.full_like(parts[0], weight)])
        if only_finite:  # as the Trainer leaves them out of the sum
            values = torch.where(torch.isfinite(values).all(), values, torch.zeros_like(values))
        self._sums = values if self._sums is None else self._sums + values

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        # Every process comes here for the same log line, whatever its losses were.
        *sums, weight = accelerator.reduce(self._sums, reduction="sum").tolist()
        return {name: value / weight for name, value in zip(self.names, sums)} if weight > 0 else {}


class StepLog:
    """Sums over the passes since the last log line."""

    def __init__(self):
        self.losses = LossParts("loss_full", "loss_subnetworks")
        self.width = self.depth = self.size = 0.0
        self.subnetworks = 0
        self.draws_depth = False

    def __bool__(self) -> bool:
        return bool(self.losses)

    def add(self, losses: list[Tensor], passes: list[GradAugPass], weight: float, only_finite: bool) -> None:
        self.losses.add([losses[0], sum(losses[1:], torch.zeros_like(losses[0]))], weight, only_finite)
        self.width += sum(p.width for p in passes[1:])
        self.depth += sum(p.depth for p in passes[1:])
        self.draws_depth |= any(p.kept_blocks is not None for p in passes)
        self.size += sum(sum(p.size) / 2 for p in passes[1:])
        self.subnetworks += len(passes) - 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        means = self.losses.means(accelerator)
        if self.subnetworks > 0:
            means["subnetwork_width"] = self.width / self.subnetworks
            if self.draws_depth:
                means["subnetwork_depth"] = self.depth / self.subnetworks
            means["subnetwork_size"] = self.size / self.subnetworks
        return means
