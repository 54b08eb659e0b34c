# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Models with sub-networks: [`make_slimmable`] and its parts.

- `registry`, `families`, `dense_families`: the config fields of a model family that scale, and its residual blocks.
- `narrowing`, `depth`: turn a config into a sub-network's config.
- `skeleton`, `selection`, `binding`: build a model of that config that computes with the full network's weights.
- `model`: the method `subnetwork` of a slimmable model.
"""

from .. import models  # noqa: F401  registers our own families
from . import families  # noqa: F401  registers those of transformers
from .depth import leading_blocks
from .image_size import check_image_size
from .model import make_slimmable, subnetwork_state_dict
from .narrowing import narrow_config, supported_model_types
from .registry import register_depth, register_narrowing


__all__ = [
    "check_image_size",
    "leading_blocks",
    "make_slimmable",
    "narrow_config",
    "register_depth",
    "register_narrowing",
    "subnetwork_state_dict",
    "supported_model_types",
]
