# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Finds the image sizes that a network can take. Forwards on the meta device compute nothing."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn


def size_arguments(network: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """
    Further arguments of a forward for images of another size than the config's: the interpolation of learned
    positions, if the network has an argument for it.

    Args:
        network (`nn.Module`):
            The network.
        args, kwargs:
            The arguments of the forward.

    Returns:
        `dict[str, Any]`: Arguments to add.
    """
    images = kwargs.get(getattr(network, "main_input_name", "pixel_values"), args[0] if args else None)
    size = getattr(getattr(network, "config", None), "image_size", None)
    if not isinstance(images, Tensor) or size is None:
        return {}
    size = (size, size) if isinstance(size, int) else tuple(size)
    is_own = tuple(images.shape[-2:]) == size
    if is_own or "interpolate_pos_encoding" not in inspect.signature(network.forward).parameters:
        return {}
    return {"interpolate_pos_encoding": True}


def can_take(network: nn.Module, size: tuple[int, int], num_channels: int = 3) -> bool:
    """Whether a network on the meta device can run on images of this height and width in pixels."""
    return meta_outputs(network, size, num_channels) is not None


def meta_outputs(network: nn.Module, size: tuple[int, int], num_channels: int = 3) -> Any | None:
    """The outputs of a network on the meta device for images of this size in pixels; `None` if it raises."""
    # A copy, because a forward may change a network: Swin's has its windows fit the images, and keeps them.
    network = copy.deepcopy(network).eval()
    try:
        return _run(network, (2, num_channels, *size))
    except Exception:  # any error means that it can't take this size
        return None


def can_train_on_one_image(
    skeleton: nn.Module, network: nn.Module, size: tuple[int, int], num_channels: int = 3
) -> bool:
    """
    Whether BatchNorm layers can compute statistics from a single image.

    Args:
        skeleton (`nn.Module`): A network on the meta device.
        network (`nn.Module`): The same network with weights; its modules have the train or eval modes.
        size (`tuple[int, int]`): Height and width of the image in pixels.
        num_channels (`int`, *optional*, defaults to `3`): Its channels.
    """
    skeleton = copy.deepcopy(skeleton)
    for module, full in zip(skeleton.modules(), network.modules(), strict=True):
        module.training = full.training
    try:
        _run(skeleton, (1, num_channels, *size))
    except Exception as error:  # any other means no forward on the meta device, so the answer is unknown
        return not (isinstance(error, ValueError) and "more than 1 value per channel" in str(error))
    return True


@torch.no_grad()
def _run(network: nn.Module, shape: tuple[int, int, int, int]) -> Any:
    """The outputs of a network on the meta device for images of this shape."""
    inputs = {getattr(network, "main_input_name", "pixel_values"): torch.empty(shape, device="meta")}
    return network(**inputs, **size_arguments(network, **inputs))


def check_image_size(
    network: nn.Module, size: tuple[int, int], batch_size: tuple[int, int], num_channels: int = 3
) -> None:
    """
    Raises an error that names a fitting size, if the network needs larger images or multiples of a number.

    No error is raised if the network takes none of the sizes tried, for example because it has other inputs or no
    forward on the meta device.

    Args:
        network (`nn.Module`):
            A network on the meta device.
        size (`tuple[int, int]`):
            Height and width of the images in pixels.
        batch_size (`tuple[int, int]`):
            Height and width of the images that `size` was scaled from, or `size` itself.
        num_channels (`int`, *optional*, defaults to `3`):
            Channels of the images.

    Raises:
        `ValueError`: If the images are too small, or a side is not a multiple of the number that the network needs.
    """
    if can_take(network, size, num_channels):
        return
    origin = "" if size == batch_size else f", scaled from {batch_size[0]} x {batch_size[1]},"
    for divisor in (8, 16, 32, 64):
        fitting = tuple(side // divisor * divisor for side in size)
        # Smaller images, so that these are not too small.
        if fitting != size and min(fitting) > 0 and can_take(network, fitting, num_channels):
            raise ValueError(
                f"Images of {size[0]} x {size[1]} pixels{origin} don't fit: {type(network).__name__} takes multiples "
                f"of {divisor}, such as {fitting[0]} x {fitting[1]}. Choose other images, or `scales` that give such "
                "sizes."
            )

    def scaled(height: int) -> tuple[int, int]:
        return height, max(1, round(size[1] * height / size[0]))

    enough = next((h for h in (batch_size[0], 4 * size[0]) if can_take(network, scaled(h), num_channels)), None)
    if enough is None or enough <= size[0]:
        return
    too_small = size[0]
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        if can_take(network, scaled(middle), num_channels):
            enough = middle
        else:
            too_small = middle
    least = scaled(enough)
    raise ValueError(
        f"Images of {size[0]} x {size[1]} pixels{origin} are too small: {type(network).__name__} takes {least[0]} x "
        f"{least[1]} at the least. Use larger images, or larger `scales` for the sub-networks: `scales=[1]` keeps the "
        "size."
    )
