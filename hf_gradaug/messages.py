# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What messages and checks of arguments share."""

from collections.abc import Iterable
from typing import Any


def shorten(items: Iterable, count: int = 10) -> str:
    """A list for a message: at most so many items, and how many there are."""
    items = list(items)
    return str(items) if len(items) <= count else f"{str(items[:count])[:-1]}, ...] ({len(items)} in all)"


def check_counts(arguments: Any, *names: str) -> None:
    """Raises a `ValueError` if one of these attributes is below 1. `None` is allowed."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be 1 or more, but is {value}.")
