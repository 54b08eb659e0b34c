# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What messages share."""

from collections.abc import Iterable


def shorten(items: Iterable, count: int = 10) -> str:
    """A list for a message: at most so many items, and how many there are."""
    items = list(items)
    return str(items) if len(items) <= count else f"{str(items[:count])[:-1]}, ...] ({len(items)} in all)"
