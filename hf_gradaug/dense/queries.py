# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Soft targets for the queries of a detector or segmenter: the option `subnetwork_targets="queries"`.

Query i of a sub-network learns the full network's prediction for query i: its class distribution, and its box or mask.
No labels are matched. This needs learned queries, which both networks share. If a network picks its queries from the
image, query i stands for different places in each network.

Each loss is the model's own with soft targets instead of labels, and with the weights of its config. If the
sub-network agrees, loss and gradient are 0. Focal weights, which separate easy from hard labels, are left out. So are
the auxiliary losses of earlier decoder layers. A query's box and mask are weighted by its probability of an object.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.image_transforms import center_to_corners_format

from ..losses import at_least_float32, bernoulli_kl
from ..messages import shorten


@dataclass(frozen=True)
class QueryWeights:
    """
    Weights of the parts of a model's loss.

    Args:
        classes (`float`): Weight of the classes.
        places (`tuple[float, float]`): Weights of a box (distance and overlap) or of a mask (cross-entropy and dice).
        no_object (`float`, *optional*): Weight of the class "no object". `None` if the model has no such class, and
            each class has its own probability by the sigmoid.
    """

    classes: float
    places: tuple[float, float]
    no_object: float | None = None


def _detr(config: PreTrainedConfig) -> QueryWeights:
    return QueryWeights(1.0, (config.bbox_loss_coefficient, config.giou_loss_coefficient), config.eos_coefficient)


def _sigmoid_detr(config: PreTrainedConfig) -> QueryWeights:
    return QueryWeights(1.0, (config.bbox_loss_coefficient, config.giou_loss_coefficient))


_MODELS: dict[str, Callable[[PreTrainedConfig], QueryWeights]] = {
    "DetrForObjectDetection": _detr,
    "ConditionalDetrForObjectDetection": _sigmoid_detr,
    "DeformableDetrForObjectDetection": _sigmoid_detr,
    "MaskFormerForInstanceSegmentation": lambda config: QueryWeights(
        config.cross_entropy_weight, (config.mask_weight, config.dice_weight), config.no_object_weight
    ),
    "Mask2FormerForUniversalSegmentation": lambda config: QueryWeights(
        config.class_weight, (config.mask_weight, config.dice_weight), config.no_object_weight
    ),
}


def check_has_query_targets(model: nn.Module) -> None:
    """Raises a `ValueError` if query i of a sub-network isn't query i of the full network."""
    name = type(model).__name__
    if name not in _MODELS:
        reason = f"this is a {name}, not one of {shorten(sorted(_MODELS))}"
    elif getattr(model.config, "two_stage", False):
        reason = "`config.two_stage` is True, so that each network picks its own queries from the image"
    else:
        return
    raise ValueError(
        "`subnetwork_targets` must be 'labels' unless the model's queries are learned and the same for every image, but is "
        f"'queries', and {reason}. RT-DETR and D-FINE pick theirs from the image too. Set it to 'labels'."
    )


@dataclass(frozen=True)
class QueryTargets:
    """
    The full network's detached predictions for each query.

    Args:
        probabilities (`torch.Tensor` of shape `(batch_size, num_queries, num_classes)`):
            Class probabilities. If the model has a class "no object", it is the last one. float32 or wider.
        places (`torch.Tensor`):
            Boxes `(batch_size, num_queries, 4)` as centre and size relative to the image, or mask logits
            `(batch_size, num_queries, height, width)`.
    """

    probabilities: Tensor
    places: Tensor

    def __getitem__(self, rows: Tensor) -> "QueryTargets":
        """The targets of some of the images."""
        return QueryTargets(self.probabilities[rows], self.places[rows])


def query_targets(model: nn.Module, outputs: Any, temperature: float = 1.0) -> QueryTargets:
    """
    The full network's predictions as targets.

    Args:
        model (`nn.Module`):
            A model that [`check_has_query_targets`] accepts.
        outputs (`ModelOutput`):
            The full network's outputs.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the class logits.
    """
    logits, places = _predictions(outputs)
    logits = logits.detach() / temperature
    has_no_object = _weights(model).no_object is not None
    return QueryTargets(logits.softmax(-1) if has_no_object else logits.sigmoid(), places.detach())


