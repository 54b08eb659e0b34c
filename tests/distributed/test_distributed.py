# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Two real processes and more, in a group as `torchrun` makes it, with gloo."""

import functools
import json

import pytest
import torch
from helpers import harness
from helpers.scripts import train_tiny
from helpers.tiny import largest_difference
from transformers import AutoModelForImageClassification


pytestmark = pytest.mark.distributed


def job(batch_size, accumulation=1, **args):
    return {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation, **args}


def zero(stage: int) -> dict:
    return {
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 0.0,  # not given, it is 1
    }


SAVES = {"save_strategy": "steps", "save_steps": 1}
# PyTorch can't load the state of a sharded optimizer that has none. 12 images a step, for two processes or three.
SHARDED = {"kind": "fsdp", "optim_args": "momentum=0.9", "max_steps": 2, **SAVES}
FOUR_STEPS = {"max_steps": 4, "lr_scheduler_type": "constant", **SAVES}

# With a low survival, the synchronizing pass drops blocks in each of the steps.
DEPTH = {"subnetwork_kind": "depth", "min_survival": 0.01, "depths": [2, 3, 3]}

# Trainings by the launch that makes them, one after the other: processes take far longer to start than to train.
LAUNCHES = {
    "one": (
        1,
        {
            "one": job(8),
            "one with momentum": job(12, optim_args="momentum=0.9", max_steps=2),
            "one with own loss": job(8, kind="own_loss"),
            "one, four steps": job(8, **FOUR_STEPS),
            "one with depth": job(8, **DEPTH),
            "one with width and depth": job(8, **DEPTH | {"subnetwork_kind": "width_depth"}),
        },
    ),
    "two": (
        2,
        {
            "two": job(4),
            "two, accumulated": job(2, 2),
            "two, without sub-networks": job(4, num_subnetworks=0),
            "two with own loss": job(2, 2, kind="own_loss"),
            "two with nan": job(4, kind="nan"),
            "two with batchnorm": job(4, family="resnet-basic"),
            "two with depth": job(2, 2, **DEPTH),
            # The Trainer has DistributedDataParallel look for parameters that aren't reached, other loops don't.
            "two with width and depth": job(
                4, **DEPTH | {"subnetwork_kind": "width_depth", "ddp_find_unused_parameters": False}
            ),
            "two, from one": job(4, resume_from_checkpoint="{one, four steps}/checkpoint-2", **FOUR_STEPS),
        },
    ),
    "one again": (1, {"one, from two": job(8, resume_from_checkpoint="{two, from one}/checkpoint-3", **FOUR_STEPS)}),
    "sharded": (
        2,
        {
            "sharded": job(3, 2, **SHARDED),
            "sharded, resumed": job(3, 2, resume_from_checkpoint="{sharded}/checkpoint-1", **SHARDED),
            "sharded with batchnorm": job(4, family="resnet-basic", kind="fsdp"),
        },
    ),
    "sharded by three": (
        3,
        {"sharded by three": job(2, 2, resume_from_checkpoint="{sharded}/checkpoint-1", **SHARDED)},
    ),
    "deepspeed": (
        2,
        {
            f"zero {stage}{resumed}": job(2, 2, deepspeed=zero(stage), **SAVES, **checkpoint)
            for stage in (1, 2)
            for resumed, checkpoint in {
                "": {},
                ", resumed": {"resume_from_checkpoint": f"{{zero {stage}}}/checkpoint-2"},
            }.items()
        },
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, root):
    """Gives a training of `LAUNCHES` by its name: the weights, what it wrote down and its folder."""
    folder = tmp_path_factory.mktemp("trainings")

    @functools.cache
    def launch(name):
        processes, jobs = LAUNCHES[name]
        for earlier, (_, others) in LAUNCHES.items():  # those whose checkpoints these jobs go on from
            if earlier != name and any(f"{{{other}}}" in json.dumps(jobs) for other in others):
                launch(earlier)
        words = json.dumps([{"output": str(folder / name), **args} for name, args in jobs.items()])
        for other in [other for _, others in LAUNCHES.values() for other in others]:
            words = words.replace(f"{{{other}}}", str(folder / other))
        if processes == 1:
            train_tiny.main(words)
        else:
            script = root / "tests" / "helpers" / "scripts" / "train_tiny.py"
            harness.run_script_in_ranks(folder / name, script, words, processes=processes)
        for training in jobs:
            assert json.loads((folder / training / "result.json").read_text())["processes"] == processes

    def get(training):
        launch(next(name for name, (_, jobs) in LAUNCHES.items() if training in jobs))
        output = folder / training
        return torch.load(output / "state.pt"), json.loads((output / "result.json").read_text()), output

    return get


def test_two_processes_are_one(trained):
    one, alone, _ = trained("one")
    two, together, _ = trained("two")
    both, accumulated, _ = trained("two, accumulated")
    assert largest_difference(two, one) < 1e-7
    assert largest_difference(both, one) < 1e-7
    for result in (together, accumulated):
        for line, expected in zip(result["log"], alone["log"]):
            for name in ("loss", "loss_full", "loss_subnetworks", "subnetwork_width", "grad_norm"):
                if name in expected:
                    assert line[name] == pytest.approx(expected[name], rel=1e-4), name

    _, plain, _ = trained("two, without sub-networks")
    assert plain["synchronizations"] > 0
    # As many as plain training: one synchronization an optimizer step, whatever the passes and the accumulation.
    assert together["synchronizations"] == accumulated["synchronizations"] == plain["synchronizations"]


@pytest.mark.parametrize("kind", ["depth", "width and depth"])
def test_two_processes_with_dropped_blocks_are_one(trained, kind):
    one, alone, _ = trained(f"one with {kind}")
    two, together, _ = trained(f"two with {kind}")
    assert largest_difference(two, one) < 1e-7
    shares = [
        [line["subnetwork_depth"] for line in result["log"] if "loss_full" in line] for result in (alone, together)
    ]
    assert shares[0] == shares[1] and len(shares[0]) == 3 and max(shares[0]) < 1
    _, plain, _ = trained("two, without sub-networks")
    assert together["synchronizations"] == plain["synchronizations"]


def test_sharded_is_one(trained):
    one, *_ = trained("one with momentum")
    both, result, folder = trained("sharded")
    assert result["sharded"]
    assert largest_difference(both, one) < 1e-6
    # One unit, and one reduce-scatter in each of the optimizer steps.
    assert result["synchronizations"] == 2
    saved = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    assert largest_difference(saved, both) == 0
    resumed, *_ = trained("sharded, resumed")
    assert largest_difference(resumed, both) == 0
    on_three, *_ = trained("sharded by three")
    assert largest_difference(on_three, both) < 1e-6


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_is_one(trained, stage):
    one, *_ = trained("one")
    both, result, _ = trained(f"zero {stage}")
    assert largest_difference(both, one) < 1e-6
    # Three steps, and one bucket in each. Stage 2 holds no gradient of its own, so each of 2 x 4 backwards reduces.
    assert result["synchronizations"] == (3 if stage == 1 else 3 * 2 * 4)
    resumed, *_ = trained(f"zero {stage}, resumed")
    assert largest_difference(resumed, both) == 0


def test_batchnorm_is_the_same_when_sharded(trained):
    # Each process normalizes with its own images, so that two are not one here.
    expected, *_ = trained("two with batchnorm")
    sharded, result, _ = trained("sharded with batchnorm")
    assert result["sharded"]
    assert largest_difference(sharded, expected) < 1e-6


def test_resumed_on_another_number_of_processes(trained):
    uninterrupted, *_ = trained("one, four steps")
    on_two, *_ = trained("two, from one")
    on_one, *_ = trained("one, from two")
    assert largest_difference(on_two, uninterrupted) < 1e-7
    assert largest_difference(on_one, uninterrupted) < 1e-7


def test_own_loss_is_scaled_by_the_processes(trained):
    one, *_ = trained("one with own loss")
    both, *_ = trained("two with own loss")
    assert largest_difference(both, one) < 1e-7


def test_not_a_number_in_one_process_hangs_none(trained):
    weights, result, _ = trained("two with nan")
    lines = [line for line in result["log"] if "learning_rate" in line]
    # The log shows the losses of the processes that have some; all of them came to the same log lines.
    assert len(lines) == 3
    assert all(line["loss_full"] > 0 for line in lines)
    assert [line["skipped_steps"] for line in lines] == [1, 2, 3]
    assert all(torch.isfinite(weight).all() for weight in weights.values())
