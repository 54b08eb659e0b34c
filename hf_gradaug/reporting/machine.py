# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The machine and the versions behind a figure."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch


def describe_machine(device: str) -> dict[str, Any]:
    """
    The machine that this process runs on.

    Args:
        device (`str`):
            The type of the computing device, such as `"cuda"` or `"cpu"`.

    Returns:
        `dict[str, Any]`: `device`, `gpu` (name, or `None`), `cpu`, `cpu_capability` (the instructions that PyTorch
        uses), `cores` (that this process may use), `threads` (of PyTorch), and `load_average` (of the last minute;
        `None` where the system has none).
    """
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
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def describe_versions(*packages: str) -> dict[str, str]:
    """
    Versions of Python, torch, transformers, this package, and more.

    Args:
        *packages (`str`):
            Further packages, by the names that they are installed under.

    Raises:
        `importlib.metadata.PackageNotFoundError`: If one of `packages` is not installed.
    """
    import transformers

    from .. import __version__

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_gradaug": __version__,
        **{package: importlib.metadata.version(package) for package in packages},
    }


def find_device(name: str) -> torch.device:
    """
    The device of a command line.

    Args:
        name (`str`):
            What PyTorch calls it, or `"auto"` for an accelerator, if there is one, and else the CPU.

    Raises:
        `ValueError`: If there is no such device.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each kind of device has its own
        raise ValueError(f"`device` must be one that this machine has, but is '{name}': {error}") from error
    return torch.device(name)
