# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Whether the classes of a model are those of some data."""

import logging
from collections.abc import Sequence

from transformers import PreTrainedConfig


logger = logging.getLogger(__name__)


def get_class_names(config: PreTrainedConfig) -> list[str]:
    """The classes of a model in the order of their numbers, which need not be that of `id2label`."""
    return [config.id2label[number] for number in range(config.num_labels)]


def check_class_names(model: str, classes: Sequence[str], data: str, data_classes: Sequence[str]) -> None:
    """
    Checks that the numbers of a model's classes mean the same as those of the data.

    Of names that differ, the number is all that can be compared: ImageNet's first class is `n01440764`, `tench` or
    `tench, Tinca tinca`, by whose file it is. A warning then tells so. A single name at another number is no evidence
    of another order: of ImageNet's two cranes, class 134 is a bird and 517 a machine, and either may be `crane`.

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
        ValueError: if they are not as many, or in another order: at some number, the name of either side is at another
            number of the other side.
    """
    if len(classes) != len(data_classes):
        raise ValueError(f"'{model}' has {len(classes)} classes, but {data} has {len(data_classes)}.")
    numbers = [str(number) for number in range(len(classes))]
    nameless = (numbers, [f"LABEL_{number}" for number in numbers])
    if list(classes) == list(data_classes) or list(classes) in nameless or list(data_classes) in nameless:
        return
    differing = [number for number, name in enumerate(data_classes) if classes[number] != name]
    for number in differing:
        name = data_classes[number]
        if name in classes and classes[number] in data_classes:
            raise ValueError(
                f"Class {number} of {data} is '{name}', which is class {classes.index(name)} of '{model}': give the "
                "data its order."
            )
    number = differing[0]
    logger.warning(
        f"The classes of '{model}' and {data} have different names and are compared by their numbers: class {number} "
        f"is '{classes[number]}' and '{data_classes[number]}'."
    )