def query_loss(model: nn.Module, outputs: Any, targets: QueryTargets, temperature: float = 1.0) -> Tensor:
    """
    The loss of a sub-network's queries against the full network's.

    - Classes by the softmax: `KL(targets || softmax(logits))`, averaged over all queries; each has the weight that the
      model gives to the classes it may hold.
    - Classes by the sigmoid: the sum of every class's own KL, divided by the number of objects.
    - Boxes: L1 and 1 - generalized IoU. Masks, of which the targets are resized to the sub-network's: KL of the
      pixels, and `sum (p - q)^2 / (sum p^2 + sum q^2 + 1)`, which is dice for probabilities. Both are summed over the
      queries, weighted by their probability of an object, and divided by the number of objects.

    The number of objects is the sum of these probabilities, at least 1.

    Args:
        model (`nn.Module`):
            The model, whose config has the weights.
        outputs (`ModelOutput`):
            The sub-network's outputs.
        targets ([`QueryTargets`]):
            From [`query_targets`], for the same images and with the same temperature.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the class logits. Their loss is multiplied by its square, so that the gradient keeps its size.

    Returns:
        `torch.Tensor`: A scalar, float32 or wider under autocast too.
    """
    weights = _weights(model)
    logits, places = _predictions(outputs)
    logits, probabilities = logits / temperature, targets.probabilities
    if weights.no_object is None:
        objects = probabilities.amax(-1)
        classes = bernoulli_kl(logits, probabilities).sum() / objects.sum().clamp(min=1)
    else:
        objects = 1 - probabilities[..., -1]
        query_weights = objects + weights.no_object * (1 - objects)
        kl = F.kl_div(logits.log_softmax(-1), probabilities, reduction="none").sum(-1)
        classes = (query_weights * kl).sum() / query_weights.sum()
    distances = _box_distances if places.ndim == 3 else _mask_distances
    first, second = ((objects * each).sum() / objects.sum().clamp(min=1) for each in distances(places, targets.places))
    return weights.classes * temperature**2 * classes + weights.places[0] * first + weights.places[1] * second


def _weights(model: nn.Module) -> QueryWeights:
    return _MODELS[type(model).__name__](model.config)


def _predictions(outputs: Any) -> tuple[Tensor, Tensor]:
    names = ("logits", "pred_boxes") if "pred_boxes" in outputs else ("class_queries_logits", "masks_queries_logits")
    logits, places = (at_least_float32(outputs[name]) for name in names)
    return logits, places


def _box_distances(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """
    For each query: L1 distance, and 1 - generalized IoU.

    torchvision's loss for pairs of boxes adds a constant to areas. For relative boxes this constant is not small, and
    equal boxes would have a loss.
    """
    corners, target_corners = center_to_corners_format(boxes), center_to_corners_format(targets)
    shared = _area(
        torch.maximum(corners[..., :2], target_corners[..., :2]),
        torch.minimum(corners[..., 2:], target_corners[..., 2:]),
    )
    around = _area(
        torch.minimum(corners[..., :2], target_corners[..., :2]),
        torch.maximum(corners[..., 2:], target_corners[..., 2:]),
    )
    union = boxes[..., 2:].prod(-1) + targets[..., 2:].prod(-1) - shared
    smallest = torch.finfo(union.dtype).tiny  # boxes without an area
    overlap = shared / union.clamp(min=smallest) - (around - union) / around.clamp(min=smallest)
    return (boxes - targets).abs().sum(-1), 1 - overlap


def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    return (bottom_right - top_left).clamp(min=0).prod(-1)


def _mask_distances(logits: Tensor, target_logits: Tensor) -> tuple[Tensor, Tensor]:
    """For each query: mean KL per pixel, and dice."""
    if target_logits.shape[-2:] != logits.shape[-2:]:
        target_logits = F.interpolate(target_logits, logits.shape[-2:], mode="bilinear", align_corners=False)
    masks, targets = logits.sigmoid(), target_logits.sigmoid()
    dice = (masks - targets).square().sum((-2, -1)) / (masks.square() + targets.square()).sum((-2, -1)).add(1)
    return bernoulli_kl(logits, targets).mean((-2, -1)), dice
