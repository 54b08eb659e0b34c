# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Signals to real launches of the example script: a checkpoint, an end of every process, and one line on how to go on."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import harness

from hf_gradaug.training import find_checkpoint


CONFIGS = harness.ROOT / "examples" / "accelerate_configs"
SCRIPT = str(harness.ROOT / "examples" / "run_image_classification.py")
TWO = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port"]


def accelerate(config: str, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGS / f"{config}.yaml"),
        *words,
    ]


@pytest.fixture
def port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture
def start(examples, subprocess_env, tmp_path):
    """Starts a launcher with a run that would take hours. Kills what is left of it when the test is over."""
    flags = [
        *harness.FLAGS,
        *examples("folder").flags,
        "--output_dir",
        str(tmp_path / "out"),
        "--max_steps",
        "1000000",
    ]
    flags += ["--save_steps", "5", "--save_total_limit", "1"]
    started = []

    def start(command: list[str], *more: str, as_make_arguments: bool = False) -> subprocess.Popen:
        words = [*flags, *more]
        command = [*command, f"ARGS={shlex.join(words)}"] if as_make_arguments else [*command, SCRIPT, *words]
        process = subprocess.Popen(
            command,
            cwd=harness.ROOT,
            env=subprocess_env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_checkpoint(out: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 180
    while not list(out.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "The run doesn't start."
        time.sleep(0.1)


def check_stopped(process: subprocess.Popen, out: Path, number: signal.Signals) -> str:
    # The pipe closes when no process that holds it is left: not the launcher, and none that it started.
    text, _ = process.communicate(timeout=60)
    (step,) = re.findall(rf"{number.name} stopped the run after step (\d+)", text)
    assert text.count("--resume_from_checkpoint true") == 1
    assert find_checkpoint(out) == (str(out / f"checkpoint-{step}"), [])
    assert 'common.py", line' not in text, text  # a launcher's own traceback aside
    return text


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("config", "target", "number"),
    [
        ("single_gpu", "launcher", signal.SIGTERM),
        ("single_gpu", "child", signal.SIGTERM),
        ("single_gpu", "terminal", signal.SIGINT),
        ("eight_gpus", "launcher", signal.SIGINT),
        ("eight_gpus", "child", signal.SIGTERM),
        ("fsdp2", "launcher", signal.SIGTERM),
    ],
)
def test_accelerate_launch_stops(start, port, tmp_path, config, target, number):
    is_one = config == "single_gpu"
    process = start(
        accelerate(config, *([] if is_one else [*TWO, port])), *([] if is_one else ["--ddp_backend", "gloo"])
    )
    wait_for_checkpoint(tmp_path / "out", process)
    if target == "terminal":
        os.killpg(process.pid, number)
    elif target == "child":
        os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]), number)
    else:
        os.kill(process.pid, number)
    check_stopped(process, tmp_path / "out", number)
    assert process.returncode != 0


@pytest.mark.slow
@pytest.mark.distributed
def test_both_machines_stop(start, port, tmp_path):
    first, second = (
        start(accelerate("two_nodes", "--machine_rank", rank, *TWO, port), "--ddp_backend", "gloo") for rank in "01"
    )
    wait_for_checkpoint(tmp_path / "out", first)
    os.kill(first.pid, signal.SIGTERM)
    check_stopped(first, tmp_path / "out", signal.SIGTERM)
    second.communicate(timeout=60)
    assert second.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize(("target", "number"), [("make", signal.SIGTERM), ("terminal", signal.SIGINT)])
def test_make_train_stops(start, tmp_path, target, number):
    # What is installed is taken as it is.
    command = ["make", "train", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.installed-examples"]
    process = start(command, as_make_arguments=True)
    wait_for_checkpoint(tmp_path / "out", process)
    if target == "terminal":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    assert "Traceback" not in check_stopped(process, tmp_path / "out", number)
