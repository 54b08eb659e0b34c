# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""On SIGTERM, saves a checkpoint and stops."""

import functools
import os
import signal
import threading
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from transformers import TrainerCallback
from transformers.training_args import ParallelMode


def _outlive(signals: Sequence[signal.Signals], init: Callable[[int], None] | None, worker_id: int) -> None:
    """Makes a worker end at these signals only if its parent, which so ends what it no longer needs, has sent them."""
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
    On a signal, saves a checkpoint after the current optimizer step and stops.

    Batch schedulers and cloud machines send SIGTERM some time before they kill a job. The checkpoint is complete: it is saved
    between steps. With several processes, one signal to one of them is enough. An evaluation due at the same step is skipped.

    A step and a save must fit into the time before the kill, 30 seconds with `torchrun`. Slurm also signals the data-loading
    workers. Workers of the training run until their process ends them, because the current step needs them.

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
        self._previous: dict[signal.Signals, object] = {}
        self._pid: int | None = None

    def _handle(self, number: int, frame: object) -> None:
        if os.getpid() != self._pid:
            # A process that was forked from this one: the signal means there what it did before.
            signal.signal(number, self._previous[number] or signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._pending = number

    def restore(self) -> None:
        """Gives the signals their earlier handlers back. Done at the end of the training."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_train_begin(self, args, state, control, **kwargs):
        self.restore()
        self.received, self._pending, self._pid = None, 0, os.getpid()
        for number in self.signals:
            self._previous[number] = signal.signal(number, self._handle)
        loader = kwargs.get("train_dataloader")
        loader = getattr(loader, "base_dataloader", loader)  # Accelerate's is around PyTorch's
        if getattr(loader, "num_workers", 0) > 0:
            loader.worker_init_fn = functools.partial(_outlive, self.signals, loader.worker_init_fn)

    def on_step_end(self, args, state, control, **kwargs):
        pending = self._pending
        if args.parallel_mode == ParallelMode.DISTRIBUTED:
            agreed = torch.tensor(pending, dtype=torch.int32, device=args.device)
            dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
            pending = int(agreed)
        if pending:
            self.received = signal.Signals(pending)
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.received:  # the Trainer comes here on its way out: what is due at an epoch's end isn't, in its middle
            control.should_save = control.should_evaluate = control.should_log = False

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()
