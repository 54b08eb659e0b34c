# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Skeletons (models of a config without weights) and checks against the full network."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from ..messages import shorten
from .selection import Selection


Build = Callable[[PreTrainedConfig], nn.Module]
# Sub-networks follow the mode of the model, and its name changes no output.
_NOT_COMPARED = ("training", "name_or_path", "model_tags")


def build_skeleton(config: PreTrainedConfig, build: Build) -> nn.Module:
    """Builds a model of the config on the meta device."""
    try:
        with torch.device("meta"), no_init_weights():
            skeleton = build(config)
    except TypeError as error:
        raise TypeError(
            f"`build` must make a model from a config alone, but {getattr(build, '__name__', build)} doesn't: {error} Give "
            "`make_slimmable` or the trainer `build=...`, a function from a config to a model."
        ) from error
    if not any(parameter.is_meta for parameter in skeleton.parameters()):
        raise ValueError(
            "`build` must return a model on the meta device, but its parameters are elsewhere. Build it from the config "
            "alone: load no weights and name no device."
        )
    # LeViT names a device for some of its buffers, and Mask2Former makes embeddings in a way that follows none.
    skeleton.to("meta")
    return skeleton


def check_same(what: str, found: dict[str, str | tuple], expected: dict[str, str | tuple], width: float) -> None:
    for name in itertools.chain(expected, found):
        full, narrow = found.get(name, "absent"), expected.get(name, "absent")
        if full == narrow or (width < 1 and _is_larger_shape(full, narrow)):
            continue
        raise ValueError(
            f"{what.capitalize()} {name!r} is {full} in the model, but {narrow} in a sub-network of width multiplier "
            f"{width} built from its config. If the model was changed after construction, give `make_slimmable` or "
            "the trainer `build=...`, a function from a config to a model with the same changes."
        )


def check_layers(model: nn.Module, skeleton: nn.Module, selections: dict[str, Selection]) -> None:
    """
    Raises a `ValueError` if a layer of PyTorch would use channels that don't belong together, which no shape tells.

    Weight and bias have the same output channels. Grouped convolutions and attention divide their channels themselves.
    If the groups stay and each loses channels, the second one would begin with the last channels of the full network's
    first.
    """
    modules = dict(model.named_modules())
    for name, module in skeleton.named_modules():
        prefix = f"{name}." if name else ""
        by_output = [prefix + tensor for tensor in _by_output(module) if prefix + tensor in selections]
        for first, other in itertools.pairwise(by_output):
            if selections[first].spans[0] != selections[other].spans[0]:
                raise ValueError(
                    f"`parts` of {first!r} and {other!r} must divide dimension 0 alike, but don't. Name both in "
                    "`register_narrowing`, for example by a pattern that ends with `(?:weight|bias)`."
                )
        for tensor, what, count, full_count in _divided(module, modules[name]):
            if prefix + tensor not in selections:  # a parametrized weight
                continue
            used = [i for span in selections[prefix + tensor].spans[0] for i in range(span.start, span.stop)]
            size, full_size = len(used) // count, len(getattr(modules[name], tensor)) // full_count
            if any((i % size == 0) != (used[i] // full_size != used[i - 1] // full_size) for i in range(1, len(used))):
                raise ValueError(
                    f"`parts` of {prefix + tensor!r} must keep its {what} apart in sub-networks, but {full_count} of "
                    f"{full_size} channels in the full network are {count} of {size} in a sub-network, which would mix "
                    f"them. In `register_narrowing`, {_ADVICE[what].format(full_size)}."
                )


_BY_OUTPUT = (nn.Linear, _ConvNd, _NormBase, nn.LayerNorm, nn.GroupNorm)
_ADVICE = {
    "groups": "drop whole groups, by `narrow(counts, multiple={})` and by narrowing their number by the same fraction",
    "heads": "drop whole heads, by `narrow(counts, multiple={})` and by narrowing their number by the same fraction",
    "queries, keys and values": "name it in `parts`, with {{0: 3}}",
}


def _by_output(module: nn.Module) -> tuple[str, ...]:
    """Parameters and buffers of a layer that have an entry for each output channel, along dimension 0."""
    if isinstance(module, nn.MultiheadAttention):
        return ("in_proj_weight", "in_proj_bias")
    if not isinstance(module, _BY_OUTPUT) or getattr(module, "transposed", False):
        return ()
    return ("weight", "bias", "running_mean", "running_var")


def _divided(module: nn.Module, full: nn.Module) -> list[tuple[str, str, int, int]]:
    """Weights whose dimension 0 a layer divides: their names, into what, and into how many here and in `full`."""
    if isinstance(module, _ConvNd):
        return [("weight", "groups", module.groups, full.groups)]
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        heads = ("in_proj_weight", "heads", 3 * module.num_heads, 3 * full.num_heads)
        return [("in_proj_weight", "queries, keys and values", 3, 3), heads]
    return []


def check_no_weight_hooks(model: nn.Module) -> None:
    """Raises a `ValueError` if hooks of older PyTorch compute weights. They leave tensors that can't be copied."""
    kinds = (WeightNorm, SpectralNorm, BasePruningMethod)
    found = {
        name: type(hook).__name__
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, kinds)
    }
    if found:
        raise ValueError(
            f"`model` must compute its weights by `torch.nn.utils.parametrize`, but hooks of {shorten(sorted(set(found.values())))} "
            f"compute those of {shorten(found)}. Use `weight_norm` of `torch.nn.utils.parametrizations`. After pruning, call "
            "`torch.nn.utils.prune.remove`."
        )


def check_no_spectral_norm(model: nn.Module) -> None:
    """Raises a `ValueError` for spectral norms: they divide by the norm of the whole weight, not of a sub-network's."""
    if found := [name for name, module in model.named_modules() if isinstance(module, _SpectralNorm)]:
        raise ValueError(
            "`model` must have no `spectral_norm` with sub-networks of a width below 1, but it computes those weights: "
            f"{shorten(found)}. Use `weight_norm` of `torch.nn.utils.parametrizations`, or sub-networks that drop blocks alone."
        )


def _is_larger_shape(full: str | tuple, narrow: str | tuple) -> bool:
    if not (isinstance(full, tuple) and isinstance(narrow, tuple)):
        return False
    return len(full) == len(narrow) and all(n <= f for f, n in zip(full, narrow))


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = itertools.chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    )
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def module_settings(module: nn.Module) -> dict[str, str]:
    # With the settings that a module shows, such as a stride or a dropout probability.
    return {name: f"{type(child).__name__}({child.extra_repr()})" for name, child in module.named_modules()}


