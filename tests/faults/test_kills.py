# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Runs that are killed go on as if nothing had happened."""

import random
import shutil

import pytest
from helpers import harness
from helpers.harness import STEPS

from hf_gradaug.training import find_checkpoint


RESUME = ("--resume_from_checkpoint", "true")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "stream"])
def test_ten_kills(examples, uninterrupted, weights, tmp_path, kind):
    generator, out = random.Random(0), tmp_path / "out"
    moments = set()
    for _ in range(10):
        done = max(harness.checkpoints(out), default=0)
        step, moment = generator.randint(done + 1, min(done + 3, STEPS)), generator.randrange(6)
        # One command for the first start and for each restart, as a scheduler repeats it.
        killed = examples(kind).run(out, *RESUME, fault=harness.kill_in_step, fault_args=(step, moment))
        assert killed.code == -9, killed.text
        assert not (out / "model.safetensors").exists()
        moments.add(moment)
    assert len(moments) >= 4 and harness.checkpoints(out)[-1] >= STEPS // 2
    finished = examples(kind).run(out, *RESUME)
    assert finished.code == 0, finished.text
    assert weights(out) == weights(uninterrupted(kind))


@pytest.mark.slow
def test_kills_in_a_save_at_each_of_its_files(examples, uninterrupted, weights, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted("folder"), out)
    files = sorted(path.name for path in (out / "checkpoint-6").iterdir())
    assert {"config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"} < set(files)
    shutil.rmtree(out)
    for step in (2, 4):  # what a run leaves that is then killed while it saves step 6, once for each file
        shutil.copytree(uninterrupted("folder") / f"checkpoint-{step}", out / f"checkpoint-{step}")
    for number, name in enumerate(files):
        folder = out / "checkpoint-6"
        # One checkpoint is kept, so that a rotation that came too early would leave none.
        killed = examples("folder").run(
            out, *RESUME, "--save_total_limit", "1", fault=harness.kill_in_file, fault_args=(str(folder), name)
        )
        assert killed.code == -9, killed.text
        assert (folder / name).exists()
        if number:
            assert "resumes from" in killed.text and f"{folder}/" in killed.text
        checkpoint, damages = find_checkpoint(out)
        assert checkpoint == str(out / "checkpoint-4") and [damage.is_unfinished for damage in damages] == [True]
    finished = examples("folder").run(out, *RESUME)
    assert finished.code == 0, finished.text
    assert weights(out) == weights(uninterrupted("folder"))


@pytest.mark.slow
def test_killed_in_its_first_save_starts_again(examples, uninterrupted, weights, tmp_path):
    out = tmp_path / "out"
    folder = out / "checkpoint-2"
    killed = examples("folder").run(out, fault=harness.kill_in_file, fault_args=(str(folder), "optimizer.pt"))
    assert killed.code == -9 and folder.is_dir()
    finished = examples("folder").run(out, *RESUME)
    assert finished.code == 0, finished.text
    assert "starts from the beginning" in finished.text and str(folder / "trainer_state.json") in finished.text
    assert weights(out) == weights(uninterrupted("folder"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "stream"])
def test_killed_after_its_last_step_trains_no_other(examples, uninterrupted, weights, tmp_path, kind):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted(kind) / f"checkpoint-{STEPS}", out / f"checkpoint-{STEPS}")
    finished = examples(kind).run(out, *RESUME)
    assert finished.code == 0, finished.text
    assert weights(out) == weights(uninterrupted(kind))
