# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Damaged checkpoints, and disks that are full."""

import errno
import inspect
import json
import logging
import os
import re
import shutil
import zipfile

import pytest
import torch
from helpers import dense, families, harness
from helpers.tiny import largest_difference, randomize, state_of, tiny_model, tiny_trainer
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from hf_gradaug import DistillationTrainer, GradAugConfig, GradAugTrainer, HubMixin
from hf_gradaug.training import DurableTrainerMixin, FaultToleranceMixin, find_checkpoint, find_damage
from hf_gradaug.training.checkpoints import load_weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output folder of a run with checkpoints at steps 2 and 4, and its final weights."""
    out = tmp_path_factory.mktemp("trained") / "out"
    trainer = make_trainer(out)
    trainer.train()
    return out, state_of(trainer.model)


def make_trainer(out, **args):
    args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **args}
    return tiny_trainer(out, tiny_model("convnext", drop_path_rate=0.3), **args)


def damage(path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "two bytes less":
        path.write_bytes(content[:-2])  # of JSON, the last one is a line's end
    else:
        with zipfile.ZipFile(path) as archive:  # somewhere in the numbers
            largest = max(archive.infolist(), key=lambda record: record.file_size)
            middle = content.index(archive.read(largest)) + largest.file_size // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])


# No error says that a configuration or the arguments are gone: a training is resumed without them.
CASES = [
    (name, how)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
    for how in ("missing", "empty", "half", "two bytes less")
]
CASES += [
    (name, how)
    for name in ("config.json", "gradaug_config.json", "training_args.bin")
    for how in ("empty", "half", "two bytes less")
]
CASES += [("rng_state.pth", "one byte wrong")]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_damage_is_found_and_named(trained, tmp_path, name, how):
    out = harness.copy(trained[0], tmp_path / "out")
    assert find_checkpoint(out) == (str(out / "checkpoint-4"), [])
    damage(out / "checkpoint-4" / name, how)
    checkpoint, damages = find_checkpoint(out)
    assert checkpoint == str(out / "checkpoint-2")
    assert [found.path for found in damages] == [str(out / "checkpoint-4" / name)]
    assert ("missing" if how == "missing" else "truncated or damaged") in damages[0].reason
    assert damages[0].is_unfinished == (name == "trainer_state.json")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_truncated_checkpoint_is_passed_over(trained, tmp_path, caplog, name):
    out = harness.copy(trained[0], tmp_path / "out")
    damage(out / "checkpoint-4" / name, "half")
    trainer = make_trainer(out)
    with caplog.at_level(logging.WARNING, "hf_gradaug"):
        trainer.train(resume_from_checkpoint=True)
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("hf_gradaug")]
    assert len(warnings) == 1
    assert str(out / "checkpoint-4" / name) in warnings[0] and f"resumes from '{out / 'checkpoint-2'}'" in warnings[0]
    assert largest_difference(state_of(trainer.model), trained[1]) == 0
    assert find_damage(out / "checkpoint-4") is None  # saved again


def test_named_checkpoint_that_is_damaged_is_an_error(trained, tmp_path):
    out = harness.copy(trained[0], tmp_path / "out")
    damage(out / "checkpoint-4" / "optimizer.pt", "half")
    path = re.escape(str(out / "checkpoint-4" / "optimizer.pt"))
    with pytest.raises(
        ValueError, match=rf"`resume_from_checkpoint` must be a complete .*'.*checkpoint-4'.*'{path}' is truncated"
    ):
        make_trainer(out).train(resume_from_checkpoint=str(out / "checkpoint-4"))
    damage(out / "checkpoint-2" / "scheduler.pt", "missing")
    with pytest.raises(
        ValueError, match=rf"without a complete checkpoint in .* but is set: '{path}' is .*scheduler.pt' is missing"
    ):
        make_trainer(out).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("classes", [["cat", "dog", "owl"], ["1", "0", "2", "3", "4"]])
def test_checkpoint_of_other_classes_is_an_error(trained, tmp_path, classes):
    out = harness.copy(trained[0], tmp_path / "out")
    path = out / "checkpoint-4" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "id2label": dict(enumerate(classes))}))
    words = re.escape(f"is '{path.parent}' with {classes}. Leave it out")
    for named in (True, str(path.parent)):
        with pytest.raises(
            ValueError, match=f"`resume_from_checkpoint` must be a checkpoint of the model's .*{words}"
        ):
            make_trainer(out).train(resume_from_checkpoint=named)


def test_own_files_are_left_alone(trained, tmp_path):
    """Files of a user's callback have formats of their own, also where an ending is like ours."""
    folder = harness.copy(trained[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    (folder / "samples").mkdir()
    for name in ("samples.json", "samples.index.json", "samples/config.json"):
        (folder / name).write_text('{"step": 4}\n{"step": 4}\n')
    (folder / "names.index.json").write_text("[1]")
    for name in ("features.bin", "ema.pt", "best.pth", "crops.safetensors"):
        (folder / name).write_bytes(b"another kind")
    assert find_damage(folder) is None
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):  # a model alone
        (folder / name).unlink()
    (folder / "optimizer_settings.txt").touch()
    assert find_damage(folder) is None


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "adapter_model.safetensors",
        "default/adapter_model.safetensors",
        "default/adapter_config.json",
        "preprocessor_config.json",
        "generation_config.json",
        "stream_state_0.json",
        "optimizer.bin",
        "scaler.pt",
        "rng_state_0.pth",
        "global_step4/mp_rank_00_model_states.pt",
    ],
)
def test_written_files_are_checked(trained, tmp_path, name):
    """What the Trainer, transformers and this package write beside the files of a plain run."""
    folder = harness.copy(trained[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    (folder / "latest").touch()  # DeepSpeed's
    for rank in range(2):
        shutil.copy(folder / "rng_state.pth", folder / f"rng_state_{rank}.pth")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{")
    assert find_damage(folder).path == str(path)


def test_files_that_belong_together(trained, tmp_path):
    """Sharded weights, several processes, a model alone, and the mark of transformers' own save on a signal."""
    folder = harness.copy(trained[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert find_damage(folder).path == str(folder / "model.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_damage(folder).path == str(folder / "model-00002-of-00002.safetensors")
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    assert find_damage(folder) is None

    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert find_damage(folder).path == str(folder / "rng_state_1.pth")
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_2.pth")
    assert find_damage(folder).path == str(folder / "rng_state_1.pth")
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    assert find_damage(folder) is None

    for path in [*folder.glob("rng_state*"), folder / "optimizer.pt"]:
        path.unlink()
    assert find_damage(folder).path == str(folder / "optimizer.pt")
    (folder / "scheduler.pt").unlink()
    assert find_damage(folder) is None

    (folder / "checkpoint-is-incomplete.txt").touch()
    assert find_damage(folder).is_unfinished


@pytest.mark.slow
@pytest.mark.parametrize("full_at", ["model.safetensors", "optimizer.pt"])
def test_full_disk(examples, uninterrupted, tmp_path, full_at):
    sizes = {
        name: os.path.getsize(uninterrupted("folder") / "checkpoint-4" / name)
        for name in ("model.safetensors", "optimizer.pt")
    }
    assert sizes["model.safetensors"] < sizes["optimizer.pt"]
    out = tmp_path / "out"
    folder = out / "checkpoint-4"
    failed = examples("folder").run(
        out, "--save_total_limit", "1", fault=harness.fill_disk, fault_args=(str(folder), sizes[full_at] - 1)
    )
    assert failed.code == 1, failed.text
    assert f"The checkpoint '{folder}' could not be saved" in failed.text
    assert f"The earlier checkpoints in '{out}' are untouched" in failed.text
    assert harness.checkpoints(out) == [2] and find_damage(out / "checkpoint-2") is None


def test_failing_push_keeps_the_whole_checkpoint(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "out")
    monkeypatch.setattr(trainer.args, "push_to_hub", True)

    def push(folder):
        raise ConnectionError("no network")

    monkeypatch.setattr(trainer, "_push_from_checkpoint", push)
    with pytest.raises(ConnectionError, match="no network"):
        trainer.train()
    assert find_damage(tmp_path / "out" / "checkpoint-2") is None


@pytest.mark.parametrize("named", [True, False])
def test_missing_checkpoint_has_the_stock_error(tmp_path, named):
    messages = []
    for cls, args_cls in ((GradAugTrainer, GradAugConfig), (Trainer, TrainingArguments)):
        trainer = tiny_trainer(tmp_path, tiny_model("convnext"), cls, args_cls)
        with pytest.raises(ValueError) as caught:
            trainer.train(resume_from_checkpoint=str(tmp_path / "none") if named else True)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "valid checkpoint" in messages[0]


@pytest.mark.parametrize(
    "cls", [GradAugTrainer, DistillationTrainer, DurableTrainerMixin, HubMixin, FaultToleranceMixin]
)
def test_train_has_the_stock_signature(cls):
    ours, stock = inspect.signature(cls.train).parameters, inspect.signature(Trainer.train).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in stock.values()
    ]


def test_failed_save_has_its_own_error(trained, tmp_path, monkeypatch, caplog):
    """And leaves a file of the user's that is in the folder, but nothing that looks like a checkpoint."""
    out = harness.copy(trained[0], tmp_path / "out")
    (out / "checkpoint-4" / "notes.txt").write_text("mine")
    trainer = make_trainer(out)

    def fail(output_dir):
        raise OSError(errno.ENOSPC, "No space left on device", output_dir)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(OSError) as caught, caplog.at_level(logging.ERROR, "hf_gradaug"):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    assert type(caught.value) is OSError and caught.value.errno == errno.ENOSPC
    assert f"The checkpoint '{out / 'checkpoint-4'}' could not be saved" in caplog.text
    assert (out / "checkpoint-4" / "notes.txt").read_text() == "mine"
    checkpoint, damages = find_checkpoint(out)
    assert checkpoint == str(out / "checkpoint-2") and damages[0].is_unfinished
    assert not (out / "checkpoint-4" / "model.safetensors").exists()


def test_state_of_another_run_under_the_same_step_is_replaced(trained, tmp_path):
    out = harness.copy(trained[0], tmp_path / "out")
    others = ["rng_state_1.pth", "stream_state_0.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"]
    for name in others:
        (out / "checkpoint-4" / name).write_bytes(b"cut")
    (out / "checkpoint-4" / "global_step4").mkdir()
    (out / "checkpoint-4" / "notes.txt").write_text("mine")
    trainer = make_trainer(out)
    trainer.train(resume_from_checkpoint=True)
    assert find_checkpoint(out) == (str(out / "checkpoint-4"), [])
    assert torch.load(out / "checkpoint-4" / "scheduler.pt")["last_epoch"] == 4
    left = {path.name for path in (out / "checkpoint-4").iterdir()}
    assert left == {path.name for path in (trained[0] / "checkpoint-4").iterdir()} | {"notes.txt"}


@pytest.mark.parametrize("name", [*families.FAMILIES, *(f"dense {name}" for name in dense.MODELS)])
def test_weights_of_each_family_are_loaded(tmp_path, name):
    """Also of those whose weights transformers saves under other names, and of those that store a tied tensor once."""
    is_dense = name.startswith("dense ")
    make = dense.dense_model if is_dense else families.family_model
    model = make(name.removeprefix("dense "), seed=0)
    model.save_pretrained(tmp_path)
    saved = state_of(model)
    randomize(model, seed=5)
    before = state_of(model)
    assert largest_difference(before, saved) > 0
    is_loaded = load_weights(tmp_path, model)
    assert largest_difference(state_of(model), saved if is_loaded else before) == 0
    if not is_loaded:  # the Trainer loads the file as it is
        result = model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
        assert not result.unexpected_keys and largest_difference(state_of(model), saved) == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_subnetworks", [0, 2])
def test_weights_under_older_names_are_resumed_and_the_best_ones_loaded(tmp_path, num_subnetworks):
    accuracies = iter([0.9, 0.1])
    args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "num_subnetworks": num_subnetworks}
    args |= {"min_width": 0.5, "scales": [1.0]}
    trainer = tiny_trainer(tmp_path / "out", families.family_model("vit"), **args)
    trainer.train()
    resumed = tiny_trainer(tmp_path / "resumed", families.family_model("vit", seed=9), **args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert largest_difference(state_of(resumed.model), state_of(trainer.model)) == 0
    best = tiny_trainer(
        tmp_path / "best",
        families.family_model("vit"),
        **{**args, "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "accuracy"},
        load_best_model_at_end=True,
        trainer_kwargs={"compute_metrics": lambda result: {"accuracy": next(accuracies)}},
    )
    best.train()
    stored = type(best.model).from_pretrained(tmp_path / "best" / "checkpoint-2")
    assert largest_difference(state_of(best.model), state_of(stored)) == 0
    assert largest_difference(state_of(best.model), state_of(trainer.model)) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_sizes": [10, 20, 40]}, r"'classifier.weight' has the shape \(3, 30\), and here \(3, 40\) \(14 such"),
        ({"depths": [1, 3, 1]}, r"'convnext.encoder.stages.1.layers.2.dwconv.bias' is missing \(9 such"),
    ],
)
def test_checkpoint_of_another_model_is_an_error(trained, tmp_path, changes, words):
    trainer = tiny_trainer(tmp_path / "out", tiny_model("convnext", **changes))
    checkpoint = str(trained[0] / "checkpoint-2")
    message = f"^The weights in '{checkpoint}' must be of the same model, but {words}"
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.state.best_model_checkpoint = checkpoint  # with `load_best_model_at_end`
    with pytest.raises(ValueError, match=message):
        trainer._load_best_model()
    with pytest.raises(ValueError, match=r"and here \(3, 32\) \(39 such differences"):
        load_weights(checkpoint, families.family_model("vit"))


def resume(out, caplog, **args):
    """Resumes the run of `trained` with other arguments. Returns the trainer and the warnings of this package."""
    trainer = make_trainer(out.parent / "resumed", **args)
    with caplog.at_level(logging.WARNING, "hf_gradaug"):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    return trainer, [record.getMessage() for record in caplog.records if record.name.startswith("hf_gradaug.training")]


@pytest.mark.parametrize(
    ("optim", "name"), [("adamw_torch", "AdamW, .*betas"), ("rmsprop", "RMSprop, .*alpha"), ("adafactor", "Adafactor")]
)
def test_checkpoint_of_another_optimizer_is_an_error(trained, caplog, optim, name):
    with pytest.raises(ValueError, match=f"`optim` must be the optimizer of the checkpoint '.*', but is {name}"):
        resume(trained[0], caplog, optim=optim)


def test_checkpoint_of_other_groups_is_an_error(trained, tmp_path):
    model = tiny_model("convnext")
    model.convnext.embeddings.requires_grad_(False)
    trainer = tiny_trainer(tmp_path, model)
    with pytest.raises(ValueError, match="`optim` must be .*: loaded state dict .* doesn't match the size"):
        trainer.train(resume_from_checkpoint=str(trained[0] / "checkpoint-2"))


def test_what_a_checkpoint_overrides_is_warned_of(trained, tmp_path, caplog):
    out = harness.copy(trained[0], tmp_path / "out")
    args = {"learning_rate": 0.5, "weight_decay": 0.3, "optim_args": "momentum=0.9,foreach=True"}
    trainer, (warning,) = resume(out, caplog, **args)
    assert "learning_rate 0.05, not 0.5; momentum 0, not 0.9; weight_decay 0.0, not 0.3. To train" in warning
    assert largest_difference(state_of(trainer.model), trained[1]) == 0
    caplog.clear()
    assert not resume(out, caplog)[1]


def test_checkpoint_of_a_model_alone_is_warned_of(trained, tmp_path, caplog):
    out = harness.copy(trained[0], tmp_path / "out")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (out / "checkpoint-2" / name).unlink()
    _, (warning,) = resume(out, caplog)
    assert (
        "checkpoint-2' holds only the model (`save_only_model`)" in warning
        and "from the beginning, in step 3." in warning
    )


@pytest.mark.parametrize(
    "args",
    [{"per_device_train_batch_size": 4}, {"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 4}],
)
def test_another_batch_size_is_warned_of(trained, tmp_path, caplog, args):
    out = harness.copy(trained[0], tmp_path / "out")
    _, (warning,) = resume(out, caplog, **args)
    steps = 32 // (args.get("per_device_train_batch_size", 8) * args.get("gradient_accumulation_steps", 1))
    assert f"saved in epoch 0.5, after 2 optimizer steps, but an epoch has {steps} now" in warning


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"num_subnetworks": 0}, ": num_subnetworks was 3 and is 0. To"),
        ({"min_width": 0.8, "scales": [1.0]}, ": min_width was 0.9 and is 0.8; scales was [1.0, 0.85"),
        ({"nonfinite_loss": "skip"}, None),
    ],
)
def test_other_settings_of_gradaug_are_warned_of(trained, tmp_path, caplog, args, words):
    out = harness.copy(trained[0], tmp_path / "out")
    _, warnings = resume(out, caplog, **args)
    assert [words in warning for warning in warnings] == ([True] if words else [])


def test_plain_training_that_goes_on_with_gradaug_is_warned_of(tmp_path, caplog):
    make_trainer(tmp_path / "out", num_subnetworks=0, max_steps=2).train()
    assert not resume(tmp_path / "out", caplog, num_subnetworks=0)[1]
    _, (warning,) = resume(tmp_path / "out", caplog)
    assert "checkpoint-2' with changed GradAug settings: num_subnetworks was 0 and is 3. To" in warning


def test_gradaug_that_goes_on_in_another_trainer_is_warned_of(trained, tmp_path, caplog):
    class DurableTrainer(DurableTrainerMixin, Trainer):
        pass

    for cls, kwargs in ((DurableTrainer, {}), (DistillationTrainer, {"teacher": tiny_model("convnext")})):
        args = {"args_cls": TrainingArguments, "cls": cls, "trainer_kwargs": kwargs, "max_steps": 2}
        trainer = tiny_trainer(tmp_path, tiny_model("convnext"), **args)
        caplog.clear()
        trainer.train(resume_from_checkpoint=str(trained[0] / "checkpoint-2"))
        (warning,) = (message for message in caplog.messages if "GradAug settings" in message)
        assert "num_subnetworks was 3 and is 0" in warning


def test_epochs_of_an_uneven_last_step_are_the_same_run(tmp_path, caplog):
    args = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4, "max_steps": 5, "save_steps": 1}
    make_trainer(tmp_path / "out", **args).train()
    for step in range(1, 5):
        trainer = make_trainer(tmp_path / "resumed", **args)
        with caplog.at_level(logging.WARNING, "hf_gradaug"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
    assert not [record for record in caplog.records if record.name.startswith("hf_gradaug.training")]


def test_milestones_beside_a_scheduler_of_ones_own(tmp_path):
    args = {"lr_milestones": [0.5], "lr_scheduler_type": "constant"}
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizers = optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    with pytest.raises(ValueError, match=r"`lr_milestones` must be None .*, but is \[0.5\] beside ExponentialLR"):
        tiny_trainer(tmp_path / "out", model, trainer_kwargs={"optimizers": optimizers}, **args)
    assert not (tmp_path / "out").exists()


def test_milestones_follow_a_longer_run(tmp_path):
    args = {"lr_milestones": [0.5], "lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path / "out", max_steps=4, **args).train()
    whole = make_trainer(tmp_path / "whole", max_steps=8, **args)
    whole.train()
    for step in (1, 3):  # before and after the milestone of the shorter run
        trainer = make_trainer(tmp_path / "resumed", max_steps=8, **args)
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        rates = [[row["learning_rate"] for row in run.state.log_history[step:8]] for run in (trainer, whole)]
        assert rates[0] == pytest.approx(rates[1]) and rates[1][-1] == pytest.approx(0.005)
