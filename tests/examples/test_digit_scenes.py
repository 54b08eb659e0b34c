# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Scenes of digits: the same each time, in COCO's format, and with nothing of the training split in the other."""

import json
from pathlib import Path

import numpy as np
import pytest
from detection import scenes
from detection.coco import CocoArguments
from detection.scenes import write_digit_scenes
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from pycocotools import mask as coco_mask


def read(folder) -> dict:
    return json.loads((folder / "annotations.json").read_text())


def test_scenes_are_the_same_each_time_and_others_with_another_seed(tmp_path):
    first, again, other = (
        write_digit_scenes(tmp_path / name, "train", 6, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    names = [image["file_name"] for image in read(first)["images"]]
    assert len(names) == 6 and read(first) == read(again) != read(other)
    for name in names:
        contents = [(folder / "images" / name).read_bytes() for folder in (first, again, other)]
        assert contents[0] == contents[1] != contents[2]


def test_annotations_are_those_of_coco(tmp_path):
    contents = read(write_digit_scenes(tmp_path, "validation", 40, size=96, max_digits=3))
    assert [category["name"] for category in contents["categories"]] == [str(digit) for digit in range(10)]
    pictures = {image["id"]: image["file_name"] for image in contents["images"]}
    counts = dict.fromkeys(pictures, 0)
    for item in contents["annotations"]:
        assert 0 <= item["category_id"] < 10 and item["iscrowd"] == 0
        counts[item["image_id"]] += 1
        lengths = item["segmentation"]
        mask = coco_mask.decode(lengths).astype(bool)
        assert mask.shape == (96, 96) and mask.sum() == item["area"]
        assert coco_mask.toBbox(lengths).tolist() == item["bbox"]
        # The digit differs from what is around it.
        picture = np.asarray(Image.open(tmp_path / "images" / pictures[item["image_id"]])).astype(float).mean(2)
        left, top, width, height = item["bbox"]
        place = np.s_[top : top + height, left : left + width]
        if (~mask[place]).sum() > 20:
            assert abs(picture[place][mask[place]].mean() - picture[place][~mask[place]].mean()) > 10
    assert set(counts.values()) == {1, 2, 3}
    assert len({item["category_id"] for item in contents["annotations"]}) == 10


def test_splits_have_no_digit_in_common(tmp_path, monkeypatch):
    used = {}
    compose = scenes._compose

    def spy(digits, *args):
        used.setdefault(split, {digit.tobytes() for digit in digits})
        return compose(digits, *args)

    monkeypatch.setattr(scenes, "_compose", spy)
    for split in ("train", "validation"):
        write_digit_scenes(tmp_path / split, split, 1)
    assert len(used["train"]) > 1400 and len(used["validation"]) > 350
    assert not used["train"] & used["validation"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "`split` must be 'train' or 'validation', but is 'test'"),
        ({"num_scenes": 0}, "`num_scenes` must be 1 or more, but is 0"),
        ({"size": 32}, "`size` must be 64 or more, but is 32"),
        ({"max_digits": 0}, "`max_digits` must be 1 or more, but is 0"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_digit_scenes(tmp_path / "scenes", **{"split": "train", "num_scenes": 1, **arguments})
    assert not (tmp_path / "scenes").exists()


def test_scenes_in_the_output_folder_are_not_pushed(tmp_path):
    pictures, annotations = CocoArguments(num_scenes=5).paths("validation", str(tmp_path))
    written = [path.relative_to(tmp_path).as_posix() for path in (*Path(pictures).iterdir(), Path(annotations))]
    assert len(written) == 2
    assert not list(filter_repo_objects(written, ignore_patterns=["_*", "checkpoint-*"]))  # the Trainer's
