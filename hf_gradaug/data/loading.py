# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Image-classification data for the example scripts: loading, columns, classes, splits and streams."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np

from ..messages import shorten
from .arguments import DataArguments
from .class_names import match_classes, warn_of_missing
from .image_transforms import ExampleTransform, keep_readable
from .splits import load_splits
from .streaming import count_stream, store_stream
from .training_stream import TrainingStream
from .transformed_dataset import TransformedDataset


logger = logging.getLogger(__name__)

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "cls", "fine_label")
# Shards of streamed data that are not in shards. Many, because each shard of a folder has images of few classes.
_LOCAL_SHARDS = 1024


@dataclass
class ImageData:
    """
    Loaded splits with undecoded images, and what is known about them. Made by [`load_image_data`].

    Args:
        splits (`dict[str, Dataset | IterableDataset]`):
            `"train"`, `"validation"` and `"test"`, as available. Only `"train"` can be a stream.
        image_column, label_column (`str`):
            Names of the two columns.
        class_names (`list[str]`):
            One name per class, in the order of the labels.
        num_train_examples (`int`, *optional*):
            Number of training images, if known.
        name (`str`):
            Name of the data on a model card.
        skip_bad_images (`bool`, *optional*, defaults to `False`):
            Whether unreadable images are skipped: during training, and before evaluation in the other splits.
        classes_by_number (`bool`, *optional*, defaults to `False`):
            Whether classes are matched to models by number, not by name.
        numbers (`list[int]`, *optional*):
            Number of the class for each stored label. Defaults to the label itself.
        rows (`dict[str, Sequence[int]]`, *optional*):
            Number of each image in the whole split. Defaults to its index; truncated splits have other ones.
    """

    splits: dict[str, Any]
    image_column: str
    label_column: str
    class_names: list[str]
    num_train_examples: int | None
    name: str
    skip_bad_images: bool = False
    classes_by_number: bool = False
    numbers: list[int] | None = None
    rows: dict[str, Sequence[int]] = field(default_factory=dict)

    def match_classes(self, model: str, classes: Sequence[str]) -> list[int]:
        """The model's number of each class: see [`~class_names.match_classes`]."""
        return match_classes(model, classes, self.name, self.class_names, self.classes_by_number)

    def with_classes(self, model: str, classes: Sequence[str]) -> ImageData:
        """
        The same data with the classes of a model, in its order.

        Args:
            model (`str`): Name of the model, for messages.
            classes (`Sequence[str]`): Its classes, in the order of their numbers.

        Raises:
            `ValueError`: If the model's classes differ.
        """
        matched = self.match_classes(model, classes)
        numbers = [matched[number] for number in self.numbers or range(len(matched))]
        return replace(self, class_names=list(classes), numbers=numbers)

    def get_dataset(
        self,
        split: str,
        transform: Callable,
        mix: bool = False,
        seed: int = 42,
        buffer_size: int = 10000,
    ) -> TransformedDataset | TrainingStream:
        """
        One split. Its images are decoded and transformed when they are read.

        A stream never ends, one epoch follows the other (see [`TrainingStream`]). `max_steps` ends the run.

        Args:
            split (`str`): `"train"`, `"validation"` or `"test"`.
            transform (`Callable`): Maps a PIL image to a tensor.
            mix (`bool`, *optional*, defaults to `False`): Marks the examples for CutMix or MixUp.
            seed (`int`, *optional*, defaults to `42`): Seed of the transform and of a stream's order.
            buffer_size (`int`, *optional*, defaults to `10000`): Undecoded images in memory to shuffle a stream.

        Raises:
            `ValueError`: If the split is missing.
        """
        if split not in self.splits:
            raise ValueError(
                f"There is no {split} split; the splits of {self.name} are {shorten(self.splits)}. Give `{split}_dir` or "
                f"`{split}_split_name`."
            )
        dataset = self.splits[split]
        label_column = self.label_column if self.label_column in dataset.column_names else None
        if split == "test" and label_column and (_get_labels(dataset, label_column) == -1).all():
            label_column = None  # The Hub's way to mark hidden test labels
        example_transform = ExampleTransform(
            transform,
            self.image_column,
            label_column,
            len(self.class_names),
            split,
            mix,
            self.skip_bad_images,
            self.numbers,
        )
        if not isinstance(dataset, datasets.IterableDataset):
            rows = self.rows.get(split, range(len(dataset)))
            if self.skip_bad_images and split != "train":
                dataset, rows = keep_readable(dataset, self.image_column, split, rows)
            return TransformedDataset(dataset, example_transform, seed, rows)
        return TrainingStream(dataset, example_transform, seed, buffer_size, self.num_train_examples)


