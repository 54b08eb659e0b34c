# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""A loss that is not finite stops the training, or its step is skipped."""

import functools
import json
import logging
import math
import os
import re

import pytest
import torch
from helpers import harness
from helpers.tiny import TinyImages, largest_difference, parameters_of, state_of, tiny_model, tiny_trainer
from transformers import TrainerCallback, default_data_collator

from hf_gradaug import GradAugConfig


class Spoil:
    """Collator that makes the images of chosen batches, counted from 0, not a number."""

    def __init__(self, *batches: int):
        self.batches, self.count = batches, 0

    def __call__(self, examples):
        batch = default_data_collator(examples)
        if self.count in self.batches:
            batch["pixel_values"] = torch.full_like(batch["pixel_values"], float("nan"))
        self.count += 1
        return batch


def spoilt_trainer(tmp_path, *batches, model=None, callbacks=(), **args):
    model = tiny_model("resnet-basic") if model is None else model
    kwargs = {"data_collator": Spoil(*batches), "callbacks": [*callbacks]}
    return tiny_trainer(tmp_path, model, trainer_kwargs=kwargs, **args)


@pytest.mark.slow
def test_stop_names_step_pass_width_and_size(tmp_path):
    trainer = spoilt_trainer(tmp_path, 1)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert "the full network (width multiplier 1, images of 32 x 32 pixels) is not finite in optimizer step 2" in str(
        error.value
    )
    assert trainer.state.global_step == 1

    one_step = spoilt_trainer(tmp_path, max_steps=1, lr_scheduler_type="constant")
    one_step.train()
    # The weights are those of the step before: the statistics alone have seen the batch.
    again = spoilt_trainer(tmp_path, 1, lr_scheduler_type="constant")
    with pytest.raises(FloatingPointError):
        again.train()
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, dict(one_step.model.named_parameters())[name]), name


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_stop_names_the_subnetwork(tmp_path, value):
    trainer = spoilt_trainer(tmp_path, min_width=0.5)
    passes, original = [], trainer.gradaug.passes

    def spoil(loss, *args):
        return loss(*args) * float(value)

    def spoilt(inputs, step):
        for index, gradaug_pass in enumerate(original(inputs, step)):
            if step == 1:
                passes.append(gradaug_pass)
                if index == 2:
                    gradaug_pass.loss = functools.partial(spoil, gradaug_pass.loss)
            yield gradaug_pass

    trainer.gradaug.passes = spoilt
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    height, width = passes[2].size
    expected = f"sub-network 2 (width multiplier {passes[2].width:.4g}, images of {height} x {width} pixels)"
    assert expected in str(error.value) and "optimizer step 2" in str(error.value)


