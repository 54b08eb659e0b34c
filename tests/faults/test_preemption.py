# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""SIGTERM: the run saves, stops and can go on."""

import ctypes
import os
import signal
import subprocess
import sys
import time

import common
import pytest
import torch.distributed as dist
from helpers import harness
from helpers.harness import STEPS
from helpers.tiny import tiny_trainer
from transformers import TrainerCallback, TrainingArguments

from hf_gradaug import StopOnSignal
from hf_gradaug.training import end_with_launcher, find_damage


class Terminate(TrainerCallback):
    """Sends a signal, once or twice with some seconds in between, to its own process at an event."""

    def __init__(self, event: str, step: int = 0, number=signal.SIGTERM, again_after: float | None = None):
        self.step, self.number, self.again_after = step, number, again_after
        setattr(self, event, self.send)

    def send(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)
            if self.again_after is not None:
                time.sleep(self.again_after)
                os.kill(os.getpid(), self.number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "step", "flags"),
    [("folder", 3, ["--eval_strategy", "epoch"]), ("stream", 3, []), ("folder", STEPS, [])],
    ids=["folder", "stream", "last step"],
)
def test_terminated_run_goes_on(examples, uninterrupted, weights, tmp_path, kind, step, flags):
    out = tmp_path / "out"
    flags += ["--do_eval"]
    # In the middle of a step, with gradients of an earlier batch, and twice: schedulers and launchers both send it.
    stopped = examples(kind).run(out, *flags, fault=harness.terminate_in_step, fault_args=(step, 2, 2))
    assert stopped.code == 143, stopped.text
    assert f"SIGTERM stopped the run after step {step}" in stopped.text
    assert "--resume_from_checkpoint true" in stopped.text and "Traceback" not in stopped.text
    assert harness.checkpoints(out)[-1] == step and find_damage(out / f"checkpoint-{step}") is None
    assert "eval_loss" not in stopped.text and not (out / "model.safetensors").exists()
    finished = examples(kind).run(out, *flags, "--resume_from_checkpoint", "true")
    assert finished.code == 0, finished.text
    assert weights(out) == weights(uninterrupted(kind))


@pytest.mark.slow
def test_terminated_before_the_first_step(examples, tmp_path):
    out = tmp_path / "out"
    stopped = examples("folder").run(out, fault=harness.terminate_before_the_first_step)
    assert stopped.code == 143, stopped.text
    assert harness.checkpoints(out) == [1]


@pytest.mark.slow
def test_terminated_with_its_workers(examples, tmp_path):
    out, flags = tmp_path / "out", ["--dataloader_num_workers", "2"]
    stopped = examples("folder").run(out, *flags, fault=harness.terminate_group_in_step, fault_args=(3, 2))
    assert stopped.code == 143, stopped.text
    assert harness.checkpoints(out) == [2, 3] and find_damage(out / "checkpoint-3") is None
    finished = examples("folder").run(out, *flags, "--resume_from_checkpoint", "true")
    assert finished.code == 0, finished.text


def test_handler_lives_as_long_as_the_training(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    stop = StopOnSignal()
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(signal.getsignal(signal.SIGTERM))

    trainer = tiny_trainer(tmp_path, trainer_kwargs={"callbacks": [stop, Look()]})
    trainer.train()
    assert seen == [stop._handle] * 3 and stop.received is None
    assert signal.getsignal(signal.SIGTERM) is before

    trainer.add_callback(Terminate("on_step_begin", step=1))
    trainer.train()
    assert stop.received == signal.SIGTERM and trainer.state.global_step == 2
    assert find_damage(tmp_path / "checkpoint-2") is None  # although save_strategy is "no"
    assert signal.getsignal(signal.SIGTERM) is before

    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyError("a user's error")

    trainer.add_callback(Fail())
    with pytest.raises(KeyError):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) is before


BOTH = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("again_after", [None, 0.0])
def test_ctrl_c_saves_and_stops(tmp_path, again_after):
    """Also where a launcher passes on what the terminal has sent to all."""
    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
    stop, send = StopOnSignal(BOTH), Terminate("on_step_begin", 1, signal.SIGINT, again_after)
    trainer = tiny_trainer(tmp_path, trainer_kwargs={"callbacks": [stop, send]})
    trainer.train()
    assert stop.received == signal.SIGINT and trainer.state.global_step == 2
    assert find_damage(tmp_path / "checkpoint-2") is None
    assert signal.getsignal(signal.SIGINT) is before


