# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The settings of GradAug, independent of any trainer."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .messages import as_number, as_numbers, shorten
from .slimmable.narrowing import check_width
from .transforms import as_angles, as_scales


SubnetworkKind = Literal["width", "depth", "width_depth"]
NonFiniteLoss = Literal["stop", "skip"]
SubnetworkTargets = Literal["soft", "labels", "queries"]
SETTINGS_NAME = "gradaug_config.json"
_OPTIONS = {
    "subnetwork_kind": SubnetworkKind,
    "subnetwork_targets": SubnetworkTargets,
    "nonfinite_loss": NonFiniteLoss,
}
_NUMBERS = ("min_survival", "min_width", "subnetwork_loss_weight", "temperature", "subnetwork_batch_fraction")
_WIDTHS = ("min_width", "width_choices", "width_divisor")
# How steps are run and guarded. A run may go on with others.
_OF_THE_MACHINE = {"cuda_graphs", "nonfinite_loss"}


@dataclass
class GradAugSettings:
    """
    The settings of GradAug. The defaults are the paper's for ResNet-50 on ImageNet.

    [`GradAugConfig`] combines them with `TrainingArguments`.

    Args:
        num_subnetworks (`int`, *optional*, defaults to `3`):
            Sub-networks trained in each optimizer step, in addition to the full network. 0 turns GradAug off.
        subnetwork_kind (`str`, *optional*, defaults to `"width"`):
            What sub-networks drop: channels (`"width"`), residual blocks (`"depth"`) or both (`"width_depth"`). The
            full network always runs all blocks, so no block's output is scaled by its probability of survival.
        min_survival (`float`, *optional*, defaults to `0.5`):
            With depth: probability that a sub-network keeps the last residual block, in (0, 1]. The probability falls
            linearly from 1 for the first block to this value for the last. The first block of a stage is always kept.
            The authors' code for CIFAR uses 0.8.
        min_width (`float`, *optional*, defaults to `0.9`):
            Smallest width multiplier, in (0, 1]: the fraction of channels that a sub-network keeps. One sub-network per
            step has this width. The widths of the others are uniform in `[min_width, 1]`.
        width_choices (`list[float]`, *optional*):
            Width multipliers to draw from, each in `[min_width, 1]`, instead of the whole interval. One sub-network
            per step still has `min_width`. If `subnetwork_kind` is `"width"`, `torch.compile` then compiles the
            sub-networks too.
        scales (`list[float]`, *optional*, defaults to `[1.0, 6 / 7, 5 / 7, 4 / 7]`):
            Image sizes for the sub-networks, as fractions of the batch's height and width, each in (0, 1]. At 224
            pixels the defaults are 224, 192, 160 and 128. One is drawn for each sub-network.
        rotations (`list[float]`, *optional*):
            Angles in degrees, counter-clockwise. One is drawn for each sub-network. If not given, images are not
            rotated.
        subnetwork_targets (`str`, *optional*, defaults to `"soft"`):
            What the sub-networks learn from. `"soft"`: the full network's predictions, the paper's method for
            single-label classification. `"labels"`: the batch's labels, with the model's own loss, for detectors,
            segmenters and any other model. `"queries"`: the full network's prediction for each query, for models with
            learned queries (DETR, Conditional DETR, Deformable DETR, MaskFormer, Mask2Former).
        subnetwork_loss_weight (`float`, *optional*, defaults to `1.0`):
            Weight of each sub-network's loss, 0 or more. The full network's weight is 1.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the soft targets, above 0.
        width_divisor (`int`, *optional*, defaults to `1`):
            Rounds the sub-networks' channel counts to its multiples, 1 or more. The inner layers of a ResNet
            bottleneck have a quarter of its outer count, so 32 makes them multiples of 8.
        subnetwork_batch_fraction (`float`, *optional*, defaults to `1.0`):
            Fraction of the batch that each sub-network sees, in (0, 1]. The images are evenly spaced in the batch. Up
            to `1 / num_subnetworks`, the sub-networks see different images, apart from rounding. Above that, they share
            some images.
        subnetwork_every (`int`, *optional*, defaults to `1`):
            Trains sub-networks every k-th optimizer step, from the first step on. 1 or more.
        cuda_graphs (`bool`, *optional*, defaults to `False`):
            Captures the passes of the full network and of the sub-networks as CUDA graphs. Needs `subnetwork_targets`
            `"soft"`. There is one capture for each width, image size and batch shape, up to 64. CUDA graphs are faster
            for small networks and batches, where the GPU waits for the CPU. With random widths, set `width_choices` or
            `width_divisor` too. These run without a graph: passes after the 64th capture. Sub-networks with random
            depth. The full network with soft labels, label smoothing or a loss of your own. Passes with other arguments
            than images and labels. With several processes, the pass that synchronizes gradients.
        nonfinite_loss (`str`, *optional*, defaults to `"stop"`):
            What [`GradAugTrainer`] does if a loss or the gradient is NaN or infinite. `"stop"` raises an error before
            anything of the step is saved. `"skip"` skips the optimizer step and counts it, and waits for the device in
            each step. Runs without sub-networks are not checked. Nor are fp16 runs, whose gradient scaler skips such
            steps. See [`~hf_gradaug.training.nonfinite.NonFiniteLossGuard`].

    Raises:
        `ValueError`: If a setting is not a number or is out of range. The error names the setting, its value and the allowed values.
    """

    num_subnetworks: int = field(
        default=3,
        metadata={
            "help": "Sub-networks trained in each optimizer step, in addition to the full network. 0 turns GradAug off."
        },
    )
    subnetwork_kind: SubnetworkKind = field(
        default="width",
        metadata={
            "help": "What sub-networks drop: channels ('width'), residual blocks ('depth') or both ('width_depth')."
        },
    )
    min_survival: float = field(
        default=0.5,
        metadata={
            "help": "With depth: probability that a sub-network keeps the last residual block, in (0, 1]. "
            "The probability falls linearly from 1 for the first block to this value for the last."
        },
    )
    min_width: float = field(
        default=0.9,
        metadata={
            "help": "Smallest width multiplier, in (0, 1]: the fraction of channels that a sub-network keeps. One "
            "sub-network per step has this width. The widths of the others are uniform in [min_width, 1]."
        },
    )
    width_choices: list[float] | None = field(
        default=None,
        metadata={
            "help": "Width multipliers to draw from, each in [min_width, 1], instead of the whole interval. "
            "One sub-network per step still has min_width. With subnetwork_kind width, torch_compile then compiles the sub-networks "
            "too."
        },
    )
    scales: list[float] = field(
        default_factory=lambda: [1.0, 6 / 7, 5 / 7, 4 / 7],
        metadata={
            "help": "Image sizes for the sub-networks, as fractions of the batch's height and width, each in (0, 1]. "
            "One is drawn for each sub-network."
        },
    )
    rotations: list[float] | None = field(
        default=None,
        metadata={
            "help": "Angles in degrees, counter-clockwise. One is drawn for each sub-network. If not given, images are "
            "not rotated."
        },
    )
    subnetwork_targets: SubnetworkTargets = field(
        default="soft",
        metadata={
            "help": "What the sub-networks learn from. 'soft': the full network's predictions, for classification. "
            "'labels': the batch's labels, for any model. 'queries': the full network's prediction for each "
            "query, for detectors and segmenters with learned queries."
        },
    )
    subnetwork_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of each sub-network's loss, 0 or more. The full network's weight is 1."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the soft targets, above 0."})
    width_divisor: int = field(
        default=1,
        metadata={
            "help": "Rounds the sub-networks' channel counts to its multiples, 1 or more. The inner layers of a ResNet "
            "bottleneck have a quarter of its outer count, so 32 makes them multiples of 8."
        },
    )
    subnetwork_batch_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Fraction of the batch that each sub-network sees, in (0, 1]. Up to 1/num_subnetworks, the "
            "sub-networks see different images, apart from rounding. Above that, they share some images."
        },
    )
    subnetwork_every: int = field(
        default=1, metadata={"help": "Train sub-networks every k-th optimizer step, 1 or more."}
    )
    cuda_graphs: bool = field(
        default=False,
        metadata={
            "help": "Capture passes as CUDA graphs, one for each width, image size and batch shape, up to 64. Needs "
            "soft targets. With random depth, sub-networks run eagerly. Faster for small networks and batches. With "
            "random widths, set width_choices or width_divisor too."
        },
    )
    nonfinite_loss: NonFiniteLoss = field(
        default="stop",
        metadata={
            "help": "What to do if a loss or the gradient is NaN or infinite. 'stop' raises an error before anything "
            "of the step is saved. 'skip' skips the optimizer step and counts it, and waits for the device in "
            "each step."
        },
    )

    def __post_init__(self):
        for name, low in (("num_subnetworks", 0), ("width_divisor", 1), ("subnetwork_every", 1)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
                raise ValueError(f"`{name}` must be a whole number, {low} or more, but is {value!r}.")
            setattr(self, name, int(value))
        for name in _NUMBERS:
            value = as_number(getattr(self, name))
            if value is None:
                raise ValueError(f"`{name}` must be a finite number, but is {getattr(self, name)!r}.")
            setattr(self, name, value)
        self.scales = as_scales("scales", self.scales)
        if self.rotations is not None:
            self.rotations = as_angles("rotations", self.rotations)
        if self.width_choices is not None:
            self.width_choices = as_numbers("width_choices", self.width_choices)
        check_width(self.min_width, "min_width")
        for name, options in _OPTIONS.items():
            value = getattr(self, name)
            if value not in get_args(options):
                *others, last = map(repr, get_args(options))
                raise ValueError(f"`{name}` must be {', '.join(others)} or {last}, but is {value!r}.")
        if not 0 < self.min_survival <= 1:
            raise ValueError(f"`min_survival` must be a probability in (0, 1], but is {self.min_survival}.")
        for name, where, is_unused in (
            *((name, "`subnetwork_kind` is 'depth'", not self.draws_width) for name in _WIDTHS),
            ("min_survival", "`subnetwork_kind` is 'width'", not self.draws_depth),
            ("temperature", "`subnetwork_targets` is 'labels'", self.subnetwork_targets == "labels"),
        ):
            value = getattr(self, name)
            if is_unused and value != getattr(GradAugSettings, name):  # the default
                raise ValueError(f"`{name}` must not be set if {where}, which doesn't use it, but is {value}.")
        choices = self.width_choices
        if choices is not None and not all(self.min_width <= width <= 1 for width in choices):
            raise ValueError(
                f"`width_choices` must be one or more width multipliers in [min_width, 1], which is [{self.min_width}, 1], but "
                f"is {choices}."
            )
        if not 0 < self.subnetwork_batch_fraction <= 1:
            raise ValueError(
                f"`subnetwork_batch_fraction` must be in (0, 1], but is {self.subnetwork_batch_fraction}."
            )
        if not self.temperature > 0:
            raise ValueError(f"`temperature` must be above 0, but is {self.temperature}.")
        if not self.subnetwork_loss_weight >= 0:
            raise ValueError(f"`subnetwork_loss_weight` must be 0 or more, but is {self.subnetwork_loss_weight}.")
        if self.cuda_graphs and self.subnetwork_targets != "soft":
            raise ValueError(
                f"`subnetwork_targets` must be 'soft' with `cuda_graphs`, but is {self.subnetwork_targets!r}. The other "
                "losses match objects on the CPU, which a CUDA graph can't capture."
            )

    @property
    def draws_width(self) -> bool:
        return self.subnetwork_kind != "depth"

    @property
    def smallest_width(self) -> float:
        return self.min_width if self.draws_width else 1.0

    @property
    def draws_depth(self) -> bool:
        return self.subnetwork_kind != "width"


def settings_as_dict(settings: GradAugSettings) -> dict[str, Any]:
    """The settings by name, without the Trainer's arguments of a [`GradAugConfig`]."""
    return {item.name: getattr(settings, item.name) for item in dataclasses.fields(GradAugSettings)}


def save_settings(settings: GradAugSettings, folder: str | os.PathLike) -> None:
    """
    Writes the settings to `gradaug_config.json` in a model's folder. With 0 sub-networks, deletes that file instead.

    [`load_settings`] reads them back.

    Args:
        settings ([`GradAugSettings`]):
            The settings of the run. The Trainer's arguments of a [`GradAugConfig`] are not written.
        folder (`str` or `os.PathLike`):
            An existing folder.
    """
    path = Path(folder) / SETTINGS_NAME
    if settings.num_subnetworks == 0:
        path.unlink(missing_ok=True)  # of an earlier run
        return
    path.write_text(json.dumps(settings_as_dict(settings), indent=2) + "\n", "utf-8")


def load_settings(name_or_path: str | os.PathLike, revision: str | None = None) -> GradAugSettings:
    """
    Reads the settings that a model was trained with from the `gradaug_config.json` beside its weights.

    Args:
        name_or_path (`str` or `os.PathLike`):
            A folder or a Hub name.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub. Defaults to `main`.

    Returns:
        [`GradAugSettings`]: The settings, with 0 sub-networks if the model has no such file.

    Raises:
        `ValueError`: If the file has other settings than this version of the package.
        [`~huggingface_hub.errors.LocalEntryNotFoundError`]: If the Hub can't be reached, and it is not known from an
            earlier download whether the model has this file.

    Example:

    ```python
    settings = load_settings("outputs/gradaug")
    ```
    """
    name_or_path = os.fspath(name_or_path)
    is_folder = os.path.isdir(name_or_path)
    path = Path(name_or_path, SETTINGS_NAME) if is_folder else _download_settings(name_or_path, revision)
    stored = _read_settings(path)
    known = settings_as_dict(GradAugSettings())
    if unknown := sorted(stored.keys() - known.keys()):
        raise ValueError(
            f"{SETTINGS_NAME} of '{name_or_path}' must have settings of this version of hf_gradaug, {shorten(known)}, but "
            f"has {shorten(unknown)}."
        )
    return GradAugSettings(**stored)


def _read_settings(path: Path | None) -> dict[str, Any]:
    """What a run stored. A model without the file was trained without sub-networks."""
    return json.loads(path.read_text("utf-8")) if path is not None and path.is_file() else {"num_subnetworks": 0}


def _download_settings(name: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(name, SETTINGS_NAME, revision=revision))
    except EntryNotFoundError as error:
        # Without the Hub, the download fails even if the cache knows that there is no such file.
        is_known = try_to_load_from_cache(name, SETTINGS_NAME, revision=revision) is _CACHED_NO_EXIST
        if isinstance(error, LocalEntryNotFoundError) and not is_known:
            raise
        return None


def describe_changes(settings: GradAugSettings, checkpoint: str | os.PathLike) -> list[str]:
    """
    Compares the settings of a run with those of a checkpoint.

    Args:
        settings ([`GradAugSettings`]):
            The settings of the run.
        checkpoint (`str` or `os.PathLike`):
            A checkpoint of the Trainer. In a sharded format it may hold no settings.

    Returns:
        `list[str]`: A description of each setting with another value. If either trains without sub-networks, only their
        number.
    """
    path = Path(checkpoint) / SETTINGS_NAME
    if not path.is_file() and not path.with_name("config.json").is_file():  # both are saved with the weights
        return []
    stored = _read_settings(path)
    own = settings_as_dict(settings)
    names = stored.keys() & own.keys() - _OF_THE_MACHINE
    if 0 in (own["num_subnetworks"], stored["num_subnetworks"]):
        names = {"num_subnetworks"}
    return [f"{name} was {stored[name]} and is {own[name]}" for name in sorted(names) if own[name] != stored[name]]
