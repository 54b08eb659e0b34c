# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Trains tiny models, in one process or in several started by `torchrun`, and saves what the tests compare.

    torchrun --nproc_per_node 2 tests/helpers/scripts/train_tiny.py '[{"output": "out", "per_device_train_batch_size": 4}]'

The only argument is a list of jobs, which run one after the other. A job has the folder `output`, `family` (of
`tiny.FAMILIES`, by default convnext), its `depths`, `kind`, and arguments of the Trainer. The kind is `plain`,
`own_loss` (with `compute_loss_func`), `nan` (not a number in the last process alone) or `fsdp` (FSDP2).
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback, default_data_collator


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers.tiny import tiny_model, tiny_trainer  # noqa: E402


class CountSynchronizations(TrainerCallback):
    """Counts the synchronizations of gradients: buckets that DistributedDataParallel or ZeRO reduces, reduce-scatters of FSDP2."""

    def __init__(self):
        self.trainer, self.count = None, 0

    def on_train_begin(self, args, state, control, **kwargs):
        model = self.trainer.model_wrapped
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model.register_comm_hook(None, self.reduce_bucket)
        elif isinstance(model, FSDPModule):
            has_new_name = hasattr(torch.distributed, "reduce_scatter_single")  # since PyTorch 2.14
            name = "reduce_scatter_single" if has_new_name else "reduce_scatter_tensor"
            self.reduce_scatter = getattr(torch.distributed, name)
            setattr(torch.distributed, name, self.reduce_unit)
        elif self.trainer.is_deepspeed_enabled:
            self.average_tensor = model.optimizer.average_tensor
            model.optimizer.average_tensor = self.average_bucket

    def reduce_bucket(self, state, bucket):
        self.count += 1
        return allreduce_hook(state, bucket)

    def reduce_unit(self, *args, **kwargs):
        self.count += 1
        return self.reduce_scatter(*args, **kwargs)

    def average_bucket(self, *args, **kwargs):
        self.count += 1
        return self.average_tensor(*args, **kwargs)


def own_loss(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def spoil(inputs: dict) -> dict:
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        inputs["pixel_values"] = torch.full_like(inputs["pixel_values"], float("nan"))
    return inputs


def use_fsdp() -> None:
    """What `accelerate launch` would set. Accelerate knows FSDP on accelerators only, so it takes the CPUs for some."""
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_RESHARD_AFTER_FORWARD="true")
    os.environ.update(FSDP_STATE_DICT_TYPE="FULL_STATE_DICT", FSDP_CPU_RAM_EFFICIENT_LOADING="false")
    start = PartialState.__init__

    def start_as_accelerators(self, *args, **kwargs):
        start(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    PartialState.__init__ = start_as_accelerators


def use_deepspeed() -> None:
    """Without its operation for processes that share a memory, which a machine compiles at first for over a minute."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def train(output: str, family: str = "convnext", kind: str = "plain", depths: list[int] | None = None, **args) -> None:
    counter = CountSynchronizations()
    trainer_kwargs = {"callbacks": [counter]}
    if kind == "own_loss":
        trainer_kwargs["compute_loss_func"] = own_loss
    elif kind == "nan":
        trainer_kwargs["data_collator"] = lambda examples: spoil(default_data_collator(examples))
    trainer = tiny_trainer(
        output,
        tiny_model(family, **({} if depths is None else {"depths": depths})),
        trainer_kwargs=trainer_kwargs,
        nonfinite_loss="skip" if kind == "nan" else "stop",
        max_grad_norm=0.0,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        **args,
    )
    counter.trainer = trainer
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    trainer.save_model()
    if trainer.is_world_process_zero():
        torch.save(state, Path(output) / "state.pt")
        result = {
            "synchronizations": counter.count,
            "sharded": isinstance(trainer.model_wrapped, FSDPModule),
            "processes": trainer.accelerator.num_processes,
            "log": trainer.state.log_history,
        }
        (Path(output) / "result.json").write_text(json.dumps(result))


def main(jobs: str) -> None:
    torch.set_num_threads(1)
    jobs = json.loads(jobs)
    if any(job.get("kind") == "fsdp" for job in jobs):
        use_fsdp()
    if any("deepspeed" in job for job in jobs):
        use_deepspeed()
    for job in jobs:
        train(**job)
        AcceleratorState._reset_state()  # the next job may have another configuration
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # one that still waits for another one's answer would abort
        torch.distributed.destroy_process_group()  # gloo aborts at exit otherwise


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's own end, in which threads of gloo that are still there have aborted processes at random.
    os._exit(0)
