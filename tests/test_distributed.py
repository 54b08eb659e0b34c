"""Two real processes, started by `torchrun` with gloo."""

import functools
import json
import subprocess
import sys

import pytest
import torch
from tiny import largest_difference
from transformers import AutoModelForImageClassification


pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def train(tmp_path_factory, root, subprocess_env):
    """Runs the script `train_tiny.py`, the same run once only; gives the weights, what it wrote down and its folder."""

    @functools.cache
    def run_once(processes, family, kind, args):
        output = tmp_path_factory.mktemp("run")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        script = [str(root / "tests" / "scripts" / "train_tiny.py"), str(output), family, kind, args]
        words = [*(launcher if processes > 1 else [sys.executable]), *script]
        done = subprocess.run(words, env=subprocess_env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        result = json.loads((output / "result.json").read_text())
        assert result["processes"] == processes
        return torch.load(output / "state.pt"), result, output

    def run(processes, batch_size, accumulation=1, family="convnext", kind="plain", **args):
        args.update(per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation)
        return run_once(processes, family, kind, json.dumps(args))

    return run


def test_two_processes_are_one(train):
    one, alone, _ = train(processes=1, batch_size=8)
    two, together, _ = train(processes=2, batch_size=4)
    both, accumulated, _ = train(processes=2, batch_size=2, accumulation=2)
    assert largest_difference(two, one) < 1e-7
    assert largest_difference(both, one) < 1e-7
    for result in (together, accumulated):
        for line, expected in zip(result["log"], alone["log"]):
            for name in ("loss", "loss_full", "loss_subnetworks", "subnetwork_width", "grad_norm"):
                if name in expected:
                    assert line[name] == pytest.approx(expected[name], rel=1e-4), name

    _, plain, _ = train(processes=2, batch_size=4, num_subnetworks=0)
    assert plain["synchronizations"] > 0
    # As many as plain training: one synchronization an optimizer step, whatever the passes and the accumulation.
    assert together["synchronizations"] == accumulated["synchronizations"] == plain["synchronizations"]


def test_sharded_is_one(train):
    # PyTorch can't load the state of a sharded optimizer that has none. 12 images a step, for two processes or three.
    args = {"optim_args": "momentum=0.9", "max_steps": 2}
    one, *_ = train(processes=1, batch_size=12, **args)
    args.update(kind="fsdp", accumulation=2, save_strategy="steps", save_steps=1)
    both, result, folder = train(processes=2, batch_size=3, **args)
    assert result["sharded"]
    assert largest_difference(both, one) < 1e-6
    # One unit, and one reduce-scatter in each of the optimizer steps.
    assert result["synchronizations"] == 2
    saved = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    assert largest_difference(saved, both) == 0
    args["resume_from_checkpoint"] = str(folder / "checkpoint-1")
    resumed, *_ = train(processes=2, batch_size=3, **args)
    assert largest_difference(resumed, both) == 0
    on_three, *_ = train(processes=3, batch_size=2, **args)
    assert largest_difference(on_three, both) < 1e-6


def zero(stage: int) -> dict:
    return {
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 0.0,  # not given, it is 1
    }


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_is_one(train, stage):
    one, *_ = train(processes=1, batch_size=8)
    args = {"batch_size": 2, "accumulation": 2, "deepspeed": zero(stage), "save_strategy": "steps", "save_steps": 2}
    both, result, folder = train(processes=2, **args)
    assert largest_difference(both, one) < 1e-6
    # Three steps, and one bucket in each. Stage 2 holds no gradient of its own, so each of 2 x 4 backwards reduces.
    assert result["synchronizations"] == (3 if stage == 1 else 3 * 2 * 4)
    resumed, *_ = train(processes=2, resume_from_checkpoint=str(folder / "checkpoint-2"), **args)
    assert largest_difference(resumed, both) == 0


def test_batchnorm_is_the_same_when_sharded(train):
    # Each process normalizes with its own images, so that two are not one here.
    args = {"processes": 2, "batch_size": 4, "family": "resnet-basic"}
    expected, *_ = train(**args)
    sharded, result, _ = train(kind="fsdp", **args)
    assert result["sharded"]
    assert largest_difference(sharded, expected) < 1e-6


def test_resumed_on_another_number_of_processes(train):
    args = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "lr_scheduler_type": "constant"}
    uninterrupted, _, folder = train(processes=1, batch_size=8, **args)
    args["resume_from_checkpoint"] = str(folder / "checkpoint-2")
    on_two, _, folder = train(processes=2, batch_size=4, **args)
    args["resume_from_checkpoint"] = str(folder / "checkpoint-3")
    on_one, *_ = train(processes=1, batch_size=8, **args)
    assert largest_difference(on_two, uninterrupted) < 1e-7
    assert largest_difference(on_one, uninterrupted) < 1e-7


def test_own_loss_is_scaled_by_the_processes(train):
    one, *_ = train(processes=1, batch_size=8, kind="own_loss")
    both, *_ = train(processes=2, batch_size=2, accumulation=2, kind="own_loss")
    assert largest_difference(both, one) < 1e-7


def test_not_a_number_in_one_process_hangs_none(train):
    weights, result, _ = train(processes=2, batch_size=4, kind="nan")
    lines = [line for line in result["log"] if "learning_rate" in line]
    # The log shows the losses of the processes that have some; all of them came to the same log lines.
    assert len(lines) == 3
    assert all(line["loss_full"] > 0 for line in lines)
    assert [line["skipped_steps"] for line in lines] == [1, 2, 3]
    assert all(torch.isfinite(weight).all() for weight in weights.values())
