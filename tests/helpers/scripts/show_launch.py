# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Writes what `accelerate launch` told this process into a file of the folder that is its only argument."""

import json
import os
import sys
from pathlib import Path


names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
told = {
    name: value for name, value in os.environ.items() if name in names or name.startswith(("ACCELERATE_", "FSDP_"))
}
(Path(sys.argv[1]) / f"{os.getpid()}.json").write_text(json.dumps(told))
