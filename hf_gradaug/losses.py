# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The losses of GradAug, as functions of tensors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig


# Advice for models without logits for soft targets.
_ADVICE = " For other models, set `subnetwork_targets` to 'labels'."


def at_least_float32(tensor: Tensor) -> Tensor:
    """Logits as float32 where autocast hands over float16 or bfloat16; float64 stays float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def soft_targets(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """
    The full network's predictions as the sub-networks' targets (paper, section 3).

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`):
            Logits of the full network.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels)`: Detached probabilities, float32 or wider.
    """
    return F.softmax(at_least_float32(logits.detach()) / temperature, dim=-1)


def soft_target_loss(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """
    `KL(targets || softmax(logits / temperature))`, summed over labels and averaged over the batch (paper, section 3).

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`):
            Logits of a sub-network.
        targets (`torch.Tensor` of shape `(batch_size, num_labels)`):
            Probabilities from [`soft_targets`], with the same temperature.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits. The loss is multiplied by its square, so that the gradient keeps its size.

    Returns:
        `torch.Tensor`: A scalar in nats, float32 or wider under autocast too.
    """
    log_probabilities = F.log_softmax(at_least_float32(logits) / temperature, dim=-1)
    return F.kl_div(log_probabilities, targets, reduction="batchmean") * temperature**2


def binary_soft_targets(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """
    [`soft_targets`] for a multi-label model: one probability per label. The paper has no multi-label targets.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`):
            Logits of the full network.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels)`: Detached probabilities, float32 or wider.
    """
    return torch.sigmoid(at_least_float32(logits.detach()) / temperature)


def bernoulli_kl(logits: Tensor, targets: Tensor) -> Tensor:
    """`KL(targets || sigmoid(logits))` of each entry in nats; 0 if both are equal."""
    entropy = -torch.xlogy(targets, targets) - torch.xlogy(1 - targets, 1 - targets)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none") - entropy


def binary_soft_target_loss(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """
    [`soft_target_loss`] for a multi-label model. The paper has no multi-label loss.

    This is `KL(targets || sigmoid(logits / temperature))`, averaged over batch and labels as in the heads of
    `transformers`.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`):
            Logits of a sub-network.
        targets (`torch.Tensor` of shape `(batch_size, num_labels)`):
            Probabilities from [`binary_soft_targets`], with the same temperature.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits. The loss is multiplied by its square, so that the gradient keeps its size.

    Returns:
        `torch.Tensor`: A scalar in nats, float32 or wider under autocast too.
    """
    return bernoulli_kl(at_least_float32(logits) / temperature, targets).mean() * temperature**2


def soft_label_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """
    Cross-entropy with class probabilities as labels, for example those of CutMix and MixUp.

    The heads of `transformers` treat floating-point labels as multi-label and use binary cross-entropy.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`):
            Logits of the full network.
        labels (`torch.Tensor` of shape `(batch_size, num_labels)`):
            Class probabilities; each row sums to 1.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Fraction of each label that is spread evenly over all labels.

    Returns:
        `torch.Tensor`: A scalar in nats, the mean over the batch, float32 or wider under autocast too.

    Raises:
        `ValueError`: If `labels` and `logits` differ in shape.
    """
    if labels.shape != logits.shape:
        raise ValueError(
            f"Soft `labels` must have the shape of the logits, {tuple(logits.shape)}, but have {tuple(labels.shape)}."
        )
    logits = at_least_float32(logits)
    return F.cross_entropy(logits, labels.to(logits.dtype), label_smoothing=label_smoothing)


def get_label_rows(inputs: Any, num_labels: int | None) -> Tensor | None:
    """
    The labels of a batch if they are a row of numbers per image, one for each label, else `None`.

    Rows of floating-point numbers may have another length, which is an error later, or a loss of one's own takes them.
    """
    labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        return None
    return labels if labels.is_floating_point() or labels.shape[1] == num_labels > 1 else None


def has_own_loss(model: nn.Module) -> bool:
    """Whether a user set `model.loss_function`. It then takes all labels as they are."""
    return "_loss_function" in vars(model)


def are_probabilities(labels: Tensor) -> bool:
    """Whether each row is a distribution over classes: no entry below 0, a sum of 1. Waits for the device."""
    total = at_least_float32(labels).sum(-1)
    return bool((labels >= 0).all() & torch.isclose(total, torch.ones_like(total), atol=1e-2).all())


def settle_problem_type(config: PreTrainedConfig, labels: Tensor) -> None:
    """
    Sets `config.problem_type` for rows of labels if it is unset, as the model's head would, or raises.

    Args:
        config (`PreTrainedConfig`): Its `problem_type` becomes `"multi_label_classification"` if it is `None`.
        labels (`torch.Tensor`): Labels of shape `(batch_size, num_labels)`. Rows of another length change nothing.

    Raises:
        `ValueError`: If `config.problem_type` is unset and the labels may be of several kinds. Also if it is
            `"single_label_classification"` and the labels are not class probabilities.
    """
    problem_type = getattr(config, "problem_type", None)
    if problem_type not in (None, "single_label_classification") or labels.shape[1] != config.num_labels:
        return
    is_single_label = are_probabilities(labels)
    if problem_type is None and (is_single_label or not ((labels == 0) | (labels == 1)).all()):
        # A head takes all floating-point labels for multi-label ones. One label in each row may mean either, and other
        # numbers may be the values of a regression with a loss of one's own.
        raise ValueError(
            "`config.problem_type` must be set for labels of shape (batch_size, num_labels) whose rows sum to 1, or that are "
            "not all 0 or 1, but is None. Set it to 'single_label_classification' for class probabilities, such as those of "
            "CutMix and MixUp, to 'multi_label_classification' for one probability per label, or to 'regression', which needs "
            "`subnetwork_targets='labels'`."
        )
    if problem_type is None:
        config.problem_type = "multi_label_classification"  # a loss of one's own would pass the head by
    elif not is_single_label:
        raise ValueError(
            "`labels` must be class probabilities (no value below 0, and each row sums to 1) if `config.problem_type` is "
            "'single_label_classification', but are not. If an image can have several labels, set `config.problem_type` "
            "to 'multi_label_classification'."
        )


class ProblemTypeCheck:
    """[`settle_problem_type`] of a run's batches. On other devices than the CPU, where a look waits, of the first alone."""

    def __init__(self):
        self._has_looked = False

    def __call__(self, config: PreTrainedConfig, labels: Tensor) -> None:
        if not self._has_looked or labels.device.type == "cpu":
            self._has_looked = True
            settle_problem_type(config, labels)


@contextmanager
def soft_labels_in_heads(model: nn.Module, check: Callable[[Tensor], None]) -> Iterator[None]:
    """
    Makes a model's own head take class probabilities as labels.

    The heads treat floating-point labels as multi-label. This serves a loss that other code computes by the head.

    Args:
        model (`nn.Module`): A model of transformers. Any other is unchanged.
        check (`Callable[[torch.Tensor], None]`): Called with the labels that a head takes for class probabilities.
    """
    if not hasattr(model, "loss_function"):
        yield
        return
    original, own = model.loss_function, vars(model).get("_loss_function")

    def loss_function(labels, *args, **kwargs):
        # Heads name the logits in one of two ways, or not at all.
        logits = args[0] if args else kwargs.get("pooled_logits", kwargs.get("logits"))
        if labels.shape != logits.shape:
            return original(labels, *args, **kwargs)
        check(labels)
        return soft_label_cross_entropy(logits, labels)

    model.loss_function = loss_function
    try:
        yield
    finally:
        if own is None:
            vars(model).pop("_loss_function", None)
        else:
            vars(model)["_loss_function"] = own


def get_logits(outputs: Any) -> Tensor:
    """The logits of shape `(batch_size, num_labels)` among the outputs of an image classifier."""
    if isinstance(outputs, Mapping):
        if "logits" not in outputs:
            raise ValueError(
                f"The model must return `logits` of shape (batch_size, num_labels), but returned {[*outputs]}."
                f"{_ADVICE}"
            )
        logits = outputs["logits"]
    elif isinstance(outputs, Tensor):  # a `compute_loss` may return the logits alone
        logits = outputs
    else:  # return_dict=False: the loss, if there is one, has no dimension
        logits = next(output for output in outputs if isinstance(output, Tensor) and output.ndim > 0)
    if logits.ndim != 2:
        raise ValueError(
            f"The model's logits must have shape (batch_size, num_labels), but have shape {tuple(logits.shape)}."
            f"{_ADVICE}"
        )
    return logits


def check_has_soft_targets(model: nn.Module, multi_label: bool = True) -> None:
    """Raises a `ValueError` if the model's predictions can't be soft targets. `multi_label` allows multi-label models."""
    config, loss_type = model.config, getattr(model, "loss_type", None)
    problem_type = getattr(config, "problem_type", None)
    classifies = problem_type in (None, "single_label_classification") and config.num_labels > 1
    classifies |= multi_label and problem_type == "multi_label_classification"
    if loss_type not in (None, "ForImageClassification") or not classifies:
        raise ValueError(
            f"Soft targets need a model for single-label{' or multi-label' if multi_label else ''} image classification, "
            f"but this is a {type(model).__name__}, `config.problem_type` is {problem_type!r} and "
            f"`config.num_labels` is {config.num_labels}.{_ADVICE}"
        )
