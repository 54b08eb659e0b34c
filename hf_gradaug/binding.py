# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Skeletons that compute with the full network's weights."""

import functools

import torch
from torch import Tensor, nn

from .depth import KeptBlocks, kept_names
from .selection import Selection


_MISSING = object()


class Subnetwork:
    """
    A skeleton, and what it takes to have it compute with the full network's weights.

    Args:
        skeleton (`nn.Module`):
            A model without weights.
        selections (`dict[str, Selection]`):
            What it uses of the parameters and buffers, by their names in the full network.
        block_settings (`dict[str, dict]`, *optional*):
            Of a skeleton with fewer blocks: the settings of the modules of all blocks, by their names in the full
            network. Drop path rates and shifted windows go by a block's place, which is that in the full network.
    """

    def __init__(
        self, skeleton: nn.Module, selections: dict[str, Selection], block_settings: dict[str, dict] | None = None
    ):
        self.skeleton = skeleton
        self.selections = selections
        self.settings = {name: _settings(module) for name, module in skeleton.named_modules()} | (block_settings or {})
        self.unbound = [(dict(module._parameters), dict(module._buffers)) for module in skeleton.modules()]

    @torch.compiler.disable
    def bind(self, model: nn.Module, detached: bool = False, kept_blocks: KeptBlocks | None = None) -> None:
        """
        Makes the skeleton compute with the model's weights, until [`unbind`]. If it has fewer blocks, with those of
        `kept_blocks`.

        `torch.func.functional_call` would unbind when the forward returns, and gradient checkpointing, which runs
        parts of the forward again in the backward, would find a skeleton without weights.
        """
        modules = dict(model.named_modules())
        names = kept_names(modules, model.config, kept_blocks).values()
        for prefix, narrow, (parameters, buffers) in zip(names, self.skeleton.modules(), self.unbound, strict=True):
            full = modules[prefix]
            # A forward may change its modules: Swin's has the windows fit the images, LeViT's keeps biases.
            vars(narrow).update(_copied(self.settings[prefix]))
            narrow.training = full.training
            for flag in ("gradient_checkpointing", "_gradient_checkpointing_func"):
                if (value := getattr(full, flag, _MISSING)) is not _MISSING:
                    setattr(narrow, flag, value)
            prefix = f"{prefix}." if prefix else ""
            for name, like in parameters.items():
                if like is not None:
                    parameter, selection = full._parameters[name], self.selections[prefix + name]
                    selected = select_entries(
                        parameter.detach() if detached else parameter, selection, like, prefix + name
                    )
                    narrow._parameters[name] = _leaf(parameter, selected, selection) if detached else selected
            for name, like in buffers.items():
                if like is not None:
                    # A copy, because a sub-network in train mode writes running statistics, and only the full
                    # network's count (paper, section 3).
                    selection = self.selections[prefix + name]
                    narrow._buffers[name] = select_entries(full._buffers[name], selection, like, prefix + name).clone()

    def unbind(self) -> None:
        for module, (parameters, buffers) in zip(self.skeleton.modules(), self.unbound, strict=True):
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _settings(module: nn.Module) -> dict:
    return _copied({name: value for name, value in vars(module).items() if not name.startswith("_")})


def _copied(settings: dict) -> dict:
    return {name: dict(value) if type(value) is dict else value for name, value in settings.items()}


def select_entries(tensor: Tensor, selection: Selection, like: Tensor, name: str) -> Tensor:
    selected = selection.take(tensor)
    if selected.shape != like.shape:
        raise ValueError(
            f"The model was changed after `make_slimmable`: {name!r} has shape {tuple(tensor.shape)}, and its "
            f"sub-network needs {tuple(like.shape)}. Change the model first."
        )
    return selected


def _leaf(parameter: nn.Parameter, selected: Tensor, selection: Selection) -> Tensor:
    """
    A dense leaf in the memory format of the parameter, whose gradient is added to the parameter's as it is computed.

    Autograd answers a view with a gradient as large as the whole parameter, mostly zeros, for each pass, and kernels
    of convolutions and linear layers are slower on the strided weights.
    """
    # What is dense already, such as biases and whole layers, need not be copied.
    dense = selected.is_contiguous() or selected.shape == parameter.shape
    leaf = selected if dense else selected.clone()
    if not (parameter.requires_grad and torch.is_grad_enabled()):
        return leaf
    leaf.requires_grad_().register_post_accumulate_grad_hook(functools.partial(_add_gradient, parameter, selection))
    return leaf


def _add_gradient(parameter: nn.Parameter, selection: Selection, leaf: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    selection.add_to(parameter.grad, leaf.grad)
    leaf.grad = None
