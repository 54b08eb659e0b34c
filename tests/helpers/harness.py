# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Runs of the example script in processes of their own, which can be killed.

A fork server imports the libraries once, so that a run costs what it trains and not the seconds that PyTorch and transformers
take to import.
"""

import importlib
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


# The server's own process starts with what is in the environment.
ROOT = Path(__file__).resolve().parents[2]
_PATHS = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]
FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["helpers.preloaded"])

STEPS = 8
TINY = "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"
FLAGS = [
    *("--gradaug", "--do_train", "--model_type", "resnet", "--config_overrides", TINY, "--image_size", "20"),
    *("--crop_pct", "1.0", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"),
    # Random transformations that change images of one color too, unlike crops and flips.
    *("--color_jitter", "0.4", "--cutmix_alpha", "1"),
    *("--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "steps"),
]


@dataclass
class Run:
    """A run that has ended: its exit code (of a signal, the negative number) and what it wrote to stdout and stderr."""

    code: int
    text: str


def start(log: Path, function: Callable, *args, env: dict[str, str] | None = None):
    """Starts a function in a process of its own, its output in a file."""
    os.environ["PYTHONPATH"] = os.pathsep.join([*_PATHS, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    process = FORK_SERVER.Process(target=_enter, args=(log, env or {}, function, *args))
    process.start()
    return process


def finish(process, log: Path, timeout: float = 60) -> Run:
    """Waits for a started process; one that hangs is killed and fails the test."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"The run hung: {log.read_text()[-3000:]}")
    return Run(process.exitcode, log.read_text())


def run_ranks(folder: Path, function: Callable, *args, processes: int = 2, timeout: float = 60) -> list[Run]:
    """Runs a function in several processes of one group, in the environment that `torchrun` sets."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(probe.getsockname()[1])}
    group |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    runs = []
    for rank in map(str, range(processes)):
        log = folder / f"{rank}.log"
        runs.append((start(log, function, *args, env={"RANK": rank, "LOCAL_RANK": rank, **group}), log))
    return [finish(process, log, timeout) for process, log in runs]


def run_script_in_ranks(folder: Path, script: Path, *words: str, processes: int = 2) -> None:
    """Runs a script as `torchrun` would, without the time that each process takes to import the libraries."""
    folder.mkdir(exist_ok=True)
    for run in run_ranks(folder, run_script, str(script), *words, processes=processes, timeout=300):
        assert run.code == 0, run.text


def run_script(*words: str) -> None:
    """In the child: a script with its arguments, as `python` would."""
    sys.argv = list(words)
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


def _enter(log: Path, env: dict[str, str], function: Callable, *args) -> None:
    os.environ.update(env)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(file, standard)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    importlib.import_module("torch").set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for data-loader workers, as outside of the server
    function(*args)


def run_example(flags: list[str], fault: Callable | None = None, *fault_args) -> None:
    """In the child: the example script, after what makes it fail is set up."""
    import transformers

    from helpers import images

    if fault is not None:
        fault(*fault_args)
    transformers.utils.logging.disable_progress_bar()
    images.load_script("run_image_classification").main([*FLAGS, *flags])


# Faults: each is called in the child before the training.


def kill_in_step(step: int, moment: int) -> None:
    """
    SIGKILL in an optimizer step, counted from 1. Moments 0 to 3 are the losses of the passes, after the forward and before the
    backward; 4 is before the weights change, 5 after that.
    """
    _in_step(step, moment, lambda: os.kill(os.getpid(), signal.SIGKILL))


def terminate_in_step(step: int, moment: int, times: int) -> None:
    """SIGTERM in an optimizer step, some times."""
    _in_step(step, moment, lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(times)])


def terminate_group_in_step(step: int, moment: int) -> None:
    """SIGTERM in an optimizer step, to the workers that load the data too, as Slurm does it."""
    os.setsid()
    # By a process that is not the workers' parent: from that they take it as their end.
    kill = ["kill", "-TERM", "--", f"-{os.getpgid(0)}"]
    _in_step(step, moment, lambda: subprocess.run(kill, start_new_session=True, check=True))


def terminate_before_the_first_step() -> None:
    from hf_gradaug import GradAugTrainer

    original = GradAugTrainer.get_batch_samples

    def get_batch_samples(self, *args, **kwargs):
        if self.state.global_step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    GradAugTrainer.get_batch_samples = get_batch_samples


def _in_step(step: int, moment: int, action: Callable) -> None:
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.state import GradientState

    from hf_gradaug import GradAugTrainer
    from hf_gradaug.passes import FullPass, SubnetworkPass

    now = {"step": 0, "passes": 0}
    training_step, optimizer_step = GradAugTrainer.training_step, AcceleratedOptimizer.step

    def count_step(self, *args, **kwargs):
        now.update(step=self.state.global_step + 1, passes=0)
        return training_step(self, *args, **kwargs)

    def counted(loss):
        def count_pass(self, *args, **kwargs):
            # Of the step's last batch, so that there are gradients of an earlier one.
            if (now["step"], now["passes"]) == (step, moment) and GradientState().sync_gradients:
                action()
            now["passes"] += 1
            return loss(self, *args, **kwargs)

        return count_pass

    def count_update(self, *args, **kwargs):
        if (now["step"], 4) == (step, moment):
            action()
        optimizer_step(self, *args, **kwargs)
        if (now["step"], 5) == (step, moment):
            action()

    GradAugTrainer.training_step, AcceleratedOptimizer.step = count_step, count_update
    FullPass.loss, SubnetworkPass.loss = counted(FullPass.loss), counted(SubnetworkPass.loss)


def kill_in_file(folder: str, name: str) -> None:
    """SIGKILL in a save into a folder, when half of one of its files is written."""
    target = os.path.join(folder, name)

    def kill_half_written(path) -> None:
        if os.path.abspath(path) == os.path.abspath(target):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    _after_each_write(kill_half_written)


def fill_disk(folder: str, limit: int) -> None:
    """From the first write into a folder on, no file can grow beyond a number of bytes: as on a full disk, by the kernel."""

    def limit_files(event: str, args: tuple) -> None:
        if event == "os.mkdir" and os.path.abspath(os.fspath(args[0])) == os.path.abspath(folder):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    sys.addaudithook(limit_files)


def _after_each_write(action: Callable) -> None:
    import builtins
    import io

    import torch
    import transformers.modeling_utils

    def wrap(original: Callable, position: int) -> Callable:
        def write(*args, **kwargs):
            result = original(*args, **kwargs)
            action(args[position] if len(args) > position else kwargs["filename"])
            return result

        return write

    torch.save = wrap(torch.save, 1)
    transformers.modeling_utils.safe_save_file = wrap(transformers.modeling_utils.safe_save_file, 1)
    open_file = builtins.open

    def open_watched(path, mode="r", *args, **kwargs):
        file = open_file(path, mode, *args, **kwargs)
        if "w" in mode and isinstance(path, (str, os.PathLike)):
            close = file.close

            def close_and_act():
                was_open = not file.closed
                close()
                if was_open:
                    action(path)

            file.close = close_and_act
        return file

    builtins.open = io.open = open_watched  # `Path.write_text` takes the latter


def checkpoints(output_dir: Path) -> list[int]:
    """Steps of the checkpoint folders, whole or not."""
    return sorted(int(path.name.split("-")[1]) for path in output_dir.glob("checkpoint-*"))


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
