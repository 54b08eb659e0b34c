# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
The passes of a GradAug step, for any training loop.

One optimizer step on a batch (x, y), by section 3 of the paper:

1. The full network: cross-entropy of f(x) and y. Its detached softmax is the soft target q.
2. Each sub-network of width w, on a transformation T of the batch: KL(q || softmax(f_w(T(x)))).
3. All gradients add up, and the optimizer steps once.

With `subnetwork_targets="labels"` a sub-network's loss is the model's own, on the labels, which are transformed too;
with "queries" each query of a detector or segmenter has a soft target.

Each pass runs its backward before the next one starts, so that the activations of one network are in memory at a time.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import find_labels

from .dense.inputs import check_rotations, select_rows, transform_images
from .losses import get_logits, get_soft_labels, soft_label_cross_entropy
from .sampling import draw_blocks, draw_widths, step_generator
from .settings import GradAugSettings
from .slimmable.depth import KeptBlocks, depths_of
from .slimmable.image_size import check_image_size
from .slimmable.model import Build, make_slimmable
from .slimmable.narrowing import narrow_config
from .target_kinds import TARGET_KINDS
from .transforms import Transform, random_transform, scaled_size


logger = logging.getLogger(__name__)


@dataclass
class GradAugPass:
    """
    One forward and backward of one network. As a context manager it makes the network the active one of the model.

    Attributes:
        inputs (`dict`):
            What to call the model with: for the full network the batch, but for soft labels; for a sub-network its
            transformation, without labels unless it learns from them.
        width (`float`):
            Width multiplier, 1.0 for the full network.
        is_full (`bool`):
            Whether this is the full network's pass, the first one of a step.
        is_last (`bool`):
            Whether gradients have to be synchronized between processes in this pass; in no other they have to.
        size (`tuple[int, int]`):
            Height and width of the images in pixels.
        kept_blocks (`tuple[tuple[int, ...], ...]`, *optional*):
            For each stage, the indices of the residual blocks that a sub-network keeps, where it drops some.
        soft_labels (`torch.Tensor`, *optional*):
            Class probabilities of shape `(batch_size, num_labels)`, where the batch has such labels and not numbers, in
            the passes that learn from labels.
        rows (`torch.Tensor`, *optional*):
            Indices of the images that a sub-network sees, where that is a share of the batch.
        share (`float`):
            That share, 1.0 for the whole batch.
        network (`nn.Module`):
            The full network; inside of the `with` block of a sub-network, a model of its narrower config without weights.
    """

    gradaug: "GradAug" = field(repr=False)
    inputs: dict[str, Any] = field(repr=False)
    width: float
    is_full: bool
    is_last: bool
    size: tuple[int, int]
    kept_blocks: KeptBlocks | None = None
    soft_labels: Tensor | None = field(default=None, repr=False)
    rows: Tensor | None = field(default=None, repr=False)
    share: float = 1.0

    def __post_init__(self):
        self.network: nn.Module = self.gradaug.model

    @property
    def depth(self) -> float:
        """Share of the residual blocks that run."""
        if self.kept_blocks is None:
            return 1.0
        return sum(map(len, self.kept_blocks)) / sum(depths_of(self.gradaug.model.config))

    def __enter__(self) -> "GradAugPass":
        if not self.is_full:
            # The pass that synchronizes goes through the parameters, on which DistributedDataParallel has its hooks.
            detached = self.gradaug.detached and not (self.is_last and _has_several_processes())
            self._activation = self.gradaug.subnetwork(self.width, self.kept_blocks, detached=detached)
            self.network = self._activation.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        if not self.is_full:
            self._activation.__exit__(*exception)

    @property
    def learns_from_labels(self) -> bool:
        """Whether the loss is that of the labels, as always for the full network, or of soft targets."""
        return self.is_full or self.gradaug.settings.subnetwork_targets == "labels"

    def loss(self, outputs: Any, label_loss: Tensor | None = None) -> Tensor:
        """
        The pass's loss, whose gradient adds to those of the step's other passes.

        Args:
            outputs (`ModelOutput` or `tuple`):
                What the model returned.
            label_loss (`torch.Tensor`, *optional*):
                A loss of your own with the labels, where the pass learns from them.

        Returns:
            `torch.Tensor`: A scalar. For the full network `outputs.loss`, or cross-entropy with soft labels; for a
            sub-network the same or the loss with the full network's targets, weighted.
        """
        settings, model = self.gradaug.settings, self.gradaug.model
        kind = TARGET_KINDS.get(settings.subnetwork_targets)
        if self.is_full and kind is not None:
            self.gradaug.targets = kind.targets(model, outputs, settings.temperature)
        if not self.learns_from_labels:
            targets = self.gradaug.targets if self.rows is None else self.gradaug.targets[self.rows]
            loss = kind.loss(model, outputs, targets, settings.temperature)
        elif label_loss is not None:
            loss = label_loss
        elif self.soft_labels is not None:
            loss = soft_label_cross_entropy(get_logits(outputs), self.soft_labels)
        else:
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
        return loss if self.is_full else settings.subnetwork_loss_weight * loss


