# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Skeletons that compute with the full network's weights.

Each forward of a sub-network first binds: each parameter and buffer of the skeleton becomes the leading entries of the
full network's. There are two ways:

- Views: plain slices, through which autograd reaches the parameters. Hooks run, and `torch.autograd.grad` works.
- Detached: dense tensors. One autograd node adds all their gradients to `parameter.grad`. The backward does nothing
  per parameter in Python, and the kernels of convolutions and linear layers get dense weights.

Detached tensors belong to one forward. So nested blocks, several forwards before a backward, and a backward outside
the block all work. The memory is freed with the forward's graph.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .depth import KeptBlocks
from .registry import Block
from .selection import Selection
from .skeleton import module_types


# Layers whose weights autocast casts. Subclasses and other modules may differ.
_CAST_LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# Layers that compute without running statistics. `nn.SyncBatchNorm` demands some, and gets copies.
_BATCHNORM_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CHECKPOINTING = ("gradient_checkpointing", "_gradient_checkpointing_func")


def has_hooks(parameter: nn.Parameter) -> bool:
    """Whether a user's hooks run when the parameter gets a gradient, for example one that masks it."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


class ModuleIndex:
    """
    The full network's modules and parameters by index, so that no pass looks them up by name.

    Args:
        model (`nn.Module`): The full network. Only its inner modules are held. This object is part of the model's
            state, so holding the model would make a reference cycle.
    """

    def __init__(self, model: nn.Module):
        self._types = module_types(model)
        self.names = list(self._types)
        # Plans that sub-networks use for many passes. They hold views of the weights, so they are cleared when a weight moves.
        self.plans: WeakKeyDictionary[Subnetwork, dict[Any, _Plan]] = WeakKeyDictionary()
        self.has_hooks = False  # on parameters, which a pass on detached weights would leave out
        self._weights: list[tuple] = []
        self._read(model)

    def _read(self, model: nn.Module) -> None:
        modules, types = dict(model.named_modules()), module_types(model)
        for name in {**self._types, **types}:
            before, now = self._types.get(name, "absent"), types.get(name, "absent")
            if name and now != before:  # the model itself is of another class under FSDP2
                raise ValueError(
                    f"The model was changed after `make_slimmable`: {name!r} is {now} in the model, but {before} in its "
                    "sub-networks. Change the model first."
                )
        self._inner = [modules[name] for name in self.names[1:]]
        self._links = [(module._modules, dict(module._modules)) for module in modules.values()]
        self._parameters = [module._parameters for module in modules.values() if module._parameters]

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """The current modules, in the order of `names`. Drops all plans if modules or weights have changed."""
        if not all(children == before for children, before in self._links):
            self._read(model)
        parameters = [each for found in self._parameters for each in found.values() if each is not None]
        self.has_hooks = any(map(has_hooks, parameters))
        weights = [
            (id(weight), weight.data_ptr(), weight.requires_grad, weight.dtype, weight.stride())
            for weight in parameters
        ]
        if weights != self._weights:
            self._weights = weights
            self.plans.clear()
        return [model, *self._inner]


class _Entries(NamedTuple):
    """The entries of a full parameter or buffer that a sub-network uses."""

    name: str  # in its module
    full_name: str
    shape: tuple[int, ...]  # of the full tensor
    selection: Selection

    def checked(self, tensor: Tensor) -> Tensor:
        if tensor.shape != self.shape:
            raise ValueError(
                f"The model was changed after `make_slimmable`: {self.full_name!r} has shape {tuple(tensor.shape)}, but its "
                f"sub-networks are slices of {self.shape}. Change the model first."
            )
        return tensor


@dataclass
class Source:
    """The parts of a full network's module that a sub-network's module uses."""

    full_name: str
    index: int  # of the module in the full network
    settings: dict[str, Any]
    parameters: list[_Entries]
    buffers: list[_Entries]

    def __post_init__(self):
        self.has_dicts = any(type(value) is dict for value in self.settings.values())


class _SkeletonModule:
    """A module of a skeleton."""

    def __init__(self, module: nn.Module):
        self.state = vars(module)
        self.parameters = dict(module._parameters)  # on the meta device
        self.buffers = dict(module._buffers)
        # Neither parameters nor buffers: such as a mean of pixels that `__init__` makes, on the meta device here.
        self.tensors = {name: value.shape for name, value in self.state.items() if isinstance(value, Tensor)}
        # A forward may change its module: Swin's has the windows fit the images, a user's keeps features. PyTorch's don't.
        self.may_change = not type(module).__module__.startswith("torch.nn.")
        self.settings = _settings(module) if self.may_change else {}
        self.size = len(self.state)
        self.checkpoints = hasattr(module, "gradient_checkpointing")
        self.is_cast = type(module) in _CAST_LAYERS
        self.keeps_statistics = type(module) in _BATCHNORM_LAYERS and module.track_running_stats

    def follow(self, module: nn.Module, source: Source, drops_blocks: bool) -> None:
        """Takes over the mode and settings of the full network's module: another one each pass if blocks are dropped."""
        state = self.state
        if self.may_change or drops_blocks:
            state.update(_copied(source.settings) if source.has_dicts else source.settings)
            if self.checkpoints:
                state.update({name: getattr(module, name) for name in _CHECKPOINTING if hasattr(module, name)})
        for name, shape in self.tensors.items():
            value = vars(module).get(name)
            if isinstance(value, Tensor) and value.shape == shape and not value.requires_grad:
                state[name] = value.clone()  # as of buffers, below
        # Past `nn.Module.__setattr__`, which would take a third of a small network's pass.
        state["training"] = module.training

    def unbind(self) -> None:
        """Removes the weights, and what the forward left, such as features: they would stay in memory."""
        self.state["_parameters"].update(self.parameters)
        self.state["_buffers"].update(self.buffers)
        if self.may_change:
            self.state.update(self.settings)
            if len(self.state) > self.size:
                for name in [each for each in self.state if not each.startswith("_") and each not in self.settings]:
                    del self.state[name]

    def bind_buffers(self, module: nn.Module, source: Source) -> None:
        """Copies the selected entries of the full network's buffers. In train mode, BatchNorm gets none."""
        buffers = self.state["_buffers"]
        if module.training and self.keeps_statistics:
            # It computes with the statistics of its batch. Only the full network keeps running ones (paper, section 3).
            buffers.update(dict.fromkeys(self.buffers))
            return
        for entries in source.buffers:
            # A copy, because a forward may write into it.
            selected = entries.selection.take(entries.checked(module._buffers[entries.name]))
            buffers[entries.name] = selected.clone()


