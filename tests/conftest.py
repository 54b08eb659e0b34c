# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Surroundings of the tests: a Hub of their own, no caches or settings of the user's, quiet, light on the machine."""

import atexit
import gc
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from helpers.hub_server import WRITER, HubServer


# The Hugging Face libraries read these when they are imported, so they are set before anything else is.
_HF_HOME = tempfile.mkdtemp(prefix="hf_gradaug_tests_")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
for _name in [name for name in os.environ if name.startswith(("ACCELERATE_", "HF_", "HUGGING_FACE_", "FSDP_"))]:
    del os.environ[_name]
# Nothing goes further than this process: for names that it doesn't hold, its Hub has the real one's "not found". The
# processes that it starts talk to it, too.
_HUB = None if "HUB_OF_THE_TESTS" in os.environ else HubServer()
_HUB_URL = os.environ.pop("HUB_OF_THE_TESTS") if _HUB is None else _HUB.url
os.environ.update(
    HF_HOME=_HF_HOME,
    HF_ENDPOINT=_HUB_URL,
    NO_PROXY="127.0.0.1,localhost",
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    # Trackers report nowhere, even if a test or a user's setting asks for all that are installed.
    WANDB_MODE="disabled",
    COMET_MODE="disabled",
    DISABLE_MLFLOW_INTEGRATION="TRUE",
)
# Trainer splits batches over all the GPUs that one process sees, which GradAug refuses: the tests see one at most.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

import pytest  # noqa: E402
import torch  # noqa: E402


# The models are tiny: a second thread would only wait, and the more so the busier the machine is.
torch.set_num_threads(1)

# What only a GPU can show: `python -m benchmarks.gpu` runs it there.
collect_ignore = [] if torch.cuda.is_available() else ["cuda"]

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_finish():
    """Leaves what is imported out of the garbage collection, which accelerate runs at the start of every training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def default_verbosity():
    """The example scripts set transformers' verbosity for the whole process. Each test starts with the default."""
    yield
    from transformers.utils import logging

    logging.set_verbosity_warning()


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that holds the package, the tests and the examples."""
    return ROOT


@pytest.fixture
def tracked_files(root):
    """What belongs to the repository: the files that git tracks, or would."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    # A file that was just deleted is still listed.
    return [root / name for name in listing.split("\0") if name and (root / name).is_file()]


@pytest.fixture
def hub(monkeypatch):
    """The tests' own Hub, empty, with a token that may write. Between attempts neither we nor the client wait."""
    import huggingface_hub.utils._http as client

    import hf_gradaug.training.hub

    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(client, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))
    monkeypatch.setattr(hf_gradaug.training.hub, "_WAITS", (0, 0))
    _HUB.clear()
    yield _HUB
    _HUB.clear()


@pytest.fixture(scope="session")
def subprocess_env() -> dict[str, str]:
    """
    Environment for a process that a test starts: it finds the package and has one thread, so that several of them
    together don't take more than the machine has.
    """
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture
def swin():
    """Makes tiny Swin models, for gradient checkpointing."""
    from helpers.tiny import NUM_LABELS, SIZE, randomize
    from transformers import SwinConfig, SwinForImageClassification

    def make():
        sizes = {"image_size": SIZE, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": [2, 1]}
        config = SwinConfig(**sizes, num_heads=[2, 2], num_labels=NUM_LABELS, drop_path_rate=0.0)
        return randomize(SwinForImageClassification(config))

    return make
