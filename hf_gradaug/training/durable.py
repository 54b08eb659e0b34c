# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""All that a long run needs of its Trainer, in one mixin."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from .fault_tolerance import FaultToleranceMixin
from .hub import HubMixin
from .stream import StreamMixin


class DurableTrainerMixin(HubMixin, FaultToleranceMixin, StreamMixin):
    """
    Makes the runs of any Trainer durable: `class MyTrainer(DurableTrainerMixin, SomeTrainer)`. [`GradAugTrainer`] does.

    - Pushes to the Hub are complete: see [`HubMixin`].
    - A run that was killed resumes from its newest complete checkpoint: see [`FaultToleranceMixin`].
    - A [`TrainingStream`] can be the training data: see [`StreamMixin`].
    - The learning rate falls at `lr_milestones` of [`GradAugConfig`], if they are set.
    """

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        milestones = getattr(self.args, "lr_milestones", None)
        if milestones is not None and self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            for group in optimizer.param_groups:  # `MultiStepLR` goes on from where an earlier training left the rate
                group["lr"] = group.get("initial_lr", group["lr"])
            steps = [round(share * num_training_steps) for share in milestones]
            self.lr_scheduler = MultiStepLR(optimizer, steps, gamma=0.1)
            self._created_lr_scheduler = True  # the next `train()` makes a new one
        return super().create_scheduler(num_training_steps, optimizer)