class _BlockSource(NamedTuple):
    """The source of a module in a residual block, if blocks are dropped: it depends on the kept block."""

    stage: int
    place: int
    by_block: dict[int, Source]


class Subnetwork:
    """
    A skeleton and the plan by which it computes with the full network's weights.

    Args:
        skeleton (`nn.Module`):
            A model without weights.
        module_index ([`ModuleIndex`]):
            The full network's modules.
        sources (`list[Source | _BlockSource]`):
            For each module of the skeleton.
    """

    def __init__(self, skeleton: nn.Module, module_index: ModuleIndex, sources: list[Source | _BlockSource]):
        self.skeleton = skeleton
        self.num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
        self._module_index = module_index
        self._sources = sources
        self._modules = [_SkeletonModule(module) for module in skeleton.modules()]

    @classmethod
    def narrow(
        cls,
        skeleton: nn.Module,
        module_index: ModuleIndex,
        shapes: dict[str, tuple[int, ...]],
        selections: dict[str, Selection],
    ) -> "Subnetwork":
        """A sub-network with all blocks, from the full network's shapes and the selected entries, by name."""
        places = {name: index for index, name in enumerate(module_index.names)}

        def entries(prefix: str, tensors: dict[str, Tensor | None]) -> list[_Entries]:
            names = [name for name, like in tensors.items() if like is not None]
            paths = [f"{prefix}.{name}" if prefix else name for name in names]
            return [_Entries(name, path, shapes[path], selections[path]) for name, path in zip(names, paths)]

        return cls(
            skeleton,
            module_index,
            [
                Source(
                    name,
                    places[name],
                    _settings(module),
                    entries(name, module._parameters),
                    entries(name, module._buffers),
                )
                for name, module in skeleton.named_modules()
            ],
        )

    def shallower(self, skeleton: nn.Module, find_block: Callable[[str], Block | None]) -> "Subnetwork":
        """
        A sub-network with fewer blocks. Its skeleton serves all choices of equally many blocks.

        Drop path rates and shifted windows depend on a block's place in the full network. A block keeps its settings.
        """
        by_name = {source.full_name: source for source in self._sources}
        by_place: dict[tuple[str, str], dict[int, Source]] = defaultdict(dict)
        for name, source in by_name.items():
            if block := find_block(name):
                by_place[block.before, block.after][block.index] = source
        sources: list[Source | _BlockSource] = []
        for name, module in skeleton.named_modules():
            if block := find_block(name):
                sources.append(_BlockSource(block.stage, block.index, by_place[block.before, block.after]))
            else:
                sources.append(replace(by_name[name], settings=_settings(module)))  # its config has fewer blocks
        return Subnetwork(skeleton, self._module_index, sources)

    def sources(self, kept_blocks: KeptBlocks | None = None) -> list[Source]:
        """For each module of the skeleton, its source in the full network, given the kept blocks."""
        if kept_blocks is None:
            return self._sources
        return [
            source.by_block[kept_blocks[source.stage][source.place]] if type(source) is _BlockSource else source
            for source in self._sources
        ]

    @torch.compiler.disable
    def bind(self, model: nn.Module, kept_blocks: KeptBlocks | None = None, *, detached: bool = False) -> None:
        """
        Makes the skeleton compute with the model's weights, until [`unbind`]. `kept_blocks` chooses the blocks.

        `torch.func.functional_call` would unbind when the forward returns. Gradient checkpointing runs parts of the
        forward again in the backward, and would then find a skeleton without weights.
        """
        modules, sources = self._module_index.modules(model), self.sources(kept_blocks)
        self._follow_model(model)
        for skeleton_module, source in zip(self._modules, sources, strict=True):
            module = modules[source.index]
            skeleton_module.follow(module, source, drops_blocks=kept_blocks is not None)
            if source.buffers:
                skeleton_module.bind_buffers(module, source)
        weights = self._weights(modules, sources)
        if not detached or self._module_index.has_hooks:
            for skeleton_module, entries, parameter in weights:
                skeleton_module.state["_parameters"][entries.name] = entries.selection.take(parameter)
            return
        cast_dtype = _cast_dtype(model)
        plans = self._module_index.plans.setdefault(self, {})
        if kept_blocks is not None:  # too many choices of blocks for a plan of each
            plan = _Plan(weights, cast_dtype)
        elif (plan := plans.get(cast_dtype)) is None:
            plan = plans[cast_dtype] = _Plan(weights, cast_dtype)
        plan.bind()

    def _follow_model(self, model: nn.Module) -> None:
        """Gives the skeleton the loss and the hook that a user set on the model itself."""
        # Where sub-networks learn from labels, the loss is theirs too.
        vars(self.skeleton).pop("_loss_function", None)
        if "_loss_function" in vars(model):
            self.skeleton.loss_function = model.loss_function
        # A hook on the embeddings. Reentrant checkpoints give no gradients to blocks whose input needs none.
        requires = bool(vars(model).get("_require_grads_hooks"))
        if requires != bool(vars(self.skeleton).get("_require_grads_hooks")):
            if requires:
                self.skeleton.enable_input_require_grads()
            else:
                self.skeleton.disable_input_require_grads()

    def _weights(
        self, modules: list[nn.Module], sources: list[Source]
    ) -> Iterator[tuple[_SkeletonModule, _Entries, nn.Parameter]]:
        for skeleton_module, source in zip(self._modules, sources, strict=True):
            parameters = modules[source.index]._parameters
            for entries in source.parameters:
                yield skeleton_module, entries, entries.checked(parameters[entries.name])

    def unbind(self) -> None:
        """Removes the weights from the skeleton. A later computation with it raises an error."""
        for module in self._modules:
            module.unbind()


