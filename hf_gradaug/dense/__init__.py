# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Internals for detectors and segmenters: batches with masks and boxes, and soft targets for queries."""

__all__: list[str] = []
