# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Matches the classes of some data to the classes of a model."""

import logging
from collections.abc import Sequence

from transformers import PreTrainedConfig

from ..messages import shorten


logger = logging.getLogger(__name__)


def get_class_names(config: PreTrainedConfig) -> list[str]:
    """The classes of a model by number. `id2label` may have another order."""
    # A config that was changed after it was made, or made of JSON by hand, may have strings as keys.
    names = {int(number): name for number, name in config.id2label.items()}
    if names.keys() != set(range(len(names))):
        raise ValueError(f"The keys of `id2label` must be 0..{len(names) - 1}, but are {shorten(sorted(names))}.")
    return [names[number] for number in range(len(names))]


def match_classes(
    name: str,
    classes: Sequence[str],
    other: str,
    other_classes: Sequence[str],
    by_number: bool | None = None,
) -> list[int]:
    """
    Finds the model's index for each class of a data set, or of a teacher. Classes are matched by name.

    Classes without names, such as `0` or `LABEL_0`, are matched by number: `LABEL_10` matches the class `10`, although a
    sorted list of folders has `10` before `2`.

    Args:
        name (`str`):
            Name of the model, for messages.
        classes (`Sequence[str]`):
            Its classes, in the order of their numbers.
        other (`str`):
            Name of the data.
        other_classes (`Sequence[str]`):
            Its classes.
        by_number (`bool`, *optional*):
            Matches classes by number, whatever their names. ImageNet needs it: its first class is named `n01440764`,
            `tench` or `tench, Tinca tinca`. `None` if the user has no setting `classes_by_number`, which the error
            names otherwise.

    Returns:
        `list[int]`: The model's number of each class, in the order of the data's numbers.

    Raises:
        `ValueError`: If the numbers of classes differ, or the names do.
    """
    if len(classes) != len(other_classes):
        raise ValueError(
            f"'{name}' has {len(classes)} classes, but {other} has {len(other_classes)}: {shorten(classes, 3)} and "
            f"{shorten(other_classes, 3)}."
        )
    unchanged = list(range(len(classes)))
    classes, other_classes = _without_prefix(classes), _without_prefix(other_classes)
    if by_number or classes == other_classes:
        return unchanged
    if len(set(classes)) == len(classes) and set(classes) == set(other_classes):
        logger.warning(f"The classes of {other} have another order than those of '{name}': they are matched by name.")
        return [classes.index(other_class) for other_class in other_classes]
    if _is_nameless(classes) or _is_nameless(other_classes):
        logger.warning(
            f"The classes of '{name}' are matched by number to those of {other}, because one of them has no names: "
            f"{shorten(classes, 3)} and {shorten(other_classes, 3)}. If their order differs, rename them."
        )
        return unchanged
    pairs = zip(classes, other_classes)
    number, (own, others) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    advice = "" if by_number is None else ", or if the order is the same, match them by number: `classes_by_number`"
    raise ValueError(
        f"The classes of '{name}' must have the names of those of {other}, but class {number} is '{own}' and "
        f"'{others}'. Rename them{advice}."
    )


def warn_of_missing(classes: Sequence[str], split: str) -> None:
    """Logs a warning that names the classes without images in a split, such as "training", if there are any."""
    if classes:
        logger.warning(f"These classes have no {split} images: {shorten(classes)}.")


def _without_prefix(classes: Sequence[str]) -> list[str]:
    """`LABEL_0`, `LABEL_1`, ..., a config's names for classes without names, as numbers; other classes as they are."""
    numbers = [str(number) for number in range(len(classes))]
    return numbers if list(classes) == [f"LABEL_{number}" for number in numbers] else list(classes)


def _is_nameless(classes: list[str]) -> bool:
    return classes == [str(number) for number in range(len(classes))]
