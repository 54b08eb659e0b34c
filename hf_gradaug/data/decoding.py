# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Decodes stored images to pixels. No other code opens images."""

import io
from typing import Any

import numpy as np
from datasets.utils.file_utils import xopen
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError


def decode_image(value: dict[str, Any], name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """
    Opens a stored image as RGB.

    Images of 16 bits are scaled to 8 by the range that their format states, and floating-point ones from [0, 1]. TIFF
    and PNG state the whole range for 12-bit levels that are stored in 16 bits: multiply such levels by 16 first.

    Args:
        value (`dict`):
            A value of `datasets.Image(decode=False)`: `bytes`, `path`, or both.
        name (`str`):
            Name of the image in errors, beside its path, such as `"image 17 of train"`.
        size (`tuple[int, int]`, *optional*):
            Width and height that annotations refer to. They decide whether an image with an EXIF orientation is
            turned.

    Returns:
        `PIL.Image.Image`: The image in mode RGB, and upright (EXIF orientation applied) unless `size` says otherwise.

    Raises:
        `ValueError`: If the image can't be read, its pixels have no known range, or it has another size; the message
            names it.
    """
    try:
        if value is None:
            raise ValueError("its value must be an image, but is None.")
        stored = read_stored(value)
        image = _open(stored)
        # In place: a copy would have none of a TIFF's tags.
        ImageOps.exif_transpose(image, in_place=True)
        if size is not None and image.size != size:
            image = _open(stored)
            if image.size != size:
                raise ValueError(
                    f"its width and height must be {size[0]} x {size[1]}, as its annotations say, but are {image.width} x "
                    f"{image.height}."
                )
        return to_rgb(image)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
        path = (value or {}).get("path")
        raise ValueError(f"Unreadable image: {f'{name} ({path})' if path else name}: {error}") from error


def read_stored(value: dict[str, Any]) -> bytes:
    """The file of a stored image, whose path may lead into an archive or to the Hub."""
    if value.get("bytes") is not None:
        return value["bytes"]
    if value["path"] is None:
        raise ValueError("its value must have `bytes` or a `path`, but has neither.")
    with xopen(value["path"], "rb") as file:
        return file.read()


def _open(stored: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(stored))
    except UnidentifiedImageError:  # whose message has the buffer's address
        raise ValueError(f"its {len(stored)} bytes must be an image that Pillow can read, but are none.") from None
    image.load()
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Converts an image of any mode to RGB.

    Args:
        image (`PIL.Image.Image`): Image of any mode. Pillow alone would saturate images of more than 8 bits.

    Raises:
        `ValueError`: If the range of the pixels isn't known: integers of 32 bits, or floats beyond [0, 1].
    """
    # Pillow opens a portable pixmap of 16 bits as 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        tags = getattr(image, "tag_v2", {})  # of a TIFF file, whose 12 bits Pillow opens as 16
        (bits,) = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
        pixels = np.asarray(image).astype(np.float32) / (2**bits - 1)
        if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white, which Pillow knows of 8 bits alone
            pixels = 1 - pixels
    elif image.mode == "I":
        raise ValueError("its pixels are integers of 32 bits, whose range isn't known: store 8 or 16 bits.")
    elif image.mode == "F":
        pixels = np.asarray(image)
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"its pixels must be floats in [0, 1], but are in [{pixels.min()}, {pixels.max()}].")
    else:
        return image.convert("RGB")
    return Image.fromarray((pixels * 255).round().astype(np.uint8)).convert("RGB")
