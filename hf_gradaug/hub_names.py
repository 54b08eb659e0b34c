# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Which names are names on the Hub."""

import os

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def is_hub_name(name: str) -> bool:
    """
    Whether a name can be a repository's on the Hub: of its form, and no path on this machine.

    Args:
        name (`str`):
            What `from_pretrained` or `load_dataset` took.
    """
    if os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
