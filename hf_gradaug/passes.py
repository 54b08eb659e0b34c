# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
The passes of a GradAug step, for any training loop.

One optimizer step on a batch (x, y), by section 3 of the paper:

1. The full network: cross-entropy of f(x) and y. Its detached softmax is the soft target q.
2. Each sub-network of width w, on a transformation T of the batch: KL(q || softmax(f_w(T(x)))).
3. All gradients add up, and the optimizer steps once.

With `subnetwork_targets="labels"` a sub-network's loss is the model's own, on the transformed labels. With "queries"
each query of a detector or segmenter has a soft target.

Each pass runs its backward before the next pass starts. So only one network's activations are in memory at a time.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels

from .captured import CapturedPasses
from .checks import check_logits, check_smallest, check_trains, check_transform, checked_settings
from .compiled import raise_recompile_limit
from .dense.inputs import check_rotations, pad_masks, select_rows, transform_images
from .losses import ProblemTypeCheck, get_label_rows, get_logits, has_own_loss, soft_label_cross_entropy
from .messages import shorten
from .sampling import draw_blocks, draw_widths, step_generator
from .settings import GradAugSettings
from .slimmable.depth import KeptBlocks, depths_of
from .slimmable.image_size import can_train_on_one_image, check_image_size
from .slimmable.model import Build, make_slimmable
from .targets import TARGETS, SoftTargets
from .transforms import Transform, random_transform, scaled_count, scaled_size


logger = logging.getLogger(__name__)


class GradAugPass:
    """
    One forward and backward of one network. The `with` block makes this network the active one of the model.

    Attributes:
        inputs (`dict`):
            Arguments for the model. For the full network, this is the batch without soft labels. For a sub-network, it
            is the transformed batch, with labels only if the sub-network learns from them.
        width (`float`):
            Width multiplier, 1.0 for the full network.
        is_full (`bool`):
            Whether this is the full network's pass, the first pass of a step.
        is_last (`bool`):
            Whether this is the last pass of a step, the only one that must synchronize gradients between processes.
        size (`tuple[int, int]`):
            Height and width of the images in pixels.
        kept_blocks (`tuple[tuple[int, ...], ...]`, *optional*):
            For each stage, the indices of the residual blocks that the sub-network keeps. `None` if it keeps all.
        depth (`float`):
            Fraction of the residual blocks that run.
        soft_labels (`torch.Tensor`, *optional*):
            Class probabilities of shape `(batch_size, num_labels)`, if the batch has them and the pass learns from
            labels.
        rows (`torch.Tensor`, *optional*):
            Indices of the images that the sub-network sees. `None` if it sees the whole batch.
        batch_fraction (`float`):
            Fraction of the batch's images that the pass sees.
        learns_from_labels (`bool`):
            Whether the loss uses the labels. It always does for the full network.
    """

    is_full: bool
    width = depth = batch_fraction = 1.0
    kept_blocks: KeptBlocks | None = None
    rows: Tensor | None = None

    def __init__(self, gradaug: "GradAug", inputs: dict[str, Any], soft_labels: Tensor | None):
        self.gradaug = gradaug
        self.inputs = inputs
        self.soft_labels = soft_labels
        self.is_last = False

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.inputs[self.gradaug.image_name].shape[-2:])

    def loss(self, outputs: Any, label_loss: Tensor | None = None) -> Tensor:
        """
        The loss of the pass. Its gradient adds to the gradients of the step's other passes.

        Args:
            outputs (`ModelOutput` or `tuple`):
                Outputs of the model.
            label_loss (`torch.Tensor`, *optional*):
                Your own loss on the labels, for a pass that learns from them.

        Returns:
            `torch.Tensor`: A scalar. For the full network this is `outputs.loss`, or cross-entropy with soft labels.
            For a sub-network it is the weighted loss on the labels or on the full network's targets.

        Raises:
            `ValueError`: If the outputs have no loss where one is needed, the sub-network was not run in the `with`
                block, or the full network's pass has not computed its loss.
        """
        raise NotImplementedError

    def compute(self, model: nn.Module) -> Tensor:
        """
        Runs the forward of the pass and computes its loss: `loss(model(**inputs))`, or a replay of a CUDA graph. Call
        it inside the `with` block.

        Args:
            model (`nn.Module`): The model, or its wrapper for distributed training.

        Returns:
            `torch.Tensor`: A scalar.
        """
        loss = self._replay() if self.gradaug.captured is not None else None
        return self.loss(model(**self.inputs)) if loss is None else loss

    def _label_loss(self, outputs: Any, label_loss: Tensor | None) -> Tensor:
        if label_loss is not None:
            return label_loss
        if self.soft_labels is not None:
            return soft_label_cross_entropy(get_logits(outputs), self.soft_labels)
        if isinstance(outputs, Mapping) and "loss" not in outputs:
            raise ValueError(
                f"The model must return a loss, but returned {[*outputs]} for the inputs {shorten(self.inputs)}. Add the labels to "
                "the batch, or give `loss` your own `label_loss`."
            )
        return outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(width={self.width:.4g}, size={self.size}, is_last={self.is_last})"


