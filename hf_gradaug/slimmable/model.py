# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Sub-networks of a model.

A sub-network is an ordinary model of the same class. It is built from a narrower config on the meta device (its
skeleton). Its parameters are the leading slices of the full network's: views, or copies for one forward where it is
`detached`. No layer is replaced and no parameter renamed, so the model saves plain checkpoints.
"""

import copy
import functools
import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedConfig, PreTrainedModel

from ..messages import shorten
from .binding import ModuleIndex, Subnetwork
from .depth import KeptBlocks, block_finder, dropped_parameters, kept_names, shallower_config
from .image_size import size_arguments
from .narrowing import narrow_config
from .selection import select, unmatched_patterns
from .skeleton import (
    Build,
    backward_hooks,
    build_skeleton,
    changed_attributes,
    changed_forwards,
    check_layers,
    check_no_spectral_norm,
    check_no_weight_hooks,
    check_same,
    module_settings,
    module_types,
    shapes_of,
)


logger = logging.getLogger(__name__)

_STATE = "_subnetworks"
# Fields of a config that no sub-network depends on. The first save writes the last three.
_NOT_OF_THE_NETWORK = ("id2label", "label2id", "architectures", "auto_map", "dtype")


class _SlimmableState:
    """What a slimmable model holds beside its modules: its plain class, cached sub-networks, the active ones."""

    # Widths are drawn from an interval, but channel counts are whole: ResNet-50 has 385 different sub-networks between
    # 0.9 and 1. Each takes 1 MB, and some ten milliseconds to build.
    cache_size = 512

    def __init__(self, model_class: type[nn.Module], build: Build | None, width_divisor: int | None = None):
        self.model_class = model_class
        self.build = build
        self.width_divisor = width_divisor  # of a run in this process
        self.module_index: ModuleIndex | None = None
        self.cache: OrderedDict[str, Subnetwork] = OrderedDict()
        self.active: list[_Activation] = []

    def narrow_config(self, config: PreTrainedConfig, width: float, width_divisor: int | None) -> PreTrainedConfig:
        return narrow_config(config, width, self.width_divisor or 1 if width_divisor is None else width_divisor)

    def get(
        self, model: nn.Module, width: float, width_divisor: int | None, kept_blocks: KeptBlocks | None
    ) -> Subnetwork:
        config = self.narrow_config(model.config, width, width_divisor)
        whole = self._cached(config, lambda: self._make(model, config, width))
        if kept_blocks is None:
            return whole
        shallower = shallower_config(config, kept_blocks)
        return self._cached(shallower, lambda: self._make_shallower(whole, shallower, width, kept_blocks))

    def _cached(self, config: PreTrainedConfig, make: Callable[[], Subnetwork]) -> Subnetwork:
        key = str([config.num_labels, {k: v for k, v in vars(config).items() if k not in _NOT_OF_THE_NETWORK}])
        if key not in self.cache:
            self.cache[key] = make()
            if len(self.cache) > self.cache_size:
                self.cache.popitem(last=False)
        self.cache.move_to_end(key)
        return self.cache[key]

    def _make(self, model: nn.Module, config: PreTrainedConfig, width: float) -> Subnetwork:
        skeleton = build_skeleton(config, self.build or self.model_class)
        if width < 1:
            check_no_spectral_norm(skeleton)
        full, narrow = shapes_of(model), shapes_of(skeleton)
        check_same("parameter or buffer", full, narrow, width)
        if self.module_index is None:
            self.module_index = ModuleIndex(model)
        selections = {name: select(name, full[name], narrow[name], model.config, config) for name in narrow}
        check_layers(model, skeleton, selections)
        return Subnetwork.narrow(skeleton, self.module_index, full, selections)

    def _make_shallower(
        self, whole: Subnetwork, config: PreTrainedConfig, width: float, kept_blocks: KeptBlocks
    ) -> Subnetwork:
        skeleton = build_skeleton(config, self.build or self.model_class)
        for what, found_in in (("parameter or buffer", shapes_of), ("module", module_types)):
            full = found_in(whole.skeleton)
            names = kept_names(full, config, kept_blocks)
            kept = {name: full[full_name] for name, full_name in names.items()}
            check_same(what, kept, found_in(skeleton), width)
        return whole.shallower(skeleton, block_finder(config))


@dataclass(eq=False)
class _Activation:
    """The context manager of [`SlimmableModel.subnetwork`]; it can be nested and entered again."""

    active: list["_Activation"]  # of the model, the innermost last
    subnetwork: Subnetwork
    kept_blocks: KeptBlocks | None
    detached: bool
    compiled: bool
    has_run: bool = False

    @property
    def skeleton(self) -> nn.Module:
        """The model of the narrower config. It has weights only from a forward to the end of the block."""
        return self.subnetwork.skeleton

    def __enter__(self) -> nn.Module:
        self.active.append(self)
        return self.skeleton

    def __exit__(self, *exception) -> None:
        self.active.pop()
        self.subnetwork.unbind()


class SlimmableModel:
    """What [`make_slimmable`] adds to the class of a model."""

    @property
    def trained_width_divisor(self) -> int | None:
        """The `width_divisor` of the run that has trained this model in this process, if there is one."""
        return self.__dict__[_STATE].width_divisor

    @trained_width_divisor.setter
    def trained_width_divisor(self, width_divisor: int) -> None:
        self.__dict__[_STATE].width_divisor = width_divisor

    def subnetwork(
        self,
        width: float,
        width_divisor: int | None = None,
        kept_blocks: KeptBlocks | None = None,
        *,
        detached: bool = False,
        compiled: bool = False,
    ) -> _Activation:
        """
        Runs a sub-network instead of the full network inside a `with` block.

        The sub-network uses the leading channels of every layer. It follows each module's train or eval mode, gradient
        checkpointing and `requires_grad`. In train mode its BatchNorm layers use the batch's statistics, and the full
        network's running statistics don't change.

        For images of another size than the config's, learned positions are interpolated if the model can. With
        gradient checkpointing, call `backward` inside the block.

        Forward hooks on the model itself run. What you change in its inner modules reaches the full network alone:
        forward hooks, a patched `forward`, a setting such as `Dropout.p`. [`make_slimmable`] warns of the first two.

        Args:
            width (`float`):
                Width multiplier, in (0, 1].
            width_divisor (`int`, *optional*):
                Channel counts are rounded to multiples of it. Defaults to the value of the run that has trained this
                model in this process, or 1. Settings beside a loaded checkpoint are not read.
            kept_blocks (`Sequence[Sequence[int]]`, *optional*):
                For each stage, the indices of the residual blocks that run, ascending from 0: `((0, 2), (0,))` for a
                model with two stages. A model without stages counts as one stage. If not given, all blocks run. Unless
                `detached`, `backward` gives the parameters of dropped blocks a gradient of 0.
            detached (`bool`, *optional*, defaults to `False`):
                Computes with dense copies of the weights. `backward` adds all their gradients to `parameter.grad` at
                once. This is faster and gives the same sums. But DistributedDataParallel doesn't synchronize them,
                `torch.autograd.grad` doesn't reach the parameters, and the gradients can't be differentiated. It has
                no effect while a parameter has hooks, such as one that masks its gradient: they run in each pass.
            compiled (`bool`, *optional*, defaults to `False`):
                Lets `torch.compile` compile the sub-network too, once for each width and image size.

        Returns:
            A context manager. It yields the sub-network's skeleton: a model of the narrower config without weights.

        Raises:
            `ValueError`: If `width` is outside (0, 1], `width_divisor` below 1, or `kept_blocks` don't fit. Also if
                `width` is below 1 and weights have a `spectral_norm`.
            `TypeError`: If `kept_blocks` are given and the family's blocks aren't registered (see [`register_depth`]).

        Example:

        ```python
        with model.subnetwork(width=0.9):
            logits = model(pixel_values=pixel_values).logits
        ```
        """
        state: _SlimmableState = self.__dict__[_STATE]
        subnetwork = state.get(self, width, width_divisor, kept_blocks)
        return _Activation(state.active, subnetwork, kept_blocks, detached, compiled)

    def _apply(self, fn, recurse=True):
        state: _SlimmableState = self.__dict__[_STATE]
        if state.module_index is not None:
            state.module_index.plans.clear()  # their views would keep the weights' memory on the device that the model leaves
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict) -> nn.Module:
        state: _SlimmableState = self.__dict__[_STATE]
        copied = state.model_class.__new__(state.model_class)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(_plain_state(self), memo))
        return _swap_class(copied, state.build, state.width_divisor)

    def __reduce_ex__(self, protocol):
        # Pickles as the plain model, which loads where this package is absent.
        plain_class = self.__dict__[_STATE].model_class
        return plain_class.__new__, (plain_class,), _plain_state(self)


def _plain_state(model: nn.Module) -> dict:
    # PyTorch's own leaves out what `model.compile()` made, which runs this model and not its copy.
    return {name: value for name, value in model.__getstate__().items() if name != _STATE}


def make_slimmable(model: PreTrainedModel, build: Build | None = None) -> PreTrainedModel:
    """
    Gives a model its sub-networks, in place.

    The model stays the same object, with the same parameters, names and `forward` signature. Its class becomes a subclass
    of the same name, which adds the method [`~SlimmableModel.subnetwork`]. A model that is already slimmable is returned
    unchanged. A warning names what sub-networks ignore: hooks and a patched `forward` of inner modules, and attributes that
    were set on the model after construction.

    Args:
        model (`PreTrainedModel`):
            A model whose family has a narrowing (see [`register_narrowing`]).
        build (`Callable[[PreTrainedConfig], nn.Module]`, *optional*):
            Function from a config to a new model. Needed if the model differs from what its class builds from its config,
            for example in its head. Defaults to the model's class.

    Returns:
        `PreTrainedModel`: `model` itself.

    Raises:
        `TypeError`: If the model has no config, or no narrowing is known for its family.
        `ValueError`: If the model differs from what its config (or `build`) describes. The error names the first
            difference. Also if the model itself has a patched `forward`, older hooks compute its weights, such as those
            of `torch.nn.utils.weight_norm`, or a slimmable model is given another `build`.

    Example:

    ```python
    def build(config):
        model = ResNetForImageClassification(config)
        model.classifier[1] = torch.nn.Linear(config.hidden_sizes[-1], config.num_labels, bias=False)
        return model

    model = make_slimmable(build(config), build=build)
    ```
    """
    if isinstance(model, SlimmableModel):
        if build is not None and build is not model.__dict__[_STATE].build:
            raise ValueError(
                "`build` must be the function that made the model slimmable, but is another one. Pass it in the first call."
            )
        return model
    if not isinstance(getattr(model, "config", None), PreTrainedConfig):
        raise TypeError(
            "`model` must have a `config` of transformers, from which its sub-networks are built, but "
            f"{type(model).__name__} has none. Load a model by its name with `from_pretrained`."
        )
    if build is None and not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"`model` must be a `PreTrainedModel`, but is a {type(model).__name__}. Pass `make_slimmable` or the trainer "
            "`build=...`, a function from a config to a new model. A compiled or PEFT model can't be made slimmable."
        )
    if "forward" in vars(model):  # without the class's, which runs the sub-networks
        raise ValueError(
            "`model` must have the `forward` of its class, but has a patched one, which would bypass the sub-networks. Remove "
            "the patch, or reload the model: Accelerate patches `forward` for mixed precision. To turn GradAug on later, build "
            "the trainer with sub-networks, and set `num_subnetworks` to 0 when training begins."
        )
    check_no_weight_hooks(model)
    skeleton = build_skeleton(narrow_config(model.config, width=1.0), build or type(model))
    check_same("parameter or buffer", shapes_of(model), shapes_of(skeleton), width=1.0)
    check_same("module", module_settings(model), module_settings(skeleton), width=1.0)
    for what, find in (("forward hooks and patched `forward`", changed_forwards), ("backward hooks", backward_hooks)):
        own = set(find(skeleton))  # those that `build` or the class makes
        if changed := [name for name in find(model) if name not in own]:
            logger.warning(
                f"Sub-networks run without the {what} of {shorten(changed)}. If they change outputs or gradients, set "
                "them in `build=...`, which makes the sub-networks too."
            )
    if unmatched := unmatched_patterns(model.config.model_type, shapes_of(model)):
        logger.warning(
            f"`parts` of {model.config.model_type!r} have no effect for {shorten(unmatched)}: no name of a parameter or buffer "
            "ends with this pattern. If it is misspelled, sub-networks use the wrong channels."
        )
    if changed := changed_attributes(model, skeleton):
        logger.warning(
            f"Sub-networks don't have the model's values of {shorten(changed)}. If they change outputs or gradients, set "
            "them in `build=...`, which makes the sub-networks too."
        )
    return _swap_class(model, build)


def subnetwork_state_dict(
    model: PreTrainedModel, width: float, width_divisor: int | None = None, kept_blocks: KeptBlocks | None = None
) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    """
    A sub-network's config and state dict, for a standard model of its own.

    Args:
        model (`PreTrainedModel`):
            The full network. It becomes slimmable.
        width (`float`):
            Width multiplier, in (0, 1].
        width_divisor (`int`, *optional*):
            Channel counts are rounded to multiples of it. Defaults to the value of the run that has trained this model
            in this process, or 1. Settings beside a loaded checkpoint are not read.
        kept_blocks (`Sequence[Sequence[int]]`, *optional*):
            For each stage, the indices of the residual blocks to keep. Not given: all.

    Returns:
        `tuple[PreTrainedConfig, dict[str, torch.Tensor]]`: The smaller config, and dense copies of the weights and
        buffers that the sub-network uses, on the model's device. BatchNorm has the full network's running statistics.

    Raises:
        `ValueError`: See [`make_slimmable`] and [`~SlimmableModel.subnetwork`].
        `TypeError`: See [`make_slimmable`] and [`~SlimmableModel.subnetwork`].

    Example:

    ```python
    config, state_dict = subnetwork_state_dict(model, width=0.9)
    narrower = ResNetForImageClassification(config)
    narrower.load_state_dict(state_dict)
    ```
    """
    skeleton = make_slimmable(model).subnetwork(width, width_divisor, kept_blocks).skeleton
    narrow = model.__dict__[_STATE].narrow_config(model.config, width, width_divisor)
    full = model.state_dict()
    full_names = kept_names(full, model.config, kept_blocks)
    state = {}
    for name, like in skeleton.state_dict().items():
        tensor = full[full_names[name]]
        selection = select(full_names[name], tensor.shape, like.shape, model.config, narrow)
        state[name] = selection.take(tensor).clone(memory_format=torch.contiguous_format)
    config = narrow if kept_blocks is None else shallower_config(narrow, kept_blocks)
    return copy.deepcopy(config), state  # the names of labels would be the model's own


def _swap_class(model: nn.Module, build: Build | None, width_divisor: int | None = None) -> nn.Module:
    model.__dict__[_STATE] = _SlimmableState(type(model), build, width_divisor)
    model.__class__ = _slimmable_class(type(model))
    return model


@functools.cache
def _slimmable_class(model_class: type[nn.Module]) -> type[nn.Module]:
    # A subclass of the same name whose `forward` keeps its signature: the Trainer reads the signature, and saved
    # configs and cards name the class. `torch.distributed.fsdp.fully_shard` swaps the class in the same way. The
    # sub-network runs inside of `forward`, where DistributedDataParallel, autocast and FSDP meet it like the full one.
    # A new model of this class, as `type(model)(config)` and `from_pretrained` make it, is a plain one.
    @functools.wraps(model_class.forward)
    def forward(self, *args, **kwargs):
        active = self.__dict__[_STATE].active
        if not active:
            return model_class.forward(self, *args, **kwargs)
        return _forward_subnetwork(self, active[-1], args, kwargs)

    # `accelerator.unwrap_model` follows `__wrapped__`, and would put the plain `forward` in its place.
    forward.__signature__ = inspect.signature(forward)
    del forward.__wrapped__

    def new(cls, *args, **kwargs):
        # Without arguments, other code makes a copy of its own, such as `nn.DataParallel`.
        return model_class(*args, **kwargs) if args or kwargs else model_class.__new__(cls)

    namespace = {name: getattr(model_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    namespace |= {"forward": forward, "__new__": new}
    return type(model_class.__name__, (SlimmableModel, model_class), namespace)


# Dynamo enters neither these functions nor, without `compiled`, the skeleton: each drawn width would be another graph.
@functools.partial(torch.compiler.disable, recursive=False)
def _forward_subnetwork(model: nn.Module, activation: _Activation, args: tuple, kwargs: dict):
    skeleton, activation.has_run = activation.skeleton, True
    activation.subnetwork.bind(model, activation.kept_blocks, detached=activation.detached)
    # Also if the full network was called without them: its images have another size.
    kwargs = {**kwargs, **size_arguments(skeleton, *args, **kwargs)}
    outputs = skeleton(*args, **kwargs) if activation.compiled else _forward_eagerly(skeleton, args, kwargs)
    if activation.kept_blocks is None or activation.detached:
        return outputs
    return _add_zero_gradients(dropped_parameters(model, activation.kept_blocks), outputs)


def _add_zero_gradients(parameters: list[nn.Parameter], outputs: Any) -> Any:
    """
    Makes the backward of the outputs give these parameters a gradient of 0.

    DistributedDataParallel waits for a gradient of every parameter. A sub-network doesn't reach the parameters of
    dropped blocks. The zero is added to the outputs, because DistributedDataParallel may search them for unreached
    parameters.
    """
    if not parameters:
        return outputs
    # A sum over no entries is 0 whatever the weights are, and reads none.
    zero = sum(parameter.flatten()[:0].sum() for parameter in parameters)
    return tree_map_only(Tensor, lambda output: output + zero if output.requires_grad else output, outputs)


@torch.compiler.disable
def _forward_eagerly(skeleton: nn.Module, args: tuple, kwargs: dict):
    return skeleton(*args, **kwargs)
