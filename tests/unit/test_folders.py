# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The class of an image is the first folder below the root, and roots that hold anything else are refused."""

import logging
import re

import pytest
from helpers import images

from hf_gradaug.data import DataArguments, check_no_splits, load_image_data


def read(data, split="train"):
    """Class names by the grey of each image."""
    rows = data.splits[split]
    greys = (images.decode(row["image"]) for row in rows)
    return {grey: data.class_names[row["label"]] for grey, row in zip(greys, rows)}


@pytest.mark.parametrize("streaming", [False, True])
def test_deeper_folders_belong_to_their_class(tmp_path, caplog, streaming):
    root = images.make_folder(tmp_path / "data")
    for name in ("cat", "owl"):
        (root / name / "batch1" / "of camera 2").mkdir(parents=True)
    images.make_image(0, 50).save(root / "cat" / "batch1" / "x.png")
    images.make_image(2, 50).save(root / "owl" / "batch1" / "of camera 2" / "x.png")
    args = DataArguments(train_dir=str(root), validation_dir=str(root), streaming=streaming)
    with caplog.at_level(logging.INFO):
        data = load_image_data(args)
    assert data.class_names == ["cat", "dog", "owl"] and data.num_train_examples == 14
    for split in data.splits:
        assert read(data, split) == {80 * i + j: name for i, name in enumerate(data.class_names) for j in (0, 1, 2, 3, 50)
                                     if j != 50 or name != "dog"}  # fmt: skip
    assert "has folders in class folders: ['cat/batch1', 'owl/batch1/of camera 2']" in caplog.text


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "validation"), ("Train2017", "val2017"), ("train", "dev_set"), ("test", "valid")]
)  # fmt: skip
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_root_of_splits_names_the_flags(tmp_path, names, split):
    for name in names:
        images.make_folder(tmp_path / "root" / name)
    classes = images.make_folder(tmp_path / "classes")
    arguments = {"train_dir": str(classes), "validation_dir": str(classes), f"{split}_dir": str(tmp_path / "root")}
    with pytest.raises(
        ValueError, match=rf"`{split}_dir` must hold one .* '.*root' holds splits, .*: give .*_dir .*root/{names[0]}"
    ):
        load_image_data(DataArguments(**arguments))
    script = images.load_script("prepare_data")
    with pytest.raises(ValueError, match="`source` must hold one folder per class, but '.*root' holds splits"):
        script.main(["folder", "--source", str(tmp_path / "root"), "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "names", [("train", "bus", "bicycle"), ("trainer", "tester"), ("values", "training"), ("test", "a")]
)
def test_classes_may_be_called_like_splits(tmp_path, names):
    root = images.make_folder(tmp_path / "data", classes=names)
    check_no_splits("train_dir", str(root))
    assert load_image_data(DataArguments(train_dir=str(root), validation_dir=str(root))).class_names == sorted(names)


def test_stray_images_hidden_files_and_empty_folders(tmp_path, caplog):
    root = images.make_folder(tmp_path / "data")
    (root / "empty").mkdir()
    (root / ".cache").mkdir()
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    for hidden in (root / ".cache" / "a.png", root / "cat" / "._0.png", root / "__MACOSX" / "cat" / "0.png"):
        hidden.write_bytes(b"no image")
    args = DataArguments(train_dir=str(root), validation_dir=str(root))
    assert load_image_data(args).num_train_examples == 12
    assert "has folders without images, which are no classes: ['__MACOSX', 'empty']" in caplog.text
    images.make_image(0, 0).save(root / "stray.png")
    with pytest.raises(ValueError, match=re.escape("images lie beside the class folders: ['stray.png']. Move")):
        load_image_data(args)


def test_endings_that_are_left_out_are_named(tmp_path, caplog):
    root = images.make_folder(tmp_path / "data")
    for name in ("cat/1.heic", "cat/2.heic", "dog/3.AVIF", "dog/.hidden", "list.txt"):
        (root / name).write_bytes(b"no image")
    load_image_data(DataArguments(train_dir=str(root), train_val_split=0.5))
    (message,) = caplog.messages
    assert message.startswith(f"train_dir '{root}' has files in class folders that are left out")
    assert message.endswith(": ['.AVIF', '.heic'].")


def test_images_without_class_folders(tmp_path):
    root, flat = images.make_folder(tmp_path / "data"), tmp_path / "flat"
    flat.mkdir()
    images.make_image(1, 0).save(flat / "0.png")
    splits = {"train_dir": str(root), "validation_dir": str(root)}
    test = load_image_data(DataArguments(**splits, test_dir=str(flat)))
    assert test.splits["test"].column_names == ["image"]
    with pytest.raises(
        ValueError, match="`validation_dir` must hold one folder of images per class, but '.*flat' holds"
    ):
        load_image_data(DataArguments(**{**splits, "validation_dir": str(flat)}))
    one = images.make_folder(tmp_path / "one", classes=("cat",))
    with pytest.raises(ValueError, match=r"must hold two class folders or more, but the classes are \['cat'\]"):
        load_image_data(DataArguments(train_dir=str(one), validation_dir=str(one)))


def test_a_local_data_set_whose_innermost_folders_are_no_classes(tmp_path):
    root = images.make_folder(tmp_path / "data" / "train")
    for name in ("cat", "dog"):
        (root / name / "batch1").mkdir()
        images.make_image(0, 50).save(root / name / "batch1" / "x.png")
    with pytest.raises(ValueError, match="The class folders of the train images must lie in one folder.* train_dir"):
        load_image_data(DataArguments(dataset_name=str(tmp_path / "data")))


def test_changed_folders_are_read_again(tmp_path):
    root = images.make_folder(tmp_path / "data")
    args = DataArguments(train_dir=str(root), validation_dir=str(root), skip_bad_images=True)
    (root / "cat" / "bad.png").write_bytes(b"no image")

    def count():
        return len(load_image_data(args).get_dataset("validation", lambda image: image))

    assert count() == 12
    images.make_image(0, 9).save(root / "cat" / "bad.png")
    assert count() == 13
