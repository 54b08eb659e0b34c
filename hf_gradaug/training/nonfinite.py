# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What happens at a loss that is not finite: the training stops, or goes on without the step."""

import logging

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from ..passes import GradAugPass


logger = logging.getLogger(__name__)


class NonFiniteLossGuard:
    """
    Looks at the losses of an optimizer step, after its last backward and before the weights change.

    All processes decide alike, by a reduction of a few numbers; the device is synchronized once a step. With `"stop"` a loss
    that is NaN or infinite raises. With `"skip"` its step is dropped: no weight changes, no momentum or other state of the
    optimizer, no BatchNorm statistic, nor any other buffer. What goes on is the count of steps and with it the learning rate's
    schedule, the position in the data, and the random numbers that the step has drawn.

    With fp16 the guard does nothing: the gradient scaler skips steps whose gradient overflows, and lowers its scale.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            The trainer's.
        model (`nn.Module`):
            The full network, not wrapped.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module):
        self.accelerator = accelerator
        self.model = model
        self.num_skipped = 0
        self._not_finite: Tensor | None = None  # one number a pass, over the micro-batches of the step
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def start(self, action: str) -> None:
        """Call before the passes of each micro-batch. `action` is `"stop"` or `"skip"`."""
        if action == "skip" and self._not_finite is None and self._scaler is None:
            self._buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]

    def finish(self, losses: list[Tensor], passes: list[GradAugPass], step: int, action: str) -> None:
        """
        Call after the passes of each micro-batch.

        Args:
            losses (`list[torch.Tensor]`):
                Scalars, one a pass.
            passes (`list[GradAugPass]`):
                The passes, the full network's first.
            step (`int`):
                Number of the optimizer step, from 1, as the logs count.
            action (`str`):
                `"stop"` or `"skip"`.

        Raises:
            `FloatingPointError`: If a loss is not finite in any process and `action` is `"stop"`.
        """
        if self._scaler is not None:
            return
        not_finite = (~torch.isfinite(torch.stack(losses))).int()
        if self._not_finite is not None:
            not_finite = torch.maximum(not_finite, self._not_finite)
        self._not_finite = not_finite
        if not self.accelerator.sync_gradients:  # a micro-batch of the step is yet to come
            return
        self._not_finite = None
        if self.accelerator.num_processes > 1:
            dist.all_reduce(not_finite, op=dist.ReduceOp.MAX)
        bad = [index for index, flag in enumerate(not_finite.tolist()) if flag]
        if bad:
            name = "the full network" if bad[0] == 0 else f"sub-network {bad[0]}"
            bad_pass = passes[bad[0]]
            height, width = bad_pass.size
            blocks = "" if bad_pass.kept_blocks is None else f"residual blocks {bad_pass.kept_blocks}, "
            what = (
                f"The loss of {name} (width multiplier {bad_pass.width:.4g}, {blocks}images of {height} x {width} "
                f"pixels) is not finite in optimizer step {step}."
            )
            if action == "stop":
                raise FloatingPointError(f"{what} `nonfinite_loss='skip'` leaves such steps out.")
            self._skip()
            logger.warning(f"{what} The step is skipped, as {self.num_skipped} in all.")
        self._buffers = []

    def _skip(self) -> None:
        # An optimizer leaves a parameter without a gradient alone, and its state too.
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in self._buffers:
                buffer.copy_(before)
        self.num_skipped += 1

    @property
    def _scaler(self):
        return getattr(self.accelerator, "scaler", None)
