# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Skeletons that compute with the full network's weights.

A forward of a sub-network begins by binding: each parameter and buffer of the skeleton becomes the leading entries of
the full network's. There are two ways:

- Views: plain slices, through which autograd reaches the parameters. Hooks run, `torch.autograd.grad` works.
- Detached: dense tensors, all of whose gradients one autograd node adds to `parameter.grad`. The backward does nothing
  per parameter in Python, and the kernels of convolutions and linear layers get dense weights.

Detached tensors belong to one forward. Nested blocks, several forwards before a backward and a backward outside of the
block therefore need no care, and the memory is freed with the forward's graph.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .depth import KeptBlocks
from .selection import Selection


# What autocast casts the weights of. Of subclasses and other modules it isn't known.
_CAST_LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_BATCHNORM_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CHECKPOINTING = ("gradient_checkpointing", "_gradient_checkpointing_func")
_MISSING = object()


class ModuleTree:
    """
    The modules of the full network by their place, so that no pass looks them up by name.

    Args:
        model (`nn.Module`): the full network. The tree holds its inner modules, not the model itself: it is part of the
            model's state, and a cycle would keep the weights until a garbage collection.
    """

    def __init__(self, model: nn.Module):
        self.names = [name for name, _ in model.named_modules()]
        self._read(model)

    def _read(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        if missing := [name for name in self.names if name not in modules]:
            raise ValueError(f"The model was changed after `make_slimmable`: {missing[0]!r} is gone.")
        self._inner = [modules[name] for name in self.names[1:]]
        self._links = [
            (module._modules, name, child) for module in modules.values() for name, child in module._modules.items()
        ]

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """The modules of this moment, in the order of `names`."""
        if not all(children.get(name) is child for children, name, child in self._links):
            self._read(model)
        return [model, *self._inner]


class _Entries(NamedTuple):
    """What a sub-network uses of a parameter or buffer of the full network."""

    name: str  # in its module
    full_name: str
    shape: tuple[int, ...]  # of the full tensor
    selection: Selection

    def check(self, tensor: Tensor) -> None:
        if tensor.shape != self.shape:
            raise ValueError(
                f"The model was changed after `make_slimmable`: {self.full_name!r} has shape {tuple(tensor.shape)}, but its "
                f"sub-networks are slices of {self.shape}. Change the model first."
            )


@dataclass
class _Source:
    """What a module of a sub-network takes from a module of the full network."""

    full_name: str
    index: int  # of the full network's module in the tree
    settings: dict[str, Any]
    parameters: list[_Entries]
    buffers: list[_Entries]


class _BlockSource(NamedTuple):
    """Where a module of a dropped-block sub-network finds its source: in the kept block of its place in its stage."""

    stage: int
    place: int
    by_block: dict[int, _Source]


class Subnetwork:
    """
    A skeleton and the plan by which it computes with the full network's weights.

    Args:
        skeleton (`nn.Module`):
            A model without weights.
        tree ([`ModuleTree`]):
            The full network's modules.
        sources (`list[_Source | _BlockSource]`):
            For each module of the skeleton.
    """

    def __init__(self, skeleton: nn.Module, tree: ModuleTree, sources: list[_Source | _BlockSource]):
        self.skeleton = skeleton
        self.num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
        self._tree = tree
        self._sources = sources
        self._modules = [
            (module, dict(module._parameters), dict(module._buffers), _may_change(module))
            for module in skeleton.modules()
        ]

    @classmethod
    def narrow(
        cls,
        skeleton: nn.Module,
        tree: ModuleTree,
        shapes: dict[str, tuple[int, ...]],
        selections: dict[str, Selection],
    ) -> "Subnetwork":
        """One with all blocks. Of the full network: shapes and what is used of them, by name."""
        places = {name: index for index, name in enumerate(tree.names)}

        def entries(prefix: str, tensors: dict[str, Tensor | None]) -> list[_Entries]:
            names = {
                name: f"{prefix}.{name}" if prefix else name for name, like in tensors.items() if like is not None
            }
            return [_Entries(name, full, shapes[full], selections[full]) for name, full in names.items()]

        return cls(
            skeleton,
            tree,
            [
                _Source(
                    name,
                    places[name],
                    _settings(module),
                    entries(name, module._parameters),
                    entries(name, module._buffers),
                )
                for name, module in skeleton.named_modules()
            ],
        )

    def shallower(self, skeleton: nn.Module, find_block: Callable) -> "Subnetwork":
        """
        One with fewer blocks. Its skeleton serves all choices of as many.

        Drop path rates and shifted windows go by a block's place in the full network: a block keeps its settings.
        """
        by_name = {source.full_name: source for source in self._sources}
        by_place: dict[tuple[str, str], dict[int, _Source]] = defaultdict(dict)
        for name, source in by_name.items():
            if block := find_block(name):
                start, end = block.span(block.lastindex)
                by_place[name[:start], name[end:]][int(name[start:end])] = source
        sources: list[_Source | _BlockSource] = []
        for name, module in skeleton.named_modules():
            if block := find_block(name):
                *stage, place = (int(group) for group in block.groups())
                start, end = block.span(block.lastindex)
                sources.append(_BlockSource(stage[0] if stage else 0, place, by_place[name[:start], name[end:]]))
            else:
                sources.append(replace(by_name[name], settings=_settings(module)))  # its config has fewer blocks
        return Subnetwork(skeleton, self._tree, sources)

    def sources(self, kept_blocks: KeptBlocks | None = None) -> list[_Source]:
        """For each module of the skeleton, what it takes from the full network. With fewer blocks, with these."""
        if kept_blocks is None:
            return self._sources
        return [
            source.by_block[kept_blocks[source.stage][source.place]] if type(source) is _BlockSource else source
            for source in self._sources
        ]

    @torch.compiler.disable
    def bind(self, model: nn.Module, kept_blocks: KeptBlocks | None = None, *, detached: bool = False) -> None:
        """
        Makes the skeleton compute with the model's weights, until [`unbind`]. If it has fewer blocks, with those of
        `kept_blocks`.

        `torch.func.functional_call` would unbind when the forward returns, and gradient checkpointing, which runs
        parts of the forward again in the backward, would find a skeleton without weights.
        """
        modules = self._tree.modules(model)
        weights = _DetachedWeights(model) if detached else _Views()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detached):
            for (module, parameters, buffers, may_change), source in zip(
                self._modules, self.sources(kept_blocks), strict=True
            ):
                full, state = modules[source.index], vars(module)
                if may_change or kept_blocks is not None:
                    state.update(_copied(source.settings))
                    for flag in _CHECKPOINTING:
                        if (value := getattr(full, flag, _MISSING)) is not _MISSING:
                            state[flag] = value
                # Past `nn.Module.__setattr__`, which would take a third of a small network's pass.
                state["training"] = full.training
                if parameters:
                    is_cast = type(module) in _CAST_LAYERS
                    for entries in source.parameters:
                        weights.add(module._parameters, entries, full._parameters[entries.name], is_cast)
                if not buffers:
                    continue
                if full.training and type(module) in _BATCHNORM_LAYERS and module.track_running_stats:
                    # It computes with the statistics of its batch. Only the full network keeps running ones (paper,
                    # section 3).
                    module._buffers.update(dict.fromkeys(buffers))
                    continue
                for entries in source.buffers:
                    buffer = full._buffers[entries.name]
                    entries.check(buffer)
                    # A copy, because a forward may write into it.
                    module._buffers[entries.name] = entries.selection.take(buffer).clone()
        weights.bind()

    def unbind(self) -> None:
        """Leaves the skeleton without weights: what computes with it later meets an error, never other weights."""
        for module, parameters, buffers, _ in self._modules:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


