# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Images in memory are those that are read one by one, and are drawn by seed, epoch and index alone."""

import copy
import pickle

import datasets
import numpy as np
import pytest
import torch
from helpers import images
from torch.utils.data import DataLoader

from hf_gradaug.data import (
    DataArguments,
    ImageCollator,
    InMemoryDataset,
    get_eval_transform,
    get_train_transform,
    load_image_data,
    make_image_processor,
)


PROCESSOR = make_image_processor(8, crop_pct=1.0, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
PLAIN = make_image_processor(8, crop_pct=1.0, image_mean=[0, 0, 0], image_std=[1, 1, 1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 images of random pixels, 8 x 8, but for the first, which is larger."""
    path, random = tmp_path_factory.mktemp("data"), np.random.RandomState(0)
    pixels = [random.randint(0, 256, (16 if i == 0 else 8,) * 2 + (3,), dtype=np.uint8) for i in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(images.CLASSES))})
    rows = {"image": [images.Image.fromarray(image) for image in pixels], "label": [i % 3 for i in range(12)]}
    for split in ("train", "validation"):
        (path / split).mkdir()
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path / split / "data.parquet")
    args = DataArguments(train_dir=str(path / "train"), validation_dir=str(path / "validation"))
    return load_image_data(args, cache_dir=str(path / "cache"))


def make_train(data, processor, seed=42, padding=2, flip=True):
    transform = get_train_transform(processor, horizontal_flip=flip, random_crop_padding=padding)
    return InMemoryDataset(data.get_dataset("train", transform, mix=True, seed=seed), processor, padding, flip)


def read(dataset, indices=range(12)):
    return torch.stack([example["pixel_values"] for example in dataset.__getitems__(list(indices))])


def test_evaluation_has_the_same_images_and_labels(data):
    one_by_one = data.get_dataset("validation", get_eval_transform(PROCESSOR))
    for index, example in enumerate(InMemoryDataset(one_by_one, PROCESSOR).__getitems__(list(range(12)))):
        torch.testing.assert_close(example["pixel_values"], one_by_one[index]["pixel_values"], rtol=0, atol=1e-6)
        assert example["labels"] == one_by_one[index]["labels"] and example["mix"] is None


def test_training_images_are_all_crops_and_mirrored_crops(data):
    train = make_train(data, PLAIN)
    image = np.asarray(datasets.Image().decode_example(train.dataset[5]["image"]))
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)], mode="reflect")
    crops = [padded[i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    expected = {np.ascontiguousarray(crop).tobytes() for each in crops for crop in (each, each[:, ::-1])}
    found = set()
    for epoch in range(600):
        train.set_epoch(epoch)
        found.add((train[5]["pixel_values"] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes())
    assert found == expected
    assert torch.equal(train[0]["pixel_values"], read(train, [0, 3])[0])  # the larger one is resized


@pytest.mark.parametrize("padding", [-1, 0, 8])
def test_more_pixels_than_there_are_can_not_be_mirrored(data, padding):
    evaluation = data.get_dataset("validation", get_eval_transform(PROCESSOR))
    with pytest.raises(ValueError, match=rf"`random_crop_padding` must be in 1..7 .* but is {padding}"):
        InMemoryDataset(evaluation, PROCESSOR, random_crop_padding=padding)


def test_draws_depend_on_seed_epoch_and_index_alone(data):
    train = make_train(data, PROCESSOR)
    first = read(train)
    assert torch.equal(read(train, [7, 2]), first[[7, 2]]) and torch.equal(read(make_train(data, PROCESSOR)), first)
    assert not torch.equal(read(make_train(data, PROCESSOR, seed=43)), first)
    seeds = [example["mix"] for example in train.__getitems__(list(range(12)))]
    assert len({*seeds}) == 12 and all(0 <= seed < 2**63 for seed in seeds)
    train.set_epoch(1)
    assert not torch.equal(read(train), first)
    train.set_epoch(0)
    assert torch.equal(read(train), first)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_mixed_as_others_are(data, num_workers):
    train = make_train(data, PROCESSOR)
    loader = DataLoader(train, 6, num_workers=num_workers, collate_fn=ImageCollator(3, cutmix_alpha=1.0))
    for epoch in range(2):
        train.set_epoch(epoch)
        batches = list(loader)
        assert [batch["labels"].shape for batch in batches] == [(6, 3)] * 2
        again = ImageCollator(3, cutmix_alpha=1.0)(train.__getitems__(list(range(6, 12))))
        assert torch.equal(batches[1]["pixel_values"], again["pixel_values"])


def test_workers_of_all_epochs_share_what_was_decoded_once(data, monkeypatch):
    train = make_train(data, PROCESSOR)
    first = read(train)
    train = make_train(data, PROCESSOR)
    monkeypatch.setattr(datasets.Dataset, "map", lambda *args, **kwargs: pytest.fail("decoded again"))
    loader = DataLoader(train, 12, num_workers=1, collate_fn=ImageCollator(3))
    for _ in range(2):
        (batch,) = loader
        assert torch.equal(batch["pixel_values"], first)
    # As workers get it that are not forked.
    for again in (pickle.loads(pickle.dumps(train)), copy.deepcopy(train)):
        assert torch.equal(read(again), first)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "`random_crop_padding` must be given with `in_memory`, but is None"),
        ({"random_crop_padding": 4, "color_jitter": 0.4}, "`color_jitter` must be off with `in_memory`, but is 0.4"),
        ({"random_crop_padding": 4, "streaming": True}, "`streaming` must be off with `in_memory`, but is True"),
        ({"random_crop_padding": 4, "skip_bad_images": True}, "`skip_bad_images` must be off with `in_memory`"),
    ],
)
def test_flags_that_it_has_not_are_refused(flags, words):
    with pytest.raises(ValueError, match=words):
        DataArguments(in_memory=True, **flags)


def test_the_example_script_trains_and_measures(tmp_path):
    script = images.load_script("run_image_classification")
    folder = str(images.make_folder(tmp_path / "images"))
    flags = ["--train_dir", folder, "--validation_dir", folder, "--model_type", "resnet", "--image_size", "20"]
    flags += ["--config_overrides", "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"]
    flags += ["--crop_pct", "1.0", "--random_crop_padding", "2", "--gradaug", "--cutmix_alpha", "1", "--use_cpu"]
    flags += ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--save_strategy", "no"]
    flags += ["--report_to", "none", "--disable_tqdm", "true", "--do_eval", "--output_dir", str(tmp_path / "out")]
    metrics = script.main([*flags, "--do_train", "--in_memory"])
    assert 0 <= metrics["eval_expected_calibration_error"] <= 1
    again = script.main([*flags, "--model_name_or_path", str(tmp_path / "out")])  # measured image by image
    for name in ("eval_loss", "eval_accuracy", "eval_expected_calibration_error"):
        assert again[name] == pytest.approx(metrics[name], rel=1e-5)


def test_calibration_error_is_the_gap_of_each_bin_by_its_share():
    script = images.load_script("run_image_classification")
    confidence, hits = np.array([0.1, 0.12, 0.55, 0.59, 0.58, 1.0]), np.array([0, 1, 1, 0, 0, 1])
    # Bins of 0.1: (0, 0.1] has a gap of 0.1, (0.1, 0.2] of 0.88, (0.5, 0.6] of 0.24, and (0.9, 1] of none.
    expected = (0.1 + 0.88 + abs(0.55 + 0.59 + 0.58 - 1)) / 6
    assert script.calibration_error(confidence, hits, num_bins=10) == pytest.approx(expected)
    assert script.calibration_error(np.array([0.5] * 4), np.array([1, 0, 1, 0])) == 0
