# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Loads image classifiers to measure, convert or export."""

import os

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..messages import shorten


def load_classifier(
    name_or_path: str | os.PathLike,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    token: str | None = None,
) -> PreTrainedModel:
    """
    Loads an image classifier in float32 and in eval mode.

    A checkpoint without a head raises an error, because `from_pretrained` would add a random head. The networks of
    this package load without remote code.

    Args:
        name_or_path (`str` or `os.PathLike`):
            A Hub name or a folder.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that is stored with the weights. There is no prompt.
        cache_dir (`str`, *optional*):
            Folder for downloads.
        token (`str`, *optional*):
            Hub token for private models.

    Returns:
        `PreTrainedModel`: The model, on the CPU.

    Raises:
        `ValueError`: If it is not an image classifier, or weights are missing.
    """
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            name_or_path,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            cache_dir=cache_dir,
            token=token,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"'{name_or_path}' is not an image classifier: {error}") from error
    if info["missing_keys"]:
        raise ValueError(f"'{name_or_path}' has no weights for {shorten(sorted(info['missing_keys']))}.")
    return model
