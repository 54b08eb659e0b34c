# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What the fork server imports, once for all runs."""

# isort: off
import os

os.environ["HUB_OF_THE_TESTS"] = os.environ["HF_ENDPOINT"]

import conftest  # noqa: E402, F401 - first: it sets the surroundings that the libraries read

# isort: on
import gc

import datasets
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch
import transformers.conversion_mapping  # noqa: F401

from helpers import images


torch.set_num_threads(1)
images.load_script("run_image_classification")
# `datasets` sleeps 5 seconds at each end of a shuffled Parquet stream.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1
# So many objects make a collection in each run take half a second, and none of them will go.
gc.freeze()
