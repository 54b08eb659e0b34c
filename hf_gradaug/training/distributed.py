# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What several backwards in a step need of FSDP2, DeepSpeed and DistributedDataParallel."""

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


def shard_as_one_unit(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> None:
    """
    Shards a model's parameters, gradients and optimizer states over the processes, in place, as a single unit of FSDP2.

    A sub-network slices the parameters inside of the model's forward, where all of them have to be whole. Accelerate makes
    units of their own of embeddings, final norm and head, but leaves a model alone that is sharded already.

    Args:
        model (`nn.Module`):
            The model, before the optimizer is made.
        plugin ([`~accelerate.utils.FullyShardedDataParallelPlugin`]):
            Its mixed precision and offloading.

    Raises:
        `ValueError`: If a part of the model is a unit of its own, the plugin asks for what only Accelerate's own units have,
            or there are more processes than a parameter has rows.
    """
    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    if any(units):
        raise ValueError(
            f"GradAug needs the whole model to be one unit of FSDP2, but {next(filter(None, units))!r} is one of its own. Call "
            "`fully_shard` on the model alone, or leave it to the trainer."
        )
    if units:
        return
    for name, default in (
        ("cpu_ram_efficient_loading", False),
        ("activation_checkpointing", False),
        ("ignored_modules", None),
    ):
        if value := getattr(plugin, name):
            raise ValueError(f"GradAug needs `{name}` of FSDP to be {default}, but it is {value}.")
    num_processes = torch.distributed.get_world_size()
    for name, parameter in model.named_parameters():
        if len(parameter) < num_processes:  # Accelerate tells parameters by the addresses of their parts
            raise ValueError(
                f"FSDP2 gives each process some rows of each parameter, but {name!r} has {len(parameter)} for {num_processes} "
                "processes. Use fewer, or DistributedDataParallel."
            )
        if plugin.mixed_precision_policy is not None and parameter.requires_grad:
            parameter.data = parameter.data.float()  # as Accelerate does: the policy casts for the computation
    policy = plugin.mixed_precision_policy or MixedPrecisionPolicy()
    fully_shard(model, mp_policy=policy, offload_policy=plugin.cpu_offload)


@contextlib.contextmanager
def no_sync(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """
    Leaves out the synchronization of gradients in a pass's backward, and the step that DeepSpeed takes there.

    [`~accelerate.Accelerator.no_sync`] doesn't know DeepSpeed, and in FSDP2 it turns synchronization on at its end, in a
    micro-batch that doesn't synchronize too.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            What prepared the model.
        model (`nn.Module`):
            The prepared model.
    """
    synchronizes = accelerator.sync_gradients
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.sync_gradients = False
        try:
            yield
        finally:
            accelerator.sync_gradients = synchronizes
    elif accelerator.is_fsdp2:
        # The next pass needs the gathered parameters again, and the peak is inside of a pass, where they are there anyway.
        model.set_requires_gradient_sync(False)
        model.set_reshard_after_backward(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(synchronizes)
            model.set_reshard_after_backward(synchronizes)
    else:
        with accelerator.no_sync(model):
            yield
