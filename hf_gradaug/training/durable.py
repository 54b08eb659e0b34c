# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Checkpoints, streams, Hub pushes and learning rate steps for any Trainer, in one mixin."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput, has_length

from .fault_tolerance import FaultToleranceMixin
from .hub import HubMixin
from .stream import StreamMixin


class DurableTrainerMixin(HubMixin, FaultToleranceMixin, StreamMixin):
    """
    Adds checkpoints, streams and Hub pushes for long runs to any Trainer: `class MyTrainer(DurableTrainerMixin,
    SomeTrainer)`. [`GradAugTrainer`] includes it.

    - Pushes to the Hub are complete: see [`HubMixin`].
    - A killed run resumes from its newest complete checkpoint: see [`FaultToleranceMixin`].
    - A [`TrainingStream`] can be the training data: see [`StreamMixin`].
    - `dataloader_drop_last` affects only training; evaluation and prediction see every image. It raises an error if
      no batch is left to train on.
    - With `bf16_full_eval` or `fp16_full_eval`, images are converted like the model. The model is restored afterwards.
    - The learning rate is divided by 10 at the `lr_milestones` of [`GradAugConfig`], if they are set.
    """

    def _validate_args(self) -> None:
        super()._validate_args()
        # The constructor's hook that knows `optimizers`, before it makes folders and Hub repositories.
        milestones = getattr(self.args, "lr_milestones", None)
        if milestones is not None and self.lr_scheduler is not None:
            raise ValueError(
                f"`lr_milestones` must be None with a scheduler in `optimizers`, but is {milestones} beside "
                f"{type(self.lr_scheduler).__name__}. Leave one of them out."
            )

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        if has_length(loader) and len(loader) == 0:
            processes = f" on each of {self.args.world_size} processes" if self.args.world_size > 1 else ""
            raise ValueError(
                f"`dataloader_drop_last` must be False for {len(self.train_dataset)} training images and a batch size of "
                f"{self._train_batch_size}{processes}, but is True: no batch would be left. Turn it off, or lower "
                "`per_device_train_batch_size`."
            )
        return loader

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        with self._keeping_last_batch():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        with self._keeping_last_batch():
            return super().get_test_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        # With `bf16_full_eval`, the Trainer converts the model, and the next `save_model` would save it so.
        tensors = [
            (kind, name, tensor)
            for module in self.model.modules()
            for kind in (module._parameters, module._buffers)
            for name, tensor in kind.items()
            if tensor is not None
        ]
        stored = [tensor.data for *_, tensor in tensors]
        try:
            return super().evaluation_loop(
                dataloader,
                description,
                prediction_loss_only=prediction_loss_only,
                ignore_keys=ignore_keys,
                metric_key_prefix=metric_key_prefix,
            )
        finally:
            for (kind, name, tensor), data in zip(tensors, stored):
                if kind[name].dtype != data.dtype:
                    tensor.data = data
                    kind[name] = tensor

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if (self.args.bf16_full_eval or self.args.fp16_full_eval) and not self.is_in_train:
            # Images are floats, and the Trainer converts the model alone.
            dtype = torch.bfloat16 if self.args.bf16_full_eval else torch.float16
            # Not labels, of which metrics are computed.
            is_float = {
                name: isinstance(value, Tensor) and value.is_floating_point() and name not in self.label_names
                for name, value in inputs.items()
            }
            inputs = {name: value.to(dtype) if is_float[name] else value for name, value in inputs.items()}
        return inputs

    @contextlib.contextmanager
    def _keeping_last_batch(self) -> Iterator[None]:
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # Accelerate's is around PyTorch's
        milestones = getattr(schedule, "milestones", None)
        super()._load_optimizer_and_scheduler(checkpoint)
        if getattr(self.args, "lr_milestones", None) is None or schedule.milestones == milestones:
            return
        # The checkpoint has steps of a run of another length. Every other schedule follows the new length.
        schedule.milestones = milestones
        passed = sum(count for step, count in milestones.items() if step <= schedule.last_epoch)
        schedule._last_lr = [base * schedule.gamma**passed for base in schedule.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, schedule._last_lr, strict=True):
            group["lr"] = rate
