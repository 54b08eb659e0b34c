# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Image classifiers as they are loaded to be measured, converted or exported."""

import os

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..messages import shorten


def load_classifier(name_or_path: str | os.PathLike, trust_remote_code: bool = False) -> PreTrainedModel:
    """
    Load a whole image classifier, in float32 and in eval mode.

    A checkpoint without a head, which `from_pretrained` gives a random one, is refused. The networks of this package
    are known without remote code.

    Args:
        name_or_path (`str` or `os.PathLike`):
            A Hub name or a folder.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that lies beside the weights may run. It is never asked for at the keyboard.

    Returns:
        `PreTrainedModel`: The model, on the CPU.

    Raises:
        `ValueError`: If it is no image classifier, or weights are missing.
    """
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            name_or_path, dtype=torch.float32, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"'{name_or_path}' is no image classifier: {error}") from error
    if info["missing_keys"]:
        raise ValueError(f"'{name_or_path}' has no weights for {shorten(sorted(info['missing_keys']))}.")
    return model
