# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Detectors and segmenters: batches with masks and boxes, and soft targets for queries."""

from .inputs import check_rotations, resize_like_images, select_rows, transform_images
from .queries import QueryTargets, check_has_query_targets, query_loss, query_targets


__all__ = [
    "QueryTargets",
    "check_has_query_targets",
    "check_rotations",
    "query_loss",
    "query_targets",
    "resize_like_images",
    "select_rows",
    "transform_images",
]
