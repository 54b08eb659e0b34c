# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What messages and checks of arguments share."""

import os
from collections.abc import Iterable
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
