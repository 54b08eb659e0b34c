# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Measures what an image processor does to images, and makes the image processor of a new model.

Image processors share no list of steps: some flip channels, resize by a share of their size or normalize twice. So
they are called, and their arithmetic on pixels is measured on images of one colour.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from transformers import BitImageProcessor, ConvNextImageProcessor
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def make_image_processor(
    image_size: int,
    crop_pct: float = 0.875,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> ConvNextImageProcessor | BitImageProcessor:
    """
    Makes an image processor that resizes (bilinearly), crops the centre and normalizes.

    Args:
        image_size (`int`):
            Height and width of the result in pixels.
        crop_pct (`float`, *optional*, defaults to `0.875`):
            Share of the resized image that the crop keeps, in height and in width.
        image_mean, image_std (`Sequence[float]`, *optional*):
            Mean and standard deviation of each of the three channels, of pixels in [0, 1]. Default to ImageNet's.

    Returns:
        [`~transformers.ConvNextImageProcessor`], or from 384 pixels on [`~transformers.BitImageProcessor`]: Savable with
        the model.

    Raises:
        `ValueError`: If a number is out of range, or the mean or deviation has not three numbers.
    """
    if image_size < 1:
        raise ValueError(f"`image_size` must be 1 or more, but is {image_size}.")
    if not 0 < crop_pct <= 1:
        raise ValueError(f"`crop_pct` must be in (0, 1], but is {crop_pct}.")
    mean = list(IMAGENET_DEFAULT_MEAN if image_mean is None else image_mean)
    std = list(IMAGENET_DEFAULT_STD if image_std is None else image_std)
    if len(mean) != 3:
        raise ValueError(f"`image_mean` must be three numbers, one per channel, but is {mean}.")
    if len(std) != 3 or not min(std) > 0:
        raise ValueError(f"`image_std` must be three numbers above 0, one per channel, but is {std}.")
    settings = {"resample": 2, "image_mean": mean, "image_std": std}  # bilinear
    if image_size < 384:
        return ConvNextImageProcessor(size={"shortest_edge": image_size}, crop_pct=crop_pct, **settings)
    # From this size on, the other one ignores `crop_pct` and squeezes the whole image into a square.
    crop_size = {"height": image_size, "width": image_size}
    return BitImageProcessor(size={"shortest_edge": int(image_size / crop_pct)}, crop_size=crop_size, **settings)


# Width and height of images that processors are tried with: wide, tall, and square.
_TRIAL_SIZES = ((96, 64), (64, 96), (80, 80))
_COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


def process_image(image_processor: Any, image: Image.Image) -> Tensor:
    """
    Processes one image as for the model.

    Args:
        image_processor ([`~transformers.BaseImageProcessor`]): Image processor of a classifier.
        image (`PIL.Image.Image`): Image in mode RGB.

    Returns:
        `torch.Tensor`: (3, height, width), float32.

    Raises:
        `ValueError`: If the processor returns anything but one image.
    """
    name = type(image_processor).__name__
    output = image_processor(image, return_tensors="pt")
    pixels = output.get("pixel_values")
    if pixels is None or pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
        shapes = {key: tuple(value.shape) for key, value in output.items()}
        raise ValueError(
            f"`pixel_values` of {name} must be one image of shape (1, 3, height, width), but its output is {shapes}: it "
            "cuts images into patches or quantizes their colours. Such models are not supported."
        )
    if masks := [key for key in output if "mask" in key]:
        raise ValueError(f"The output of {name} must be `pixel_values`, but there is {masks} too: turn padding off.")
    return pixels[0].float()


def get_image_size(image_processor: Any) -> tuple[int, int]:
    """
    Height and width in pixels of the processed images.

    Args:
        image_processor ([`~transformers.BaseImageProcessor`]): Image processor of a classifier.

    Returns:
        `tuple[int, int]`: Height and width.

    Raises:
        `ValueError`: If the size depends on the image, so that batches can't be stacked.
    """
    sizes = {tuple(process_image(image_processor, Image.new("RGB", size)).shape[1:]) for size in _TRIAL_SIZES}
    if len(sizes) > 1:
        found = ", ".join(f"{height} x {width}" for height, width in sorted(sizes))
        raise ValueError(
            f"The images of {type(image_processor).__name__} must have one size, but have {found}: `do_resize` keeps the "
            "sides' ratio, or is off. Give `size` as height and width, or turn `do_center_crop` on."
        )
    return sizes.pop()


@dataclass(frozen=True)
class PixelMap:
    """
    What an image processor does to the colours of pixels: rescaling, normalization, another order of the channels.

    Args:
        weight (`torch.Tensor`): (3, 3), from channels in [0, 1] to those of the model.
        bias (`torch.Tensor`): (3,), added then.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """From float32 pixels (..., 3, height, width) in [0, 1] to the model's."""
        weight, bias = self.weight.to(pixels.device), self.bias.to(pixels.device)
        return (weight @ pixels.flatten(-2)).add_(bias[:, None]).view(pixels.shape)

    def invert(self, pixels: Tensor) -> Tensor:
        """The inverse: from the model's pixels (3, height, width) to uint8."""
        colours = torch.linalg.inv(self.weight) @ (pixels.flatten(1) - self.bias[:, None])
        return (colours * 255).round().clamp(0, 255).byte().view(pixels.shape)


def get_pixel_map(image_processor: Any, size: tuple[int, int] | None = None) -> PixelMap:
    """
    Measures what an image processor does to the colours of pixels.

    Args:
        image_processor ([`~transformers.BaseImageProcessor`]): Image processor of a classifier.
        size (`tuple[int, int]`, *optional*): Height and width of the images to measure with. Defaults to its own.

    Returns:
        `PixelMap`: It has `weight` (3, 3) and `bias` (3,), from channels in [0, 1] to those of the model, and maps pixels.

    Raises:
        `ValueError`: If its arithmetic isn't linear in the channels, or its images have no fixed size and none is given.
    """
    height, width = get_image_size(image_processor) if size is None else size

    def process(colour: tuple[int, ...]) -> Tensor:
        image = process_image(image_processor, Image.new("RGB", (width, height), colour))
        # Its middle: there may be padding around it.
        return image[:, image.shape[-2] // 2, image.shape[-1] // 2].double()

    black, *colours = map(process, _COLOURS)
    weight = torch.stack(colours, dim=1) - black[:, None]
    for colour in ((255, 255, 255), (200, 30, 110)):
        expected = weight @ torch.tensor(colour).double() / 255 + black
        if not torch.allclose(process(colour), expected, rtol=1e-3, atol=1e-3 * float(weight.abs().max())):
            raise ValueError(
                f"{type(image_processor).__name__} must change the channels of pixels linearly, by rescaling, "
                f"normalizing or reordering, but turns the colour {colour} into {process(colour).tolist()}, where "
                f"{expected.tolist()} would follow from other colours."
            )
    return PixelMap(weight.float(), black.float())


class ProcessorCrop:
    """
    The part of an image processor that moves pixels: resize, crop and padding, without changing colours.

    It maps a PIL image to a PIL image in mode RGB.

    Args:
        image_processor ([`~transformers.BaseImageProcessor`]): Image processor of a classifier.

    Raises:
        `ValueError`: If its images have no fixed size, or it maps different colours to equal ones.
    """

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor
        self.size = get_image_size(image_processor)
        self.pixel_map = get_pixel_map(image_processor)
        if torch.linalg.matrix_rank(self.pixel_map.weight) < 3:
            raise ValueError(
                f"{type(image_processor).__name__} must keep colours apart, but different ones become equal: "
                "`image_std` or `rescale_factor` is out of range, or it turns images grey."
            )

    def __call__(self, image: Image.Image) -> Image.Image:
        return v2.functional.to_pil_image(self.pixel_map.invert(process_image(self.image_processor, image)))

    def fingerprint(self) -> str:
        """A hash of its results: equal if the pixels are."""
        digest = hashlib.sha256()
        for width, height in _TRIAL_SIZES:
            pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
            digest.update(np.array(self(Image.fromarray(pixels))).tobytes())
        return digest.hexdigest()
