# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Batches in which masks and padding have the images' size, and lists have an entry per image.

The inputs of detectors and segmenters lie in nested dictionaries and lists. Every tensor with the images' height and
width is scaled with them. The rest has no size in pixels: classes, boxes relative to the image, and masks of another
resolution, which the models read at relative places.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..transforms import Transform


def resize_like_images(value: Any, old_size: tuple[int, int], new_size: tuple[int, int]) -> Any:
    """
    Resizes the masks of a batch as [`RandomScale`] resizes the images, with aligned corners, but to the nearest pixel.

    Args:
        value (`Any`):
            A tensor, or dictionaries, lists and tuples with tensors inside. Tensors of shape `(..., height, width)`,
            with one dimension more at the least, are masks.
        old_size, new_size (`tuple[int, int]`):
            Height and width in pixels of the images, before and after.

    Returns:
        `Any`: The same structure, with resized masks of the same type.
    """
    if old_size == new_size:
        return value
    rows, columns = (_nearest(old, new) for old, new in zip(old_size, new_size, strict=True))

    def resize(tensor: Tensor) -> Tensor:
        if tensor.ndim < 3 or tuple(tensor.shape[-2:]) != tuple(old_size):
            return tensor
        return tensor[..., rows.to(tensor.device)[:, None], columns.to(tensor.device)]

    return _map_tensors(value, resize)


def pad_masks(labels: Any) -> Any:
    """
    Pads the masks of a batch to one size, as the losses of transformers do: with zeros, right and below.

    Collators that pad images may leave each image's masks in its own size. Only some would be resized with the images.

    Args:
        labels (`Any`):
            A list with an entry per image: masks of shape `(num_masks, height, width)`, or dictionaries with masks
            inside. Other values are returned unchanged.
    """
    if not isinstance(labels, (list, tuple)) or not labels:
        return labels
    if all(isinstance(entry, Mapping) for entry in labels):
        columns = {name: pad_masks([entry.get(name) for entry in labels]) for name in labels[0]}
        return [
            {**entry, **{name: columns[name][i] for name in columns if name in entry}}
            for i, entry in enumerate(labels)
        ]
    if not all(isinstance(entry, Tensor) and entry.ndim == 3 for entry in labels):
        return labels
    height, width = (max(entry.shape[dim] for entry in labels) for dim in (-2, -1))
    if all(tuple(entry.shape[-2:]) == (height, width) for entry in labels):
        return labels
    return [F.pad(entry, (0, width - entry.shape[-1], 0, height - entry.shape[-2])) for entry in labels]


def transform_images(
    inputs: Mapping[str, Any], name: str, transform: Transform, generator: torch.Generator
) -> dict[str, Any]:
    """A batch with transformed images, which are under `name`, and masks in the new size."""
    images = inputs[name]
    transformed = transform(images, generator)
    # Fewer images would be compared with the targets of all.
    if not isinstance(transformed, Tensor) or transformed.shape[:-2] != images.shape[:-2]:
        found = tuple(transformed.shape) if isinstance(transformed, Tensor) else f"a {type(transformed).__name__}"
        raise ValueError(
            f"`transform` must map (images, generator) to a tensor of as many images and channels, {tuple(images.shape[:-2])}, "
            f"but returned {found}."
        )
    others = {key: value for key, value in inputs.items() if key != name}
    return {name: transformed, **resize_like_images(others, tuple(images.shape[-2:]), tuple(transformed.shape[-2:]))}


def check_rotations(
    rotations: Sequence[float], inputs: Mapping[str, Any], label_names: Sequence[str], size: tuple[int, int]
) -> None:
    """
    Raises a `ValueError` if rotations would turn the images alone, and not the places that other `inputs` hold. Such
    inputs are maps of the images' `size`, maps of any size among the labels, and labels that are dictionaries or lists.
    """

    def has_places(name: str, value: Any) -> bool:
        if isinstance(value, Tensor):  # labels may be coarser than the images
            return value.ndim > 2 and (name in label_names or tuple(value.shape[-2:]) == size)
        return name in label_names and isinstance(value, (Mapping, list, tuple))

    if dense := [name for name, value in inputs.items() if has_places(name, value)]:
        raise ValueError(f"`rotations` must be None with masks, maps or boxes, such as {dense}, but is {rotations}.")


def select_rows(value: Any, rows: Tensor, batch_size: int) -> Any:
    """
    Selects the images `rows` of a tensor, list or tuple with one entry per image, and of each such value of a
    dictionary. Other values are returned unchanged.
    """
    if isinstance(value, Mapping):
        return {name: select_rows(item, rows, batch_size) for name, item in value.items()}
    if isinstance(value, Tensor):
        return value[rows] if value.ndim > 0 and len(value) == batch_size else value
    if isinstance(value, (list, tuple)) and len(value) == batch_size:
        return type(value)(value[row] for row in rows.tolist())
    return value


def _nearest(old: int, new: int) -> Tensor:
    # Pixel i of the new side lies at i * (old - 1) / (new - 1) of the old one; in whole numbers, halves rounded up.
    steps = max(new - 1, 1)
    return (torch.arange(new) * 2 * (old - 1) + steps) // (2 * steps)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: _map_tensors(item, function) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(item, function) for item in value)
    return value