def _allow_graphs(settings: GradAugSettings) -> None:
    # Dynamo gives up after 8 graphs of the same code, and every width and size of the sub-networks is one. The 8 are left to
    # all others.
    dynamo = torch._dynamo.config
    graphs = len({*settings.width_choices, settings.min_width}) * len(settings.scales) + 8
    dynamo.recompile_limit = max(dynamo.recompile_limit, graphs)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * graphs)


def _check_smallest(gradaug: "GradAug") -> None:
    # A family that can't have it fails here.
    config, settings, blocks = gradaug.model.config, gradaug.settings, None
    if settings.draws_depth:
        depths = depths_of(config)
        if max(depths) == 1:
            raise ValueError(
                f"`subnetwork_kind` is {settings.subnetwork_kind!r}, but this {config.model_type} has no block to drop: its "
                f"stages have {depths} blocks, and the first of each is kept."
            )
        blocks = [[0]] * len(depths)
    gradaug.subnetwork(settings.min_width if settings.draws_width else 1.0, blocks)
    if settings.draws_width:
        _warn_if_as_wide(config, settings)


def _warn_if_as_wide(config: PreTrainedConfig, settings: GradAugSettings) -> None:
    # Whole heads and groups, and a large divisor, may leave nothing between the width and the full network.
    width, divisor = settings.min_width, settings.width_divisor
    if width < 1 and narrow_config(config, width, divisor).to_dict() == config.to_dict():
        logger.warning(
            f"`min_width` {width} rounds to the full network: this {config.model_type} has no narrower sub-network so "
            "close to it. Sub-networks will differ in their images alone; a smaller `min_width` makes them narrower."
        )


