# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What the scripts for object detection and instance segmentation share: data, embedded scenes, training."""

try:
    import pycocotools  # noqa: F401
    import torchmetrics  # noqa: F401
except ImportError as error:
    raise ImportError(
        "Detection and instance segmentation need pycocotools and torchmetrics: pip install 'hf_gradaug[detection]'."
    ) from error
