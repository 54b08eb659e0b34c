# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""BatchNorm's running statistics, recomputed from data."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The layers that keep running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def read_images(batch: Any, model: PreTrainedModel, name: str) -> Tensor:
    """
    The images of a batch, on the model's device and in its dtype.

    Args:
        batch (`Mapping[str, torch.Tensor]`): Batch with `pixel_values` (batch, channels, height, width).
        model (`PreTrainedModel`): The model that takes them.
        name (`str`): Name of the argument with the batches, for the error.

    Raises:
        `ValueError`: If there are no images in the batch.
    """
    images = batch.get("pixel_values") if isinstance(batch, Mapping) else None
    if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
        found = f"the keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        if isinstance(images, Tensor):
            found = f"pixel_values of shape {tuple(images.shape)}"
        raise ValueError(
            f"Each batch of `{name}` must be a dict with pixel_values (batch, channels, height, width), but one is "
            f"{found}."
        )
    return images.to(model.device, model.dtype)


def recalibrate_batchnorm(model: PreTrainedModel, calibration_data: Iterable[Mapping[str, Tensor]]) -> int:
    """
    Recomputes BatchNorm's running statistics in place, as US-Nets do for each width (Yu and Huang, ICCV 2019).

    Only the BatchNorm layers run in train mode, so dropout and drop path are off and weights don't change. Each
    running statistic becomes the mean of the batches' statistics, weighted by their numbers of images. Variances are
    computed within batches. So use large batches in random order, not sorted by class.

    Args:
        model (`PreTrainedModel`):
            Any model that takes `pixel_values`. Without BatchNorm the model doesn't change, and the data isn't read.
        calibration_data (`Iterable[Mapping[str, torch.Tensor]]`):
            Batches with `pixel_values` (batch, channels, height, width) of two or more images each, such as a
            `DataLoader` of training images with the preprocessing of evaluation. It is read once.

    Returns:
        `int`: Number of images read.

    Raises:
        `ValueError`: If there are no batches, or a batch has no images or a single one. The model then doesn't change.
    """
    # `torch.optim.swa_utils.update_bn` doesn't fit: it runs the whole model in train mode, with dropout, counts a small
    # batch as much as a large one, takes no batches that are dictionaries, and leaves the statistics half done on errors.
    layers = batchnorm_layers(model)
    if not layers:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    statistics = {layer: [getattr(layer, name).clone() for name in _STATISTICS] for layer in layers}
    num_images = 0
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
        for batch in calibration_data:
            images = read_images(batch, model, "calibration_data")
            if len(images) == 1:
                raise ValueError(
                    "`calibration_data` must have two or more images in each batch, which BatchNorm needs, but has a batch "
                    "of one. Give the `DataLoader` drop_last=True."
                )
            num_images += len(images)
            for layer in layers:
                layer.momentum = len(images) / num_images
            with torch.no_grad():
                model(pixel_values=images)
        if not num_images:
            raise ValueError("`calibration_data` must have one batch or more, but has none.")
    except BaseException:
        for layer, values in statistics.items():
            for name, value in zip(_STATISTICS, values):
                getattr(layer, name).copy_(value)
        raise
    finally:
        for module, training in modes.items():
            module.training = training
        for layer, momentum in momenta.items():
            layer.momentum = momentum
    return num_images