class _Use(NamedTuple):
    """How a detached tensor comes from a parameter."""

    parameter: nn.Parameter
    selection: Selection
    dtype: torch.dtype
    is_dense: bool  # whether the selected entries are contiguous in the parameter
    count: int  # earlier uses of the same parameter


class _Plan:
    """
    Makes detached tensors from the parameters in each pass. Valid as long as the parameters stay in place.

    Args:
        weights (`Iterable`): Triples of a module of the skeleton, the entries, and their parameter.
        cast_dtype (`torch.dtype`, *optional*): The dtype to which autocast casts the weights of convolutions and
            linear layers.
    """

    def __init__(
        self, weights: Iterable[tuple[_SkeletonModule, _Entries, nn.Parameter]], cast_dtype: torch.dtype | None
    ):
        self._uses: list[_Use] = []
        self._places: list[tuple[dict[str, Tensor], str, int]] = []
        self._aliases: list[tuple[int, Tensor]] = []
        # Lists for `torch._foreach_copy_`, whose fast path takes dense tensors alone.
        self._copies: dict[bool, list[tuple[int, Tensor]]] = {True: [], False: []}
        self._concatenated: list[int] = []
        by_parameter: dict[int, list[int]] = defaultdict(list)
        for skeleton_module, entries, parameter in weights:
            dtype, selection = parameter.dtype, entries.selection
            if cast_dtype is not None and skeleton_module.is_cast and dtype == torch.float32:
                dtype = cast_dtype
            others = by_parameter[id(parameter)]
            same = (i for i in others if self._uses[i].dtype == dtype and self._uses[i].selection.key == selection.key)
            if (index := next(same, None)) is None:  # otherwise modules that share a parameter share the tensor
                index = len(self._uses)
                self._uses.append(self._plan(index, parameter, selection, dtype, len(others)))
                others.append(index)
            self._places.append((skeleton_module.state["_parameters"], entries.name, index))
        self._trained = [index for index, use in enumerate(self._uses) if use.parameter.requires_grad]

    @torch.no_grad()
    def _plan(self, index: int, parameter: nn.Parameter, selection: Selection, dtype: torch.dtype, count: int) -> _Use:
        if selection.size is None:
            self._concatenated.append(index)
            return _Use(parameter, selection, dtype, False, count)
        is_whole = selection.size == parameter.shape
        view = (parameter if is_whole else parameter.as_strided(selection.size, parameter.stride())).detach()
        is_dense = is_whole or view.is_contiguous()
        if is_dense and dtype == parameter.dtype:
            self._aliases.append((index, view))
        else:
            self._copies[is_dense].append((index, view))
        return _Use(parameter, selection, dtype, is_dense, count)

    def bind(self) -> None:
        """Gives the skeleton's modules new tensors, whose gradients go to the parameters where gradients are on."""
        uses, leaves = self._uses, [None] * len(self._uses)
        with torch.no_grad():
            # `detach` shares the version counter: a weight that changes before the backward is an error there.
            for index, view in self._aliases:
                leaves[index] = view.detach()
            for copies in self._copies.values():
                for index, view in copies:
                    # Dense, in the memory format of the view.
                    leaves[index] = torch.empty_like(view, dtype=uses[index].dtype)
                if copies:
                    torch._foreach_copy_([leaves[index] for index, _ in copies], [view for _, view in copies])
            for index in self._concatenated:
                use = uses[index]
                leaves[index] = use.selection.take(use.parameter.detach()).to(use.dtype)
        if self._trained and torch.is_grad_enabled():
            trained = [leaves[index] for index in self._trained]
            trained = _AddGradients.apply(
                torch.empty(0, requires_grad=True), trained, [uses[index] for index in self._trained]
            )
            for index, leaf in zip(self._trained, trained):
                leaves[index] = leaf
        for parameters, name, index in self._places:
            parameters[name] = leaves[index]


