# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Stops the run, or skips the step, if a loss or gradient is not finite."""

import logging
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from ..passes import GradAugPass


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Look:
    """
    Flags of a step, to check once the device has computed them.

    Args:
        flags (`torch.Tensor`): On the CPU, above 0 for each of `what` that is not finite.
        what (`list[str]`): Their descriptions.
        step (`int`): Number of the optimizer step.
        copied (`torch.cuda.Event`, *optional*): Recorded after the copy of the flags. `None` if no copy is needed.
    """

    flags: Tensor
    what: list[str]
    step: int
    copied: torch.cuda.Event | None = None

    def describe(self) -> str | None:
        """Describes the first number that is not finite, if any."""
        for flag, what in zip(self.flags.tolist(), self.what, strict=True):
            if flag:
                return f"{what} is not finite in optimizer step {self.step}."
        return None


class NonFiniteLossGuard:
    """
    Checks the losses and the gradient norm of each optimizer step.

    All processes make the same decision: they reduce a few numbers.

    With `"stop"` a number that is NaN or infinite raises an error. On the CPU this happens before the weights change.
    On a GPU the guard doesn't wait. It copies a step's flags asynchronously and checks them once the next step is
    launched. It also checks them in [`settle`], which the trainer calls before each save, evaluation and log line,
    and at the end. So no checkpoint has weights of a failed step, and the error names that step.

    With `"skip"` the step is dropped, which waits for the device once per step. Weights, optimizer state, BatchNorm
    statistics and other buffers don't change. The step count, the learning rate schedule, the position in the data and
    the random state advance as usual.

    With fp16 the guard does nothing: the gradient scaler skips steps whose gradient overflows, and lowers its scale.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            The trainer's.
        model (`nn.Module`):
            The unwrapped full network.
        action (`str`):
            `"stop"` or `"skip"`.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, action: str):
        self.accelerator = accelerator
        self.model = model
        self.action = action
        self.waits = action == "skip" or accelerator.device.type != "cuda"
        self.num_skipped = 0
        self._not_finite: Tensor | None = None  # one number a network, over the micro-batches of the step
        self._what: list[str] = []  # their descriptions
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._looks: list[_Look] = []
        self._step = 0

    def start(self) -> None:
        """Call before the passes of each micro-batch."""
        if self.action == "skip" and self._not_finite is None and not self._is_scaled:
            self._buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        # Those of the step before the last one: the device has long done it, and all processes stop at the same step.
        self._look_back(self._step - 1)

    def finish(self, losses: list[Tensor], passes: list[GradAugPass], step: int) -> None:
        """
        Call after the passes of each micro-batch.

        Args:
            losses (`list[torch.Tensor]`):
                Scalars, one per pass.
            passes (`list[GradAugPass]`):
                The passes, the full network's first.
            step (`int`):
                Number of the optimizer step, from 1, as the logs count.

        Raises:
            `FloatingPointError`: If a loss is not finite in any process and the action is `"stop"`.
        """
        if self._is_scaled:
            return
        # One number for each network that a step can have: a micro-batch of one image may leave sub-networks out, and
        # another one of the step, or of another process, has them.
        left_out = passes[0].gradaug.settings.num_subnetworks + 1 - len(losses)
        not_finite = nn.functional.pad((~torch.isfinite(torch.stack(losses))).int(), (0, left_out))
        if self._not_finite is not None:
            not_finite = torch.maximum(not_finite, self._not_finite)
        self._not_finite, self._step = not_finite, step
        # Descriptions and not passes, which hold images.
        what = [_describe(index, each) for index, each in enumerate(passes)]
        self._what = max(what, self._what, key=len)
        if not self.accelerator.sync_gradients:  # a micro-batch of the step is yet to come
            return
        what, self._not_finite, self._what = self._what, None, []
        if self.accelerator.num_processes > 1:
            dist.all_reduce(not_finite, op=dist.ReduceOp.MAX)
        what += [f"The loss of sub-network {index}" for index in range(len(what), len(not_finite))]
        self._look_at(not_finite, what)

    def check_gradients(self, norm: Tensor | float) -> None:
        """
        Checks the gradient's norm, equal in all processes. Call it before the weights change. A finite loss can have
        gradients that are not finite.

        Raises:
            `FloatingPointError`: See [`finish`].
        """
        if not self._is_scaled and isinstance(norm, Tensor):
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            self._look_at((~torch.isfinite(norm.detach())).int().reshape(1), ["The norm of the gradient"])
        self._buffers = []

    def settle(self) -> None:
        """
        Waits for the remaining flags and checks them.

        Raises:
            `FloatingPointError`: If a number of an earlier step is not finite.
        """
        self._look_back(self._step)

    def _look_back(self, step: int) -> None:
        while self._looks and self._looks[0].step <= step:
            look = self._looks.pop(0)
            look.copied.synchronize()
            self._stop(look.describe())

    def _look_at(self, flags: Tensor, what: list[str]) -> None:
        if self.waits:
            message = _Look(flags, what, self._step).describe()
            if message is not None and self.action == "skip":
                self._skip(message)
            else:
                self._stop(message)
            return
        # Pinned, or the copy would wait.
        copy = torch.empty_like(flags, device="cpu", pin_memory=True).copy_(flags, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._looks.append(_Look(copy, what, self._step, copied))

    def _stop(self, message: str | None) -> None:
        if message is not None:
            self._looks.clear()
            raise FloatingPointError(f"{message} Set `nonfinite_loss='skip'` to skip such steps.")

    def _skip(self, message: str) -> None:
        # An optimizer leaves a parameter without a gradient alone, and its state too.
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in self._buffers:
                buffer.copy_(before)
        self.num_skipped += 1
        logger.warning(f"{message} The step is skipped. Steps skipped so far: {self.num_skipped}.")

    @property
    def _is_scaled(self) -> bool:
        # DeepSpeed's engine scales by itself, without a scaler of Accelerate's.
        return self.accelerator.scaler is not None or self.accelerator.mixed_precision == "fp16"


def _describe(index: int, gradaug_pass: GradAugPass) -> str:
    name = "the full network" if index == 0 else f"sub-network {index}"
    height, width = gradaug_pass.size
    blocks = "" if gradaug_pass.kept_blocks is None else f"residual blocks {gradaug_pass.kept_blocks}, "
    return (
        f"The loss of {name} (width multiplier {gradaug_pass.width:.4g}, {blocks}images of {height} x {width} pixels)"
    )