def test_second_ctrl_c_interrupts(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    stop, send = StopOnSignal(BOTH), Terminate("on_step_begin", 1, signal.SIGINT, again_after=1.0)
    trainer = tiny_trainer(tmp_path, trainer_kwargs={"callbacks": [stop, send]})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 1
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("checkpoint", [False, True])
def test_ctrl_c_outside_of_the_training(tmp_path, caplog, checkpoint):
    """While data are loaded, or in the last evaluation: one line and 130."""

    def interrupt(args):
        raise KeyboardInterrupt

    if checkpoint:
        (tmp_path / "checkpoint-2").mkdir()
    args = TrainingArguments(str(tmp_path), do_train=True, report_to=[], use_cpu=True)
    with pytest.raises(SystemExit) as caught:
        common.launch(lambda words: (args,), interrupt, [], "script")
    assert caught.value.code == 130
    (line,) = [record.getMessage() for record in caplog.records if record.name == "common"]
    assert line.startswith("SIGINT stopped the script.")
    assert ("--resume_from_checkpoint true" in line and str(tmp_path) in line) == checkpoint


def test_only_a_launcher_is_followed():
    """A run started by a shell must survive it: under nohup, it has to."""
    end_with_launcher()
    number = ctypes.c_int(-1)
    ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
    assert number.value == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)])
def test_forked_workers_do_not_catch_the_signal(tmp_path, number, code):
    """
    A process that is forked during the training, as a data loader's worker, ends at SIGTERM as if nothing were set. SIGINT,
    which a terminal sends to all, it leaves to the training.
    """
    codes = []

    class Fork(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), number)
                os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    stop = StopOnSignal(BOTH)
    tiny_trainer(tmp_path, trainer_kwargs={"callbacks": [stop, Fork()]}, max_steps=1).train()
    assert codes == [code] and stop.received is None


@pytest.mark.slow
def test_training_with_workers_stops(tmp_path):
    stop = StopOnSignal()
    trainer = tiny_trainer(
        tmp_path, trainer_kwargs={"callbacks": [stop, Terminate("on_step_begin", step=1)]}, dataloader_num_workers=2
    )
    trainer.train()
    assert stop.received == signal.SIGTERM and trainer.state.global_step == 2


@pytest.mark.distributed
def test_one_signal_stops_both_processes(tmp_path):
    for done in harness.run_ranks(tmp_path, train_and_stop_one, tmp_path / "out"):
        assert done.code == 143, done.text
    assert find_damage(tmp_path / "out" / "checkpoint-2") is None
    assert {"rng_state_0.pth", "rng_state_1.pth"} < {
        path.name for path in (tmp_path / "out" / "checkpoint-2").iterdir()
    }


def train_and_stop_one(output_dir) -> None:
    stop = StopOnSignal()
    callbacks = [stop]
    if os.environ["RANK"] == "1":
        callbacks.append(Terminate("on_step_begin", step=1))
    trainer = tiny_trainer(output_dir, trainer_kwargs={"callbacks": callbacks}, ddp_backend="gloo")
    trainer.train()
    dist.destroy_process_group()
    sys.exit(128 + stop.received)


@pytest.mark.distributed
def test_the_other_ends_when_one_process_dies(tmp_path):
    """Without a launcher that would end it. The harness fails a run that takes more than a minute."""
    survivor, dead = harness.run_ranks(tmp_path, train_and_die, tmp_path / "out")
    assert dead.code == -signal.SIGKILL
    assert survivor.code != 0 and "onnection" in survivor.text and "RuntimeError" in survivor.text


def train_and_die(output_dir) -> None:
    callbacks = [Kill()] if os.environ["RANK"] == "1" else []
    tiny_trainer(output_dir, trainer_kwargs={"callbacks": callbacks}, ddp_backend="gloo").train()


class Kill(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.distributed
def test_one_process_dies(tmp_path, root, subprocess_env):
    """SIGKILL of one of two processes in the middle of a step: the other ends too, and `torchrun` names the rank."""
    script = root / "tests" / "helpers" / "scripts" / "train_and_die.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(script), str(tmp_path / "out")]
    # A minute for the other to end, and the rest for the two to start.
    done = subprocess.run(command, env=subprocess_env, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert "rank      : 1 (local_rank: 1)" in done.stderr and "Signal 9 (SIGKILL)" in done.stderr
    pids = [int(path.read_text()) for path in (tmp_path / "out").glob("*.pid")]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
