# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What messages and checks of arguments share."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any


def shorten(items: Iterable, count: int = 10) -> str:
    """A list for a message: at most so many items, and how many there are."""
    items = list(items)
    return str(items) if len(items) <= count else f"{str(items[:count])[:-1]}, ...] ({len(items)} in all)"


def last_part(path: str) -> str:
    """The last part of a model's path, which names it. The rest is about the machine where it was."""
    return os.path.basename(os.path.normpath(path))


def check_counts(arguments: Any, *names: str, least: int = 1) -> None:
    """Raises a `ValueError` if one of these attributes is below `least`. `None` is allowed."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"`{name}` must be {least} or more, but is {value}.")


def as_number(value: Any) -> int | float | None:
    """The value as Python's own number, since NumPy's can't be saved as JSON. `None` if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def as_numbers(
    name: str, values: Any, allowed: str = "finite numbers", is_allowed: Callable[[float], bool] | None = None
) -> list[int | float]:
    """
    The list of the argument `name`, as Python's own numbers. Raises a `ValueError` if it is no list, is empty, or has
    another value than a finite number for which `is_allowed` is true. `allowed` says so in words.
    """
    found = values.tolist() if hasattr(values, "tolist") else values  # of NumPy or PyTorch
    is_list = isinstance(found, Sequence) and not isinstance(found, (str, bytes))
    numbers = [as_number(value) for value in found] if is_list else []
    if not numbers or None in numbers or (is_allowed is not None and not all(map(is_allowed, numbers))):
        raise ValueError(f"`{name}` must be a list of one or more {allowed}, but is {values!r}.")
    return numbers
