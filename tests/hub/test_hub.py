# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Push and pull, through the unmodified client and a Hub of the tests' own."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import load_dataset
from helpers import images
from helpers.hub_server import READER, WRITER
from helpers.pushes import IN_CHECKPOINT, MODEL, NAME, STATE, files_of, make_trainer
from helpers.tiny import largest_difference, state_of, tiny_images, tiny_model
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers import pipeline as make_pipeline

from hf_gradaug import GradAugSettings, HubMixin, HubPushError
from hf_gradaug.settings import load_settings, save_settings


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_each_strategy(hub, tmp_path, monkeypatch, strategy):
    out = tmp_path / "out"
    upload_folder, before_the_requests = HfApi.upload_folder, []

    def upload(self, *, folder_path, **kwargs):
        before_the_requests.append(set(os.listdir(out)))
        return upload_folder(self, folder_path=folder_path, **kwargs)

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    trainer = make_trainer(out, hub_strategy=strategy)
    output = trainer.train()
    titles = hub.titles(NAME)
    trainer.save_metrics("train", output.metrics)
    trainer.save_state()
    trainer.push_to_hub()

    pushed = hub.files(NAME)
    folders = {"checkpoint": ["last-checkpoint"], "all_checkpoints": [f"checkpoint-{step}" for step in (1, 2, 3)]}
    checkpoints = folders.get(strategy, [])
    results = {"all_results.json", "train_results.json", "trainer_state.json"}
    assert {path: content for path, content in pushed.items() if "/" not in path} == files_of(out)
    assert set(files_of(out)) == MODEL | results
    state = IN_CHECKPOINT | STATE
    assert {path for path in pushed if "/" in path} == {f"{folder}/{name}" for folder in checkpoints for name in state}
    for folder in checkpoints:
        local = out / folder.replace("last-checkpoint", "checkpoint-3")
        assert all(pushed[f"{folder}/{name}"] == (local / name).read_bytes() for name in state)
    in_training = [f"Training in progress, step {step}" for step in (1, 2, 3)]
    assert [title for title in titles if "checkpoint" not in title] == ([] if strategy == "end" else in_training)
    assert hub.titles(NAME) == [*titles, "End of training"]
    assert before_the_requests and all(names >= MODEL for names in before_the_requests)

    settings = load_settings(NAME)
    assert dataclasses.asdict(settings) == {
        field.name: getattr(trainer.args, field.name) for field in dataclasses.fields(GradAugSettings)
    }


def test_plain_training_has_no_settings(hub, tmp_path):
    (tmp_path / "gradaug_config.json").write_text("{}")  # of an earlier run
    trainer = make_trainer(tmp_path, num_subnetworks=0, hub_strategy="every_save", max_steps=1)
    trainer.train()
    trainer.push_to_hub()
    assert set(hub.files(NAME)) == MODEL - {"gradaug_config.json"}


