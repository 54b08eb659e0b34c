# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""A learning rate that falls in steps, which transformers' schedules don't offer."""

from bisect import bisect_right

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


class MilestonesMixin:
    """Gives a Trainer the schedule that `lr_milestones` of [`GradAugConfig`] describes, if there are any."""

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        milestones = getattr(self.args, "lr_milestones", None)
        if milestones is not None and self.lr_scheduler is None:
            steps = sorted(round(share * num_training_steps) for share in milestones)
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(optimizer, lambda step: 0.1 ** bisect_right(steps, step))
            self._created_lr_scheduler = True  # so that another training with this trainer makes a new one
        return super().create_scheduler(num_training_steps, optimizer)
