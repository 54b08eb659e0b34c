# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Settings, what the trainer refuses before anything is written, and the model card."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from helpers.tiny import TinyImages, largest_difference, state_of, tiny_model, tiny_trainer
from torch import nn
from transformers import HfArgumentParser, Trainer

from hf_gradaug import GradAugConfig, GradAugMixin, GradAugSettings


@pytest.mark.parametrize("optim", ["lomo", "adalomo", "galore_adamw_layerwise"])
def test_refuses_optimizers_that_step_in_the_backward(tmp_path, optim):
    with pytest.raises(ValueError, match=f"`optim='{optim}'`.*adamw_torch"):
        tiny_trainer(tmp_path / "out", optim=optim)
    assert not (tmp_path / "out").exists()


def test_refuses_data_parallel_and_deepspeed(tmp_path, monkeypatch):
    monkeypatch.setattr(GradAugConfig, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"`nn.DataParallel`.*2 GPUs.*`accelerate launch script.py`"):
        tiny_trainer(tmp_path / "out")
    monkeypatch.undo()

    class TrainerWithDeepSpeed(Trainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.is_deepspeed_enabled = True
            monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", SimpleNamespace(zero_stage=3))

    with pytest.raises(ValueError, match="stage 3.*FSDP2"):
        tiny_trainer(tmp_path / "out", cls=type("WithDeepSpeed", (GradAugMixin, TrainerWithDeepSpeed), {}))
    assert not (tmp_path / "out").exists()


def test_refuses_fsdp_1_and_device_map(tmp_path):
    class TrainerWithFSDP(Trainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.is_fsdp_enabled = True

    with pytest.raises(ValueError, match="`fsdp_version: 2`.*DistributedDataParallel"):
        tiny_trainer(tmp_path / "out", cls=type("WithFSDP", (GradAugMixin, TrainerWithFSDP), {}))
    model = tiny_model()
    model.hf_device_map = {"convnext": 0, "classifier": 1}
    with pytest.raises(ValueError, match="`device_map`"):
        tiny_trainer(tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_refuses_models_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="`config`"):
        tiny_trainer(tmp_path / "out", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="single-label"):
        tiny_trainer(tmp_path / "out", tiny_model(problem_type="regression"))
    assert not (tmp_path / "out").exists()


SETTINGS = {
    "num_subnetworks": 2,
    "subnetwork_kind": "width_depth",
    "min_survival": 0.8,
    "min_width": 0.75,
    "scales": [1.0, 0.5],
    "rotations": [0.0, 90.0],
    "subnetwork_loss_weight": 0.5,
    "temperature": 2.0,
    "width_divisor": 8,
}


@pytest.mark.parametrize("source", ["command line", "json", "yaml"])
def test_settings_parse(tmp_path, source):
    settings, parser = {"output_dir": str(tmp_path), **SETTINGS}, HfArgumentParser(GradAugConfig)
    if source == "command line":
        words = []
        for name, value in settings.items():
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
        (config,) = parser.parse_args_into_dataclasses(words)
    else:
        file = tmp_path / f"config.{source}"
        file.write_text(json.dumps(settings) if source == "json" else yaml.safe_dump(settings))
        (config,) = (parser.parse_json_file if source == "json" else parser.parse_yaml_file)(file)
    assert {name: getattr(config, name) for name in SETTINGS} == SETTINGS
    assert GradAugConfig("first").output_dir == "first"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_subnetworks", -1),
        ("min_width", 0.0),
        ("min_width", 1.1),
        ("subnetwork_kind", "height"),
        ("min_survival", 0.0),
        ("min_survival", 1.5),
        ("scales", []),
        ("scales", [2.0]),
        ("rotations", []),
        ("subnetwork_loss_weight", -0.5),
        ("temperature", 0.0),
        ("width_divisor", 0),
        ("num_subnetworks", 2.0),
        ("width_choices", []),
        ("width_choices", [0.5]),
        ("subnetwork_batch_fraction", 0.0),
        ("subnetwork_batch_fraction", 1.5),
        ("subnetwork_every", 0),
        ("temperature", float("inf")),
        ("subnetwork_loss_weight", float("inf")),
        ("rotations", [float("nan")]),
        ("min_width", "0.9"),
        ("min_width", True),
        ("scales", 0.5),
        ("scales", "0.5"),
        ("scales", ["6/7"]),
        ("label_smoothing_factor", 2.0),
        ("label_smoothing_factor", -0.1),
    ],
)
def test_settings_outside_their_range(tmp_path, name, value):
    with pytest.raises(ValueError) as error:
        GradAugConfig(output_dir=str(tmp_path), **{name: value})
    assert f"`{name}`" in str(error.value)
    assert str(value[0] if isinstance(value, list) and value else value) in str(error.value)