@pytest.mark.parametrize(
    "args",
    [
        {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.1},
        {"optim": "adamw_torch", "weight_decay": 0.1},
        {"optim": "sgd", "max_grad_norm": 0.0},
        {"optim": "sgd", "gradient_accumulation_steps": 2},
    ],
    ids=["momentum", "adamw", "no clipping", "accumulation"],
)
def test_skip_drops_the_step(tmp_path, caplog, args):
    """Weights, buffers and optimizer after a skipped step are those before it; the training goes on and ends well."""
    seen = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            seen[state.global_step] = self.look(model, optimizer)

        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            seen[state.global_step] = self.look(model, optimizer)

        def look(self, model, optimizer):
            moments = {
                f"{number} {name}": torch.as_tensor(value).clone()
                for number, values in optimizer.state_dict()["state"].items()
                for name, value in values.items()
            }
            return state_of(model), moments

    accumulation = args.get("gradient_accumulation_steps", 1)
    trainer = spoilt_trainer(
        tmp_path, 2 * accumulation - 1, callbacks=[Watch()], nonfinite_loss="skip", max_steps=4,
        per_device_train_batch_size=8 // accumulation, **args,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "hf_gradaug"):
        trainer.train()
    assert trainer.state.global_step == 4
    for before, after in zip(seen[1], seen[2]):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    for step in (0, 2, 3):
        assert largest_difference(seen[step][0], seen[step + 1][0]) > 0
    assert all(torch.isfinite(tensor).all() for tensor in state_of(trainer.model).values())
    (warning,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert "the full network" in warning and "step 2. The step is skipped. Steps skipped so far: 1." in warning
    counts = [line.get("skipped_steps") for line in trainer.state.log_history if "learning_rate" in line]
    assert counts == [None, 1, 1, 1]


def test_all_is_as_before_where_losses_are_finite(tmp_path):
    states = []
    for action in ("stop", "skip"):
        trainer = spoilt_trainer(tmp_path, nonfinite_loss=action)
        trainer.train()
        states.append(state_of(trainer.model))
        lines = [line for line in trainer.state.log_history if "loss" in line]
        assert lines and not any("skipped_steps" in line for line in lines)
    assert largest_difference(*states) == 0


def test_plain_training_is_left_alone(tmp_path):
    trainer = spoilt_trainer(tmp_path, 1, num_subnetworks=0)
    assert trainer.train().global_step == 3


def test_the_gradient_scaler_is_left_alone(tmp_path):
    # The default that an fp16 run gets, which needs a GPU: without the filter every later loss would be logged as NaN.
    log_filter = GradAugConfig(output_dir=tmp_path, fp16=True).logging_nan_inf_filter
    trainer = spoilt_trainer(tmp_path, 1, logging_nan_inf_filter=log_filter, max_grad_norm=0.0, max_steps=4)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    assert trainer.train().global_step == 4
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 4 and all(map(math.isfinite, losses))


def test_an_engine_that_scales_by_itself_is_left_alone(tmp_path, monkeypatch):
    """DeepSpeed in fp16 has no scaler of Accelerate's."""
    trainer = spoilt_trainer(tmp_path, 1, logging_nan_inf_filter=True, max_grad_norm=0.0)
    monkeypatch.setattr(trainer.accelerator.state, "_mixed_precision", "fp16")
    assert trainer.train().global_step == 3


def test_the_log_filter_is_on_where_accelerate_chose_fp16(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert GradAugConfig(output_dir=tmp_path).logging_nan_inf_filter
    assert not GradAugConfig(output_dir=tmp_path, bf16=True, use_cpu=True).logging_nan_inf_filter


def test_unknown_action(tmp_path):
    with pytest.raises(ValueError, match="`nonfinite_loss` must be 'stop' or 'skip', but is 'ignore'"):
        spoilt_trainer(tmp_path, nonfinite_loss="ignore")


class OneImage(Spoil):
    """Collator that keeps a single image of chosen batches."""

    def __call__(self, examples):
        batch = default_data_collator(examples[:1] if self.count in self.batches else examples)
        self.count += 1
        return batch


# Their sub-networks are left out: the last feature map of images of 8 x 8 pixels is a single pixel.
LEFT_OUT = {"scales": [0.25], "num_subnetworks": 2, "max_steps": 2}


@pytest.mark.parametrize("batches", [[0], [1], [2, 3]], ids=["first", "last", "both"])
def test_micro_batches_with_fewer_passes(tmp_path, batches):
    trainer = tiny_trainer(
        tmp_path, tiny_model("resnet-basic"), trainer_kwargs={"data_collator": OneImage(*batches)},
        gradient_accumulation_steps=2, per_device_train_batch_size=4, **LEFT_OUT,
    )  # fmt: skip
    passes, original = [], trainer.gradaug.passes

    def count(inputs, step):
        passes.append(0)
        for gradaug_pass in original(inputs, step):
            passes[-1] += 1
            yield gradaug_pass

    trainer.gradaug.passes = count
    assert trainer.train().global_step == 2
    assert passes == [1 if batch in batches else 3 for batch in range(4)]


def test_a_micro_batch_with_fewer_passes_hides_no_subnetwork(tmp_path):
    trainer = tiny_trainer(
        tmp_path, tiny_model("resnet-basic"), trainer_kwargs={"data_collator": OneImage(1)},
        gradient_accumulation_steps=2, per_device_train_batch_size=4, **LEFT_OUT,
    )  # fmt: skip
    original = trainer.gradaug.passes

    def spoilt(inputs, step):
        for index, gradaug_pass in enumerate(original(inputs, step)):
            if index == 2:
                gradaug_pass.loss = functools.partial(lambda loss, *args: loss(*args) / 0, gradaug_pass.loss)
            yield gradaug_pass

    trainer.gradaug.passes = spoilt
    with pytest.raises(FloatingPointError, match=r"sub-network 2 \(width .* images of 8 x 8 pixels\).* step 1"):
        trainer.train()


def train_on_one_image_in_one_of_two(output_dir) -> None:
    """In the child: the second process alone gets a single image, in its second batch."""
    rank = int(os.environ["RANK"])
    trainer = tiny_trainer(
        output_dir, tiny_model("resnet-basic"), per_device_train_batch_size=4, ddp_backend="gloo", **LEFT_OUT,
        trainer_kwargs={"data_collator": OneImage(*([1] if rank == 1 else []))},
    )  # fmt: skip
    trainer.train()
    torch.distributed.destroy_process_group()
    torch.save(parameters_of(trainer.model), output_dir / f"{rank}.pt")


@pytest.mark.distributed
def test_fewer_passes_in_one_process(tmp_path):
    for done in harness.run_ranks(tmp_path, train_on_one_image_in_one_of_two, tmp_path):
        assert done.code == 0, done.text
    left, right = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert largest_difference(left, right) == 0


def train_in_one_of_two(output_dir, action: str) -> None:
    """In the child: the second process alone gets a batch that is not a number, its second."""
    rank = int(os.environ["RANK"])
    trainer = spoilt_trainer(
        output_dir, *([1] if rank == 1 else []), model=tiny_model("convnext"), nonfinite_loss=action,
        per_device_train_batch_size=4, ddp_backend="gloo",
    )  # fmt: skip
    try:
        trainer.train()
    finally:
        torch.distributed.destroy_process_group()
    torch.save(state_of(trainer.model), output_dir / f"{rank}.pt")
    (output_dir / f"{rank}.json").write_text(json.dumps(trainer.state.log_history))


@pytest.mark.distributed
def test_not_a_number_in_one_process_stops_both(tmp_path):
    for done in harness.run_ranks(tmp_path, train_in_one_of_two, tmp_path, "stop"):
        assert done.code == 1
        assert re.search("FloatingPointError: .*the full network .* in optimizer step 2", done.text), done.text


@pytest.mark.distributed
def test_not_a_number_in_one_process_skips_the_step_in_both(tmp_path):
    for done in harness.run_ranks(tmp_path, train_in_one_of_two, tmp_path, "skip"):
        assert done.code == 0, done.text
        assert "in optimizer step 2. The step is skipped" in done.text
    left, right = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert largest_difference(left, right) == 0
    assert all(torch.isfinite(tensor).all() for tensor in left.values())
    log = json.loads((tmp_path / "0.json").read_text())
    assert [line.get("skipped_steps") for line in log if "learning_rate" in line] == [None, 1, 1]


def test_images_that_are_not_a_number_stop_at_the_first_step(tmp_path):
    data = TinyImages()
    data.images[:] = float("nan")
    with pytest.raises(FloatingPointError, match="optimizer step 1"):
        tiny_trainer(tmp_path, trainer_kwargs={"train_dataset": data}).train()
