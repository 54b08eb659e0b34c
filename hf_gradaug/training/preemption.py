# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Saves a checkpoint and stops on a signal, such as SIGTERM."""

import ctypes
import functools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback
from transformers.training_args import ParallelMode


_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_LAUNCHER = re.compile(rb"accelerate(\0launch|-launch|\.commands\.launch)\0")


def end_with_launcher() -> None:
    """
    Sends this process SIGTERM when its `accelerate launch` exits. Call it first in a training script.

    With one process, `accelerate launch` doesn't pass on signals: on SIGTERM it exits, and the script continues. With
    this call, the script gets SIGTERM too, so [`StopOnSignal`] saves a checkpoint and stops. The launcher doesn't wait
    for this. If the script is killed together with the launcher, as in a container, start one process with `python`
    instead.

    The function has no effect if another program started the process, or on systems other than Linux.
    """
    if sys.platform != "linux":
        return
    launcher = os.getppid()
    if _LAUNCHER.search(Path(f"/proc/{launcher}/cmdline").read_bytes()):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:  # it ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGTERM)


def _outlive(signals: Sequence[signal.Signals], init: Callable[[int], None] | None, worker_id: int) -> None:
    """Makes a worker ignore these signals unless its parent sent them to end it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def wait() -> None:
        while signal.sigwaitinfo(signals).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
    if init is not None:
        init(worker_id)


class StopOnSignal(TrainerCallback):
    """
    On a signal, saves a checkpoint after the current optimizer step and stops; with several GPUs, one step later.

    Batch schedulers and cloud machines send SIGTERM some time before they kill a job. The checkpoint is complete: it
    is saved between steps. With several processes, a signal to one of them is enough. A repeated signal has no effect,
    except a second SIGINT (Ctrl-C) after a second or more, which interrupts at once. An evaluation that is due at the
    same step is skipped. An evaluation that is already running finishes first, and one more step follows.

    A step and a save must fit into the time before the kill: `torchrun` and `accelerate launch` with several processes
    kill their processes 30 seconds after they passed the signal on. For `accelerate launch` with one process, see
    [`~hf_gradaug.training.end_with_launcher`]. Workers that load training images ignore the signals, because the
    current step needs them; they end with their process.

    Args:
        signals (`Sequence[signal.Signals]`, *optional*, defaults to `(signal.SIGTERM,)`):
            The signals to stop on.

    Attributes:
        received (`signal.Signals`, *optional*):
            The signal that stopped the run, or `None`. The usual exit code is 128 plus its number.

    Example:

    ```python
    stop = StopOnSignal()
    trainer.add_callback(stop)
    trainer.train()
    if stop.received:
        sys.exit(128 + stop.received)
    ```
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM,)):
        self.signals = tuple(signals)
        self.received: signal.Signals | None = None
        self._pending = 0
        self._since = 0.0
        self._previous: dict[signal.Signals, object] = {}
        self._pid: int | None = None
        self._asked: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def _handle(self, number: int, frame: object) -> None:
        if os.getpid() != self._pid:
            # A process that was forked from this one. A terminal sends SIGINT to all: workers that load images of an
            # evaluation go on. Any other signal means there what it did before.
            if number != signal.SIGINT:
                signal.signal(number, self._previous[number] or signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if not self._pending:
            self._pending, self._since = number, now
        elif number == signal.SIGINT and now - self._since >= 1:  # sooner, it is the first one, passed on
            raise KeyboardInterrupt

    def restore(self) -> None:
        """Restores the earlier signal handlers. Called at the end of the run."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_train_begin(self, args, state, control, **kwargs):
        self.restore()
        self.received, self._pending, self._asked, self._pid = None, 0, None, os.getpid()
        for number in self.signals:
            self._previous[number] = signal.signal(number, self._handle)
        loader = kwargs.get("train_dataloader")
        loader = getattr(loader, "base_dataloader", loader)  # Accelerate's is around PyTorch's
        if getattr(loader, "num_workers", 0) > 0:
            loader.worker_init_fn = functools.partial(_outlive, self.signals, loader.worker_init_fn)

    def on_step_end(self, args, state, control, **kwargs):
        pending = self._pending
        if args.parallel_mode == ParallelMode.DISTRIBUTED:
            pending = self._agree(pending, args.device, wait=control.should_save or control.should_training_stop)
        if pending:
            self.received = signal.Signals(pending)
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def _agree(self, pending: int, device: torch.device, wait: bool) -> int:
        """The largest signal of all processes. On a GPU, without `wait`, this is the previous step's answer."""
        agreed = torch.full((), pending, dtype=torch.int32, device=device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        if device.type != "cuda":
            return int(agreed)
        answer = torch.empty_like(agreed, device="cpu", pin_memory=True).copy_(agreed, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        earlier, self._asked = self._asked, (answer, copied)
        answer, copied = self._asked if wait or earlier is None else earlier
        copied.synchronize()
        return int(answer)

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.received:  # the Trainer comes here on its way out: what is due at an epoch's end isn't, in its middle
            control.should_save = control.should_evaluate = control.should_log = False

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()
