# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The embedded data for detection and segmentation: scenes of scikit-learn's handwritten digits, in COCO's format."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from hf_gradaug.data import load_digits_dataset
from hf_gradaug.sampling import example_seed


IMAGES, ANNOTATIONS = "images", "annotations.json"
_SPLITS = ("train", "validation")


def write_digit_scenes(
    folder: str | os.PathLike, split: str, num_scenes: int, size: int = 112, max_digits: int = 5, seed: int = 0
) -> Path:
    """
    Writes scenes as a folder of pictures and their annotations: `images/*.png` and `annotations.json`.

    Each scene has 1 to `max_digits` light digits of different sizes, colours and contrast on a dark, shaded background
    with noise and a few lines. They are composed of the digits of [`load_digits_dataset`], of which the splits have
    none in common. The same arguments give the same scenes.

    The annotations are those of COCO's instances: `bbox` is `[left, top, width, height]` in pixels, and `segmentation`
    a mask as run lengths.

    Args:
        folder (`str` or `os.PathLike`):
            Where to write; made if it isn't there.
        split (`str`):
            `"train"` or `"validation"`.
        num_scenes (`int`):
            Number of pictures, 1 or more.
        size (`int`, *optional*, defaults to `112`):
            Height and width of a picture in pixels, 64 or more.
        max_digits (`int`, *optional*, defaults to `5`):
            Digits in a picture at the most, 1 or more. One that finds no place is left out.
        seed (`int`, *optional*, defaults to `0`):
            Seeds everything that is drawn.

    Returns:
        `Path`: The folder.

    Raises:
        `ValueError`: If an argument is out of range.
        `ImportError`: If scikit-learn is missing.
    """
    if split not in _SPLITS:
        raise ValueError(f"`split` must be 'train' or 'validation', but is {split!r}.")
    for name, value, least in (("num_scenes", num_scenes, 1), ("size", size, 64), ("max_digits", max_digits, 1)):
        if value < least:
            raise ValueError(f"`{name}` must be {least} or more, but is {value}.")
    dataset = load_digits_dataset()[split]
    names, digits = dataset.features["label"].names, dataset.with_format("numpy")[:]
    folder = Path(folder)
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(num_scenes):
        rng = np.random.default_rng(example_seed(seed, _SPLITS.index(split), index))
        picture, objects = _compose(digits["image"], digits["label"], size, max_digits, rng)
        name = f"{index:05}.png"
        Image.fromarray(picture).save(folder / IMAGES / name)
        images.append({"id": index, "file_name": name, "height": size, "width": size})
        for label, mask in objects:
            annotations.append({"id": len(annotations), "image_id": index, "category_id": label, **_describe(mask)})
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (folder / ANNOTATIONS).write_text(json.dumps(contents), "utf-8")
    return folder


def _compose(
    digits: np.ndarray, labels: np.ndarray, size: int, max_digits: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """A picture of shape `(size, size, 3)`, and label and mask of each of its digits."""
    picture = _background(size, rng)
    objects: list[tuple[int, np.ndarray]] = []
    taken = np.zeros((size, size), dtype=bool)
    for _ in range(rng.integers(1, max_digits + 1)):
        which, side = rng.integers(len(digits)), int(rng.integers(size // 4, size // 2))
        ink = np.asarray(Image.fromarray(digits[which]).resize((side, side), Image.Resampling.BICUBIC)) / 255
        shape = ink > 0.4
        top, left = rng.integers(0, size - side + 1, 2)
        place = np.s_[top : top + side, left : left + side]
        if (taken[place] & shape).any() or not shape.any():
            continue
        taken[place] |= shape
        colour, contrast = rng.uniform(150, 255, 3), rng.uniform(0.5, 1.0)
        weight = (np.clip((ink - 0.2) / 0.4, 0, 1) * contrast)[..., None]
        picture[place] = (1 - weight) * picture[place] + weight * colour
        mask = np.zeros((size, size), dtype=bool)
        mask[place] = shape
        objects.append((int(labels[which]), mask))
    return np.clip(picture, 0, 255).astype(np.uint8), objects


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    first, second = rng.uniform(0, 90, 3), rng.uniform(-40, 40, 3)
    across, down = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    angle = rng.uniform(0, 2 * np.pi)
    picture = first + second * (np.cos(angle) * across + np.sin(angle) * down)[..., None]
    for _ in range(rng.integers(0, 4)):
        offset, slope = rng.uniform(0, size), rng.uniform(-1, 1)
        line = np.abs(across * size * slope + offset - down * size) < rng.uniform(0.5, 1.5)
        picture[line] += rng.uniform(-40, 60)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255)


def _describe(mask: np.ndarray) -> dict[str, Any]:
    lengths = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "bbox": [int(number) for number in coco_mask.toBbox(lengths)],
        "area": int(coco_mask.area(lengths)),
        "segmentation": {"size": lengths["size"], "counts": lengths["counts"].decode()},
        "iscrowd": 0,
    }
