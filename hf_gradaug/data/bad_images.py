# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Unreadable images that are skipped: marked where they are decoded, left out where a batch is made, counted by the
trainer.

Data-loader workers do the first two. So the marks travel with the batch to the process that trains, which alone can
name an image once and count all of them.
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
    Stands for an example whose image can't be read.

    Args:
        value (`Mapping`, *optional*):
            The undecoded image. Its path identifies it, or else its bytes: a stream restarts its count in each epoch.
        message (`str`):
            Names the image and what is wrong with it.
    """
    value = value or {}
    return {_MARK: (value.get("path") or f"crc32 {zlib.crc32(value.get('bytes') or b'')}", message)}


def leave_out_unreadable(examples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Divides examples into good ones and marks.

    Returns:
        `tuple[list[dict], dict]`: The good examples, and what to add to their batch: nothing, if all are good.

    Raises:
        `ValueError`: If no example is good.
    """
    marks = [example[_MARK] for example in examples if _MARK in example]
    if not marks:
        return examples, {}
    good = [example for example in examples if _MARK not in example]
    if not good:
        raise ValueError(
            f"None of the {len(marks)} images of a batch can be read, so it can't be trained. {marks[0][1]}"
        )
    return good, {_MARK: marks}


class SkippedImages:
    """Names each skipped image once, and counts how often one was skipped."""

    def __init__(self):
        self.count = 0
        self._named: set[str] = set()

    def take_from(self, batch: Any) -> None:
        """Takes the marks out of a batch."""
        marks = batch.pop(_MARK, []) if isinstance(batch, dict) else []
        self.count += len(marks)
        for key, message in marks:
            if key not in self._named:
                self._named.add(key)
                logger.warning(f"{message}. It is skipped.")

    def count_in_all(self, accelerator: Accelerator) -> int:
        """The count of all processes, each of which has to call it."""
        return int(accelerator.reduce(torch.tensor(self.count, device=accelerator.device), reduction="sum"))
