# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Accuracy of image classifiers under FGSM attacks and under the corruptions of ImageNet-C."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

from ..data.decoding import read_stored
from ..data.image_processors import ProcessorCrop
from ..data.image_transforms import ImageCollator
from ..data.loading import ImageData
from ..messages import shorten
from ..sampling import example_seed
from .pixel_classifier import PixelClassifier, import_library
from .results import RobustnessResults
from .settings import CORRUPTIONS, SEVERITIES, Condition, RobustnessSettings


# What the corruptions are defined for.
_MIN_CORRUPTED_SIZE = 32
# These draw from generators of their own, seeded by an argument; the others from NumPy's global one.
_SEEDED_BY_ARGUMENT = ("impulse_noise", "glass_blur")


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def corrupt_image(image: np.ndarray, corruption: str, severity: int, seed: int) -> np.ndarray:
    """
    Applies one of the 15 corruptions of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    NumPy's global generator keeps its state.

    Args:
        image (`np.ndarray`):
            uint8, (height, width, 3), at least 32 x 32 pixels.
        corruption (`str`):
            Name, such as `"gaussian_noise"`.
        severity (`int`):
            Strength, 1 to 5.
        seed (`int`):
            0 or more. Draws are independent for each corruption and severity.

    Returns:
        `np.ndarray`: uint8, of the shape of `image`.

    Raises:
        `ImportError`: If imagecorruptions-imaug is missing.
        `ValueError`: If the corruption or the severity is unknown, or the image is too small or has another shape or
            type.
    """
    RobustnessSettings(corruptions=[corruption], severities=[severity])  # checks both
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < _MIN_CORRUPTED_SIZE:
        raise ValueError(
            f"`image` must be uint8 of shape (height, width, 3), with {_MIN_CORRUPTED_SIZE} x {_MIN_CORRUPTED_SIZE} pixels or "
            f"more, but is {image.dtype} of shape {image.shape}."
        )
    # The libraries take 32 bits.
    seed = example_seed(seed, CORRUPTIONS.index(corruption), SEVERITIES.index(severity)) % 2**32
    arguments = {"seed": seed} if corruption in _SEEDED_BY_ARGUMENT else {}
    with _numpy_seeded(seed):
        return import_library("imagecorruptions").corrupt(image, severity, corruption, **arguments)


class _ToPixels:
    """From a PIL image to uint8 pixels (3, height, width): cropped, and corrupted as the condition says."""

    def __init__(self, crop: ProcessorCrop, condition: Condition):
        self.crop = crop
        self.condition = condition

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = np.array(self.crop(image))
        if self.condition.corruption is not None:
            # PyTorch's generator was seeded for this example: see `ExampleTransform`.
            seed = int(torch.randint(2**62, ()))
            pixels = corrupt_image(pixels, self.condition.corruption, self.condition.severity, seed)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _hash_images(images: Iterable[Mapping[str, Any]]) -> str:
    """A hash of stored images. Other images may have the same labels, in a folder of the same name."""
    digest = hashlib.sha256()
    for image in images:
        if image is None:
            continue  # an error that names it when it is read
        digest.update(hashlib.sha256(read_stored(image)).digest())
    return digest.hexdigest()


def _check_classifier(name: str, classifier: PixelClassifier, settings: RobustnessSettings) -> None:
    if settings.corruptions and min(classifier.crop.size) < _MIN_CORRUPTED_SIZE:
        raise ValueError(
            f"'{name}' takes images of {classifier.crop.size} pixels, but the corruptions need "
            f"{_MIN_CORRUPTED_SIZE} x {_MIN_CORRUPTED_SIZE} or more. Set `corruptions` to 'none' to measure only attacks."
        )