class FullPass(GradAugPass):
    """The full network's pass. Its loss uses the labels, and its predictions become the sub-networks' targets."""

    is_full = learns_from_labels = True
    targets: Any = None

    def __enter__(self) -> "FullPass":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def set_inputs(self, arguments: Mapping[str, Any] | None) -> None:
        """
        Sets the inputs that the sub-networks get, with transformed images. Call it if your own loss changes the batch.

        Sub-networks that learn from labels keep the batch's original inputs, because they also keep its labels.

        Args:
            arguments (`Mapping[str, Any]`, *optional*):
                What the model was called with, by name. Sub-networks get all of it but the labels. A tensor or list
                with as many entries as there are images has one for each of them. Inputs that the model was not
                called with, such as weights of the images, are for the loss alone.
        """
        name = self.gradaug.image_name
        if arguments is None or arguments.get(name) is None or self.gradaug.target_kind.learns_from_labels:
            return
        self.inputs = tree_map_only(Tensor, Tensor.detach, dict(arguments))
        self.gradaug.check_rotations(self.inputs)

    def _replay(self) -> Tensor | None:
        model, names = self.gradaug.model, {self.gradaug.image_name, "labels"}
        if self.inputs.keys() != names or (self.is_last and _has_several_processes()):
            return None

        def compute(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            outputs = model(**inputs)
            return self._label_loss(outputs, None), get_logits(outputs)

        found = self.gradaug.captured.run("full", self.inputs, compute, is_full=True)
        if found is None:
            return None
        loss, logits = found
        self.targets = self.gradaug.target_kind.from_outputs({"logits": logits})
        return loss

    def loss(self, outputs: Any, label_loss: Tensor | None = None) -> Tensor:
        self.targets = self.gradaug.target_kind.from_outputs(outputs)
        return self._label_loss(outputs, label_loss)


class SubnetworkPass(GradAugPass):
    """
    A sub-network's pass, on a transformation of the batch.

    Args:
        full ([`FullPass`]): The full network's pass of the same step.
        inputs, width, kept_blocks, rows: See [`GradAugPass`].
    """

    is_full = False
    _active: Any = None  # of the `with` block

    def __init__(
        self,
        full: FullPass,
        inputs: dict[str, Any],
        width: float,
        kept_blocks: KeptBlocks | None,
        rows: Tensor | None,
    ):
        gradaug = full.gradaug
        self.learns_from_labels = gradaug.target_kind.learns_from_labels
        soft_labels = full.soft_labels if self.learns_from_labels else None
        super().__init__(gradaug, inputs, soft_labels if rows is None or soft_labels is None else soft_labels[rows])
        self._full, self.width, self.kept_blocks, self.rows = full, width, kept_blocks, rows
        if rows is not None:
            self.batch_fraction = len(rows) / len(full.inputs[gradaug.image_name])

    @property
    def depth(self) -> float:
        if self.kept_blocks is None:
            return 1.0
        return sum(map(len, self.kept_blocks)) / sum(depths_of(self.gradaug.model.config))

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the sub-network. Known inside the `with` block."""
        return self._active.subnetwork.num_parameters

    @property
    def _is_detached(self) -> bool:
        # The pass that synchronizes goes through the parameters, on which DistributedDataParallel has its hooks.
        return self.gradaug.detached and not (self.is_last and _has_several_processes())

    def _replay(self) -> Tensor | None:
        model, name = self.gradaug.model, self.gradaug.image_name
        if not self._is_detached or self.inputs.keys() != {name} or self.kept_blocks is not None:
            return None

        def compute(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            outputs = model(**{name: inputs[name]})
            return self._target_loss(outputs, inputs["targets"]), get_logits(outputs)

        inputs = {**self.inputs, "targets": self._targets}
        found = self.gradaug.captured.run(self._active.subnetwork, inputs, compute, is_full=False)
        return None if found is None else found[0]

    def __enter__(self) -> "SubnetworkPass":
        self._active = self.gradaug.subnetwork(self.width, self.kept_blocks, detached=self._is_detached)
        self._active.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._active.__exit__(*exception)

    def loss(self, outputs: Any, label_loss: Tensor | None = None) -> Tensor:
        if self._active is None or not self._active.has_run:
            raise ValueError(
                "`outputs` must come from the model that `GradAug` was given, but its sub-network was not run. Call that model "
                "in the `with` block of the pass, and don't replace its `forward`."
            )
        if self.learns_from_labels:
            return self.gradaug.settings.subnetwork_loss_weight * self._label_loss(outputs, label_loss)
        return self._target_loss(outputs, self._targets)

    @property
    def _targets(self) -> Any:
        if self._full.targets is None:
            raise ValueError(
                "The full network's pass must compute its loss before the passes of the sub-networks run."
            )
        return self._full.targets if self.rows is None else self._full.targets[self.rows]

    def _target_loss(self, outputs: Any, targets: Any) -> Tensor:
        return self.gradaug.settings.subnetwork_loss_weight * self.gradaug.target_kind.loss(outputs, targets)


def _has_several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class GradAug:
    """
    Divides an optimizer step into the passes of GradAug.

    [`GradAugTrainer`] uses it. Your own training loop can use it too, in one process or with DistributedDataParallel.
    FSDP2 and DeepSpeed work only with [`GradAugTrainer`].

    Args:
        model (`PreTrainedModel`):
            The model to train, before it is wrapped for distributed training. It becomes slimmable.
        settings ([`GradAugSettings`], *optional*):
            Defaults to the paper's for ImageNet.
        seed (`int`, *optional*, defaults to `0`):
            The widths and transformations of a step depend only on the seed and the step's index.
        transform (`Callable[[torch.Tensor, torch.Generator], torch.Tensor]`, *optional*):
            Transformation of a batch of shape `(batch_size, num_channels, height, width)` for a sub-network, instead
            of `settings.scales` and `settings.rotations`, which must keep their defaults. Masks are scaled to the size
            of the returned images. If labels hold masks or boxes, the transformation may resize and recolour images,
            but must not move their content.
        build (`Callable[[PreTrainedConfig], nn.Module]`, *optional*):
            See [`make_slimmable`].
        label_names (`list[str]`, *optional*):
            Inputs that hold labels. Sub-networks with soft targets don't get them. Defaults to the arguments of the
            model's `forward` with "label" in their name.

    Raises:
        `TypeError`: If the model can't have sub-networks (see [`make_slimmable`]).
        `ValueError`: If the model can't have sub-networks or the chosen targets.

    Example:

    ```python
    gradaug = GradAug(model, seed=42)
    model, optimizer, dataloader = accelerator.prepare(model.train(), optimizer, dataloader)
    batches = (inputs for _ in range(num_epochs) for inputs in dataloader)
    for step, inputs in enumerate(batches):
        for gradaug_pass in gradaug.passes(inputs, step):
            with contextlib.nullcontext() if gradaug_pass.is_last else accelerator.no_sync(model), gradaug_pass:
                accelerator.backward(gradaug_pass.compute(model))
        optimizer.step()
        optimizer.zero_grad()
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: GradAugSettings | None = None,
        *,
        seed: int = 0,
        transform: Transform | None = None,
        build: Build | None = None,
        label_names: list[str] | None = None,
    ):
        self.settings = checked_settings(settings)
        self.model = make_slimmable(model, build=build)
        self.seed = seed
        self.transform = transform
        self.image_name = getattr(model, "main_input_name", "pixel_values")
        self.label_names = find_labels(type(model)) if label_names is None else label_names
        # Passes that don't synchronize gradients compute with copies of the weights, which is faster. False with DeepSpeed,
        # and where benchmarks compare the two.
        self.detached = True
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.target_kind = TARGETS[self.settings.subnetwork_targets](model, self.settings)
        self._checked_sizes: set[tuple[int, int]] = set()
        self._trains_one_image: dict[tuple[int, int], bool] = {}
        self._settle_problem_type = ProblemTypeCheck()
        self.captured = CapturedPasses(model) if self.settings.cuda_graphs else None
        # With random depth there are too many sub-networks to compile each.
        self._compiled = self.settings.width_choices is not None and not self.settings.draws_depth
        if self._compiled:
            raise_recompile_limit(self.settings)  # a loop may call `torch.compile` before or after
        check_transform(transform, self.settings)
        check_smallest(self.model, self.settings)
        if isinstance(self.target_kind, SoftTargets):
            check_logits(self.model.subnetwork(1.0).skeleton)

    def subnetwork(self, width: float, kept_blocks: KeptBlocks | None = None, *, detached: bool = False):
        """A context manager in which the model runs the sub-network of this width multiplier and these blocks."""
        return self.model.subnetwork(
            width, self.settings.width_divisor, kept_blocks, detached=detached, compiled=self._compiled
        )

    def _draw_subnetworks(self, count: int, step: int) -> list[tuple[float, KeptBlocks | None]]:
        """Width multiplier and kept blocks of each sub-network."""
        settings, generator = self.settings, step_generator(self.seed, step)
        widths, blocks = [1.0] * count, [None] * count
        if settings.draws_width:
            widths = draw_widths(count, settings.min_width, generator, settings.width_choices)
        if settings.draws_depth:
            depths = depths_of(self.model.config)
            blocks = [draw_blocks(depths, settings.min_survival, generator) for _ in range(count)]
        return list(zip(widths, blocks, strict=True))

    def passes(self, inputs: Mapping[str, Any], step: int) -> Iterator[GradAugPass]:
        """
        The passes of one batch: the full network's pass, then the sub-networks' passes, widest first.

        Args:
            inputs (`Mapping[str, Any]`):
                The batch on the model's device, with images and labels.
            step (`int`):
                Index of the optimizer step, counted over all epochs. All micro-batches of a step get the same draws, in
                all processes.

        Yields:
            [`GradAugPass`]: Run its forward and backward before you ask for the next pass.

        Raises:
            `ValueError`: If the batch has no images, they become too small for the model, or `settings.rotations`
                would turn the images and not the masks, maps or boxes beside them. Also if the model is in eval mode.
        """
        check_trains(self.model)
        settings, name = self.settings, self.image_name
        if not isinstance(inputs, Mapping) or name not in inputs:
            found = shorten(sorted(inputs)) if isinstance(inputs, Mapping) else f"a {type(inputs).__name__}"
            raise ValueError(
                f"The batch must have the images as {name!r}, the `main_input_name` of {type(self.model).__name__}, but is "
                f"{found}. GradAug transforms them. Rename them in the batch, or set `main_input_name` in the model's class."
            )
        if type(self.target_kind) is not TARGETS[settings.subnetwork_targets]:  # the settings were changed
            self.target_kind = TARGETS[settings.subnetwork_targets](self.model, settings)
        images = inputs[name]
        if self.captured is not None:
            self.captured.start(images.device, (settings.temperature, settings.subnetwork_loss_weight))
        n = settings.num_subnetworks if step % settings.subnetwork_every == 0 else 0
        self.model.trained_width_divisor = settings.width_divisor  # for its exports
        if self.transform is None and n > 0:
            size = tuple(images.shape[-2:])
            self._check_size(images, scaled_size(size, min(settings.scales)))
            self.check_rotations(inputs)
        soft_labels = self._get_soft_labels(inputs)
        full = FullPass(
            self, {k: v for k, v in inputs.items() if soft_labels is None or v is not soft_labels}, soft_labels
        )
        kept = list(range(n))
        if scaled_count(len(images), settings.subnetwork_batch_fraction) == 1:
            drawn = enumerate(self._subnetwork_passes(full, n, step))
            kept = [index for index, each in drawn if self._can_train_on_one_image(each)]
        full.is_last = not kept
        yield full
        # Drawn only now: the full network's loss may have changed the images.
        for index, each in enumerate(self._subnetwork_passes(full, n, step)):
            if index in kept:
                each.is_last = index == kept[-1]
                yield each

    def _subnetwork_passes(self, full: FullPass, n: int, step: int) -> Iterator[SubnetworkPass]:
        settings, images = self.settings, full.inputs[self.image_name]
        transform = self.transform or random_transform(settings.scales, settings.rotations)
        names = [name for name in full.inputs if self.target_kind.learns_from_labels or name not in self.label_names]
        originals = {name: full.inputs[name] for name in names}
        originals |= {name: pad_masks(value) for name, value in originals.items() if name in self.label_names}
        for index, (width, kept_blocks) in enumerate(self._draw_subnetworks(n, step), start=1):
            inputs = dict(originals)
            rows = self._subnetwork_rows(images, index)
            if rows is not None:
                inputs = {name: select_rows(value, rows, len(images)) for name, value in inputs.items()}
            elif self.transform is not None:  # it may write into the images, which the other passes see too
                inputs[self.image_name] = images.clone()
            inputs = transform_images(inputs, self.image_name, transform, step_generator(self.seed, step, index))
            self._check_size(images, tuple(inputs[self.image_name].shape[-2:]))
            yield SubnetworkPass(full, inputs, width, kept_blocks, rows)

    def _get_soft_labels(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """The batch's labels if they are class probabilities, else `None`."""
        config = self.model.config
        labels = get_label_rows(inputs, config.num_labels)
        if labels is None or (self.target_kind.learns_from_labels and getattr(config, "problem_type", None) is None):
            return None
        self._settle_problem_type(config, labels)
        is_single_label = config.problem_type == "single_label_classification"
        return labels if is_single_label and not has_own_loss(self.model) else None

    def _can_train_on_one_image(self, subnetwork: SubnetworkPass) -> bool:
        # BatchNorm has no statistics of a single image whose feature map became a single pixel.
        size, images = subnetwork.size, subnetwork.inputs[self.image_name]
        if size not in self._trains_one_image:
            skeleton = self.model.subnetwork(1.0).skeleton
            can = can_train_on_one_image(skeleton, self.model, size, images.shape[1])
            self._trains_one_image[size] = can
            if not can:
                logger.warning(
                    f"Sub-networks that see a single image of {size[0]} x {size[1]} pixels are skipped: BatchNorm can't compute "
                    "statistics of a single value per channel. To train them, set `dataloader_drop_last`, larger `scales` or a "
                    "larger `subnetwork_batch_fraction`."
                )
        return self._trains_one_image[size]

    def _subnetwork_rows(self, images: Tensor, index: int) -> Tensor | None:
        """Indices of the images that sub-network `index` (from 1) sees; `None` for all."""
        if self.settings.subnetwork_batch_fraction == 1:
            return None
        batch_size = len(images)
        count = scaled_count(batch_size, self.settings.subnetwork_batch_fraction)
        # Evenly spaced, so that micro-batches and processes together see the same images as one whole batch.
        spaced = torch.arange(count, device=images.device) * batch_size // count
        return (spaced + index - 1) % batch_size

    def check_rotations(self, inputs: Mapping[str, Any]) -> None:
        """Raises a `ValueError` if `settings.rotations` would turn the images and not what these inputs hold."""
        settings, name = self.settings, self.image_name
        if self.transform is None and settings.rotations is not None:
            unused = {name, *(self.label_names if settings.subnetwork_targets == "soft" else ())}
            others = {key: value for key, value in inputs.items() if key not in unused}
            check_rotations(settings.rotations, others, self.label_names, tuple(inputs[name].shape[-2:]))

    def _check_size(self, images: Tensor, size: tuple[int, int]) -> None:
        if size not in self._checked_sizes:
            skeleton = self.model.subnetwork(1.0).skeleton
            check_image_size(skeleton, size, tuple(images.shape[-2:]), images.shape[1])
            self._checked_sizes.add(size)
