# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What the scripts for object detection and instance segmentation share: data, embedded scenes, training."""
