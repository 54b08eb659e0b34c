# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Durable long runs: checkpoints, Hub pushes, preemption, streams, several processes, non-finite losses."""

from .checkpoints import CheckpointDamage, find_checkpoint, find_damage
from .distributed import no_sync, shard_as_one_unit
from .durable import DurableTrainerMixin
from .fault_tolerance import FaultToleranceMixin
from .hub import HubMixin, HubPushError
from .nonfinite import NonFiniteLossGuard
from .preemption import StopOnSignal, end_with_launcher
from .step_log import LossParts, StepLog
from .stream import StreamMixin


__all__ = [
    "CheckpointDamage",
    "DurableTrainerMixin",
    "FaultToleranceMixin",
    "HubMixin",
    "HubPushError",
    "LossParts",
    "NonFiniteLossGuard",
    "StepLog",
    "StopOnSignal",
    "StreamMixin",
    "end_with_launcher",
    "find_checkpoint",
    "find_damage",
    "no_sync",
    "shard_as_one_unit",
]