def find_columns(
    features: datasets.Features, image_column_name: str | None = None, label_column_name: str | None = None
) -> tuple[str, str | None]:
    """
    Finds the columns of images and labels by their feature types.

    Args:
        features ([`~datasets.Features`]): Features of the dataset.
        image_column_name (`str`, *optional*): Overrides the search for an `Image` column.
        label_column_name (`str`, *optional*): Overrides the search for a `ClassLabel`, else an integer column. A column
            named like labels comes before columns of other names.

    Returns:
        `tuple[str, str | None]`: Both names. The label's name is `None` if no column fits.

    Raises:
        `ValueError`: If a given column is missing, there is no image column, several columns fit equally well, or one
            column is given for both.
    """
    for flag, name in (("image_column_name", image_column_name), ("label_column_name", label_column_name)):
        if name is not None and name not in features:
            raise ValueError(f"`{flag}` must be one of the columns {shorten(features)}, but is '{name}'.")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if not labels:
        labels = [name for name, feature in features.items() if _is_label(feature)]
    if not set(labels) & set(_LABEL_COLUMNS):
        # Of other types, a column of labels is an error later; another column would be trained on without a word.
        labels = [name for name in _LABEL_COLUMNS if name in features and name != image_column_name][:1] or labels
    image = image_column_name or _choose(images, _IMAGE_COLUMNS, "image_column_name", "images")
    label = label_column_name or _choose(labels, _LABEL_COLUMNS, "label_column_name", "labels")
    if image is None:
        raise ValueError(
            f"No column holds images; the columns are {shorten(features)}. Name it with `image_column_name`."
        )
    if image == label:
        raise ValueError(
            f"`image_column_name` must be another column than that of the labels, but both are '{image}'."
        )
    is_guessed = label not in (None, label_column_name, *_LABEL_COLUMNS)
    if is_guessed and not isinstance(features[label], datasets.ClassLabel) and len(features) > 2:
        logger.warning(
            f"The labels are those of column '{label}', the only one of integers among {shorten(features)}. If the classes "
            "are in another, name it with label_column_name."
        )
    return image, label


def _choose(candidates: list[str], preferred: tuple[str, ...], flag: str, what: str) -> str | None:
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    for name in preferred:
        if name in candidates:
            return name
    raise ValueError(f"Several columns can hold {what}: {shorten(candidates)}. Name one with `{flag}`.")


def _is_label(feature: Any) -> bool:
    return getattr(feature, "dtype", "").startswith(("int", "uint"))


def _get_labels(dataset: datasets.Dataset, label_column: str, split: str = "") -> np.ndarray:
    feature = dataset.features[label_column]
    if not _is_label(feature):
        raise ValueError(
            f"`label_column_name` must be a column with one integer per image, but is '{label_column}', which holds {feature}."
        )
    column = dataset.select_columns(label_column).with_format("arrow")[:][label_column]
    if column.null_count:
        index = column.is_null().to_pylist().index(True)
        raise ValueError(
            f"Column '{label_column}' must hold a label for each image, but has none for {column.null_count} of the {split} "
            f"images, first for image {index}."
        )
    return column.to_numpy()


def _check_range(present: dict[str, set[int]], class_names: list[str]) -> None:
    for split, labels in present.items():
        wrong = sorted(label for label in labels if not 0 <= label < len(class_names))
        if wrong and not (split == "test" and labels == {-1}):
            raise ValueError(
                f"Label out of range: the {split} images have label {wrong[0]}, but labels must be in "
                f"0..{len(class_names) - 1} (num_labels is {len(class_names)})."
            )


def _check_classes(present: dict[str, set[int]], class_names: list[str], args: DataArguments) -> None:
    if "train" not in present or "validation" not in present:
        return
    for one, other in (("train", "validation"), ("validation", "train")):
        missing = [class_names[label] for label in sorted(present[one] - present[other])]
        if not missing:
            continue
        if args.streaming and args.num_labels is not None:
            raise ValueError(
                f"`num_labels` must be the number of classes among the {other} images, {len(present[other])}, but is "
                f"{args.num_labels}. They lack {shorten(missing)}."
            )
        raise ValueError(
            f"The classes {shorten(missing)} are among the {one} images, but not among the {other} images. Add {other} images "
            f"of them, or leave their {one} images out."
        )


