# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""No code from a checkpoint runs, none from the Hub unless asked for, and no token gets into what is written."""

import copy
import logging
import os
import pickle
import re
import shutil

import pytest
import torch
from helpers import images
from helpers.hub_server import WRITER
from helpers.tiny import tiny_config, tiny_model, tiny_trainer
from transformers import AutoModelForImageClassification, ConvNextForImageClassification, HfArgumentParser

from hf_gradaug.training import find_damage


TOKEN = "hf_THISmustNOTbeWRITTENanywhere"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def checkpoint(tmp_path):
    trainer = tiny_trainer(tmp_path / "out", save_strategy="steps", save_steps=3)
    trainer.train()
    return tmp_path / "out" / "checkpoint-3"


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "pickle"])
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"]
)
def test_no_pickle_of_a_checkpoint_runs(checkpoint, tmp_path, name, as_zip):
    ran = tmp_path / "ran"
    if as_zip:
        torch.save({"state": Payload(ran)}, checkpoint / name)
    else:
        (checkpoint / name).write_bytes(pickle.dumps(Payload(ran)))
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()

    def resume():
        tiny_trainer(tmp_path / "out", max_steps=4).train(resume_from_checkpoint=str(checkpoint))

    if name == "training_args.bin" and as_zip:
        resume()  # never read
        AutoModelForImageClassification.from_pretrained(checkpoint)
    else:
        with pytest.raises(ValueError, match=re.escape(f"'{checkpoint / name}' is truncated or damaged")):
            resume()
    if name == "pytorch_model.bin":
        with pytest.raises(Exception, match="(?i)weights.only|pickle|corrupt"):
            AutoModelForImageClassification.from_pretrained(checkpoint)
    assert not ran.exists()
    # The payload is a real one.
    if as_zip:
        torch.load(checkpoint / name, weights_only=False)
    else:
        pickle.loads((checkpoint / name).read_bytes())
    assert ran.exists()


def test_weights_are_saved_as_safetensors_only(checkpoint, tmp_path):
    trainer = tiny_trainer(tmp_path / "model")
    trainer.save_model()
    for folder in (checkpoint, tmp_path / "model"):
        names = {path.name for path in folder.iterdir()}
        assert "model.safetensors" in names and not any(name.startswith("pytorch_model") for name in names)


def test_no_remote_code_unless_asked_for(monkeypatch, tmp_path):
    script = images.load_script("run_image_classification")
    (defaults,) = HfArgumentParser(script.ModelArguments).parse_args_into_dataclasses([])
    assert defaults.trust_remote_code is False

    # A model whose code lies beside it.
    folder = tmp_path / "model"
    ConvNextForImageClassification(tiny_config("convnext")).save_pretrained(folder)
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    config = (folder / "config.json").read_text().replace('"model_type": "convnext"', '"model_type": "own"')
    auto_map = '{"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"}'
    (folder / "config.json").write_text(config.replace("{", f'{{"auto_map": {auto_map},', 1))
    data = str(images.make_folder(tmp_path / "data"))
    flags = ["--output_dir", str(tmp_path / "out"), "--train_dir", data, "--validation_dir", data]
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("was asked"))
    for name, more in (
        ("run_image_classification", ["--do_train", "--use_cpu", "--report_to", "none"]),
        ("run_image_classification_no_trainer", []),
    ):
        with pytest.raises(ValueError, match="trust_remote_code"):
            images.load_script(name).main([*flags, *more, "--model_name_or_path", str(folder)])
    assert not ran.exists()


def written(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_token_is_written(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    data, out = str(images.make_folder(tmp_path / "data")), tmp_path / "out"
    script = images.load_script("run_image_classification")
    with caplog.at_level(logging.DEBUG):
        script.main(
            [
                *("--gradaug", "--do_train", "--do_eval", "--train_dir", data, "--validation_dir", data, "--use_cpu"),
                *("--model_type", "resnet", "--image_size", "20", "--crop_pct", "1.0", "--max_steps", "2", "--config_overrides"),
                *("embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic", "--output_dir", str(out)),
                *("--save_strategy", "steps", "--save_steps", "1", "--logging_steps", "1", "--report_to", "tensorboard"),
                *("--hub_token", TOKEN, "--token", TOKEN, "--per_device_train_batch_size", "4"),
            ]
        )  # fmt: skip
    output = "".join(capfd.readouterr()) + caplog.text
    assert "The results are in" in output and TOKEN not in output
    files = written(out)
    kinds = {path.rsplit("/", 1)[-1] for path in files}
    assert {"training_args.bin", "trainer_state.json", "README.md", "config.json", "all_results.json"} <= kinds
    assert any("tfevents" in kind for kind in kinds)
    assert not [path for path, content in files.items() if TOKEN.encode() in content]


@pytest.mark.slow
def test_token_of_the_arguments_is_used_but_not_saved(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    args = {"push_to_hub": True, "hub_model_id": "someone/model", "hub_strategy": "checkpoint", "hub_token": WRITER}
    trainer = tiny_trainer(tmp_path, save_strategy="steps", save_steps=3, **args)
    assert trainer.args.hub_token == WRITER
    assert copy.deepcopy(trainer.args).hub_token == WRITER
    trainer.train()
    trainer.push_to_hub()
    pushed = hub.files("someone/model")
    assert {"training_args.bin", "last-checkpoint/training_args.bin"} <= set(pushed)
    assert not [path for path, content in {**written(tmp_path), **pushed}.items() if WRITER.encode() in content]
    args = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert args.hub_token is None and args.num_subnetworks == trainer.args.num_subnetworks


def test_whole_checkpoint_passes(checkpoint, tmp_path):
    assert find_damage(checkpoint) is None
    shutil.rmtree(checkpoint)
    trainer = tiny_trainer(tmp_path / "adam", tiny_model(), optim="adamw_torch", save_strategy="steps", save_steps=3)
    trainer.train()
    assert find_damage(tmp_path / "adam" / "checkpoint-3") is None
