# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Support for several backwards per step with FSDP2, DeepSpeed and DistributedDataParallel."""

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import Trainer
from transformers.training_args import OptimizerNames, ParallelMode

from ..settings import GradAugSettings


def check_can_train(trainer: Trainer, model: nn.Module | None, settings: GradAugSettings) -> None:
    """
    Raises a `ValueError` if GradAug doesn't support this setup.

    Args:
        trainer ([`~transformers.Trainer`]): The trainer, for its accelerator and arguments.
        model (`nn.Module`, *optional*): The model to train, if known.
        settings ([`GradAugSettings`]): Settings with at least one sub-network.
    """
    args, optim = trainer.args, OptimizerNames(trainer.args.optim)
    is_deepspeed, is_fsdp = trainer.is_deepspeed_enabled, trainer.is_fsdp_enabled
    refusals = [
        (
            len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1,
            "GradAug can't train a model that `device_map` spreads over several devices. Load it without `device_map`.",
        ),
        (
            args.parallel_mode == ParallelMode.NOT_DISTRIBUTED,
            f"GradAug can't train with `nn.DataParallel`, whose replicas have no parameters to slice, but {args.n_gpu} GPUs are "
            "visible to one process. Start one process per GPU, `accelerate launch script.py`, or make one GPU visible, "
            "`CUDA_VISIBLE_DEVICES=0`.",
        ),
        (
            is_deepspeed and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3,
            "GradAug can't train with stage 3 of DeepSpeed's ZeRO, where the parameters that sub-networks slice are whole inside "
            "of their own layer only. Use stage 2 or less, or FSDP2.",
        ),
        (
            is_deepspeed and settings.nonfinite_loss == "skip",
            "`nonfinite_loss` must be 'stop' with DeepSpeed, whose engine steps in the last backward, but is 'skip'.",
        ),
        (
            is_fsdp and not trainer.accelerator.is_fsdp2,
            "GradAug can't train with the first version of FSDP, which flattens the parameters that sub-networks slice. Set "
            "`fsdp_version: 2` in the configuration of Accelerate, or use DistributedDataParallel.",
        ),
        (
            optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO) or "layerwise" in optim.value,
            f"GradAug can't train with `optim={optim.value!r}`: it runs one backward for each network, and this optimizer steps "
            "in the backward. Use one that steps after it, such as 'adamw_torch' or 'sgd'.",
        ),
    ]
    for name, is_on in (
        ("FSDP", is_fsdp),
        ("DeepSpeed", is_deepspeed),
        ("torch_compile", args.torch_compile),
        (f"the device {args.device.type!r}", args.device.type != "cuda"),
    ):
        refusals.append((settings.cuda_graphs and is_on, f"`cuda_graphs` must be False with {name}, but is True."))
    for refuses, message in refusals:
        if refuses:
            raise ValueError(message)


def shard_as_one_unit(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> None:
    """
    Shards a model's parameters, gradients and optimizer states over the processes, in place, as one unit of FSDP2.

    A sub-network slices the parameters inside the model's forward, where all of them must be gathered. Accelerate
    would make separate units of embeddings, final norm and head. It skips a model that is already sharded.

    Args:
        model (`nn.Module`):
            The model, before the optimizer is made.
        plugin ([`~accelerate.utils.FullyShardedDataParallelPlugin`]):
            The plugin, for its mixed precision and offloading.

    Raises:
        `ValueError`: If a part of the model is a separate unit, the plugin needs Accelerate's own units, or a
            parameter has fewer rows than there are processes.
    """
    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    if any(units):
        raise ValueError(
            f"GradAug needs the whole model to be one unit of FSDP2, but {next(filter(None, units))!r} is a separate unit. Call "
            "`fully_shard` only on the model, or let the trainer call it."
        )
    if units:
        return
    for name, default in (
        ("cpu_ram_efficient_loading", False),
        ("activation_checkpointing", False),
        ("ignored_modules", None),
    ):
        if value := getattr(plugin, name):
            raise ValueError(f"`{name}` of FSDP must be {default} with GradAug, but is {value}.")
    num_processes = torch.distributed.get_world_size()
    for name, parameter in model.named_parameters():
        if len(parameter) < num_processes:  # Accelerate identifies parameters by the addresses of their parts
            raise ValueError(
                f"FSDP2 needs a row of each parameter for each process, but {name!r} has {len(parameter)} for {num_processes} "
                "processes. Use fewer processes, or DistributedDataParallel."
            )
        if plugin.mixed_precision_policy is not None and parameter.requires_grad:
            parameter.data = parameter.data.float()  # as Accelerate does: the policy casts for the computation
    policy = plugin.mixed_precision_policy or MixedPrecisionPolicy()
    fully_shard(model, mp_policy=policy, offload_policy=plugin.cpu_offload)


@contextlib.contextmanager
def no_sync(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """
    Skips gradient synchronization, and DeepSpeed's step, in a pass's backward.

    [`~accelerate.Accelerator.no_sync`] doesn't support DeepSpeed. With FSDP2 it turns synchronization on at its end,
    even in a micro-batch that doesn't synchronize.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            The accelerator that prepared the model.
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