def load_image_data(
    args: DataArguments, seed: int = 42, cache_dir: str | None = None, token: str | None = None
) -> ImageData:
    """
    Loads the data that the arguments name, and checks it before training.

    With `streaming`, only the training split is a stream. Validation and test splits are read once and kept on disk.
    So an evaluation sees every image exactly once, with any number of workers and processes. With `max_train_samples`,
    the first training images are read once and kept on disk too.

    Args:
        args ([`DataArguments`]): The data and its columns.
        seed (`int`, *optional*, defaults to `42`): Seed of `max_train_samples` and `max_eval_samples`.
        cache_dir (`str`, *optional*): Where `datasets` keeps its files.
        token (`str`, *optional*): Token for private Hub datasets.

    Returns:
        [`ImageData`]: The splits, undecoded.

    Raises:
        `ValueError`: If a folder holds no images, a column is wrong or missing, a label is out of range, training and
            validation images don't have the same classes, or a stream has no validation split.
    """
    loaded = load_splits(args, cache_dir, token)
    features = dict(next(iter(loaded.splits.values())).features)
    image_column, label_column = find_columns(features, args.image_column_name, args.label_column_name)
    if label_column is None:
        raise ValueError(
            f"No column holds labels (ClassLabel or integer); the columns are {shorten(features)}. Name it with "
            "`label_column_name`; a folder of images needs one folder per class, and at least two of them."
        )
    splits = {}
    for split, dataset in loaded.splits.items():
        columns = [column for column in (image_column, label_column) if column in dataset.features]
        dataset = dataset.select_columns(columns).cast_column(image_column, datasets.Image(decode=False))
        if isinstance(dataset, datasets.IterableDataset) and split != "train":
            key = [loaded.cache_key, loaded.names[split], args.max_eval_samples, columns]
            dataset = store_stream(dataset, key, args.max_eval_samples, cache_dir)
        splits[split] = dataset

    splits, class_names = _settle_classes(splits, features[label_column], label_column, args)

    num_train_examples, rows = None, {}
    if "train" in splits:
        train, limit = splits["train"], args.max_train_samples
        if isinstance(train, datasets.IterableDataset) and limit is not None:
            # A stream that is cut has an equal part of each shard, and fewer images where a shard has fewer.
            key = [loaded.cache_key, loaded.names["train"], limit, image_column, label_column]
            train = store_stream(train, key, limit, cache_dir)
        if isinstance(train, datasets.Dataset):
            train, rows["train"] = _truncate(train, limit, seed)
            _name_missing(train, label_column, class_names, "training")
            num_train_examples = len(train)
            if args.streaming:
                train = train.to_iterable_dataset(num_shards=min(num_train_examples, _LOCAL_SHARDS))
        else:
            name = loaded.names["train"]
            stated = count_stream(loaded.splits["train"], name, loaded.files.get(name))
            num_train_examples = args.num_train_samples if stated is None else stated
            if args.num_train_samples not in (None, num_train_examples):
                raise ValueError(
                    f"`num_train_samples` must be {stated}, the number of images that the stream states, but is "
                    f"{args.num_train_samples}. Leave it out, or give `max_train_samples` to train on fewer."
                )
        splits["train"] = train
    for split in {"validation", "test"} & set(splits):
        splits[split], rows[split] = _truncate(splits[split], args.max_eval_samples, seed)
    if "validation" in splits and args.max_eval_samples is not None:  # of a stream, the first ones
        _name_missing(splits["validation"], label_column, class_names, "validation")
    return ImageData(
        splits,
        image_column,
        label_column,
        class_names,
        num_train_examples,
        args.display_name,
        args.skip_bad_images,
        args.classes_by_number,
        rows=rows,
    )


