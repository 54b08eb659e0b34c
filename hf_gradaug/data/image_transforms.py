# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""From stored images to batches: torchvision v2 transforms, and the collator with CutMix and MixUp."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import datasets
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import v2

from ..sampling import example_seed, seeded
from .bad_images import leave_out_unreadable, mark_unreadable
from .decoding import decode_image
from .image_processors import ProcessorCrop, get_image_size, get_pixel_map, process_image


logger = logging.getLogger(__name__)


def get_train_transform(
    image_processor: Any,
    random_resized_crop_scale: Sequence[float] = (0.08, 1.0),
    horizontal_flip: bool = True,
    color_jitter: float = 0.0,
    random_crop_padding: int | None = None,
) -> v2.Compose:
    """
    Random crop, optional flip and colour jitter, then the image processor's normalization. Size and interpolation are
    the image processor's.

    Args:
        image_processor ([`~transformers.BaseImageProcessor`]):
            The model's image processor.
        random_resized_crop_scale (`Sequence[float]`, *optional*, defaults to `(0.08, 1.0)`):
            Smallest and largest fraction of the image's area that the random crop keeps.
        horizontal_flip (`bool`, *optional*, defaults to `True`):
            Whether half of the images are mirrored. Turn this off if mirroring changes the class, as for digits.
        color_jitter (`float`, *optional*, defaults to `0.0`):
            Strength of the random change of brightness, contrast and saturation; the authors use 0.4 on ImageNet.
        random_crop_padding (`int`, *optional*):
            Pads each side of the image with this many mirrored pixels, then crops a random region of the original size.
            This replaces `random_resized_crop_scale`. The authors use 4 on CIFAR.

    Returns:
        [`~torchvision.transforms.v2.Compose`]: Takes a PIL image, returns a float tensor (3, height, width).

    Raises:
        `ValueError`: If a number is out of range, or the image processor's images have no fixed size.
    """
    scale, padding = random_resized_crop_scale, random_crop_padding
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"`random_resized_crop_scale` must be two fractions of the area in (0, 1], the smaller one first, but is {list(scale)}."
        )
    if not color_jitter >= 0:
        raise ValueError(f"`color_jitter` must be 0 or more, but is {color_jitter}.")
    size = get_image_size(image_processor)
    if padding is None:
        resample = getattr(image_processor, "resample", None)
        interpolation = v2.InterpolationMode.BILINEAR if resample is None else resample
        steps = [v2.RandomResizedCrop(size, scale=tuple(scale), interpolation=interpolation, antialias=True)]
    else:
        check_padding(padding, size)
        steps = [ProcessorCrop(image_processor), v2.RandomCrop(size, padding, padding_mode="reflect")]
    if horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if color_jitter:
        steps.append(v2.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter))
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, *to_float, get_pixel_map(image_processor)])


def check_padding(padding: int, size: tuple[int, int]) -> None:
    """Raises a `ValueError` if images of this size have too few pixels to mirror."""
    if not 0 < padding < min(size):
        raise ValueError(
            f"`random_crop_padding` must be in 1..{min(size) - 1} for images of {size[0]} x {size[1]}, but is {padding}."
        )


def get_eval_transform(image_processor: Any) -> Callable[[Image.Image], torch.Tensor]:
    """
    The transform for evaluation, which calls the image processor.

    Args:
        image_processor ([`~transformers.BaseImageProcessor`]):
            The model's image processor.

    Returns:
        `Callable`: Takes a PIL image, returns a float tensor (3, height, width).

    Raises:
        `ValueError`: If its results have no fixed size, or are not images.
    """
    get_image_size(image_processor)
    return partial(process_image, image_processor)


def keep_readable(
    dataset: datasets.Dataset, image_column: str, split: str, rows: Sequence[int]
) -> tuple[datasets.Dataset, list[int]]:
    """
    Removes unreadable images from a split, each named in a warning.

    This is for evaluation, where all processes need batches of equal sizes. Every image is decoded once. `datasets`
    keeps the result for later runs.

    Args:
        dataset ([`~datasets.Dataset`]): Dataset of undecoded images.
        image_column (`str`): Column of images.
        split (`str`): The split's name, for the warnings.
        rows (`Sequence[int]`): Number of each image in the split, for the warnings.

    Returns:
        `tuple[Dataset, list[int]]`: The readable images, and their numbers in the split.

    Raises:
        `ValueError`: If no image is left.
    """

    def find_error(example: dict[str, Any], index: int) -> dict[str, str]:
        try:
            decode_image(example[image_column], f"image {rows[index]} of {split}")
        except ValueError as error:
            return {"error": str(error)}
        return {"error": ""}

    errors = dataset.map(find_error, with_indices=True, remove_columns=dataset.column_names)["error"]
    good = [index for index, error in enumerate(errors) if not error]
    if not good:
        raise ValueError(f"None of the {len(dataset)} images of {split} can be read. {errors[0]}")
    for error in filter(None, errors):
        logger.warning(f"{error}. It is skipped.")
    dataset = dataset if len(good) == len(dataset) else dataset.select(good)
    return dataset, [rows[index] for index in good]


