# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What is measured on a GPU, in a dry run without one."""

import json
import time

import pytest

from benchmarks import gpu, step_grid


@pytest.mark.slow
def test_dry_run_writes_each_part_as_it_ends(tmp_path, capsys):
    records = gpu.main(["--smoke", "--minutes", "20", "--output", str(tmp_path), "--only", "tests", "host", "bf16"])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines == records and [record["part"] for record in records] == ["tests", "host", "bf16"]
    assert [record["code"] for record in records] == [0, 0, 0], [record["rows"] for record in records]
    tests, host, bf16 = (record["rows"] for record in records)
    assert " passed in " in tests[0] and host[0].startswith("resnet-50: plain 1.00 x")
    assert bf16[0].startswith("train_loss ") and "eval_accuracy" in bf16[0]
    table = capsys.readouterr().out.split("\ntests: done")[1]
    assert all(row in table for record in records for row in record["rows"])


@pytest.mark.slow
def test_a_part_ends_with_its_time_and_leaves_no_process(tmp_path):
    program = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    code = gpu.run(["-c", f"{program}; print('begun'); time.sleep(60)"], tmp_path / "log", 2.0)
    assert code is None and time.monotonic() - start < 30
    assert (tmp_path / "log").read_text() == "begun\n"


def test_progress_of_a_part_is_the_last_line_of_its_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "REFRESH", 0.1)
    program = "import time; print('begun\\nstep 1\\rstep 2', end='\\r'); time.sleep(1)"
    assert gpu.run(["-c", program], tmp_path / "host.log", 60.0) == 0
    assert "host, 01:00 at most: 00:00, step 2" in capsys.readouterr().err


def test_progress_bars_are_no_rows(tmp_path):
    (tmp_path / "log").write_text("\r  0%|    | 0/1\r       \ra, seed 1: 50.00%\n\r100%|####| 1/1\n\n| plain | 1 |\n")
    assert [*gpu.get_rows(None, "study", tmp_path / "log")] == ["a, seed 1: 50.00%", "| plain | 1 |"]


def test_time_that_is_left_goes_to_the_next_parts(tmp_path, monkeypatch):
    allowed = []
    monkeypatch.setattr(gpu, "run", lambda command, log, seconds: allowed.append(seconds) or log.touch() or 0)
    gpu.main(["--minutes", "10", "--output", str(tmp_path), "--only", "host", "fp16", "bf16"])
    assert allowed == pytest.approx([590 / 3, 590 / 2, 590], abs=2)


def test_entries_of_every_part_are_known():
    for entries in gpu.STEPS.values():
        for entry in entries:
            assert step_grid.get_flags(entry)
    with pytest.raises(ValueError, match="`entries` must be made of .* but has 'divisor'"):
        step_grid.get_flags("float32, divisor")


def test_tests_that_need_a_missing_package_are_left_out(monkeypatch):
    chosen, missing = gpu.find_tests()
    assert "tests/unit/test_losses.py" in chosen and "tests/trainer/test_trainer.py" in chosen and missing == []
    monkeypatch.setitem(gpu.NEEDS, "test_losses", ["no_such_package"])
    chosen, missing = gpu.find_tests()
    assert "tests/unit/test_losses.py" not in chosen and missing == ["tests/unit/test_losses.py"]


def test_mistakes_are_named(tmp_path, capsys):
    for argv, words in (
        (["--minutes", "0"], "`minutes` must be above 0"),
        (["--only", "study"], "`study` must be given"),
    ):
        with pytest.raises(SystemExit):
            gpu.main(["--output", str(tmp_path), *argv])
        assert words in capsys.readouterr().err