def evaluate_robustness(
    classifiers: Mapping[str, PixelClassifier],
    data: ImageData,
    settings: RobustnessSettings | None = None,
    split: str = "validation",
    baseline: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 42,
    path: str | os.PathLike | None = None,
) -> RobustnessResults:
    """
    Measures the accuracy of classifiers on a split: on unchanged images, under FGSM, and under corruptions.

    Corruptions depend only on the seed, the image's index in the data, the corruption and the severity. All classifiers
    of one image size see the same images, with any batch size and number of workers.

    Images are corrupted after resizing and cropping. Results differ slightly from those on the published ImageNet-C
    files, which are stored as JPEG.

    Args:
        classifiers (`Mapping[str, PixelClassifier]`):
            One or more classifiers by name.
        data ([`~hf_gradaug.data.ImageData`]):
            The images, from [`~hf_gradaug.data.load_image_data`].
        settings ([`RobustnessSettings`], *optional*):
            The attacks and the corruptions. Defaults to all.
        split (`str`, *optional*, defaults to `"validation"`):
            `"validation"` or `"test"`.
        baseline (`str`, *optional*):
            The classifier whose errors divide all errors (see [`mean_corruption_error`]).
        batch_size (`int`, *optional*, defaults to `64`):
            Images per batch.
        num_workers (`int`, *optional*, defaults to `0`):
            Processes that read and corrupt images.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the corruptions.
        path (`str` or `os.PathLike`, *optional*):
            A JSON file, written after each condition. Conditions in the file are not measured again.

    Returns:
        [`RobustnessResults`]: The accuracies and their summary.

    Raises:
        `ImportError`: If foolbox or imagecorruptions-imaug is missing.
        `ValueError`: If there are no classifiers, a classifier's classes differ from the data's, or images are too
            small to be corrupted. Also if the baseline is not a classifier, the split is missing or unlabelled, or
            `path` holds other results.
    """
    settings = settings or RobustnessSettings()
    if not classifiers:
        raise ValueError("`classifiers` must have one or more, but is empty.")
    for name, classifier in classifiers.items():
        _check_classifier(name, classifier, settings)
    numbers = {
        name: torch.tensor(data.match_classes(name, classifier.class_names))
        for name, classifier in classifiers.items()
    }
    if baseline is not None and baseline not in classifiers:
        raise ValueError(f"`baseline` must be one of the models {shorten(classifiers)}, but is '{baseline}'.")
    if split not in ("validation", "test"):
        raise ValueError(f"`split` must be 'validation' or 'test', but is '{split}'.")
    if settings.corruptions:
        import_library("imagecorruptions")

    dataset = data.get_dataset(split, nn.Identity(), seed=seed)
    if dataset.transform.label_column is None:
        raise ValueError(f"`split` must have labels, but is '{split}', whose images of {data.name} have none.")
    data = replace(data, splits={split: dataset.dataset}, skip_bad_images=False)  # unreadable images were left out
    description = {
        "data": data.name,
        "split": split,
        "num_images": len(dataset),
        "labels_sha256": hashlib.sha256(np.array(dataset.dataset[data.label_column][:], dtype=np.int64)).hexdigest(),
        "images_sha256": _hash_images(dataset.dataset[data.image_column]),
        "seed": seed,
    }
    fingerprints = {name: classifier.fingerprint(numbers[name].tolist()) for name, classifier in classifiers.items()}
    device = next(iter(classifiers.values())).device.type
    results = RobustnessResults(settings, fingerprints, description, baseline, path, device)

    groups: dict[str, list[str]] = {}  # classifiers that see the same pixels
    for name, classifier in classifiers.items():
        groups.setdefault(classifier.crop.fingerprint(), []).append(name)
    cells = [
        (condition, missing)
        for names in groups.values()
        for condition in settings.conditions
        if (missing := [name for name in names if condition.key not in results.accuracy[name]])
    ]
    with transformers_logging.tqdm(total=len(cells) * len(dataset), unit="image") as progress:
        for condition, names in cells:
            progress.set_description(condition.key)
            pixels = data.get_dataset(split, _ToPixels(classifiers[names[0]].crop, condition), seed=seed)
            loader = DataLoader(
                pixels,
                batch_size,
                collate_fn=ImageCollator(len(data.class_names)),
                num_workers=num_workers,
                generator=torch.Generator(),  # the loader would draw a seed from the global one
            )
            correct = dict.fromkeys(names, 0)
            for batch in loader:
                for name in names:
                    labels = numbers[name][batch["labels"]]
                    correct[name] += classifiers[name].count_correct(batch["pixel_values"], labels, condition.epsilon)
                progress.update(len(batch["labels"]))
            results.add(condition, {name: count / len(pixels) for name, count in correct.items()})
    results.save()  # with nothing left to measure there may be another baseline
    return results
