# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Finds the newest complete checkpoint of a folder, and loads the weights of a checkpoint."""

import copy
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..slimmable.model import SlimmableModel


# The Trainer writes it last, so it marks a complete save.
_STATE = "trainer_state.json"
# What transformers leaves beside the files of a checkpoint that it writes on a signal, until they are all there.
_SENTINEL = "checkpoint-is-incomplete.txt"
_WEIGHTS = re.compile(r"(model|adapter_model)\.safetensors(\.index\.json)?|(pytorch_model|adapter_model).*")
# What the Trainer loads with `torch.load`: these may hold tensors and numbers, and no other Python objects.
_LOADED = re.compile(r"(optimizer|scheduler|scaler|pytorch_model.*|adapter_model|rng_state(_\d+)?)\.(pt|pth|bin)")
# What a resumed run reads beside them. DeepSpeed and FSDP2 have folders.
_READ = re.compile(r"model-\d+-of-\d+\.safetensors|stream_state_\d+\.json|global_step\d+|latest|optimizer_\d+")
# What else the Trainer, transformers and this package write. All other files are a user's own, in formats of their own.
_WRITTEN = re.compile(
    r"trainer_state\.json|training_args\.bin|special_tokens_map\.json|added_tokens\.json|tokenizer\.json"
    r"|((generation|(video_)?preprocessor|processor|tokenizer|adapter|gradaug)_)?config\.json"
)
# Of an optimizer's group: what is no setting, moves with the schedule, or chooses among implementations.
_NO_SETTINGS = {"params", "param_names", "lr", "foreach", "fused", "capturable", "differentiable"}


@dataclass(frozen=True)
class CheckpointDamage:
    """
    The fault of a checkpoint.

    Attributes:
        path (`str`):
            The faulty file.
        reason (`str`):
            The fault.
        is_unfinished (`bool`, *optional*, defaults to `False`):
            Whether the save was interrupted. Such a folder never was a checkpoint.
    """

    path: str
    reason: str
    is_unfinished: bool = False

    def __str__(self) -> str:
        return f"'{self.path}' {self.reason}"


def find_damage(folder: str | os.PathLike) -> CheckpointDamage | None:
    """
    The first fault that makes a checkpoint unusable, if any.

    No Python object of a checkpoint is built here. A file of the Trainer that holds more than tensors, numbers and
    plain containers counts as corrupt, because such a pickle could run code. The files that DeepSpeed and FSDP2's
    sharded format write for themselves are only checked for existence. Your own files are not looked at.

    Args:
        folder (`str` or `os.PathLike`):
            A checkpoint of the Trainer, with the training state or of the model alone (`save_only_model`).

    Returns:
        [`CheckpointDamage`], *optional*: `None` if all files exist and are complete.
    """
    folder = Path(folder)
    names = {path.name for path in folder.iterdir()}
    if _SENTINEL in names:
        return CheckpointDamage(str(folder / _SENTINEL), "is there: the save was cut off", is_unfinished=True)
    if _STATE not in names:
        return CheckpointDamage(str(folder / _STATE), "is missing: the save was cut off", is_unfinished=True)
    missing = _find_missing(folder, names)
    if missing is not None:
        return CheckpointDamage(str(folder / missing), "is missing")
    for path in _written(folder):
        try:
            _check_file(path)
        except Exception as error:  # each library has its own for a file that it can't read
            reason = f"is truncated or damaged ({type(error).__name__}: {str(error).splitlines()[0]})"
            return CheckpointDamage(str(path), reason, is_unfinished=path.name == _STATE)
    return None


def _written(folder: Path) -> list[Path]:
    """The files that the Trainer, transformers and this package wrote. PEFT's adapters have folders."""
    patterns = (_WEIGHTS, _LOADED, _READ, _WRITTEN)
    paths = [path for path in folder.iterdir() if any(pattern.fullmatch(path.name) for pattern in patterns)]
    paths += [
        *folder.glob("*/adapter_model.*"),
        *folder.glob("*/adapter_config.json"),
        *folder.glob("global_step*/*.pt"),
    ]
    return sorted(path for path in paths if path.is_file())


def _find_missing(folder: Path, names: set[str]) -> str | None:
    if not any(_WEIGHTS.fullmatch(name) for name in names):
        return "model.safetensors"
    state = {
        "optimizer.pt": any(re.fullmatch(r"optimizer(\.pt|\.bin|_\d+)", name) for name in names),
        "scheduler.pt": "scheduler.pt" in names,
        "rng_state.pth": any(re.fullmatch(r"rng_state(_\d+)?\.pth", name) for name in names),
    }
    if any(re.fullmatch(r"global_step\d+", name) for name in names):  # DeepSpeed's, with optimizer and schedule inside
        if "latest" not in names:  # which it writes last
            return "latest"
        state = {"rng_state.pth": state["rng_state.pth"]}
    if any(state.values()) and not all(state.values()):  # none at all: a checkpoint of the model alone
        return next(name for name, is_there in state.items() if not is_there)
    processes = {int(match[1]) for name in names if (match := re.fullmatch(r"rng_state_(\d+)\.pth", name))}
    if processes:  # one file a process, and a single process has no number
        absent = set(range(max(2, max(processes) + 1))) - processes
        if absent:
            return f"rng_state_{min(absent)}.pth"
    for index in [path for path in _written(folder) if path.name.endswith(".index.json")]:
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            continue  # damaged: found where the files are read
        for shard in sorted(shards):
            if not (index.parent / shard).is_file():
                return str((index.parent / shard).relative_to(folder))
    for part in folder.rglob("*.distcp"):
        if not (part.parent / ".metadata").is_file():  # written last by torch.distributed.checkpoint
            return str((part.parent / ".metadata").relative_to(folder))
    return None


