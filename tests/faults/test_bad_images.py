# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Unreadable images stop the training with their name, or are skipped, named and counted."""

import io
import json
import logging

import datasets
import pytest
from helpers import harness, images

from hf_gradaug.data.bad_images import SkippedImages
from hf_gradaug.data.image_transforms import ExampleTransform, keep_readable


FLAGS = ["--per_device_train_batch_size", "4", "--num_train_epochs", "2", "--save_strategy", "no"]


@pytest.fixture
def folder(tmp_path):
    """12 images to train, of which 2 can't be read, and 12 to evaluate, of which 1 can't."""
    for split, bad in (("train", ("cat/1.png", "dog/2.png")), ("validation", ("owl/0.png",))):
        path = images.make_folder(tmp_path / split)
        for name in bad:
            (path / name).write_bytes((path / name).read_bytes()[:40])
    return tmp_path


@pytest.fixture
def shards(tmp_path):
    """A stream of 12 images without a path, of which 2 can't be read."""
    path = tmp_path / "train"
    path.mkdir()
    features = datasets.Features(
        {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, "label": datasets.ClassLabel(names=list(images.CLASSES))}
    )  # fmt: skip
    for shard in range(2):
        rows = {"image": [], "label": []}
        for number in range(6 * shard, 6 * shard + 6):
            content = io.BytesIO()
            images.make_image(number % 3, number).save(content, "PNG")
            data = content.getvalue()[:40] if number in (2, 9) else content.getvalue()
            rows["image"].append({"bytes": data + bytes([number]), "path": None})
            rows["label"].append(number % 3)
        table = datasets.Dataset.from_dict(rows, features=features)
        table.cast_column("image", datasets.Image(decode=False)).to_parquet(path / f"{shard}.parquet")
    return tmp_path


def run(tmp_path, *flags: str) -> harness.Run:
    data = ["--train_dir", str(tmp_path / "train"), "--output_dir", str(tmp_path / "out")]
    log = tmp_path / "log"
    return harness.finish(harness.start(log, harness.run_example, [*data, *FLAGS, *flags]), log)


def skipped(text: str) -> list[str]:
    return sorted(line for line in text.splitlines() if "Unreadable image: " in line and "It is skipped." in line)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_folder(folder, workers):
    flags = ["--validation_dir", str(folder / "validation"), "--do_eval", "--dataloader_num_workers", workers]
    stopped = run(folder, *flags)
    assert stopped.code == 1
    assert "Unreadable image: image" in stopped.text and str(folder / "train") in stopped.text

    done = run(folder, *flags, "--skip_bad_images")
    assert done.code == 0, done.text
    lines = skipped(done.text)
    # Each once, although there are two epochs.
    assert len(lines) == 3
    for name in ("train/cat/1.png", "train/dog/2.png", "validation/owl/0.png"):
        assert sum(str(folder / name) in line for line in lines) == 1
    results = json.loads((folder / "out" / "all_results.json").read_text())
    assert results["skipped_images"] == 4  # two, in each of two epochs
    assert round(results["eval_accuracy"] * 11, 6) == round(
        results["eval_accuracy"] * 11
    )  # out of the 11 readable ones


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_stream(shards, workers):
    flags = ["--validation_dir", str(shards / "train"), "--streaming", "--shuffle_buffer_size", "4"]
    flags += ["--dataloader_num_workers", workers]
    stopped = run(shards, *flags)
    assert stopped.code == 1 and "Unreadable image: image" in stopped.text

    done = run(shards, *flags, "--skip_bad_images")
    assert done.code == 0, done.text
    assert len(skipped(done.text)) == 2  # without a path, each is known by its bytes
    results = json.loads((shards / "out" / "all_results.json").read_text())
    assert results["skipped_images"] >= 2


def test_each_missing_image_is_named(caplog):
    skipped = SkippedImages()
    transform = ExampleTransform(None, "image", None, 3, "train", skip_bad_images=True)
    for _ in range(2):  # epochs
        for number, value in enumerate((None, {"bytes": None, "path": None}, None)):
            skipped.take_from(
                {"unreadable_images": [transform({"image": value}, f"image {number}", 0)["unreadable_images"]]}
            )
    assert skipped.count == 6
    assert [message.split(" of train")[0] for message in caplog.messages] == [
        f"Unreadable image: image {number}" for number in range(3)
    ]


@pytest.mark.slow
def test_batch_of_unreadable_images_is_an_error(tmp_path):
    path = images.make_folder(tmp_path / "train")
    for image in path.rglob("*.png"):
        image.write_bytes(b"no image")
    validation = images.make_folder(tmp_path / "validation")
    done = run(tmp_path, "--validation_dir", str(validation), "--skip_bad_images")
    assert done.code == 1
    assert "ValueError: None of the 4 images of a batch can be read" in done.text
    assert "Unreadable image: image" in done.text.split("None of the 4 images")[1]


def test_evaluation_images_are_looked_through_before(folder, caplog):
    split = datasets.load_dataset("imagefolder", data_files=str(folder / "validation" / "**"), split="train")
    split = split.cast_column("image", datasets.Image(decode=False))
    with caplog.at_level(logging.WARNING, "hf_gradaug"):
        good, rows = keep_readable(split, "image", "validation", range(12))
    assert len(good) == 11 and rows == [row for row in range(12) if split[row] in list(good)]
    (warning,) = caplog.messages
    assert str(folder / "validation" / "owl" / "0.png") in warning
    assert keep_readable(good, "image", "validation", rows) == (good, rows)
    bad = split.select([index for index in range(12) if split[index]["image"]["path"].endswith("owl/0.png")])
    with pytest.raises(ValueError, match="None of the 1 images of validation can be read. Unreadable image: image 7"):
        keep_readable(bad, "image", "validation", [7])
