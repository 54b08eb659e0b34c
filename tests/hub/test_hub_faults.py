# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Pushes when the Hub, or the way to it, fails: for a moment, or for good."""

import hashlib
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hub_server import WRITER
from helpers.pushes import MODEL, NAME, files_of, make_trainer
from helpers.tiny import largest_difference, state_of
from huggingface_hub import HfApi
from transformers import AutoModelForImageClassification, TrainerCallback

from hf_gradaug import HubPushError


LARGE = ("model.safetensors", "training_args.bin")


def commands_in(error) -> list[list[str]]:
    return [shlex.split(line) for line in str(error.value).splitlines() if line.startswith("    hf upload ")]


def errors_in(caplog) -> list[str]:
    records = [record for record in caplog.records if record.name == "hf_gradaug.training.hub"]
    return [record.getMessage() for record in records if record.levelno == logging.ERROR]


def run(command: list[str], cwd: Path) -> None:
    """Runs a command of a message as a user would, in a shell of its own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


class FailFrom(TrainerCallback):
    """Calls a function when a step begins, counted from 1."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.action()


FAULTS = {
    "repository": ("POST", "/repos/create"),
    "permission": ("GET", "/auth-check/write"),
    "branch": ("POST", "/branch/"),
    "card": ("POST", "/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "upload": ("PUT", "/uploads/"),
    "verify": ("POST", "/verify"),
    "commit": ("POST", "/commit/"),
}


@pytest.mark.parametrize(
    ("where", "is_cut"),
    [*((where, False) for where in FAULTS), ("repository", True), ("upload", True), ("commit", True)],
)
def test_errors_that_pass_fail_nothing(hub, tmp_path, where, is_cut):
    if is_cut:
        hub.cut(*FAULTS[where], after=20, times=2)
    else:
        hub.fail(*FAULTS[where], 500, times=2)
    trainer = make_trainer(tmp_path, hub_revision="dev")
    trainer.push_to_hub()
    assert hub.files(NAME, "dev") == files_of(tmp_path)
    assert [fault.times for fault in hub.faults] == [0]
    assert hub.titles(NAME, "dev") == ["End of training"]
    assert sorted(hub.uploads()) == sorted((tmp_path / name).stat().st_size for name in LARGE)


def test_retry_uploads_only_what_is_missing(hub, tmp_path):
    trainer = make_trainer(tmp_path)
    hub.fail("POST", "/commit/", 403)
    with pytest.raises(HubPushError, match="403") as error:
        trainer.push_to_hub()
    assert len(commands_in(error)) == 1 and hub.files(NAME) == {}
    sizes = {name: (tmp_path / name).stat().st_size for name in LARGE}
    assert sorted(hub.uploads()) == sorted(sizes.values())

    hub.faults.clear()
    hub.requests.clear()
    trainer.push_to_hub()
    assert hub.uploads() == []
    assert hub.files(NAME) == files_of(tmp_path)
    # And nothing at all, if there is nothing new.
    hub.requests.clear()
    trainer.push_to_hub()
    assert hub.uploads() == [] and hub.titles(NAME) == ["End of training"]
    # The connection is cut for good in the weights: the other large file is not sent again.
    trainer.model.classifier.bias.data += 1
    trainer.args.warmup_steps = 7
    trainer.save_model(_internal_call=True)
    hub.cut("PUT", hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest(), after=1000, times=6)
    with pytest.raises(HubPushError, match="uploading 'model.safetensors' to the Hub. RemoteProtocolError"):
        trainer.push_to_hub()
    assert hub.uploads() == [sizes["training_args.bin"]]
    hub.requests.clear()
    trainer.push_to_hub()
    assert hub.uploads() == [sizes["model.safetensors"]]
    assert hub.files(NAME) == files_of(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_hub_that_dies_in_the_training(hub, tmp_path, caplog, strategy):
    out = tmp_path / "my out"

    def die():
        trainer._finish_current_push()
        hub.is_down = True

    dies = FailFrom(2, die)
    trainer = make_trainer(out, hub_strategy=strategy, hub_revision="dev", trainer_kwargs={"callbacks": [dies]})
    with caplog.at_level(logging.ERROR), pytest.raises(HubPushError) as error:
        trainer.train()
    # The training is done, and all that it made is on disk.
    assert error.value.train_output.global_step == 3
    assert error.value.train_output.metrics["train_loss"] > 0
    assert set(files_of(out)) == MODEL
    saved = AutoModelForImageClassification.from_pretrained(out)
    assert largest_difference(state_of(saved), state_of(trainer.model)) == 0
    # It was reported as it happened, with the reason and with what to run.
    errors = errors_in(caplog)
    assert len(errors) == 2 and all("RemoteProtocolError" in text and "hf upload" in text for text in errors)
    assert WRITER not in caplog.text + str(error.value)
    commands = commands_in(error)
    number = {"every_save": 1, "checkpoint": 2, "all_checkpoints": 3}[strategy]
    assert len(commands) == number

    hub.is_down = False
    for command in commands:
        run(command, cwd=tmp_path)
    pushed = hub.files(NAME, "dev")
    assert {path: content for path, content in pushed.items() if "/" not in path} == files_of(out)
    folders = {"checkpoint": ["last-checkpoint"], "all_checkpoints": [f"checkpoint-{step}" for step in (1, 2, 3)]}
    assert {path.split("/")[0] for path in pushed if "/" in path} == set(folders.get(strategy, []))
    for folder in folders.get(strategy, []):
        local = out / folder.replace("last-checkpoint", "checkpoint-3")
        assert all(pushed[f"{folder}/{path.name}"] == path.read_bytes() for path in local.iterdir())


@pytest.mark.slow
def test_hub_that_comes_back_by_the_end_of_the_training(hub, tmp_path, caplog):
    trainer = make_trainer(tmp_path, hub_strategy="all_checkpoints")
    hub.fail("POST", "/commit/", 403, times=3)  # the model and the checkpoint of step 1, and the model of step 2
    with caplog.at_level(logging.ERROR, "hf_gradaug.training.hub"):
        trainer.train()
    # What the later push replaced needs no command any more.
    targets = [re.findall(r"hf upload \S+ \S+ (\S+)", text) for text in errors_in(caplog)]
    assert targets == [[".", "checkpoint-1"], ["checkpoint-1", "."], ["checkpoint-1"]]
    pushed = hub.files(NAME)
    assert {path: content for path, content in pushed.items() if "/" not in path} == files_of(tmp_path)
    assert pushed["checkpoint-1/optimizer.pt"] == (tmp_path / "checkpoint-1" / "optimizer.pt").read_bytes()


@pytest.mark.slow
def test_lost_checkpoint_stays_an_error(hub, tmp_path):
    trainer = make_trainer(tmp_path, hub_strategy="all_checkpoints", save_total_limit=1)
    hub.fail("POST", "/commit/", 403, times=2)
    with pytest.raises(HubPushError, match="checkpoint-1' to 'org/tiny' failed") as error:
        trainer.train()
    assert commands_in(error) == []  # there is nothing to run: the files are gone, as `save_total_limit` asks
    assert set(hub.files(NAME)) >= MODEL | {"checkpoint-2/optimizer.pt", "checkpoint-3/optimizer.pt"}


def test_push_in_the_background_by_hand(hub, tmp_path, caplog):
    trainer = make_trainer(tmp_path)
    assert trainer.push_to_hub(blocking=False).result().oid == hub.repository(NAME).branches["main"]
    trainer.model.classifier.bias.data += 1
    hub.fail("POST", "/commit/", 403)
    future = trainer.push_to_hub("second", blocking=False)
    with pytest.raises(HubPushError, match="403"):
        future.result()
    assert "hf upload" in caplog.text
    hub.faults.clear()
    commit = trainer.push_to_hub("third")
    assert commit.commit_message == "third" and hub.titles(NAME) == ["End of training", "third"]


def test_all_is_on_disk_before_the_repository_is_made(hub, tmp_path):
    args = {"push_to_hub": False, "hub_model_id": "tiny", "hub_private_repo": True}
    trainer = make_trainer(tmp_path, save_strategy="no", **args)
    hub.is_down = True
    with pytest.raises(HubPushError, match="can't be made or written to: RemoteProtocolError") as error:
        trainer.push_to_hub(tags="photos")
    assert set(files_of(tmp_path)) == MODEL - {"training_curves.png"}  # there was no training
    hub.is_down = False
    (command,) = commands_in(error)
    run(command, cwd=tmp_path)
    name = "someone/tiny"
    assert hub.files(name) == files_of(tmp_path) and hub.repository(name).is_private
    trainer.push_to_hub()
    assert hub.files(name) == files_of(tmp_path) and hub.titles(name)[-1] == "End of training"


def test_dead_hub_is_an_error_before_training(hub, tmp_path):
    hub.is_down = True
    with pytest.raises(HubPushError, match=f"The repository '{NAME}' can't be made or written to"):
        make_trainer(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(hub.requests) == 3


def test_read_only_branch(hub, tmp_path):
    HfApi().create_repo(NAME)
    hub.fail("POST", "/branch/", 400)
    with pytest.raises(HubPushError, match="BadRequestError"):
        make_trainer(tmp_path / "out", hub_revision="refs/pr/1")
