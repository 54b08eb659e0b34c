# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What every benchmark writes down beside its figures."""

import contextlib
import datetime
import json
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers

import hf_gradaug


def describe_machine(device: str) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    return {
        "device": device,
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "cpu": cpu,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        # Of the last minute, before the benchmark: about 0 on a machine that does nothing else.
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def describe_versions(*packages: ModuleType) -> dict[str, str]:
    """Versions of Python, torch, transformers, this package, and `packages`."""
    packages = (torch, transformers, hf_gradaug, *packages)
    return {"python": platform.python_version(), **{package.__name__: package.__version__ for package in packages}}


def describe_run(script: str, argv: Sequence[str], device: str, *packages: ModuleType) -> dict[str, Any]:
    """When, how and on what a benchmark ran. Call it first: the load of the machine is that of before."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"benchmarks/{script}", *argv]),
        "hardware": describe_machine(device),
        "versions": describe_versions(*packages),
    }


def write_json(results: dict[str, Any], path: str | None) -> None:
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(results, indent=2) + "\n")