def test_a_number_as_text_is_quoted():
    with pytest.raises(ValueError, match="`num_subnetworks` must be a whole number, 0 or more, but is '3'"):
        GradAugSettings(num_subnetworks="3")


def test_settings_of_numpy_are_saved_with_the_model(tmp_path):
    given = {"num_subnetworks": np.int64(2), "min_width": np.float32(0.5), "temperature": np.float64(2)}
    given |= {"scales": np.array([1.0, 0.5]), "width_choices": np.float32([1, 0.5]), "rotations": (0, np.int32(90))}
    trainer = tiny_trainer(tmp_path, **given)
    trainer.save_model()
    saved = json.loads((tmp_path / "gradaug_config.json").read_text())
    expected = {"num_subnetworks": 2, "min_width": 0.5, "temperature": 2.0}
    expected |= {"scales": [1.0, 0.5], "width_choices": [1.0, 0.5], "rotations": [0, 90]}
    assert {name: saved[name] for name in given} == expected and GradAugSettings(**saved).scales == [1.0, 0.5]


def test_refuses_to_train_on_nothing(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        dataloader_drop_last=True,
        per_device_train_batch_size=16,
        trainer_kwargs={"train_dataset": TinyImages(12)},
    )
    with pytest.raises(
        ValueError,
        match="`dataloader_drop_last` must be False for 12 training images and a batch size of 16, but is True",
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_dropping_the_last_batch_is_for_training_alone(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        dataloader_drop_last=True,
        per_device_eval_batch_size=8,
        trainer_kwargs={"train_dataset": TinyImages(12)},
    )
    assert len(trainer.get_train_dataloader()) == 1 and trainer.args.dataloader_drop_last
    assert len(trainer.predict(TinyImages(12)).predictions) == 12
    assert trainer.evaluation_loop(trainer.get_eval_dataloader(), "evaluation").num_samples == 12


@pytest.mark.parametrize("num_subnetworks", [0, 2])
@pytest.mark.parametrize("kind", ["bf16_full_eval", "fp16_full_eval"])
def test_evaluation_in_half_precision_leaves_the_model_alone(tmp_path, kind, num_subnetworks):
    model = tiny_model("resnet-basic")
    trainer = tiny_trainer(tmp_path, model, num_subnetworks=num_subnetworks, **{kind: True})
    trainer.train()
    before = state_of(model)
    half = trainer.evaluate()["eval_loss"]
    assert {name: tensor.dtype for name, tensor in state_of(model).items()} == {n: t.dtype for n, t in before.items()}
    assert largest_difference(state_of(model), before) == 0
    setattr(trainer.args, kind, False)
    assert half == pytest.approx(trainer.evaluate()["eval_loss"], rel=0.05)
    trainer.train()  # it still trains its own weights
    assert largest_difference(state_of(model), before) > 0


@pytest.mark.parametrize(
    "labels, changes",
    [([100.123], {"num_labels": 1}), ([0.1, 0.2, 0.3], {"problem_type": "multi_label_classification"})],
)
def test_evaluation_in_half_precision_leaves_the_labels_alone(tmp_path, labels, changes):
    class FloatLabels(TinyImages):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "labels": torch.tensor(labels)}

    model, data = tiny_model("resnet-basic", **changes), {"eval_dataset": FloatLabels(4)}
    trainer = tiny_trainer(tmp_path, model, trainer_kwargs=data, num_subnetworks=0, bf16_full_eval=True)
    output = trainer.predict(FloatLabels(4))
    np.testing.assert_array_equal(output.label_ids, np.array([labels] * 4, dtype=np.float32))
    assert np.isfinite(output.metrics["test_loss"])
