# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Measurements of hf_gradaug, each run from the repository's root: `python -m benchmarks.step`."""
