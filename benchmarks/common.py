# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Shared by the benchmarks: running an example script, and describing a run."""

import contextlib
import datetime
import importlib
import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hf_gradaug.reporting import describe_machine, describe_versions


ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
REFRESH = 10.0  # seconds after which a progress bar shows the time again


def import_example(name: str) -> ModuleType:
    """Imports an example script with the modules beside it."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name)


def run_example(name: str, flags: Sequence[str]) -> Any:
    """Runs the main function of an example script and returns its result."""
    with contextlib.redirect_stdout(sys.stderr):
        return import_example(name).main(list(flags))


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """A temporary folder for models. A stopped benchmark prints no advice to resume from it."""
    logger = logging.getLogger("common")  # of the example scripts, which would
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
    except (KeyboardInterrupt, SystemExit) as error:
        raise SystemExit("The benchmark was stopped. Nothing of it is kept: the same command starts again.") from error
    finally:
        logger.setLevel(level)


def describe_run(name: str, argv: Sequence[str], device: str, *packages: str) -> dict[str, Any]:
    """Time, command, machine and versions of a benchmark. Call it first, to record the load before the run."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *argv]),
        "hardware": describe_machine(device),
        "versions": describe_versions(*packages),
    }


def write_json(results: dict[str, Any], path: str | None) -> None:
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(results, indent=2) + "\n")
