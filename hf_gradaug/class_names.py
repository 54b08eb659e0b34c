# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Whether the classes of a model are those of some data."""

import logging
from collections.abc import Sequence


logger = logging.getLogger(__name__)


def check_class_names(model: str, classes: Sequence[str], data: str, data_classes: Sequence[str]) -> None:
    """
    Checks that the numbers of a model's classes mean the same as those of the data.

    Of names that differ, the number is all that can be compared: ImageNet's classes are `n01440764`, `tench` or `tench, Tinca
    tinca`, by whose file it is. A warning then tells so.

    Args:
        model (`str`):
            Name of the model.
        classes (`Sequence[str]`):
            Its classes.
        data (`str`):
            Name of the data.
        data_classes (`Sequence[str]`):
            The classes there.

    Raises:
        ValueError: if they are not as many, or one of the data's has another number in the model.
    """
    if len(classes) != len(data_classes):
        raise ValueError(f"'{model}' has {len(classes)} classes, but {data} has {len(data_classes)}.")
    numbers = [str(number) for number in range(len(classes))]
    nameless = (numbers, [f"LABEL_{number}" for number in numbers])
    if list(classes) == list(data_classes) or list(classes) in nameless or list(data_classes) in nameless:
        return
    numbers_of = {name: number for number, name in enumerate(classes)}
    for number, name in enumerate(data_classes):
        if numbers_of.get(name, number) != number:
            raise ValueError(
                f"Class {number} of {data} is '{name}', which is class {numbers_of[name]} of '{model}': give the data its order."
            )
    number = next(number for number, name in enumerate(data_classes) if classes[number] != name)
    logger.warning(
        f"The classes of '{model}' and {data} have different names and are compared by their numbers: class {number} is "
        f"'{classes[number]}' and '{data_classes[number]}'."
    )