def _has_several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class GradAug:
    """
    Divides an optimizer step into the passes of GradAug.

    [`GradAugTrainer`] uses it, and so can a training loop of your own, in one process or with DistributedDataParallel. FSDP2
    and DeepSpeed need what the trainer does beside.

    Args:
        model (`PreTrainedModel`):
            The model to train, before it is wrapped for distributed training. It is made slimmable.
        settings ([`GradAugSettings`], *optional*):
            Defaults to the paper's for ImageNet.
        seed (`int`, *optional*, defaults to `0`):
            Widths and transformations of a step are drawn from the seed and the step's index.
        transform (`Callable[[torch.Tensor, torch.Generator], torch.Tensor]`, *optional*):
            Transformation of a batch of shape `(batch_size, num_channels, height, width)` for a sub-network, in the place
            of those that `settings.scales` and `settings.rotations` describe. Masks are scaled to the size that it
            returns: where labels hold masks or boxes, it may resize and recolour the images, and nothing else.
        build (`Callable[[PreTrainedConfig], nn.Module]`, *optional*):
            See [`make_slimmable`].
        label_names (`list[str]`, *optional*):
            Inputs that hold labels, which sub-networks don't get where they learn from soft targets. Defaults to the
            arguments of the model's `forward` with "label" in their name.
        detached (`bool`, *optional*, defaults to `True`):
            Runs the passes that don't synchronize on detached copies of the weights (see [`~SlimmableModel.subnetwork`]),
            which is faster. Turn it off where hooks on the parameters must see every pass.

    Raises:
        `TypeError`, `ValueError`: If the model can't have sub-networks (see [`make_slimmable`]), or no targets of the
        kind `settings.subnetwork_targets`.

    Example:

    ```python
    gradaug = GradAug(model, seed=42)
    model, optimizer, dataloader = accelerator.prepare(model, optimizer, dataloader)
    for step, inputs in enumerate(dataloader):
        for gradaug_pass in gradaug.passes(inputs, step):
            with contextlib.nullcontext() if gradaug_pass.is_last else accelerator.no_sync(model), gradaug_pass:
                accelerator.backward(gradaug_pass.loss(model(**gradaug_pass.inputs)))
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
        detached: bool = True,
    ):
        self.model = make_slimmable(model, build=build)
        self.settings = GradAugSettings() if settings is None else settings
        self.seed = seed
        self.transform = transform
        self.label_names = find_labels(type(model)) if label_names is None else label_names
        self.detached = detached
        self.targets: Any = None  # of the step's full network, see `TARGET_KINDS`
        self._checked_sizes: set[tuple[int, int]] = set()

        if kind := TARGET_KINDS.get(self.settings.subnetwork_targets):
            kind.check(self.model)
        if self.settings.subnetwork_targets == "soft":
            # What the head itself does when it sees the first labels. Soft ones it would take for multi-label.
            model.config.problem_type = "single_label_classification"
        # With random depth there are too many sub-networks to compile each.
        self._compiled = self.settings.width_choices is not None and not self.settings.draws_depth
        if self._compiled:
            _allow_graphs(self.settings)
        _check_smallest(self)

    def subnetwork(self, width: float, kept_blocks: KeptBlocks | None = None, *, detached: bool = False):
        """The context manager in which the model runs the sub-network of this width multiplier, with these blocks."""
        return self.model.subnetwork(
            width, self.settings.width_divisor, kept_blocks, detached=detached, compiled=self._compiled
        )

    def _draw_subnetworks(self, count: int, step: int) -> list[tuple[float, KeptBlocks | None]]:
        """Width multiplier and blocks of each sub-network of a step."""
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
        The passes of one batch: the full network's, then those of the sub-networks, widest first.

        Args:
            inputs (`Mapping[str, Any]`):
                The batch on the model's device, images and labels included.
            step (`int`):
                Index of the optimizer step. Batches of the same step, on whichever process, get the same draws.

        Yields:
            [`GradAugPass`]: To be run, its backward included, before the next one is asked for.

        Raises:
            `ValueError`: If there are no images, they become smaller than the model can take, or labels hold masks or
                boxes and `settings.rotations` would turn the images.
        """
        settings, name = self.settings, getattr(self.model, "main_input_name", "pixel_values")
        if not isinstance(inputs, Mapping) or name not in inputs:
            found = sorted(inputs) if isinstance(inputs, Mapping) else f"a {type(inputs).__name__}"
            raise ValueError(f"GradAug transforms the images in the batch's {name!r}, but the batch is {found}.")
        images = inputs[name]
        size = tuple(images.shape[-2:])
        if self.transform is None:
            self._check_size(images, scaled_size(size, min(settings.scales)))
        transform = self.transform
        if transform is None:
            transform = random_transform(settings.scales, settings.rotations)

        learns_from_labels = settings.subnetwork_targets == "labels"
        if settings.subnetwork_targets != "soft" and self.transform is None:
            check_rotations(settings.rotations, {name: inputs.get(name) for name in self.label_names}, size)

        n = settings.num_subnetworks if step % settings.subnetwork_every == 0 else 0
        is_single_label = getattr(self.model.config, "problem_type", None) == "single_label_classification"
        soft_labels = get_soft_labels(inputs) if is_single_label else None
        full_inputs = {k: v for k, v in inputs.items() if soft_labels is None or v is not soft_labels}
        yield GradAugPass(
            self, full_inputs, width=1.0, is_full=True, is_last=n == 0, size=size, soft_labels=soft_labels
        )
        for index, (width, blocks) in enumerate(self._draw_subnetworks(n, step), start=1):
            sub_inputs = {k: v for k, v in full_inputs.items() if learns_from_labels or k not in self.label_names}
            sub_soft_labels = soft_labels if learns_from_labels else None
            rows, share = self._share_of_batch(images, index), 1.0
            if rows is not None:
                share = len(rows) / len(images)
                sub_inputs = {key: select_rows(value, rows, len(images)) for key, value in sub_inputs.items()}
                sub_soft_labels = None if sub_soft_labels is None else sub_soft_labels[rows]
            sub_inputs = transform_images(sub_inputs, name, transform, step_generator(self.seed, step, index))
            self._check_size(images, size := tuple(sub_inputs[name].shape[-2:]))
            yield GradAugPass(
                self, sub_inputs, width, False, index == n, size, blocks, sub_soft_labels, rows=rows, share=share
            )
        self.targets = None

    def _share_of_batch(self, images: Tensor, index: int) -> Tensor | None:
        """Which rows of the batch sub-network `index` (from 1) sees; `None` for all."""
        batch_size, fraction = len(images), self.settings.subnetwork_batch_fraction
        if fraction == 1:
            return None
        count = max(1, int(batch_size * fraction + 0.5))
        # Evenly spaced, so that the shares of micro-batches and of processes together are those of the whole batch,
        # where the sizes divide.
        spaced = torch.arange(count, device=images.device) * batch_size // count
        return (spaced + index - 1) % batch_size

    def _check_size(self, images: Tensor, size: tuple[int, int]) -> None:
        if size not in self._checked_sizes:
            skeleton = self.model.subnetwork(1.0).skeleton
            check_image_size(skeleton, size, tuple(images.shape[-2:]), images.shape[1])
            self._checked_sizes.add(size)
