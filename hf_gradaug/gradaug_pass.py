# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""One forward and backward of one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .depth import KeptBlocks, depths_of
from .losses import get_logits, soft_label_cross_entropy, soft_target_loss, soft_targets


if TYPE_CHECKING:
    from .passes import GradAug


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

    gradaug: GradAug = field(repr=False)
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

    def __enter__(self) -> GradAugPass:
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

    def with_labels(
        self, num_items_in_batch: Tensor | int | None = None
    ) -> tuple[dict[str, Any], Tensor | float | None]:
        """What a Trainer's step takes: the inputs, soft labels too, and the number of items among all labels of a step."""
        inputs = dict(self.inputs)
        if self.soft_labels is not None:
            inputs["labels"] = self.soft_labels
        if num_items_in_batch is None or not self.learns_from_labels:
            return inputs, None
        # The items of other processes and micro-batches are in the number, so that it can't be counted here.
        return inputs, num_items_in_batch if self.share == 1 else num_items_in_batch * self.share

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
            sub-network the same or the loss with the soft targets, weighted.
        """
        settings = self.gradaug.settings
        if self.is_full and settings.subnetwork_targets == "soft":
            self.gradaug.targets = soft_targets(get_logits(outputs), settings.temperature)
        if not self.learns_from_labels:
            targets = self.gradaug.targets if self.rows is None else self.gradaug.targets[self.rows]
            loss = soft_target_loss(get_logits(outputs), targets, settings.temperature)
        elif label_loss is not None:
            loss = label_loss
        elif self.soft_labels is not None:
            loss = soft_label_cross_entropy(get_logits(outputs), self.soft_labels)
        else:
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
        return loss if self.is_full else settings.subnetwork_loss_weight * loss


def _has_several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