def _settle_classes(
    splits: dict[str, Any], feature: Any, label_column: str, args: DataArguments
) -> tuple[dict[str, Any], list[str]]:
    """Checks the labels, and holds out validation images if there are none. Returns the splits and the classes."""
    labels = _read_labels(splits, label_column)
    class_names = _get_class_names(feature, args, labels, label_column)
    _check_range(labels, class_names)
    if "train" in splits and "validation" not in splits:
        if args.streaming:
            raise ValueError(
                "`streaming` must be off without a validation split, but is on, and none can be held out from a stream. "
                "Name one with `validation_dir` or `validation_split_name`."
            )
        splits = splits | _hold_out(splits["train"], label_column, class_names, args.train_val_split)
        # A later evaluation without these flags would measure on images that the model was trained on.
        logger.warning(
            f"{args.display_name} has no validation split: `train_val_split` {args.train_val_split} of its training images "
            f"are held out, {len(splits['validation'])}, the same ones with any seed. Evaluate a model that was trained on "
            "these data with the same `train_val_split`, or with the validation images of its training."
        )
        labels = _read_labels(splits, label_column)
    if args.streaming and "train" in splits and args.max_eval_samples is None:
        labels.setdefault("train", set(range(len(class_names))))
    _check_classes(labels, class_names, args)
    return splits, class_names


def _name_missing(dataset: datasets.Dataset, label_column: str, class_names: list[str], split: str) -> None:
    present = set(_get_labels(dataset, label_column).tolist())
    warn_of_missing([name for label, name in enumerate(class_names) if label not in present], split)


def _read_labels(splits: dict[str, Any], label_column: str) -> dict[str, set[int]]:
    """The labels of each split, except streams."""
    return {
        split: set(_get_labels(dataset, label_column, split).tolist())
        for split, dataset in splits.items()
        if not isinstance(dataset, datasets.IterableDataset) and label_column in dataset.features
    }


def _hold_out(
    dataset: datasets.Dataset, label_column: str, class_names: list[str], share: float
) -> dict[str, datasets.Dataset]:
    """Holds out the same share of each class for validation. Runs with any seed have the same validation images."""
    counts = np.bincount(_get_labels(dataset, label_column, "train"), minlength=len(class_names))
    if single := [class_names[label] for label in np.flatnonzero(counts == 1)]:
        raise ValueError(
            f"The classes {shorten(single)} have one image each, so none can be held out: give validation images, or more "
            "to train on."
        )
    if not isinstance(dataset.features[label_column], datasets.ClassLabel):
        dataset = dataset.cast_column(label_column, datasets.ClassLabel(names=class_names))
    try:
        parts = dataset.train_test_split(share, seed=0, stratify_by_column=label_column)
    except ValueError as error:
        raise ValueError(f"`train_val_split` must fit the training images, but is {share}: {error}") from error
    held_out = set(parts["test"][label_column])
    if small := [name for label, name in enumerate(class_names) if counts[label] and label not in held_out]:
        raise ValueError(
            f"`train_val_split` must hold out an image of each class, but is {share}, and {shorten(small)} have too few images: "
            "raise it, or give validation images."
        )
    return {"train": parts["train"], "validation": parts["test"]}


def _truncate(dataset: datasets.Dataset, max_samples: int | None, seed: int) -> tuple[datasets.Dataset, Sequence[int]]:
    """A random part of a dataset, and its rows."""
    rows = range(len(dataset))
    if max_samples is not None and max_samples < len(dataset):
        rows = datasets.Dataset.from_dict({"row": rows}).shuffle(seed=seed)[:max_samples]["row"]
        dataset = dataset.select(rows)
    return dataset, rows


def _get_class_names(feature: Any, args: DataArguments, labels: dict[str, set[int]], label_column: str) -> list[str]:
    if isinstance(feature, datasets.ClassLabel):
        if args.num_labels not in (None, feature.num_classes):
            raise ValueError(
                f"`num_labels` must be {feature.num_classes}, the classes of column '{label_column}', but is {args.num_labels}."
            )
        return list(feature.names)
    if args.num_labels is not None:
        return [str(label) for label in range(args.num_labels)]
    if args.streaming:
        raise ValueError(f"The labels in column '{label_column}' of a stream have no names. Give `num_labels`.")
    found = sorted(set().union(*labels.values()) - {-1})
    if found != list(range(len(found))):
        raise ValueError(
            f"Labels must be 0, 1, 2, ... without gaps, but column '{label_column}' has {len(found)} different ones, "
            f"{shorten(found, 3)}, up to {found[-1]}: renumber them, or give num_labels if classes have no images."
        )
    return [str(label) for label in found]
