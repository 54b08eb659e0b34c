# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The image processor of a new model, which has none yet."""

from collections.abc import Sequence

from transformers import ConvNextImageProcessor
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def make_image_processor(
    image_size: int,
    crop_pct: float = 0.875,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> ConvNextImageProcessor:
    """
    An image processor that resizes (bilinearly), crops the centre and normalizes.

    Args:
        image_size (`int`):
            Height and width of the result in pixels.
        crop_pct (`float`, *optional*, defaults to `0.875`):
            Share of the resized image that the crop keeps, in height and in width.
        image_mean, image_std (`Sequence[float]`, *optional*):
            Mean and standard deviation of each of the three channels, of pixels in [0, 1]. Default to ImageNet's.

    Returns:
        [`~transformers.ConvNextImageProcessor`]: savable with the model.

    Raises:
        ValueError: if a number is out of range, or there are not three.
    """
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}, but it must be 1 or more.")
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct is {crop_pct}, but it must be in (0, 1].")
    mean = list(IMAGENET_DEFAULT_MEAN if image_mean is None else image_mean)
    std = list(IMAGENET_DEFAULT_STD if image_std is None else image_std)
    if len(mean) != 3:
        raise ValueError(f"image_mean is {mean}, but it must be three numbers, one a channel.")
    if len(std) != 3 or not min(std) > 0:
        raise ValueError(f"image_std is {std}, but it must be three numbers above 0, one a channel.")
    return ConvNextImageProcessor(
        size={"shortest_edge": image_size},
        crop_pct=crop_pct,
        resample=2,  # bilinear
        image_mean=mean,
        image_std=std,
    )