class ExampleTransform:
    """
    Turns a stored example (undecoded image, label) into inputs of the model.

    Args:
        transform (`Callable`):
            From a PIL image to a tensor (3, height, width). It may draw from PyTorch's global generator, which is
            seeded for each example.
        image_column (`str`):
            Name of the column of undecoded images.
        label_column (`str`, *optional*):
            Name of the column of integer labels; `None` for unlabelled images.
        num_labels (`int`):
            Number of classes. Labels are checked against it.
        split (`str`):
            Name of the split, for errors.
        mix (`bool`, *optional*, defaults to `False`):
            Set it for training images. It marks examples for [`ImageCollator`], which mixes only marked examples. A
            marked example's `"mix"` is its seed, any other's is `None`. The Trainer has one collator for training and
            evaluation, so examples carry the difference.
        skip_bad_images (`bool`, *optional*, defaults to `False`):
            Marks an unreadable image, so that [`ImageCollator`] leaves it out, instead of raising an error.
        numbers (`Sequence[int]`, *optional*):
            Number of the class for each stored label. Defaults to the label itself.
    """

    def __init__(
        self,
        transform: Callable[[Image.Image], torch.Tensor],
        image_column: str,
        label_column: str | None,
        num_labels: int,
        split: str,
        mix: bool = False,
        skip_bad_images: bool = False,
        numbers: Sequence[int] | None = None,
    ):
        self.transform = transform
        self.image_column = image_column
        self.label_column = label_column
        self.num_labels = num_labels
        self.split = split
        self.mix = mix
        self.skip_bad_images = skip_bad_images
        self.numbers = range(num_labels) if numbers is None else numbers

    def __call__(self, example: dict[str, Any], name: str, seed: int) -> dict[str, Any]:
        name = f"{name} of {self.split}"
        try:
            image = decode_image(example[self.image_column], name)
        except ValueError as error:
            if not self.skip_bad_images:
                raise
            return mark_unreadable(example[self.image_column], str(error))
        with seeded(seed):
            output = {"pixel_values": self.transform(image), "mix": seed if self.mix else None}
        if self.label_column is not None:
            output["labels"] = self.get_class(example[self.label_column], name)
        return output

    def get_class(self, label: int | None, name: str) -> int:
        """The number of the class of a stored label. A missing label raises a `ValueError` that names the image."""
        if label is None or not 0 <= label < self.num_labels:
            raise ValueError(
                f"Label out of range: {name} has label {label} in column '{self.label_column}', but labels must be in "
                f"0..{self.num_labels - 1} (num_labels is {self.num_labels})."
            )
        return self.numbers[int(label)]


class ImageCollator:
    """
    Stacks examples into a batch, and mixes training batches with CutMix or MixUp.

    Marked unreadable images are left out, so a batch may be smaller. [`GradAugTrainer`] names and counts them.

    The mixing of a batch depends only on the seeds of its examples, which are in `"mix"`. Examples without one are not
    mixed.

    Args:
        num_labels (`int`):
            Number of classes.
        cutmix_alpha (`float`, *optional*, defaults to `0.0`):
            Parameter of CutMix's Beta distribution; 0 turns CutMix off.
        mixup_alpha (`float`, *optional*, defaults to `0.0`):
            Parameter of MixUp's Beta distribution; 0 turns MixUp off. With both on, each batch draws one of them.
        mix_prob (`float`, *optional*, defaults to `1.0`):
            Probability that a batch is mixed.

    Returns:
        `dict[str, torch.Tensor]`: `pixel_values` (batch, 3, height, width), and `labels`: integers (batch,), or
        class probabilities (batch, num_labels) in every training batch if CutMix or MixUp is on.

    Raises:
        `ValueError`: If an argument is out of range, or no image of a batch can be read.
    """

    def __init__(self, num_labels: int, cutmix_alpha: float = 0.0, mixup_alpha: float = 0.0, mix_prob: float = 1.0):
        for name, alpha in (("cutmix_alpha", cutmix_alpha), ("mixup_alpha", mixup_alpha)):
            if not alpha >= 0:
                raise ValueError(f"`{name}` must be 0 (off) or more, but is {alpha}.")
        if not 0 <= mix_prob <= 1:
            raise ValueError(f"`mix_prob` must be in [0, 1], but is {mix_prob}.")
        self.num_labels = num_labels
        self.mix_prob = mix_prob
        self.mixes = []
        if cutmix_alpha:
            self.mixes.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_labels))
        if mixup_alpha:
            self.mixes.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_labels))

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        examples, marks = leave_out_unreadable(examples)
        # In a data-loading worker this stacks into shared memory at once; `torch.stack` would be copied there.
        batch = {"pixel_values": default_collate([example["pixel_values"] for example in examples]), **marks}
        if "labels" not in examples[0]:
            return batch
        labels = torch.tensor([example["labels"] for example in examples])
        if self.mixes and examples[0].get("mix") is not None:
            with seeded(example_seed(*(example["mix"] for example in examples))):
                batch["pixel_values"], labels = self._mix(batch["pixel_values"], labels)
        batch["labels"] = labels
        return batch

    def _mix(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.rand(()) < self.mix_prob:
            return self.mixes[int(torch.randint(len(self.mixes), ()))](images, labels)
        return images, torch.nn.functional.one_hot(labels, self.num_labels).float()