class _AddGradients(torch.autograd.Function):
    """
    The autograd node behind all trained weights of a forward. Its backward runs once all their gradients are ready.

    A node runs wherever a backward reaches the weights, unlike a hook on the outputs. It works with any type of
    outputs, in a joint backward, and before FSDP2 reduces gradients, which happens in a callback at the end.
    """

    @staticmethod
    def forward(ctx, anchor: Tensor, leaves: Sequence[Tensor], uses: list[_Use]) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.uses = uses
        return tuple(leaves)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None) -> tuple[None, None, None]:
        groups: dict[tuple, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for (parameter, selection, dtype, is_dense, count), gradient in zip(ctx.uses, gradients):
            if gradient is None:
                continue
            total, size = parameter.grad, selection.size
            if total is None:
                total = parameter.grad = torch.zeros_like(parameter)
            if size is None:
                selection.add_to(total, gradient)
                continue
            if size != total.shape:
                total = total.as_strided(size, total.stride())
            # A parameter that is here twice is in two calls: one may add in any order.
            totals, addends = groups[dtype, is_dense, count]
            totals.append(total)
            addends.append(gradient)
        for totals, addends in groups.values():
            torch._foreach_add_(totals, addends)
        return None, None, None


def _cast_dtype(model: nn.Module) -> torch.dtype | None:
    # Cast once, as autocast's cache has it. Without the cache each use is cast by itself.
    device = next(model.parameters()).device.type
    is_cast = torch.is_autocast_enabled(device) and torch.is_autocast_cache_enabled()
    return torch.get_autocast_dtype(device) if is_cast else None


def _settings(module: nn.Module) -> dict[str, Any]:
    return _copied({name: value for name, value in vars(module).items() if not name.startswith("_")})


def _copied(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if type(value) is dict else value for name, value in settings.items()}
