# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Pushes of two processes, and one that is killed."""

import pytest
import torch.distributed as dist
from helpers import harness
from helpers.hub_server import WRITER
from helpers.pushes import IN_CHECKPOINT, MODEL, NAME, STATE, files_of, make_trainer
from helpers.tiny import largest_difference, state_of
from transformers import AutoModelForImageClassification


def train_and_push(output_dir: str, token: str, backend: str | None) -> None:
    try:
        trainer = make_trainer(output_dir, hub_strategy="checkpoint", hub_token=token, ddp_backend=backend)
        trainer.train()
        trainer.push_to_hub()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()  # gloo aborts at exit otherwise


@pytest.mark.distributed
def test_one_of_two_processes_pushes(hub, tmp_path):
    out = tmp_path / "out"
    runs = harness.run_ranks(tmp_path, train_and_push, str(out), WRITER, "gloo")
    assert [run.code for run in runs] == [0, 0], runs
    pushed = hub.files(NAME)
    assert {path: content for path, content in pushed.items() if "/" not in path} == files_of(out)
    state = STATE - {"rng_state.pth"} | {"rng_state_0.pth", "rng_state_1.pth"}
    names = {f"last-checkpoint/{name}" for name in IN_CHECKPOINT | state}
    assert {path for path in pushed if "/" in path} == names
    assert len([request for request in hub.requests if request.path == "/api/repos/create"]) == 1
    assert hub.titles(NAME).count("End of training") == 1


@pytest.mark.distributed
@pytest.mark.parametrize("where", ["constructor", "train"])
def test_failed_push_ends_both_processes(hub, tmp_path, where):
    out = tmp_path / "out"
    if where == "train":
        hub.fail("POST", "/commit/", 403)
    runs = harness.run_ranks(
        tmp_path, train_and_push, str(out), "hf_wrong" if where == "constructor" else WRITER, "gloo"
    )
    assert [run.code for run in runs] == [1, 1], runs
    advice = {"constructor": "Log in with `hf auth login`", "train": f"hf upload {NAME} {out}"}[where]
    for run in runs:
        assert "hf_gradaug.training.hub.HubPushError" in run.text and advice in run.text
        assert WRITER not in run.text and "hf_wrong" not in run.text
    assert "The main process failed" in runs[1].text
    if where == "train":
        assert set(files_of(out)) == MODEL


@pytest.mark.slow
def test_killed_in_the_middle_of_an_upload(hub, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    hub.cut("PUT", "/uploads/", after=1000, then=lambda: process.kill())
    process = harness.start(log, train_and_push, str(out), WRITER, None)
    run = harness.finish(process, log)
    assert run.code == -9, run.text
    assert hub.files(NAME) == {} and hub.uploads() == []

    # Nothing is lost, and the next run pushes all of it.
    hub.faults.clear()
    trainer = make_trainer(out, hub_strategy="checkpoint")
    trainer.train(resume_from_checkpoint=True)
    trainer.push_to_hub()
    pushed = hub.files(NAME)
    assert {path: content for path, content in pushed.items() if "/" not in path} == files_of(out)
    pulled = AutoModelForImageClassification.from_pretrained(NAME, cache_dir=tmp_path / "cache")
    uninterrupted = make_trainer(tmp_path / "uninterrupted", push_to_hub=False)
    uninterrupted.train()
    assert largest_difference(state_of(pulled), state_of(uninterrupted.model)) == 0
