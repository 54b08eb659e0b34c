# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What the log lines show of GradAug's passes."""

import torch
from accelerate import Accelerator
from torch import Tensor

from .passes import GradAugPass


class StepLog:
    """Sums of what the log lines show of the passes since the last line."""

    def __init__(self):
        self.losses: Tensor | None = None  # of the full network, of the sub-networks, and the steps that they are of
        self.width = self.depth = self.size = 0.0
        self.subnetworks = 0
        self.draws_depth = False

    def __bool__(self) -> bool:
        return self.losses is not None

    def add(self, losses: list[Tensor], passes: list[GradAugPass], share: float, only_finite: bool) -> None:
        full, subnetworks = losses[0], sum(losses[1:], torch.zeros_like(losses[0]))
        values = torch.stack([full, subnetworks, torch.full_like(full, share)])
        if only_finite:  # as the Trainer leaves them out of the sum
            values = torch.where(torch.isfinite(values).all(), values, torch.zeros_like(values))
        self.losses = values if self.losses is None else self.losses + values
        self.width += sum(p.width for p in passes[1:])
        self.depth += sum(p.depth for p in passes[1:])
        self.draws_depth |= any(p.kept_blocks is not None for p in passes)
        self.size += sum(sum(p.size) / 2 for p in passes[1:])
        self.subnetworks += len(passes) - 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        # Every process comes here for the same log line, whatever its losses were.
        full, subnetworks, steps = accelerator.reduce(self.losses, reduction="sum").tolist()
        means = {"loss_full": full / steps, "loss_subnetworks": subnetworks / steps} if steps > 0 else {}
        if self.subnetworks > 0:
            means["subnetwork_width"] = self.width / self.subnetworks
            if self.draws_depth:
                means["subnetwork_depth"] = self.depth / self.subnetworks
            means["subnetwork_size"] = self.size / self.subnetworks
        return means
