# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Small models and data, built from configs, for the tests."""

import torch
from torch.utils.data import Dataset
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_gradaug import GradAugConfig, GradAugTrainer


NUM_LABELS = 3
SIZE = 32

FAMILIES = {
    "resnet-basic": lambda: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24], depths=[2, 1, 1], layer_type="basic"
    ),
    "resnet-bottleneck": lambda: ResNetConfig(embedding_size=16, hidden_sizes=[64, 96], depths=[2, 1]),
    "resnet-bottleneck-downsample": lambda: ResNetConfig(
        embedding_size=16, hidden_sizes=[64, 96], depths=[2, 1], downsample_in_bottleneck=True
    ),
    # Not the usual stem: as wide as the first stage, so that the first block has no projection shortcut.
    "resnet-wide-stem": lambda: ResNetConfig(embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1]),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[10, 20, 30], depths=[1, 2, 1], num_stages=3),
    "convnextv2": lambda: ConvNextV2Config(hidden_sizes=[10, 20, 30], depths=[1, 2, 1], num_stages=3),
}
_CLASSES = {
    "resnet": ResNetForImageClassification,
    "convnext": ConvNextForImageClassification,
    "convnextv2": ConvNextV2ForImageClassification,
}


def tiny_config(family: str, **changes):
    config = FAMILIES[family]()
    config.num_labels = NUM_LABELS
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Gives every parameter and buffer random values, so that none hides behind an initial 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(0.5 + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
                if tensor.ndim > 1 and min(tensor.shape) > 1:
                    tensor.sub_(0.5)
    return model


def tiny_model(family: str = "convnext", seed: int = 0, **changes) -> PreTrainedModel:
    config = tiny_config(family, **changes)
    return randomize(_CLASSES[config.model_type](config), seed)


def tiny_images(batch_size: int = 4, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    return torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(seed))


class TinyImages(Dataset):
    """Random images whose mean tells their label."""

    def __init__(self, length: int = 32, size: int = SIZE):
        self.labels = torch.arange(length) % NUM_LABELS
        self.images = tiny_images(length, seed=1, size=size) + self.labels.view(-1, 1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.images[index], "labels": int(self.labels[index])}


def tiny_trainer(output_dir, model=None, cls=GradAugTrainer, args_cls=GradAugConfig, trainer_kwargs=None, **args):
    """A trainer of a few steps on the CPU."""
    defaults = {
        "output_dir": str(output_dir),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    kwargs = {"train_dataset": TinyImages(), "eval_dataset": TinyImages(12), **(trainer_kwargs or {})}
    if "model_init" not in kwargs:
        kwargs["model"] = tiny_model() if model is None else model
    return cls(args=args_cls(**{**defaults, **args}), **kwargs)


def parameters_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max((left[name].double() - right[name].double()).abs().max().item() for name in left)


def subnetwork_losses(trainer) -> list[float]:
    """The sub-networks' losses in the log, one for each logged line that has one."""
    return [row["loss_subnetworks"] for row in trainer.state.log_history if "loss_subnetworks" in row]
