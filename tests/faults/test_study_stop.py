# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""A study's runner that is killed leaves no process behind, which would write where the next runner does."""

import json
import subprocess
import sys
import time

import psutil
import pytest


@pytest.mark.slow
def test_a_cell_ends_with_its_runner(root, tmp_path):
    study = {"datasets": {"digits": {}}, "seeds": [1], "split": "validation", "arms": {"plain": {}}}
    flags = {"max_steps": 100_000, "model_type": "resnet", "use_cpu": True}
    (tmp_path / "endless.yaml").write_text(json.dumps(study | {"flags": flags}))
    command = [sys.executable, "-m", "benchmarks.accuracy", str(tmp_path / "endless.yaml")]
    runner = subprocess.Popen([*command, "--results_dir", str(tmp_path), "--work_dir", str(tmp_path)], cwd=root)
    started: list[psutil.Process] = []
    try:
        log = tmp_path / "endless" / "digits" / "plain" / "0" / "1" / "log.txt"
        until = time.monotonic() + 120
        while not log.exists() and time.monotonic() < until:
            assert runner.poll() is None
            time.sleep(0.1)
        assert log.exists()
        started = psutil.Process(runner.pid).children(recursive=True)
        assert len(started) >= 2  # the cell, and the server that forked it
        runner.kill()
        _, left = psutil.wait_procs(started, timeout=60)
        assert not left
    finally:
        for process in started:
            if process.is_running():
                process.kill()
        runner.kill()
        runner.wait()
