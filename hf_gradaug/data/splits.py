# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Finds the loader for some data (folders, Parquet or tar files, the Hub, the digits), and loads their splits."""

import glob
import logging
import os
from dataclasses import dataclass
from typing import Any

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..messages import shorten
from .arguments import DataArguments
from .digits import load_digits_dataset
from .folders import (
    check_class_folders,
    check_no_splits,
    check_one_split,
    check_shards,
    is_image,
    load_folders,
    walk_visible,
)


logger = logging.getLogger(__name__)

_SPLITS = ("train", "validation", "test")
_SHARDS = {".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True)
class LoadedSplits:
    """
    Splits with all their columns, and where they come from.

    Args:
        splits (`dict[str, Dataset | IterableDataset]`):
            `"train"`, `"validation"` and `"test"`, as available.
        names (`dict[str, str]`):
            The name that each of the three has in the data.
        files (`dict[str, list[str]]`):
            The data files by these names, if known.
        cache_key (`str`, *optional*):
            Identifies the data, for what is stored of streams.
    """

    splits: dict[str, Any]
    names: dict[str, str]
    files: dict[str, Any]
    cache_key: str | None


def load_splits(args: DataArguments, cache_dir: str | None = None, token: str | None = None) -> LoadedSplits:
    """The splits that the arguments name, see [`load_image_data`]."""
    roots = {split: path for split in _SPLITS if (path := getattr(args, f"{split}_dir"))}
    names = {split: getattr(args, f"{split}_split_name") if args.dataset_name else split for split in _SPLITS}
    if args.dataset_name and roots:
        flag, path = next((f"{split}_dir", path) for split, path in roots.items())
        raise ValueError(
            f"`dataset_name` must be left out where `{flag}` is given, but is '{args.dataset_name}' and '{path}'."
        )
    bare = {f"{split}_dir": root for split, root in roots.items() if os.path.isdir(root) and _has_class_folders(root)}
    if roots and len(bare) == len(roots):
        loaded, files, cache_key = load_folders(roots, cache_dir), {}, None
    elif args.names_dataset:
        builder = _get_builder(args, names, bare, cache_dir, token)
        if args.streaming:
            loaded = builder.as_streaming_dataset()
        else:
            builder.download_and_prepare()
            loaded = builder.as_dataset()
        files, cache_key = builder.config.data_files or {}, builder.cache_dir
    else:
        loaded, files, cache_key = load_digits_dataset(), {}, None
    for split, hub_name in names.items():
        if hub_name != split and hub_name not in loaded:
            raise ValueError(
                f"`{split}_split_name` must be one of the splits of {args.display_name}, {shorten(loaded)}, but is '{hub_name}'."
            )
    splits = {split: loaded[hub_name] for split, hub_name in names.items() if hub_name in loaded}
    if not splits:
        raise ValueError(
            f"{args.display_name} must have one of the splits {shorten(names.values())}, but has {shorten(loaded)}."
        )
    unused = [name for name in loaded if name not in names.values()]
    if unused and "validation" not in splits:
        logger.warning(
            f"{args.display_name} has no split '{names['validation']}', and its splits {shorten(unused)} are not used. If "
            "validation images are in one of them, give validation_split_name."
        )
    return LoadedSplits(splits, names, files, cache_key)


def _find_files(flag: str, path: str) -> tuple[str, list[str]]:
    """The builder for a folder or glob, and the patterns of its files, in which brackets of a name are escaped."""
    if "://" in path or not os.path.isdir(path):
        is_one_file = "://" in path or os.path.isfile(path)  # a file's name may have brackets
        files = [path] if is_one_file else sorted(glob.glob(path, recursive=True))
        kinds = {_SHARDS.get(os.path.splitext(file)[1].lower()) for file in files}
        if len(kinds) == 1 and None not in kinds:
            return kinds.pop(), files if "://" in path else list(map(glob.escape, files))
        raise ValueError(f"`{flag}` must be a folder, or a glob that matches .parquet or .tar files, but is '{path}'.")
    shards: dict[str, list[str]] = {}
    for root, names in walk_visible(path):
        for name in names:
            extension = os.path.splitext(name)[1].lower()
            if is_image(name):
                if not set(os.listdir(path)) & set(ImageFolder.METADATA_FILENAMES):
                    check_no_splits(flag, path)  # one metadata file for all of them means all of them
                return "imagefolder", [os.path.join(glob.escape(path), "**")]
            if extension in _SHARDS:
                shards.setdefault(_SHARDS[extension], []).append(os.path.join(root, name))
    if len(shards) == 1:
        kind, files = shards.popitem()
        check_one_split(flag, path, sorted(files))
        return kind, list(map(glob.escape, sorted(files)))
    found = "both .parquet and .tar files" if shards else "no images, and no .parquet or .tar files"
    raise ValueError(f"`{flag}` must hold images, or .parquet or .tar files of one kind, but '{path}' holds {found}.")


def _has_class_folders(root: str) -> bool:
    """Whether a folder holds images without a metadata file that sets their classes."""
    names = [name for _, names in walk_visible(root) for name in names]
    return any(map(is_image, names)) and not set(names) & set(ImageFolder.METADATA_FILENAMES)


def _get_builder(
    args: DataArguments, names: dict[str, str], bare: dict[str, str], cache_dir: str | None, token: str | None
) -> datasets.DatasetBuilder:
    """The builder of the data; `bare` has the folders of images without metadata, by flag."""
    if args.dataset_name:
        builder = datasets.load_dataset_builder(
            args.dataset_name, args.dataset_config_name, cache_dir=cache_dir, token=token
        )
        check_class_folders(builder)
        if builder.name == "parquet":
            files = builder.config.data_files or {}
            check_shards({name: files[name] for name in names.values() if name in files}, token)
        return builder
    data_files, kinds = {}, {}
    for split in _SPLITS:
        path = getattr(args, f"{split}_dir")
        if path is not None:
            kinds[f"{split}_dir"], data_files[split] = _find_files(f"{split}_dir", path)
    if len(set(kinds.values())) > 1:
        raise ValueError(f"The data must all be of one kind, but it is {kinds}.")
    kind = next(iter(kinds.values()))
    if kind == "imagefolder" and bare:
        (flag, root), *_ = bare.items()
        other = next(other for other in kinds if other not in bare)
        raise ValueError(
            f"`{flag}` must be a folder with {' or '.join(ImageFolder.METADATA_FILENAMES)}, as `{other}` is, but is "
            f"'{root}', which has none, so its images would have no labels. Give one to each folder, or to none."
        )
    builder = datasets.load_dataset_builder(kind, data_files=data_files, cache_dir=cache_dir)
    if builder.name == "parquet":
        check_shards(builder.config.data_files, token)
    return builder