class _Views:
    """Binds the parameters' own slices."""

    def add(self, parameters: dict[str, Tensor], entries: _Entries, parameter: Tensor, is_cast: bool) -> None:
        entries.check(parameter)
        parameters[entries.name] = entries.selection.take(parameter)

    def bind(self) -> None:
        pass


class _DetachedWeights:
    """Collects the parameters of a forward, copies their entries at once, and has the gradients added at once."""

    def __init__(self, model: nn.Module):
        device = next(model.parameters()).device.type
        # Cast once, as autocast's cache has it. Without the cache each use is cast by itself.
        is_cast = torch.is_autocast_enabled(device) and torch.is_autocast_cache_enabled()
        self._cast_dtype = torch.get_autocast_dtype(device) if is_cast else None
        self._is_training = torch.is_grad_enabled()
        # Lists for the foreach functions, whose fast path takes dense tensors alone.
        self._copies: dict[bool, tuple[list[Tensor], list[Tensor]]] = {True: ([], []), False: ([], [])}
        self._leaves: dict[tuple, Tensor | int] = {}  # a number is the place among the trained ones
        self._places: list[tuple[dict[str, Tensor], str, int]] = []
        self._trained: list[Tensor] = []
        self._uses: list[tuple[Tensor, Selection]] = []

    def add(self, parameters: dict[str, Tensor], entries: _Entries, parameter: Tensor, is_cast: bool) -> None:
        entries.check(parameter)
        selection, dtype = entries.selection, parameter.dtype
        if is_cast and dtype == torch.float32 and self._cast_dtype is not None:
            dtype = self._cast_dtype
        key = (id(parameter), selection.key, dtype)
        leaf = self._leaves.get(key)  # of a parameter that several modules share
        if leaf is None:
            leaf = self._make_leaf(parameter, entries, dtype)
            if self._is_training and parameter.requires_grad:
                self._trained.append(leaf)
                self._uses.append((parameter, selection))
                leaf = len(self._trained) - 1
            self._leaves[key] = leaf
        if type(leaf) is int:
            self._places.append((parameters, entries.name, leaf))
        else:
            parameters[entries.name] = leaf

    def _make_leaf(self, parameter: Tensor, entries: _Entries, dtype: torch.dtype) -> Tensor:
        if entries.selection.size is None:
            return entries.selection.take(parameter.detach()).to(dtype)
        size, is_whole = entries.selection.size, entries.selection.size == entries.shape
        source = parameter if is_whole else parameter.as_strided(size, parameter.stride())
        is_dense = is_whole or source.is_contiguous()
        if is_dense and dtype == parameter.dtype:
            # Needs no copy. `detach` shares the version counter: a weight that changes before the backward is an error.
            return source.detach()
        leaf = torch.empty_like(source, dtype=dtype)  # dense, in the memory format of the parameter
        for list_, tensor in zip(self._copies[is_dense], (leaf, source)):
            list_.append(tensor)
        return leaf

    def bind(self) -> None:
        with torch.no_grad():
            for leaves, sources in self._copies.values():
                if leaves:
                    torch._foreach_copy_(leaves, sources)
        if not self._trained:
            return
        leaves = _AddGradients.apply(torch.empty(0, requires_grad=True), self._trained, self._uses)
        for parameters, name, index in self._places:
            parameters[name] = leaves[index]


