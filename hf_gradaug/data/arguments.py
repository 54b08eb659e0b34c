# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The flags of the example scripts for data and augmentation."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..messages import check_counts
from .folders import name_data


@dataclass
class DataArguments:
    """The images and their augmentation. If no data is named, the embedded digits are used."""

    # Any of these names the data.
    DATA_SOURCES: ClassVar = ("dataset_name", "train_dir", "validation_dir", "test_dir")
    # Fields that have a meaning only with `dataset_name`.
    NEED_DATASET_NAME: ClassVar = (
        "dataset_config_name",
        "train_split_name",
        "validation_split_name",
        "test_split_name",
    )
    # Fields that have a meaning only in training.
    NEED_TRAINING: ClassVar = (
        *("in_memory", "shuffle_buffer_size", "random_resized_crop_scale", "random_crop_padding"),
        *("horizontal_flip", "color_jitter", "cutmix_alpha", "mixup_alpha", "mix_prob"),
    )

    dataset_name: str | None = field(default=None, metadata={"help": "Dataset: a Hub name or a local folder."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the Hub dataset."})
    train_dir: str | None = field(
        default=None,
        metadata={
            "help": "Training data: a folder with one subfolder per class, or .parquet or .tar shards (a folder or a "
            "glob)."
        },
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "Validation data, in the same form as train_dir."}
    )
    test_dir: str | None = field(default=None, metadata={"help": "Test data, in the same form as train_dir."})
    train_split_name: str = field(default="train", metadata={"help": "Name of the Hub dataset's training split."})
    validation_split_name: str = field(
        default="validation", metadata={"help": "Name of the Hub dataset's validation split."}
    )
    test_split_name: str = field(
        default="test", metadata={"help": "Name of the Hub dataset's test split, for do_predict."}
    )
    train_val_split: float = field(
        default=0.15,
        metadata={"help": "Fraction of the training images held out for validation if there is no validation split."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Maximum number of training images. From a stream, the first images are used."}
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of validation images, and of test images. From a stream, the first images are used."
        },
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of images. If not given, it is found by its type."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of labels. If not given, it is found by its type."}
    )
    classes_by_number: bool = field(
        default=False,
        metadata={
            "help": "Match the data's classes to the model's by number if their names differ, as ImageNet's do."
        },
    )
    num_labels: int | None = field(
        default=None, metadata={"help": "Number of classes. Needed for a stream whose labels have no names."}
    )
    in_memory: bool = field(
        default=False,
        metadata={
            "help": "Decode all images once, then crop and mirror whole batches. This is faster for small images, whose "
            "decoding takes longer than the model. It needs random_crop_padding and no color_jitter."
        },
    )
    streaming: bool = field(default=False, metadata={"help": "Stream the training images instead of storing them."})
    num_train_samples: int | None = field(
        default=None,
        metadata={"help": "Number of training images, for a stream that doesn't state it. Not with other data."},
    )
    shuffle_buffer_size: int = field(
        default=10000,
        metadata={"help": "Number of undecoded images that each process holds in memory to shuffle a stream."},
    )
    random_resized_crop_scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0],
        metadata={"help": "Smallest and largest fraction of the image's area that the random crop keeps."},
    )
    random_crop_padding: int | None = field(
        default=None,
        metadata={
            "help": "Pad each side of the image with this many mirrored pixels, then crop a random region of the original "
            "size. This replaces random_resized_crop_scale. The CIFAR recipes use 4."
        },
    )
    horizontal_flip: bool = field(
        default=True,
        metadata={"help": "Mirror half of the training images. Turn this off if mirroring changes the class."},
    )
    color_jitter: float = field(
        default=0.0,
        metadata={
            "help": "Strength of random brightness, contrast and saturation; 0 is off. The authors use 0.4 for ImageNet."
        },
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "Parameter of CutMix's Beta distribution; 0 turns CutMix off."}
    )
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "Parameter of MixUp's Beta distribution; 0 turns MixUp off."}
    )
    skip_bad_images: bool = field(
        default=False,
        metadata={"help": "Skip unreadable images and name each in a warning, instead of stopping at the first."},
    )
    mix_prob: float = field(default=1.0, metadata={"help": "Probability that a training batch is mixed."})

    def __post_init__(self):
        check_counts(self, "max_train_samples", "max_eval_samples", "num_train_samples", "num_labels")
        if self.num_train_samples is not None and not self.streaming:
            raise ValueError(
                f"`num_train_samples` must be left out without `streaming`, but is {self.num_train_samples}. To train on "
                "fewer images, give `max_train_samples`."
            )
        if 0 <= self.mix_prob < 1 and not self.mixing:
            raise ValueError(
                f"`mix_prob` must be 1.0 without `cutmix_alpha` or `mixup_alpha`, but is {self.mix_prob}. Give one of them."
            )
        if not self.dataset_name:
            remedy = "Name the files of each split with `train_dir`, `validation_dir` and `test_dir`."
            self._check_left_out(self.NEED_DATASET_NAME, "without `dataset_name`", remedy)
        if not self.in_memory:
            return
        for name in ("streaming", "skip_bad_images", "color_jitter"):
            if getattr(self, name):
                raise ValueError(f"`{name}` must be off with `in_memory`, but is {getattr(self, name)}.")
        if self.random_crop_padding is None:
            raise ValueError("`random_crop_padding` must be given with `in_memory`, but is None.")

    def _check_left_out(self, names: Sequence[str], where: str, remedy: str) -> None:
        for item in dataclasses.fields(self):
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            if item.name in names and (value := getattr(self, item.name)) != default:
                raise ValueError(f"`{item.name}` must be left out {where}, but is {value!r}. {remedy}")

    def check_no_training(self) -> None:
        """Raises a `ValueError` if a field is given that has no effect in a script that only measures."""
        self._check_left_out(self.NEED_TRAINING, "in a script that doesn't train", "It would have no effect.")

    @property
    def train_augmentation(self) -> dict[str, Any]:
        """Augmentation of training images, as arguments of [`~image_transforms.get_train_transform`]."""
        crop = "random_resized_crop_scale" if self.random_crop_padding is None else "random_crop_padding"
        return {name: getattr(self, name) for name in (crop, "horizontal_flip", "color_jitter")}

    @property
    def mixing(self) -> dict[str, Any]:
        """Settings of the mixed training batches, if any."""
        names = ("cutmix_alpha", "mixup_alpha", "mix_prob") if self.cutmix_alpha or self.mixup_alpha else ()
        return {name: getattr(self, name) for name in names}

    @property
    def names_dataset(self) -> bool:
        """Whether any data is named; if not, the embedded digits are used."""
        return any(getattr(self, name) for name in self.DATA_SOURCES)

    @property
    def display_name(self) -> str:
        """Name of the data: from the Hub, from the data.json of examples/prepare_data.py, or of its folder."""
        if not self.names_dataset:
            return "handwritten digits (scikit-learn)"
        if self.dataset_name:  # of a local path, the last part is enough: the rest is about the machine
            is_local = os.path.exists(self.dataset_name)
            return name_data(self.dataset_name) if is_local else self.dataset_name
        folder = Path(self.train_dir or self.validation_dir or self.test_dir)
        facts = folder.parent / "data.json"
        about = json.loads(facts.read_text("utf-8")) if facts.is_file() else None
        is_prepared = isinstance(about, dict) and {"name", "splits", "sha256"} <= about.keys()
        return about["name"] if is_prepared else name_data(folder)