def changed_forwards(model: nn.Module) -> list[str]:
    """The inner modules that a user gave forward hooks or a `forward` of their own."""
    return [name for name, module in model.named_modules() if name and _has_changed_forward(module)]


def _has_changed_forward(module: nn.Module) -> bool:
    # The hooks of libraries record outputs or move tensors, and don't change what a module computes. So does Accelerate's
    # `forward`.
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if not all(map(_is_from_library, hooks)):
        return True
    return "forward" in vars(module) and not _is_from(module.forward, "accelerate")


def backward_hooks(model: nn.Module) -> list[str]:
    """The inner modules that a user gave backward hooks. They change gradients, not what a module computes."""
    hooks = {
        name: [*module._backward_hooks.values(), *module._backward_pre_hooks.values()]
        for name, module in model.named_modules()
        if name
    }
    return [name for name, of_module in hooks.items() if not all(map(_is_from_library, of_module))]


def changed_attributes(model: nn.Module, skeleton: nn.Module) -> list[str]:
    """The numbers, strings, booleans, lists of these, and tensors that were set on the model itself after construction."""
    found = []
    for name, value in vars(model).items():
        own = getattr(skeleton, name, value)  # the class may have a default
        if name not in _NOT_COMPARED and _is_other(value, own):
            shown = ("a tensor" if isinstance(each, Tensor) else repr(each) for each in (value, own))
            found.append("{} ({} in the model, {} in a sub-network)".format(name, *shown))
    return found


def _is_other(value: Any, own: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(own, Tensor):  # if both are, sub-networks get the model's
        return isinstance(value, Tensor) != isinstance(own, Tensor)
    items = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(item, (bool, int, float, str)) for item in items) and value != own


def _is_from_library(hook: Callable) -> bool:
    return _is_from(hook, "torch", "transformers", "accelerate")


def _is_from(function: Callable, *packages: str) -> bool:
    function = getattr(function, "func", function)  # of a partial one
    return (getattr(function, "__module__", None) or "").split(".")[0] in packages


def module_types(module: nn.Module) -> dict[str, str]:
    return {name: type(child).__name__ for name, child in module.named_modules()}
