# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Streams of small shards on disk, and what the tests of streaming do with them."""

from types import SimpleNamespace

import images
import numpy as np

from hf_gradaug import training_stream
from hf_gradaug.data import load_image_data
from hf_gradaug.data_arguments import DataArguments
from hf_gradaug.image_transforms import decode_image
from hf_gradaug.training_stream import TrainingStream


IMAGES_PER_SHARD = 6


def make_rows(path, kind: str = "parquet", num_shards: int = 4, images_per_shard: int = IMAGES_PER_SHARD, **args):
    """One epoch of undecoded rows, of shards on disk."""
    make = images.make_parquet if kind == "parquet" else images.make_tar
    folder = str(make(path / f"{kind}-{num_shards}", num_shards=num_shards, images_per_shard=images_per_shard))
    data = load_image_data(
        DataArguments(train_dir=folder, streaming=True, validation_dir=folder, num_labels=3, **args)
    )
    return data.splits["train"]


def number_of(example: dict, name: str, seed: int) -> tuple[int, int]:
    """Stands for a transform: which of the images it is, by its grey, and its seed."""
    value = next(value for value in example.values() if isinstance(value, dict))
    return int(np.asarray(decode_image(value, name))[0, 0, 0]) % 80, seed


def make_stream(rows, transform=number_of, buffer_size: int = 5, seed: int = 3) -> TrainingStream:
    return TrainingStream(rows, transform, seed, buffer_size)


def make_readers(monkeypatch, stream: TrainingStream, processes: int, workers: int) -> list[list]:
    """The readers by process, of data-loading workers that are only played here."""
    readers = []
    for rank in range(processes):
        readers.append([])
        for worker in range(max(1, workers)):
            info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
            with monkeypatch.context() as patch:
                patch.setattr(training_stream, "get_worker_info", lambda info=info: info)
                readers[-1].append(iter(stream.for_process(rank, processes)))
    return readers