def _check_file(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text("utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):  # compares the size of the file with its header
            pass
    elif path.suffix in (".pt", ".pth", ".bin"):
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip() if torch.serialization.get_crc32_options() else None
        if bad is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {bad}")
        if _LOADED.fullmatch(path.name):
            with safe_globals():
                torch.load(path, map_location="meta", mmap=True, weights_only=True)


def clear_checkpoint(folder: str | os.PathLike) -> None:
    """
    Removes a checkpoint's files from a folder, so that they don't mix with new ones. Other files stay.

    Args:
        folder (`str` or `os.PathLike`):
            The folder. It may be missing.
    """
    for path in Path(folder).glob("*"):
        if path.name in (_STATE, _SENTINEL) or any(
            pattern.fullmatch(path.name) for pattern in (_WEIGHTS, _LOADED, _READ)
        ):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def find_checkpoint(output_dir: str | os.PathLike) -> tuple[str | None, list[CheckpointDamage]]:
    """
    The newest usable checkpoint of a folder.

    Args:
        output_dir (`str` or `os.PathLike`):
            The folder of a run, with checkpoints named `checkpoint-<step>`.

    Returns:
        `tuple[str | None, list[CheckpointDamage]]`: Its path, or `None`, and the fault of each newer
        checkpoint.
    """
    folders = {}
    if os.path.isdir(output_dir):
        for path in Path(output_dir).iterdir():
            match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
            if match and path.is_dir():
                folders[int(match[1])] = path
    damages = []
    for step in sorted(folders, reverse=True):
        damage = find_damage(folders[step])
        if damage is None:
            return str(folders[step]), damages
        damages.append(damage)
    return None, damages


def load_weights(folder: str | os.PathLike, model: nn.Module) -> bool:
    """
    Loads a checkpoint's weights if they are stored under other names than the model's.

    transformers saves the weights of many families (ViT, Swin, SegFormer, DETR, ...) under the names of older versions.
    `from_pretrained` knows them. The Trainer doesn't: it would keep the weights that the model has.

    Args:
        folder (`str` or `os.PathLike`):
            A checkpoint.
        model (`nn.Module`):
            The model. If the weights are not loaded here, it doesn't change.

    Returns:
        `bool`: Whether the weights are loaded. If not, the Trainer can load them.

    Raises:
        `ValueError`: If the model has weights of another shape, or more of them.
    """
    own, stored = model.state_dict(), {}
    for path in Path(folder).glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored.update((name, tuple(file.get_slice(name).get_shape())) for name in sorted(file.keys()))
    if not isinstance(model, PreTrainedModel) or stored.keys() <= own.keys():
        others = {name: shape for name, shape in stored.items() if name in own and shape != own[name].shape}
        # Of two names of one tensor, one is stored.
        addresses = {own[name].data_ptr() for name in stored if name in own}
        missing = {name for name, tensor in own.items() if stored and tensor.data_ptr() not in addresses}
        missing -= set(getattr(model, "_keys_to_ignore_on_save", None) or ())
        _check_same_model(folder, own, others, missing)
        return False
    loaded, others, missing = _load_renamed(folder, model)
    _check_same_model(folder, own, others, missing)
    model.load_state_dict(loaded.state_dict())
    return True


def _load_renamed(
    folder: str | os.PathLike, model: PreTrainedModel
) -> tuple[PreTrainedModel, dict[str, tuple[int, ...]], set[str]]:
    """A plain model with the weights of a checkpoint, the shapes of those that don't fit, and the names of the missing."""
    plain_class = next(kind for kind in type(model).__mro__ if not issubclass(kind, SlimmableModel))
    dtypes = [tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()]
    loaded, info = plain_class.from_pretrained(
        folder,
        config=copy.deepcopy(model.config),
        dtype=max(dtypes, key=lambda dtype: dtype.itemsize),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    others = {name: tuple(shape) for name, shape, _ in info["mismatched_keys"]}
    return loaded, others, set(info["missing_keys"]) - others.keys()


def _check_same_model(
    folder: str | os.PathLike,
    own: Mapping[str, torch.Tensor],
    others: Mapping[str, tuple[int, ...]],
    missing: set[str],
) -> None:
    what = [f"'{name}' has the shape {shape}, and here {tuple(own[name].shape)}" for name, shape in others.items()]
    what += [f"'{name}' is missing" for name in sorted(missing)]
    if what:
        raise ValueError(
            f"The weights in '{folder}' must be of the same model, but {what[0]} ({len(what)} such differences in all). Build the "
            "model as it was, or don't load this checkpoint."
        )


def compare_groups(fresh: list[dict[str, Any]], loaded: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """
    Compares the parameter groups of an optimizer before and after it loaded a checkpoint, which replaces them.

    Args:
        fresh, loaded (`list[dict]`): The groups, equally many.

    Returns:
        `tuple[list[str], list[str]]`: Names of settings that the checkpoint doesn't have, because another optimizer wrote
        it. Then a description of each setting with another value.
    """
    missing, others = set(), set()
    for before, after in zip(fresh, loaded, strict=True):
        for name in before.keys() - _NO_SETTINGS:
            if name not in after:
                missing.add(name)
            elif before[name] != after[name]:
                argument = "learning_rate" if name == "initial_lr" else name
                others.add(f"{argument} {after[name]}, not {before[name]}")
    return sorted(missing), sorted(others)
