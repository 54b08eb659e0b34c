"""Two real processes, started by `torchrun` with gloo."""

import json
import subprocess
import sys

import pytest
import torch
from tiny import largest_difference


pytestmark = pytest.mark.distributed


@pytest.fixture
def train(tmp_path, root, subprocess_env):
    def run(processes, batch_size, num_subnetworks=3, accumulation=1, kind="plain"):
        output = tmp_path / f"{processes}-{batch_size}-{num_subnetworks}-{accumulation}-{kind}"
        output.mkdir()
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        script = [str(root / "tests" / "scripts" / "train_tiny.py"), str(output)]
        words = [*(launcher if processes > 1 else [sys.executable]), *script]
        words += [str(batch_size), str(num_subnetworks), str(accumulation), kind]
        done = subprocess.run(words, env=subprocess_env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        result = json.loads((output / "result.json").read_text())
        assert result["processes"] == processes
        return torch.load(output / "state.pt"), result

    return run


def test_two_processes_are_one(train):
    one, alone = train(processes=1, batch_size=8)
    two, together = train(processes=2, batch_size=4)
    both, accumulated = train(processes=2, batch_size=2, accumulation=2)
    assert largest_difference(two, one) < 1e-7
    assert largest_difference(both, one) < 1e-7
    for result in (together, accumulated):
        for line, expected in zip(result["log"], alone["log"]):
            for name in ("loss", "loss_full", "loss_subnetworks", "subnetwork_width", "grad_norm"):
                if name in expected:
                    assert line[name] == pytest.approx(expected[name], rel=1e-4), name

    _, plain = train(processes=2, batch_size=4, num_subnetworks=0)
    assert plain["buckets"] > 0
    # As many as plain training: one synchronization an optimizer step, whatever the passes and the accumulation.
    assert together["buckets"] == accumulated["buckets"] == plain["buckets"]


def test_own_loss_is_scaled_by_the_processes(train):
    one, _ = train(processes=1, batch_size=8, kind="own_loss")
    both, _ = train(processes=2, batch_size=2, accumulation=2, kind="own_loss")
    assert largest_difference(both, one) < 1e-7


def test_not_a_number_in_one_process_hangs_none(train):
    weights, result = train(processes=2, batch_size=4, kind="nan")
    lines = [line for line in result["log"] if "learning_rate" in line]
    # The log shows the losses of the processes that have some; all of them came to the same log lines.
    assert len(lines) == 3
    assert all(line["loss_full"] > 0 for line in lines)
    assert [line["skipped_steps"] for line in lines] == [1, 2, 3]
    assert all(torch.isfinite(weight).all() for weight in weights.values())
