# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Photo-like JPEG images in shards, for the benchmark of streaming."""

import io
import statistics
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from hf_gradaug.data import DataArguments, ImageData, load_image_data


NUM_LABELS = 10
KINDS = ("parquet", "tar")


def make_jpegs(count: int) -> Iterator[bytes]:
    """Photo-like images: noise whose detail falls off as in photographs, and some grain, about 90 KB each."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        pixels = np.full((375, 500, 3), 128.0)
        for octave in range(7):
            noise = rng.normal(0, 60 / 1.8**octave, (3 * 2**octave, 4 * 2**octave, 3)).astype(np.float32)
            for channel in range(3):
                plane = Image.fromarray(noise[..., channel]).resize((500, 375), Image.Resampling.BICUBIC)
                pixels[..., channel] += np.asarray(plane)
        pixels += rng.normal(0, 14, pixels.shape)
        content = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=92)
        yield content.getvalue()


def make_shards(folder: Path, num_images: int, num_shards: int) -> float:
    """Shards of each kind under `folder`; returns the mean size of an image in bytes."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=NUM_LABELS)})
    jpegs = list(tqdm(make_jpegs(num_images), "shards", num_images, unit=" images"))
    for kind in KINDS:
        (folder / kind).mkdir()
    for shard in range(num_shards):
        numbers = range(shard, num_images, num_shards)
        rows = {
            "image": [{"bytes": jpegs[n], "path": None} for n in numbers],
            "label": [n % NUM_LABELS for n in numbers],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            folder / "parquet" / f"{shard}.parquet", batch_size=100
        )
        with tarfile.open(folder / "tar" / f"{shard}.tar", "w") as archive:
            for number in numbers:
                for ending, data in (("jpg", jpegs[number]), ("cls", str(number % NUM_LABELS).encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return statistics.mean(map(len, jpegs))


def load_shards(folder: Path, num_images: int) -> ImageData:
    """The images of one kind of shards, as the example script loads a stream."""
    args = DataArguments(train_dir=str(folder), validation_dir=str(folder), streaming=True, max_eval_samples=1)
    args.num_labels, args.num_train_samples = NUM_LABELS, num_images
    return load_image_data(args)
