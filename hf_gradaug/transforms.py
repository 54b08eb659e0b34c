# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Random transformations of a batch, on the batch's own device.

A transformation is any callable `(images, generator) -> images` on tensors of shape
`(batch_size, num_channels, height, width)`. `generator` is a CPU `torch.Generator`. A transformation that draws from
it alone is the same in every process and micro-batch of an optimizer step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .messages import as_numbers


Transform = Callable[[Tensor, torch.Generator], Tensor]


def _choose(options: Sequence, generator: torch.Generator):
    return options[int(torch.randint(len(options), (), generator=generator))]


def as_scales(name: str, values: Any) -> list[int | float]:
    """The list of the argument `name`, as [`RandomScale`] takes it."""
    return as_numbers(name, values, "numbers in (0, 1]", lambda scale: 0 < scale <= 1)


def as_angles(name: str, values: Any) -> list[int | float]:
    """The list of the argument `name`, as [`RandomRotation`] takes it."""
    return as_numbers(name, values, "angles in degrees")


def scaled_count(count: int, scale: float) -> int:
    """A number of pixels or images times `scale`, rounded half up, at least 1."""
    return max(1, int(count * scale + 0.5))


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """`(height, width)` in pixels times `scale`, see [`scaled_count`]."""
    height, width = size
    return scaled_count(height, scale), scaled_count(width, scale)


class RandomScale:
    """
    Resizes the batch to a size drawn from a list (paper, section 3). Bilinear with aligned corners, as in the authors'
    code. Takes images of shape `(batch_size, num_channels, height, width)` and a generator. Integers, such as uint8
    pixels that the model normalizes, are resized in float32 and rounded.

    Args:
        scales (`Sequence[float]`):
            Fractions of the batch's height and width, each in (0, 1]. `(1, 6/7, 5/7, 4/7)` turns 224 pixels into 224,
            192, 160 and 128.

    Raises:
        `ValueError`: If `scales` is not a list of one or more numbers in (0, 1].
    """

    def __init__(self, scales: Sequence[float]):
        self.scales = tuple(as_scales("scales", scales))

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        size = scaled_size(images.shape[-2:], _choose(self.scales, generator))
        if size == tuple(images.shape[-2:]):
            return images
        # PyTorch resizes no integers but uint8, and these on the CPU alone, with errors of almost 1.
        floats = images if images.is_floating_point() else images.float()
        resized = F.interpolate(floats, size=size, mode="bilinear", align_corners=True)
        return resized if images.is_floating_point() else resized.round().to(images.dtype)

    def __repr__(self) -> str:
        return f"RandomScale(scales={self.scales})"


class RandomRotation:
    """
    Rotates the batch, counter-clockwise, by an angle drawn from a list (the paper's random rotation). Takes images of
    shape `(batch_size, num_channels, height, width)` and a generator.

    Multiples of 90 degrees move pixels without changing them. At 90 and 270 degrees, height and width swap. Other
    angles keep the size, interpolate bilinearly and fill the corners with 0.

    Args:
        angles (`Sequence[float]`):
            Angles in degrees, such as `(0, 90, 180, 270)`.

    Raises:
        `ValueError`: If `angles` is not a list of one or more finite numbers.
    """

    def __init__(self, angles: Sequence[float]):
        self.angles = tuple(as_angles("angles", angles))

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        angle = _choose(self.angles, generator)
        if angle % 90 == 0:
            return torch.rot90(images, k=int(angle // 90), dims=(-2, -1))
        from torchvision.transforms.v2 import InterpolationMode, functional  # costs a second to import

        return functional.rotate(images, angle, interpolation=InterpolationMode.BILINEAR)

    def __repr__(self) -> str:
        return f"RandomRotation(angles={self.angles})"


class Compose:
    """
    Applies transformations one after the other, all with the same generator.

    Args:
        transforms (`Sequence[Callable]`):
            Callables `(images, generator) -> images`. An empty list changes nothing.
    """

    def __init__(self, transforms: Sequence[Transform]):
        self.transforms = tuple(transforms)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        for transform in self.transforms:
            images = transform(images, generator)
        return images

    def __repr__(self) -> str:
        return f"Compose({list(self.transforms)})"


def random_transform(scales: Sequence[float], rotations: Sequence[float] | None = None) -> Compose:
    """The transformation for `scales` and `rotations` of [`GradAugSettings`]."""
    return Compose([RandomScale(scales), *([] if rotations is None else [RandomRotation(rotations)])])
