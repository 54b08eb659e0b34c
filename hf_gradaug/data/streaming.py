# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Streams of images: their length, stored copies for evaluation, and the arguments that the Trainer needs."""

import logging
import math
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.fingerprint import Hasher

from .training_stream import TrainingStream


logger = logging.getLogger(__name__)


def store_stream(
    stream: datasets.IterableDataset, key: list[Any], max_samples: int | None = None, cache_dir: str | None = None
) -> datasets.Dataset:
    """
    Reads a stream once into a map-style dataset on disk, images undecoded.

    Args:
        stream ([`~datasets.IterableDataset`]): Stream with known features.
        key (`list`): Identifies the content. A later run with the same key reuses the stored dataset.
        max_samples (`int`, *optional*): Maximum number of examples.
        cache_dir (`str`, *optional*): Where `datasets` keeps its files.
    """
    if max_samples is not None:
        stream = stream.take(max_samples)
    return datasets.Dataset.from_generator(
        lambda: iter(stream), features=stream.features, cache_dir=cache_dir, fingerprint=Hasher.hash(key)
    )


def count_stream(stream: datasets.IterableDataset, split_name: str, files: list[str] | None = None) -> int | None:
    """
    Number of examples of a stream, if its dataset states it or its files are local Parquet files; else `None`.

    Args:
        stream ([`~datasets.IterableDataset`]): The loaded stream.
        split_name (`str`): The split's name in the dataset.
        files (`list[str]`, *optional*): The split's data files.
    """
    info = (stream.info.splits or {}).get(split_name)
    if info is not None and info.num_examples:
        return info.num_examples
    if files and all(file.endswith(".parquet") and "://" not in file for file in files):
        return sum(pq.read_metadata(file).num_rows for file in files)
    return None


def get_streaming_arguments(
    args: Any, stream: TrainingStream | datasets.IterableDataset, num_train_examples: int | None = None
) -> dict[str, Any]:
    """
    The values that training arguments must have for a streamed training split.

    - `max_steps`: the Trainer can't count the steps of a stream's epochs.
    - `dataloader_num_workers`: with more workers than shards, each would read all shards for its share of the images.
    - Strategies by epoch become strategies by steps, because the stream has no end.

    Args:
        args ([`~transformers.TrainingArguments`]): Read, not changed.
        stream ([`TrainingStream`] or [`~datasets.IterableDataset`]): The training split.
        num_train_examples (`int`, *optional*): Its number of examples.

    Returns:
        `dict[str, Any]`: Values by argument name.

    Raises:
        `ValueError`: If neither the number of examples nor `max_steps` is known.
    """
    values: dict[str, Any] = {}
    steps_per_epoch = None
    if num_train_examples is not None:
        batches = math.ceil(num_train_examples / (args.train_batch_size * args.world_size))
        steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    if args.max_steps <= 0:
        if steps_per_epoch is None:
            raise ValueError(
                f"`max_steps` must be 1 or more for a stream that doesn't state its number of images, but is "
                f"{args.max_steps}. Give `max_steps` or `num_train_samples`."
            )
        values["max_steps"] = math.ceil(steps_per_epoch * args.num_train_epochs)
        logger.info(f"{args.num_train_epochs} epochs of the stream are {values['max_steps']} steps.")

    shards = max(1, stream.num_shards // args.world_size)
    if args.dataloader_num_workers > shards:
        values["dataloader_num_workers"] = shards
        logger.warning(
            f"dataloader_num_workers is {args.dataloader_num_workers}, but there are {stream.num_shards} shards for "
            f"{args.world_size} process(es), so {shards} worker(s) per process are used."
        )
    if stream.num_shards < args.world_size:
        logger.warning(
            f"{stream.num_shards} shards are fewer than {args.world_size} processes: each process reads all shards for its "
            "share of the images. Store the images in more shards."
        )
    for what in ("eval", "save", "logging"):
        if getattr(args, f"{what}_strategy") == "epoch":
            if steps_per_epoch is None:
                raise ValueError(
                    f"`{what}_strategy` must be 'steps' for a stream that doesn't state its number of images, but is "
                    "'epoch'. Use 'steps' or give `num_train_samples`."
                )
            values[f"{what}_strategy"] = type(getattr(args, f"{what}_strategy"))("steps")
            values[f"{what}_steps"] = steps_per_epoch
    return values
