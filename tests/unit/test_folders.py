# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The class of an image is the first folder below the root, and roots that hold anything else are refused."""

import logging
import re
import shutil

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
    for split in ("train", "validation"):
        assert read(data, split) == {80 * i + j: name for i, name in enumerate(data.class_names) for j in (0, 1, 2, 3, 50)
                                     if j != 50 or name != "dog"}  # fmt: skip
    assert "has folders in class folders: ['cat/batch1', 'owl/batch1/of camera 2']" in caplog.text


def test_links_to_folders_are_followed(tmp_path):
    linked, shards = tmp_path / "linked", tmp_path / "shards"
    linked.mkdir()
    for folder in images.make_folder(tmp_path / "photos").iterdir():
        (linked / folder.name).symlink_to(folder)
    assert load_image_data(DataArguments(validation_dir=str(linked))).class_names == ["cat", "dog", "owl"]
    (images.make_parquet(shards / "first", num_shards=1).parent / "second").symlink_to(
        images.make_parquet(tmp_path / "elsewhere", num_shards=1)
    )
    assert load_image_data(DataArguments(train_dir=str(shards), validation_dir=str(shards))).num_train_examples == 12


def test_a_link_to_a_folder_that_is_read_already_adds_nothing(tmp_path):
    shards = images.make_parquet(tmp_path / "shards" / "first", num_shards=1).parent
    expected = load_image_data(DataArguments(train_dir=str(shards), validation_dir=str(shards))).num_train_examples
    (shards / "latest").symlink_to(shards / "first")
    (shards / "loop").symlink_to(shards)
    found = load_image_data(DataArguments(train_dir=str(shards), validation_dir=str(shards)))
    assert found.num_train_examples == expected


def test_links_in_class_folders_are_read_once_in_each_class(tmp_path):
    root, more = images.make_folder(tmp_path / "data"), tmp_path / "more"
    more.mkdir()
    images.make_image(0, 50).save(more / "x.png")
    for link, folder in {
        "cat/1": more,
        "cat/2": more,
        "dog/1": more,
        "cat/self": root / "cat",
        "owl/up": root,
    }.items():
        (root / link).symlink_to(folder)
    data = load_image_data(DataArguments(validation_dir=str(root)))
    labels = data.splits["validation"]["label"]
    assert [list(labels).count(label) for label in range(3)] == [5, 5, 4]


def test_hidden_files_are_no_shards_and_do_not_hide_any(tmp_path):
    shards = images.make_parquet(tmp_path / "shards", num_shards=2)
    images.make_parquet(shards / ".Trash-1000", num_shards=1)
    (shards / "._0.parquet").write_bytes(b"of a file manager")
    (shards / ".cover.png").write_bytes(b"no image of the data")
    data = load_image_data(DataArguments(train_dir=str(shards), validation_dir=str(shards)))
    assert data.num_train_examples == 12


@pytest.mark.parametrize(("make", "ending"), [(images.make_parquet, "parquet"), (images.make_tar, "tar")])
def test_brackets_in_names_are_no_patterns(tmp_path, make, ending):
    shards = make(tmp_path / "set [1]", num_shards=2)
    (shards / f"1.{ending}").rename(shards / f"1 [copy].{ending}")
    for path in (shards, tmp_path / "set ?1?" / f"*.{ending}"):
        data = load_image_data(DataArguments(train_dir=str(path), validation_dir=str(path)))
        assert data.num_train_examples == 12
    path = str(shards / f"1 [copy].{ending}")
    assert load_image_data(DataArguments(train_dir=path, validation_dir=path)).num_train_examples == 6


def test_metadata_files_of_some_folders_alone(tmp_path):
    root, bare = tmp_path / "set [1]", images.make_folder(tmp_path / "bare", classes=("1", "2"))
    root.mkdir()
    for number in range(4):
        images.make_image(0, number).save(root / f"{number}.png")
    (root / "metadata.csv").write_text("file_name,label\n" + "\n".join(f"{i}.png,{i % 2}" for i in range(4)))
    assert load_image_data(DataArguments(train_dir=str(root), validation_dir=str(root))).num_train_examples == 4
    for flags in (("train_dir", "validation_dir"), ("validation_dir", "train_dir"), ("train_dir", "test_dir")):
        with pytest.raises(ValueError, match=f"`{flags[1]}` must be a folder with metadata.csv .* as `{flags[0]}` is"):
            load_image_data(DataArguments(**dict(zip(flags, map(str, (root, bare))))))


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
    ("names", "advice"),
    [
        (("train-00000-of-00001", "test-00000-of-00001"), "train_dir '{0}/train*.parquet', test_dir '{0}/test*.parquet'"),
        (("train/data", "validation/data"), "train_dir '{0}/train', validation_dir '{0}/validation'"),
        (("data/set-val-0", "data/set-train-0"), "train_dir '{0}/data/set-train*.parquet', validation_dir '{0}/data/set-val*.parquet'"),
        (("train/kit", "train/device", "latest/0", "0"), None),
        (("pretest/validation-0", "validation-1"), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streaming", [False, True])
def test_shards_of_several_splits_in_one_folder_are_refused(tmp_path, names, advice, streaming):
    root, shard = tmp_path / "root", images.make_parquet(tmp_path / "shards", num_shards=1) / "0.parquet"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shard, root / f"{name}.parquet")
    args = {"train_dir": str(root), "validation_dir": str(shard.parent), "streaming": streaming}
    if advice is None:
        assert load_image_data(DataArguments(**args)).num_train_examples == 6 * len(names)
        return
    with pytest.raises(ValueError, match=re.escape(f"'{root}' holds several: give {advice.format(root)}.")):
        load_image_data(DataArguments(**args))
    # A glob says itself which files are meant.
    args["train_dir"] = str(root / "**" / "*.parquet")
    assert load_image_data(DataArguments(**args)).num_train_examples == 6 * len(names)


@pytest.mark.parametrize("together", [False, True])
def test_splits_with_metadata_files_are_refused_unless_one_file_is_for_all(tmp_path, together):
    rows = {split: [f"{number}.png,{number % 2}" for number in range(4)] for split in ("train", "test")}
    for split, lines in rows.items():
        (tmp_path / "root" / split).mkdir(parents=True)
        for number in range(4):
            images.make_image(number % 2, number).save(tmp_path / "root" / split / f"{number}.png")
        if not together:
            (tmp_path / "root" / split / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    args = DataArguments(train_dir=str(tmp_path / "root"), train_val_split=0.5)
    if together:
        lines = [f"{split}/{line}" for split, lines in rows.items() for line in lines]
        (tmp_path / "root" / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
        assert {name: len(split) for name, split in load_image_data(args).splits.items()} == {
            "train": 4,
            "validation": 4,
        }
        return
    with pytest.raises(
        ValueError, match=r"`train_dir` must hold one .*root' holds splits, .*: give .*train_dir .*root/train\."
    ):
        load_image_data(args)


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
    message, held_out = caplog.messages
    assert held_out.startswith("data has no validation split")
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
