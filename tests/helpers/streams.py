# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Streams of small shards on disk, and what the tests of streaming do with them."""

from types import SimpleNamespace

import numpy as np
from transformers import ConvNextImageProcessor, TrainingArguments

from helpers import images
from helpers.tiny import SIZE, tiny_model, tiny_trainer
from hf_gradaug import GradAugTrainer
from hf_gradaug.data import (
    DataArguments,
    ImageCollator,
    TrainingStream,
    decode_image,
    get_train_transform,
    load_image_data,
    training_stream,
)


IMAGES_PER_SHARD = 6
SEED = 3


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


def make_stream(rows, transform=number_of, buffer_size: int = 5, seed: int = SEED) -> TrainingStream:
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


class RecordingCollator(ImageCollator):
    """Keeps the seeds of the examples, which tell their epoch, shard and number."""

    def __call__(self, examples):
        return {**super().__call__(examples), "seeds": [example["mix"] for example in examples]}


class RecordingTrainer(GradAugTrainer):
    """Records which examples it trains on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen.append(inputs.pop("seeds"))
        return super().training_step(model, inputs, *args, **kwargs)


def stream_trainer(output, shards: str, cls=GradAugTrainer, streaming: bool = True, buffer_size: int = 5, **args):
    """A trainer of a few steps on images on disk, with all that is random in augmentation, and a checkpoint each 2 steps."""
    data = load_image_data(DataArguments(train_dir=shards, validation_dir=shards, streaming=streaming))
    processor = ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=1.0)
    transform = get_train_transform(processor, (0.2, 1.0), color_jitter=0.4)
    collator = RecordingCollator if issubclass(cls, RecordingTrainer) else ImageCollator
    defaults = {"max_steps": 6, "per_device_train_batch_size": 4, "dataloader_num_workers": 2}
    defaults.update(save_strategy="steps", save_steps=2, remove_unused_columns=False)
    defaults.update({"num_subnetworks": 1} if issubclass(cls, GradAugTrainer) else {"args_cls": TrainingArguments})
    # A stock head takes mixed labels for multi-label ones.
    kind = "single_label_classification" if issubclass(cls, GradAugTrainer) else None
    return tiny_trainer(
        output,
        tiny_model("convnext", drop_path_rate=0.3, problem_type=kind),  # draws from the global generator
        cls=cls,
        trainer_kwargs={
            "train_dataset": data.get_dataset("train", transform, mix=True, seed=SEED, buffer_size=buffer_size),
            "eval_dataset": None,
            "data_collator": collator(3, cutmix_alpha=1.0, mixup_alpha=1.0),
        },
        **{**defaults, **args},
    )
