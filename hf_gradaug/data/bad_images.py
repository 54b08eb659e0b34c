# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Skips unreadable images. They are marked when decoded, left out of batches, and counted by the trainer.

Data-loading workers do the first two steps. The marks travel with the batch to the training process. Only this process
can name each image once and count all of them.
"""

import logging
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator


logger = logging.getLogger(__name__)

# The key of a marked example, and of the marks in a batch: pairs of what identifies an image and what is wrong with it.
_MARK = "unreadable_images"


def mark_unreadable(value: Mapping[str, Any] | None, message: str) -> dict[str, Any]:
    """
    Makes a mark for an example whose image can't be read.

    Args:
        value (`Mapping`, *optional*):
            The undecoded image. Its path identifies it, or its bytes if it has no path, or the message if it has neither.
        message (`str`):
            Names the image and its fault.
    """
    value = value or {}
    stored = value.get("bytes")
    return {_MARK: (value.get("path") or (f"crc32 {zlib.crc32(stored)}" if stored is not None else message), message)}


def leave_out_unreadable(examples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Separates readable examples from marks.

    Returns:
        `tuple[list[dict], dict]`: The readable examples, and the marks to add to their batch, if any.

    Raises:
        `ValueError`: If no example is readable.
    """
    marks = [example[_MARK] for example in examples if _MARK in example]
    if not marks:
        return examples, {}
    good = [example for example in examples if _MARK not in example]
    if not good:
        raise ValueError(
            f"None of the {len(marks)} images of a batch can be read, so the batch is empty. {marks[0][1]}"
        )
    return good, {_MARK: marks}


class SkippedImages:
    """Names each skipped image once, and counts all skips."""

    def __init__(self):
        self.count = 0
        self._named: set[str] = set()

    def take_from(self, batch: Any) -> None:
        """Removes the marks from a batch and counts them."""
        marks = batch.pop(_MARK, []) if isinstance(batch, dict) else []
        self.count += len(marks)
        for key, message in marks:
            if key not in self._named:
                self._named.add(key)
                logger.warning(f"{message}. It is skipped.")

    def count_in_all(self, accelerator: Accelerator) -> int:
        """The count over all processes. Every process must call it."""
        return int(accelerator.reduce(torch.tensor(self.count, device=accelerator.device), reduction="sum"))
