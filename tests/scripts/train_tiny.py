# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Trains a tiny ConvNeXt, in one process or in several started by `torchrun`, and saves what the tests compare.

    torchrun --nproc_per_node 2 tests/scripts/train_tiny.py OUTPUT BATCH_SIZE NUM_SUBNETWORKS ACCUMULATION KIND

KIND is `plain`, `own_loss` (with `compute_loss_func`) or `nan` (not a number in the last process alone).
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import TrainerCallback, default_data_collator


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny import state_of, tiny_model, tiny_trainer  # noqa: E402


class CountSynchronizations(TrainerCallback):
    """Counts the gradient buckets that DistributedDataParallel reduces."""

    def __init__(self):
        self.trainer, self.buckets = None, 0

    def on_train_begin(self, args, state, control, **kwargs):
        if torch.distributed.is_initialized():
            self.trainer.model_wrapped.register_comm_hook(None, self.reduce)

    def reduce(self, state, bucket):
        self.buckets += 1
        return allreduce_hook(state, bucket)


def own_loss(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def spoil(inputs: dict) -> dict:
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        inputs["pixel_values"] = torch.full_like(inputs["pixel_values"], float("nan"))
    return inputs


def main(output: str, batch_size: str, num_subnetworks: str, accumulation: str, kind: str) -> None:
    torch.set_num_threads(1)
    counter = CountSynchronizations()
    trainer_kwargs = {"callbacks": [counter]}
    if kind == "own_loss":
        trainer_kwargs["compute_loss_func"] = own_loss
    elif kind == "nan":
        trainer_kwargs["data_collator"] = lambda examples: spoil(default_data_collator(examples))
    trainer = tiny_trainer(
        output,
        tiny_model("convnext"),
        trainer_kwargs=trainer_kwargs,
        per_device_train_batch_size=int(batch_size),
        num_subnetworks=int(num_subnetworks),
        gradient_accumulation_steps=int(accumulation),
        nonfinite_loss="skip",
        max_grad_norm=0.0,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
    )
    counter.trainer = trainer
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(state_of(trainer.model), Path(output) / "state.pt")
        result = {
            "buckets": counter.buckets,
            "processes": trainer.accelerator.num_processes,
            "log": trainer.state.log_history,
        }
        (Path(output) / "result.json").write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # gloo aborts at exit otherwise


if __name__ == "__main__":
    main(*sys.argv[1:])
