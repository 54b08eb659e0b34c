# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
One cell of a study: a run of the example script in a process of its own.

A server forks the processes after it has imported their modules. The imports would take longer than a small run.
"""

import multiprocessing
import os
import threading
from collections.abc import Sequence

import matplotlib.figure  # noqa: F401 -- with the next, imported by a run when it draws and measures
import sklearn.metrics  # noqa: F401
import torch
from transformers import AutoModelForImageClassification  # noqa: F401 -- imported by transformers when asked for

from . import study_report  # noqa: F401 -- the runner's own imports, which every process looks up again
from .common import ROOT, import_example


run_image_classification = import_example("run_image_classification")


def _end_with_the_runner() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def train(argv: Sequence[str], log: str, threads: int) -> None:
    """
    Runs the script, with its output in the file `log`.

    It ends when the runner ends, however the runner was stopped: the next runner writes to the same folder.
    """
    threading.Thread(target=_end_with_the_runner, daemon=True).start()
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    run_image_classification.main(list(argv))


def get_context() -> multiprocessing.context.BaseContext:
    """Gives processes that begin with this module imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # The server has the environment's search path, not this process's.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return context
