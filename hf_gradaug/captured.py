# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Passes as CUDA graphs: the option `cuda_graphs`.

The host takes longer to launch a pass of a small network or batch than the GPU takes to run it. A captured pass
needs two launches. One is its forward with the loss. The other is its backward, which adds to the gradients.

`torch.cuda.make_graphed_callables` doesn't fit. It takes no keyword arguments and one size per module. It also gives
the parameters its own static gradients, so a second micro-batch overwrites the first one's.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .slimmable.binding import has_hooks


logger = logging.getLogger(__name__)


class Capture:
    """
    One pass as two graphs.

    Args:
        forward (`Callable[[dict], tuple[torch.Tensor, torch.Tensor]]`): Maps the inputs to loss and logits.
        backward (`Callable[[torch.Tensor, torch.Tensor], None]`): Takes the loss and its gradient; adds to the
            gradients.
        inputs (`dict[str, torch.Tensor]`): Inputs of this pass. The graphs read copies of them.
        pool: Memory that captures share. Only one capture at a time is between its forward and its backward.
    """

    def __init__(self, forward: Callable, backward: Callable, inputs: dict[str, Tensor], pool: Any):
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        self.gradient = torch.ones((), device=next(iter(inputs.values())).device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries choose their kernels and get their memory
                loss, _ = forward(self.inputs)
                backward(loss, self.gradient)
        torch.cuda.current_stream().wait_stream(stream)
        del loss
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward_graph, pool=pool, stream=stream):
            loss, self.logits = forward(self.inputs)
        with torch.cuda.graph(self.backward_graph, pool=pool, stream=stream):
            backward(loss, self.gradient)
        self.loss, self.logits = loss.detach(), self.logits.detach()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor: Tensor, capture: Capture, done: Callable[[], None]) -> tuple[Tensor, Tensor]:
        ctx.capture, ctx.done = capture, done
        capture.forward_graph.replay()
        loss, logits = capture.loss.clone(), capture.logits.clone()
        ctx.mark_non_differentiable(logits)
        return loss, logits

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[None, None, None]:
        ctx.capture.gradient.copy_(gradient)
        ctx.capture.backward_graph.replay()
        ctx.done()
        return None, None, None


class CapturedPasses:
    """
    Runs passes as CUDA graphs where possible.

    A pass is captured once for each network, batch shape, precision and module mode, up to `limit` captures. The
    gradients of all trained parameters then lie in tensors of our own, at the same addresses in every step.

    Args:
        model (`nn.Module`): The full network, on a GPU.
        limit (`int`, *optional*, defaults to `64`): Largest number of captures. Further passes run eagerly.
    """

    def __init__(self, model: nn.Module, limit: int = 64):
        self.model = model
        self.limit = limit
        self._captures: dict[tuple, Capture] = {}
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []
        self._places: list[tuple] = []  # of the weights
        self._numbers: tuple[float, ...] = ()
        self._pool = None
        self._is_open = False  # between a forward and its backward

    def start(self, device: torch.device, numbers: tuple[float, ...] = ()) -> None:
        """
        Begins a step. An earlier one may have ended by an error.

        Args:
            device (`torch.device`): The batch's.
            numbers (`tuple[float, ...]`, *optional*): What the passes compute with. Captures hold these: others are new.
        """
        if device.type != "cuda":
            raise ValueError(f"`cuda_graphs` must be False on devices other than CUDA GPUs, but is True on {device}.")
        self._is_open = False
        if numbers != self._numbers:
            self._numbers = numbers
            self._places = []  # all is captured again

    def run(
        self, network: Any, inputs: dict[str, Tensor], compute: Callable, is_full: bool
    ) -> tuple[Tensor, Tensor] | None:
        """
        Loss and logits of a pass, or `None` if it has to run eagerly.

        Args:
            network: Identifies the network.
            inputs (`dict[str, torch.Tensor]`): Images, and labels or targets.
            compute (`Callable[[dict], tuple[torch.Tensor, torch.Tensor]]`): Maps the inputs to loss and logits,
                without waiting for the device.
            is_full (`bool`): Whether this is the full network's pass, whose gradients go to the parameters directly.

        Raises:
            `RuntimeError`: If the pass can't be captured.
        """
        weights = list(self.model.parameters())
        if self._is_open or not torch.is_grad_enabled() or any(map(has_hooks, weights)):
            return None
        self._follow(weights)
        shapes = tuple((name, value.shape, value.dtype, value.stride()) for name, value in inputs.items())
        precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (network, shapes, precision, tuple(module.training for module in self.model.modules()))
        capture = self._captures.get(key)
        if capture is None and len(self._captures) >= self.limit:
            return None
        self._own_gradients()
        if capture is None:
            capture = self._captures[key] = self._capture(inputs, compute, is_full)
            if len(self._captures) == self.limit:
                logger.warning(
                    f"`cuda_graphs` captured {self.limit} passes, and captures no more. Passes of other widths and sizes run "
                    "eagerly: set `width_choices` or a larger `width_divisor`, and fewer `scales`."
                )
        else:
            for name, value in inputs.items():
                capture.inputs[name].copy_(value)
        self._is_open = True
        return _Replay.apply(torch.empty(0, requires_grad=True), capture, self._close)

    def _close(self) -> None:
        self._is_open = False

    def _follow(self, weights: list[nn.Parameter]) -> None:
        places = [(id(weight), weight.data_ptr(), weight.requires_grad) for weight in weights]
        if places != self._places:
            self._places = places
            self._captures.clear()
            self._pool = torch.cuda.graph_pool_handle()
            self._gradients = [(weight, torch.zeros_like(weight)) for weight in weights if weight.requires_grad]

    def _own_gradients(self) -> None:
        emptied = []
        for weight, gradient in self._gradients:
            if weight.grad is gradient:
                continue
            if weight.grad is None:
                emptied.append(gradient)
            else:
                gradient.copy_(weight.grad)
            weight.grad = gradient
        if emptied:
            torch._foreach_zero_(emptied)

    def _capture(self, inputs: dict[str, Tensor], compute: Callable, is_full: bool) -> Capture:
        gradients = [gradient for _, gradient in self._gradients]
        weights = [weight for weight, _ in self._gradients]

        def forward(inputs):
            # A cast that outlives the capture would lie in the graphs' memory.
            enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
            with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
                result = compute(inputs)
            torch.clear_autocast_cache()
            return result

        def backward(loss, gradient):
            if not is_full:
                loss.backward(gradient.to(loss.dtype))  # to its own node, which adds to the gradients
                return
            # Not by the parameters' own nodes, which belong to the stream that they were made on.
            found = torch.autograd.grad(loss, weights, gradient.to(loss.dtype), allow_unused=True)
            pairs = [(total, each) for total, each in zip(gradients, found) if each is not None]
            torch._foreach_add_(*map(list, zip(*pairs)))

        # The warm-up leaves no trace.
        state, kept = torch.cuda.get_rng_state(), [gradient.clone() for gradient in gradients]
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        try:
            return Capture(forward, backward, inputs, self._pool)
        except RuntimeError as error:
            raise RuntimeError(
                f"`cuda_graphs` must be False for this {type(self.model).__name__}, whose pass can't be captured: {error}"
            ) from error
        finally:
            torch.cuda.synchronize()
            torch.cuda.set_rng_state(state)
            with torch.no_grad():
                torch._foreach_copy_(gradients, kept)
                for buffer, before in buffers:
                    buffer.copy_(before)
