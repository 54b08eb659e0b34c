# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Trains a tiny model in two processes, the second of which dies in the middle of a step: `torchrun train_and_die.py OUTPUT`."""

import os
import signal
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers.tiny import tiny_trainer  # noqa: E402

from hf_gradaug import StopOnSignal  # noqa: E402
from hf_gradaug.passes import SubnetworkPass  # noqa: E402


torch.set_num_threads(1)
output = Path(sys.argv[1])
output.mkdir(exist_ok=True)
rank = int(os.environ["RANK"])
(output / f"{rank}.pid").write_text(str(os.getpid()))
loss, calls = SubnetworkPass.loss, []


def die(self, *args, **kwargs):
    calls.append(self)
    if rank == 1 and len(calls) == 5:  # the third pass of the second step, whose first is the full network's
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(self, *args, **kwargs)


SubnetworkPass.loss = die
# With the handler that takes the SIGTERM by which the launcher ends the others.
trainer = tiny_trainer(output, trainer_kwargs={"callbacks": [StopOnSignal()]}, ddp_backend="gloo")
trainer.train()