class _AddGradients(torch.autograd.Function):
    """
    The node behind all trained weights of a forward. Its backward runs once all of their gradients are there.

    A node, and not a hook on the outputs, because it runs wherever a backward reaches the weights: whatever the outputs are
    made of, in a joint backward, and before FSDP2 reduces, which does so in a callback at the end.
    """

    @staticmethod
    def forward(ctx, anchor: Tensor, leaves: list[Tensor], uses: list[tuple[Tensor, Selection]]) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.uses = uses
        return tuple(leaves)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None) -> tuple[None, None, None]:
        groups: dict[tuple, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        times: Counter[int] = Counter()
        for (parameter, selection), gradient in zip(ctx.uses, gradients):
            if gradient is None:
                continue
            total = parameter.grad
            if total is None:
                total = parameter.grad = torch.zeros_like(parameter)
            if selection.size is None:
                selection.add_to(total, gradient)
                continue
            is_whole = selection.size == total.shape
            if not is_whole:
                total = total.as_strided(selection.size, total.stride())
            # Of a parameter that is here twice, in two calls: one call may add in any order.
            times[id(parameter)] += 1
            group = groups[gradient.dtype, is_whole or total.is_contiguous(), times[id(parameter)]]
            group[0].append(total)
            group[1].append(gradient)
        for totals, addends in groups.values():
            torch._foreach_add_(totals, addends)
        return None, None, None


def _may_change(module: nn.Module) -> bool:
    # A forward may change its module: Swin's has the windows fit the images, LeViT's keeps biases. PyTorch's don't.
    return not type(module).__module__.startswith("torch.nn.")


def _settings(module: nn.Module) -> dict[str, Any]:
    return _copied({name: value for name, value in vars(module).items() if not name.startswith("_")})


def _copied(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if type(value) is dict else value for name, value in settings.items()}