def test_settings_without_the_hub(hub, tmp_path, monkeypatch):
    names = ["someone/plain", "someone/asked", "someone/gradaug"]
    for name in names:
        tiny_model().save_pretrained(folder := tmp_path / name)
        save_settings(GradAugSettings(num_subnetworks=0 if name != names[-1] else 2, width_divisor=8), folder)
        HfApi().create_repo(name)
        first = HfApi().upload_folder(repo_id=name, folder_path=folder).oid
        hf_hub_download(name, "config.json")
        if name != names[0]:
            load_settings(name)
    for is_offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
        assert load_settings(names[1]) == GradAugSettings(num_subnetworks=0)
        assert load_settings(names[2]) == GradAugSettings(num_subnetworks=2, width_divisor=8)
    with pytest.raises(LocalEntryNotFoundError):
        load_settings(names[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    save_settings(GradAugSettings(num_subnetworks=3), folder)
    HfApi().upload_folder(repo_id=names[2], folder_path=folder)
    assert [load_settings(names[2], revision=each).num_subnetworks for each in (None, first)] == [3, 2]
    (tmp_path / "gradaug_config.json").write_text('{"num_subnetworks": 2, "of_tomorrow": 1}')
    with pytest.raises(ValueError, match=r"must have settings of this version .*, but has \['of_tomorrow'\]"):
        load_settings(tmp_path)


def test_any_trainer(hub, tmp_path):
    cls = type("PushingTrainer", (HubMixin, Trainer), {})
    args = {"hub_strategy": "every_save", "max_steps": 1, "hub_token": WRITER}
    trainer = make_trainer(tmp_path, cls=cls, args_cls=TrainingArguments, **args)
    trainer.train()
    assert all(WRITER.encode() not in content for content in hub.files(NAME).values())
    assert hub.files(NAME) == files_of(tmp_path) and hub.titles(NAME) == ["Training in progress, step 1"]


PULL = """
import io, sys
import torch
from PIL import Image

sys.modules["hf_gradaug"] = None  # to import it is an error now
from transformers import AutoModelForImageClassification, pipeline

images, picture, result = torch.load(sys.argv[1]), sys.argv[2], sys.argv[3]
model = AutoModelForImageClassification.from_pretrained("org/tiny").eval()
with torch.no_grad():
    logits = model(images).logits
torch.save((logits, pipeline("image-classification", "org/tiny")(picture)), result)
"""


@pytest.mark.slow
def test_pulled_model_is_the_trained_one_without_this_package(hub, tmp_path, subprocess_env):
    trainer = make_trainer(tmp_path / "out", hub_strategy="end", save_strategy="no")
    trainer.train()
    trainer.push_to_hub()
    images.make_image(1, 7, size=48).save(tmp_path / "picture.png")
    torch.save(tiny_images(), tmp_path / "images.pt")
    env = {name: value for name, value in subprocess_env.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    paths = [str(tmp_path / name) for name in ("images.pt", "picture.png", "result.pt")]
    command = [sys.executable, "-c", PULL, *paths]
    env["HF_HOME"] = str(tmp_path / "home")  # an empty cache
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    logits, scores = torch.load(tmp_path / "result.pt")
    model = trainer.model.eval()
    with torch.no_grad():
        assert torch.equal(logits, model(tiny_images()).logits)
    classify = make_pipeline("image-classification", model=model, image_processor=trainer.processing_class)
    assert scores == classify(str(tmp_path / "picture.png"))


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.slow
def test_resume_from_the_checkpoint_of_the_hub(hub, tmp_path):
    uninterrupted = make_trainer(tmp_path / "whole", push_to_hub=False, max_steps=4)
    uninterrupted.train()
    stopped = make_trainer(
        tmp_path / "out", hub_strategy="checkpoint", max_steps=4, trainer_kwargs={"callbacks": [StopAfter(2)]}
    )
    stopped.train()
    elsewhere = snapshot_download(NAME, allow_patterns="last-checkpoint/*", cache_dir=tmp_path / "cache")
    resumed = make_trainer(tmp_path / "elsewhere", tiny_model(seed=5), push_to_hub=False, max_steps=4)
    resumed.train(resume_from_checkpoint=os.path.join(elsewhere, "last-checkpoint"))
    assert largest_difference(state_of(stopped.model), state_of(uninterrupted.model)) > 0
    assert largest_difference(state_of(resumed.model), state_of(uninterrupted.model)) == 0


@pytest.mark.slow
def test_a_checkpoint_is_not_deleted_while_it_is_uploaded(hub, tmp_path):
    hub.fail("PUT", "/uploads/", 500, times=3)
    trainer = make_trainer(tmp_path, hub_strategy="all_checkpoints", save_total_limit=1)
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    folders = {path.split("/")[0] for path in hub.files(NAME) if "/" in path}
    assert folders == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


@pytest.mark.slow
def test_revision(hub, tmp_path):
    trainer = make_trainer(tmp_path / "out", hub_strategy="checkpoint", hub_revision="dev")
    trainer.train()
    trainer.push_to_hub()
    assert hub.files(NAME) == {}
    assert {path for path in hub.files(NAME, "dev") if "/" not in path} == MODEL
    assert "last-checkpoint/optimizer.pt" in hub.files(NAME, "dev")
    pulled = AutoModelForImageClassification.from_pretrained(NAME, revision="dev", cache_dir=tmp_path / "cache")
    assert largest_difference(state_of(pulled), state_of(trainer.model)) == 0
    make_trainer(tmp_path / "again", hub_revision="dev")  # the branch is there


def test_private_repository(hub, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "out", hub_private_repo=True, save_strategy="no")
    trainer.save_model()
    assert hub.repository(NAME).is_private and hub.titles(NAME) == ["Model save"]
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="not a valid model identifier"):
        AutoModelForImageClassification.from_pretrained(NAME, cache_dir=tmp_path / "cache")
    pulled = AutoModelForImageClassification.from_pretrained(NAME, cache_dir=tmp_path / "cache", token=READER)
    assert largest_difference(state_of(pulled), state_of(trainer.model)) == 0
    AutoImageProcessor.from_pretrained(NAME, cache_dir=tmp_path / "cache", token=READER)


@pytest.mark.parametrize("in_training", [True, False])
def test_a_public_repository_is_not_taken_for_a_private_one(hub, tmp_path, in_training):
    HfApi().create_repo(NAME, private=False)
    words = f"`hub_private_repo` must be off for '{NAME}', which exists and is public, but is on"
    if in_training:
        with pytest.raises(ValueError, match=words):
            make_trainer(tmp_path / "out", hub_private_repo=True)
        assert not (tmp_path / "out").exists()
    else:
        trainer = make_trainer(tmp_path / "out", push_to_hub=False, save_strategy="no")
        for _ in range(2):
            with pytest.raises(ValueError, match=words):
                trainer.push_to_hub(private=True)
    assert hub.files(NAME) == {}
    make_trainer(tmp_path / "out", hub_private_repo=False)


@pytest.mark.parametrize("token", ["hf_wrong", READER, "hf_withALineBreak\n", None])
@pytest.mark.parametrize("exists", [False, True])
def test_wrong_token_is_an_error_before_training(hub, tmp_path, monkeypatch, token, exists):
    if exists:
        HfApi().create_repo(NAME)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubPushError, match=f"repository '{NAME}' can't be made or written to") as caught:
        make_trainer(tmp_path / "out", hub_token=token)
    message = str(caught.value)
    assert token is None or token.strip() not in message
    if token != "hf_withALineBreak\n":
        assert "`hf auth login`" in message and "`hub_token`" in message
    assert not (tmp_path / "out").exists()


TINY = "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"
EXAMPLE = [
    *(
        "--gradaug",
        "--do_train",
        "--do_eval",
        "--model_type",
        "resnet",
        "--config_overrides",
        TINY,
        "--image_size",
        "20",
    ),
    *("--crop_pct", "1.0", "--max_steps", "2", "--logging_steps", "1", "--per_device_train_batch_size", "4"),
    *("--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--push_to_hub", "--hub_model_id", NAME),
]


@pytest.mark.slow
def test_example_streams_a_dataset_of_the_hub_and_pushes(hub, tmp_path):
    shards = images.make_parquet(tmp_path / "shards", num_shards=2)
    for split, num_shards in (("train", 2), ("validation", 1)):
        data = load_dataset(
            "parquet", data_files=str(shards / "*.parquet"), split="train", cache_dir=tmp_path / "stored"
        )
        data.push_to_hub("org/data", split=split, num_shards=num_shards)
    out = tmp_path / "out"
    flags = [
        "--dataset_name",
        "org/data",
        "--streaming",
        "--shuffle_buffer_size",
        "4",
        "--cache_dir",
        str(tmp_path / "cache"),
    ]
    flags = [*EXAMPLE, *flags, "--output_dir", str(out), "--save_strategy", "no", "--hub_strategy", "end"]
    metrics = images.load_script("run_image_classification").main(flags)
    # Once, when all is there.
    assert hub.titles(NAME) == ["End of training"]
    results = {"all_results.json", "eval_results.json", "train_results.json", "trainer_state.json"}
    assert set(hub.files(NAME)) == MODEL | results
    assert hub.files(NAME) == files_of(out)
    assert json.loads(hub.files(NAME)["eval_results.json"])["eval_accuracy"] == metrics["eval_accuracy"]
    assert hub.repository(NAME).card("main")["datasets"] == ["org/data"]


@pytest.mark.slow
def test_example_reads_a_private_teacher_with_its_token(hub, tmp_path, monkeypatch):
    tiny_model("resnet-basic", id2label=dict(enumerate(images.CLASSES))).save_pretrained(tmp_path / "teacher")
    ConvNextImageProcessor(image_mean=[0.0] * 3, image_std=[1.0] * 3).save_pretrained(tmp_path / "teacher")
    HfApi().create_repo("org/teacher", private=True)
    HfApi().upload_folder(repo_id="org/teacher", folder_path=tmp_path / "teacher")
    monkeypatch.delenv("HF_TOKEN")
    data, cache = str(images.make_folder(tmp_path / "images")), tmp_path / "cache"
    flags = ["--teacher", "org/teacher", "--train_dir", data, "--validation_dir", data, "--cache_dir", str(cache)]
    flags += ["--model_type", "resnet", "--config_overrides", TINY, "--image_size", "20", "--do_train", "--use_cpu"]
    flags += ["--report_to", "none", "--output_dir", str(tmp_path / "out")]
    script = images.load_script("run_image_classification")
    with pytest.raises(ValueError, match="'org/teacher' is not an image classifier"):
        script.main(flags)
    # The image processor is read too, and is another than the model's.
    with pytest.raises(ValueError, match="`teacher` must have the model's image processor, .*, but is 'org/teacher'"):
        script.main([*flags, "--token", READER])
    assert list(cache.glob("models--org--teacher/snapshots/*/preprocessor_config.json"))


@pytest.mark.slow
def test_example_with_a_dead_hub_does_all_else(hub, tmp_path, monkeypatch):
    data, out = str(images.make_folder(tmp_path / "images")), tmp_path / "out"
    script = images.load_script("run_image_classification")

    class Trainer(script.GradAugTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            hub.is_down = True

    monkeypatch.setattr(script, "GradAugTrainer", Trainer)
    data = ["--train_dir", data, "--validation_dir", data, "--output_dir", str(out)]
    with pytest.raises(HubPushError, match="hf upload"):
        script.main([*EXAMPLE, *data, "--hub_strategy", "every_save", "--save_strategy", "steps", "--save_steps", "1"])
    results = {"all_results.json", "eval_results.json", "train_results.json", "trainer_state.json"}
    assert set(files_of(out)) == MODEL | results
    assert hub.titles(NAME) == []
