# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Loading, columns, classes, transforms, mixing and streams."""

import dataclasses
from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from helpers import images
from helpers.hub_server import READER
from huggingface_hub import HfApi
from torchvision.transforms.v2 import InterpolationMode, RandomResizedCrop
from transformers import BitImageProcessor, ConvNextImageProcessor, TrainingArguments, ViTImageProcessor

from hf_gradaug.data import (
    DataArguments,
    ImageCollator,
    get_eval_transform,
    get_image_size,
    get_streaming_arguments,
    get_train_transform,
    load_digits_dataset,
)
from hf_gradaug.data.loading import find_columns, load_image_data


def grey(image):
    """Stands for a transform: the grey value names the image."""
    return torch.tensor(float(np.asarray(image)[0, 0, 0]))


def test_digits_are_a_dataset_with_a_fixed_stratified_fifth_held_out():
    first, second = load_digits_dataset(), load_digits_dataset()
    assert (len(first["train"]), len(first["validation"])) == (1437, 360)
    assert isinstance(first["train"].features["image"], datasets.Image)
    assert first["train"].features["label"].names == [str(digit) for digit in range(10)]
    assert first["validation"]["label"][:] == second["validation"]["label"][:]
    assert set(Counter(first["validation"]["label"][:]).values()) <= {35, 36, 37}
    assert first["train"][0]["image"].size == (8, 8)


@pytest.mark.parametrize("kind", ["folder", "parquet", "glob", "tar"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_form_of_data_gives_the_same_kind_of_splits(tmp_path, kind, streaming):
    make = {"folder": images.make_folder, "tar": images.make_tar}.get(kind, images.make_parquet)
    train, validation = make(tmp_path / "train"), make(tmp_path / "validation")
    if kind == "glob":
        train, validation = train / "*.parquet", validation / "*.parquet"
    args = DataArguments(train_dir=str(train), validation_dir=str(validation), streaming=streaming)
    if kind == "tar" and streaming:
        with pytest.raises(ValueError, match="Give `num_labels`"):
            load_image_data(args)
        args.num_labels = 3
    data = load_image_data(args)
    assert data.class_names == (["0", "1", "2"] if kind == "tar" else list(images.CLASSES))
    assert data.num_train_examples == (None if streaming and kind == "tar" else len(images_of(data)))
    for split in ("train", "validation"):
        example = next(iter(data.get_dataset(split, grey)))
        assert set(example) == {"pixel_values", "labels", "mix"}
        assert example["pixel_values"] // 80 == example["labels"]


def images_of(data):
    return list(data.splits["train"])


def test_a_missing_validation_split_is_held_out_with_all_classes(tmp_path, caplog):
    args = DataArguments(train_dir=str(images.make_folder(tmp_path / "train", 10)), train_val_split=0.2)
    data = load_image_data(args)
    assert "`train_val_split` 0.2 of its training images are held out, 6, the same ones with any seed" in caplog.text
    labels = Counter(example["labels"] for example in map(data.get_dataset("validation", grey).__getitem__, range(6)))
    assert labels == {0: 2, 1: 2, 2: 2} and data.num_train_examples == 24
    other = load_image_data(args, seed=7)  # such as a later evaluation
    assert other.splits["validation"][:] == data.splits["validation"][:]
    with pytest.raises(ValueError, match="`streaming` must be off without a validation split"):
        load_image_data(DataArguments(train_dir=str(tmp_path / "train"), streaming=True))


def write_parquet(path, labels, feature=None, split="train"):
    feature = feature or datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = {"image": [images.make_image(0, 0)] * len(labels), "label": labels}
    (path / split).mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path / split / "0.parquet")
    return str(path / split)


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        (
            [0, None, 1, None],
            None,
            r"'label' must hold a label for each image, but has none for 2 .*, first for image 1",
        ),
        (
            [[0], [1, 2]],
            datasets.List(datasets.Value("int64")),
            r"one integer per image, but is 'label', which holds List",
        ),
        (["cat", "dog"], datasets.Value("string"), "one integer per image, but is 'label', which holds Value"),
        ([0.0, 1.0], datasets.Value("float32"), "one integer per image, but is 'label', which holds Value"),
        (
            [7, 1_000_000],
            None,
            r"without gaps, but column 'label' has 2 different ones, \[7, 1000000\], up to 1000000",
        ),
        ([1, 2, 3], None, r"must be 0, 1, 2, ... without gaps"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, feature, message):
    path = write_parquet(tmp_path, labels, feature)
    with pytest.raises(ValueError, match=message):
        load_image_data(DataArguments(train_dir=path, validation_dir=path, label_column_name="label"))


def test_held_out_images_have_every_class_though_labels_have_no_names(tmp_path):
    path = write_parquet(tmp_path, [0] * 100 + [1] * 8 + [2] * 9)
    data = load_image_data(DataArguments(train_dir=path))
    assert set(data.splits["validation"]["label"]) == {0, 1, 2}
    with pytest.raises(ValueError, match=r"but is 0.03, and \['1', '2'\] have too few images"):
        load_image_data(DataArguments(train_dir=path, train_val_split=0.03))
    single = write_parquet(tmp_path / "single", [0, 0, 0, 1])
    with pytest.raises(ValueError, match=r"The classes \['1'\] have one image each, so none can be held out"):
        load_image_data(DataArguments(train_dir=single))
    other = write_parquet(tmp_path / "other", [0, 1, 2])  # was an error of NumPy about empty arrays
    data = load_image_data(DataArguments(train_dir=write_parquet(tmp_path / "two", [0, 1] * 8), test_dir=other))
    assert data.class_names == ["0", "1", "2"] and set(data.splits["validation"]["label"]) == {0, 1}


@pytest.mark.parametrize("as_dataset", [False, True])
def test_shards_that_name_their_labels_in_another_order_are_refused(tmp_path, as_dataset):
    train = write_parquet(tmp_path, [0, 1], datasets.ClassLabel(names=["cat", "dog"]))
    validation = write_parquet(tmp_path, [0, 1], datasets.ClassLabel(names=["dog", "cat"]), "validation")
    folders = {"train_dir": train, "validation_dir": validation}
    with pytest.raises(
        ValueError, match=r"has \['cat', 'dog'\] in .*train/0.parquet, and \['dog', 'cat'\] in .*validation/0"
    ):
        load_image_data(DataArguments(**({"dataset_name": str(tmp_path)} if as_dataset else folders)))


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_on_the_hub_that_name_their_labels_in_another_order_are_refused(hub, tmp_path, monkeypatch, streaming):
    for split, names in (("train", ["cat", "dog"]), ("validation", ["dog", "cat"])):
        write_parquet(tmp_path / "data", [0, 1], datasets.ClassLabel(names=names), split)
    HfApi().create_repo("org/data", repo_type="dataset", private=True)
    HfApi().upload_folder(repo_id="org/data", repo_type="dataset", folder_path=tmp_path / "data")
    monkeypatch.delenv("HF_TOKEN")
    args = DataArguments(dataset_name="org/data", streaming=streaming)
    with pytest.raises(ValueError, match=r"Column 'label' must have the same classes .* \['dog', 'cat'\] in hf://"):
        load_image_data(args, cache_dir=str(tmp_path), token=READER)


def test_a_stream_of_more_classes_than_are_validated_names_the_flag(tmp_path):
    train, validation = images.make_tar(tmp_path / "train"), images.make_tar(tmp_path / "validation")
    args = DataArguments(train_dir=str(train), validation_dir=str(validation), streaming=True, num_labels=1000)
    with pytest.raises(ValueError) as error:
        load_image_data(args)
    assert str(error.value).startswith(
        "`num_labels` must be the number of classes among the validation images, 3, but is 1000"
    )
    assert "(997 in all)" in str(error.value) and len(str(error.value)) < 200


def test_a_column_that_is_taken_for_labels_by_its_type_alone_is_named(caplog):
    columns = {"image": datasets.Image(), "camera": datasets.Value("int64"), "species": datasets.Value("string")}
    assert find_columns(datasets.Features(columns)) == ("image", "camera")
    assert "The labels are those of column 'camera', the only one of integers among ['image', 'camera'" in caplog.text
    caplog.clear()
    assert find_columns(datasets.Features(columns), label_column_name="camera") == ("image", "camera")
    del columns["species"]
    assert find_columns(datasets.Features(columns)) == ("image", "camera")
    assert caplog.text == ""


def test_columns_are_found_by_type_then_by_name():
    integer, image = datasets.Value("int64"), datasets.Image()
    classes = datasets.ClassLabel(names=["a", "b"])
    assert find_columns(datasets.Features({"photo": image, "kind": classes, "age": integer})) == ("photo", "kind")
    assert find_columns(datasets.Features({"photo": image, "age": integer})) == ("photo", "age")
    both = datasets.Features({"mask": image, "img": image, "coarse_label": classes, "fine_label": classes})
    assert find_columns(both) == ("img", "fine_label")
    assert find_columns(both, "mask", "coarse_label") == ("mask", "coarse_label")
    for label in (datasets.Value("string"), datasets.Value("bool"), integer):
        for other in (integer, classes):
            assert find_columns(datasets.Features({"img": image, "fold": other, "label": label})) == ("img", "label")
    with pytest.raises(ValueError, match=r"`image_column_name` must be one of the columns \['mask', 'img'"):
        find_columns(both, "pic")
    with pytest.raises(ValueError, match="`image_column_name` must be another column .*, but both are 'coarse_label'"):
        find_columns(both, "coarse_label", "coarse_label")
    with pytest.raises(ValueError, match=r"Several columns can hold images: \['a', 'b'\]"):
        find_columns(datasets.Features({"a": image, "b": image}))
    with pytest.raises(ValueError, match="No column holds images"):
        find_columns(datasets.Features({"age": integer}))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_that_is_named_and_missing_is_an_error(tmp_path, split, streaming):
    for name in ("train", "validation", "test"):
        images.make_parquet(tmp_path / "data" / name, num_shards=1)
    args = DataArguments(dataset_name=str(tmp_path / "data"), streaming=streaming, **{f"{split}_split_name": "valid"})
    with pytest.raises(ValueError, match=rf"`{split}_split_name` must be one of .* \['train', .*, but is 'valid'"):
        load_image_data(args)


def test_splits_that_are_not_used_are_named_if_there_is_none_to_validate(tmp_path, caplog):
    root = images.make_parquet(tmp_path / "data", num_shards=2)
    images.name_splits(root, {"train": "0.parquet", "val": "1.parquet"})
    args = {"dataset_name": str(root), "train_val_split": 0.5}
    load_image_data(DataArguments(**args, validation_split_name="val"))
    assert "not used" not in caplog.text
    load_image_data(DataArguments(**args))
    assert "has no split 'validation', and its splits ['val'] are not used. If validation images" in caplog.text


def test_a_streamed_split_of_another_name_is_counted_by_its_own_files(tmp_path):
    root = images.make_parquet(tmp_path / "data", num_shards=3).parent / "data"
    (root / "0.parquet").unlink()
    images.make_parquet(tmp_path / "more", num_shards=1, images_per_shard=30)
    (tmp_path / "more" / "0.parquet").rename(root / "0.parquet")
    images.name_splits(root, {"train": "0.parquet", "small": "1.parquet", "validation": "2.parquet"})
    args = DataArguments(dataset_name=str(root), train_split_name="small", streaming=True)
    assert load_image_data(args).num_train_examples == 6


def test_a_class_on_one_side_only_is_an_error(tmp_path):
    images.make_folder(tmp_path / "three")
    images.make_folder(tmp_path / "two", classes=("cat", "dog"))
    three, two = str(tmp_path / "three"), str(tmp_path / "two")
    with pytest.raises(ValueError, match=r"\['owl'\] are among the train .* validation images. Add validation images"):
        load_image_data(DataArguments(train_dir=three, validation_dir=two))
    with pytest.raises(ValueError, match=r"\['owl'\] are among the validation images, but not among the train"):
        load_image_data(DataArguments(train_dir=two, validation_dir=three))


def test_a_label_out_of_range_is_an_error_before_training_and_in_a_stream(tmp_path):
    path = str(images.make_parquet(tmp_path / "data", named=False))
    with pytest.raises(ValueError, match="Label out of range: the train images have label 2, .* in 0..1"):
        load_image_data(DataArguments(train_dir=path, validation_dir=path, num_labels=2))
    data = load_image_data(DataArguments(train_dir=path, validation_dir=path, num_labels=3, streaming=True))
    data.class_names.pop()
    with pytest.raises(
        ValueError, match=r"Label out of range: image \d+ of shard \d of train has label 2 in column 'label'"
    ):
        list(data.get_dataset("train", grey))  # ends with the error: the stream has no end


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unreadable_image_is_named(tmp_path, streaming):
    folder = images.make_folder(tmp_path / "data")
    broken = folder / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    args = DataArguments(train_dir=str(folder), validation_dir=str(folder), streaming=streaming)
    with pytest.raises(ValueError, match=r"Unreadable image: image \d+ (of shard \d )?of train \(.*dog/2.png\)"):
        list(load_image_data(args).get_dataset("train", grey))


@pytest.mark.parametrize("name", ["dataset_config_name", "validation_split_name"])
def test_splits_of_a_data_set_are_no_setting_of_folders(name):
    with pytest.raises(ValueError, match=f"`{name}` must be left out without `dataset_name`, but is 'val'"):
        DataArguments(train_dir="photos", **{name: "val"})


def test_a_missing_image_is_named(tmp_path):
    """As in tar files where some images have another ending, and so another column."""
    rows = {"image": [images.make_image(0, 0), None], "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "0.parquet")
    data = load_image_data(DataArguments(validation_dir=str(tmp_path)))
    with pytest.raises(
        ValueError, match="Unreadable image: image 1 of validation: its value must be an image, but is None"
    ):
        list(data.get_dataset("validation", grey))


def test_a_local_data_set_has_the_name_of_its_folder(tmp_path):
    images.make_folder(tmp_path / "photos" / "train")
    assert load_image_data(DataArguments(dataset_name=str(tmp_path / "photos"), train_val_split=0.5)).name == "photos"
    assert DataArguments(dataset_name="org/photos").display_name == "org/photos"


@pytest.mark.parametrize("folder", ["photos", "photos/train", "photos/Training", "photos/val", "photos/train2017/"])
def test_data_has_no_name_of_a_split(tmp_path, folder):
    assert DataArguments(train_dir=str(tmp_path / folder)).display_name == "photos"
    (tmp_path / folder).mkdir(parents=True)
    assert DataArguments(dataset_name=str(tmp_path / folder)).display_name == "photos"
    assert DataArguments(train_dir=str(tmp_path / "train tickets")).display_name == "train tickets"
    assert DataArguments(train_dir="/train").display_name == "train"


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        (ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8), (32, 32)),
        (ConvNextImageProcessor(size={"shortest_edge": 384}), (384, 384)),
        (ViTImageProcessor(size={"height": 24, "width": 36}), (24, 36)),
        (
            BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True),
            (32, 32),
        ),
    ],
)
def test_transforms_do_what_the_image_processor_does(processor, size):
    assert get_image_size(processor) == size
    image = images.Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    ours = get_eval_transform(processor)(image)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    # PIL and tensors resize with slightly different rounding.
    assert ours.shape == theirs.shape and (ours - theirs).abs().mean() < 0.02
    assert get_train_transform(processor, (0.5, 1.0), color_jitter=0.4)(image).shape == theirs.shape


@pytest.mark.parametrize("resample", [3, images.Image.BICUBIC, InterpolationMode.BICUBIC])
def test_each_kind_of_interpolation_that_an_image_processor_takes(resample):
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, resample=resample)
    image = images.Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    assert get_eval_transform(processor)(image).shape == (3, 16, 16)
    crops = []
    for crop in (
        get_train_transform(processor).transforms[0],
        RandomResizedCrop(16, interpolation=InterpolationMode.BICUBIC),
    ):
        torch.manual_seed(0)
        crops.append(np.asarray(crop(image)))
    assert (crops[0] == crops[1]).all()


def test_horizontal_flip_and_crop_scale():
    processor = ConvNextImageProcessor(size={"shortest_edge": 16}, crop_pct=1.0, do_normalize=False)
    ramp = images.Image.fromarray(np.tile(np.arange(0, 256, 16, dtype=np.uint8)[None, :, None], (16, 1, 3)))

    def rises(flip):
        transform = get_train_transform(processor, (0.9, 1.0), horizontal_flip=flip)
        return {bool(transform(ramp)[0, 8, -1] > 0.5) for _ in range(40)}

    assert rises(False) == {True} and rises(True) == {True, False}
    with pytest.raises(ValueError, match=r"`random_resized_crop_scale` must .*, but is \[0.5, 2\]"):
        get_train_transform(processor, (0.5, 2))
    with pytest.raises(ValueError, match="`color_jitter` must be 0 or more, but is nan"):
        get_train_transform(processor, color_jitter=float("nan"))


def test_mixing_gives_class_probabilities_to_training_batches_only():
    torch.manual_seed(0)
    examples = [{"pixel_values": torch.full((3, 16, 16), float(i)), "labels": i, "mix": i} for i in range(4)]
    for kind in ("cutmix_alpha", "mixup_alpha"):
        batch = ImageCollator(5, **{kind: 1.0})(examples)
        assert batch["labels"].shape == (4, 5) and batch["labels"].dtype == torch.float32
        torch.testing.assert_close(batch["labels"].sum(1), torch.ones(4))
        # The share of each image in the mean pixel is its share in the label.
        torch.testing.assert_close(batch["pixel_values"].mean((1, 2, 3)), batch["labels"] @ torch.arange(5.0))
        assert not torch.equal(batch["labels"], torch.eye(4, 5))
    unmixed = ImageCollator(5, cutmix_alpha=1.0, mix_prob=0.0)(examples)
    assert torch.equal(unmixed["labels"], torch.eye(4, 5))
    evaluation = ImageCollator(5, cutmix_alpha=1.0)([{**example, "mix": None} for example in examples])
    assert torch.equal(evaluation["labels"], torch.arange(4))
    for example in examples:
        del example["mix"]
    assert torch.equal(ImageCollator(5, cutmix_alpha=1.0)(examples)["labels"], torch.arange(4))
    with pytest.raises(ValueError, match=r"`mix_prob` must be in \[0, 1\], but is 2"):
        ImageCollator(5, mix_prob=2)
    with pytest.raises(ValueError, match=r"`cutmix_alpha` must be 0 \(off\) or more, but is nan"):
        ImageCollator(5, cutmix_alpha=float("nan"))


def test_what_the_trainer_is_told_about_a_stream(tmp_path, caplog):
    path = str(images.make_parquet(tmp_path / "data", num_shards=4, images_per_shard=6))
    data = load_image_data(DataArguments(train_dir=path, validation_dir=path, streaming=True))
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=5, num_train_epochs=3, dataloader_num_workers=9, use_cpu=True
    )
    with pytest.raises(ValueError, match="`num_train_samples` must be 24, the number .* states, but is 25"):
        load_image_data(DataArguments(train_dir=path, validation_dir=path, streaming=True, num_train_samples=25))
    changes = get_streaming_arguments(args, data.splits["train"], data.num_train_examples)
    assert changes == {"max_steps": 15, "dataloader_num_workers": 4}
    assert "dataloader_num_workers is 9, but there are 4 shards" in caplog.text
    with pytest.raises(ValueError, match="`max_steps` must be 1 or more for a stream"):
        get_streaming_arguments(args, data.splits["train"], None)
    args.max_steps = 7
    assert "max_steps" not in get_streaming_arguments(args, data.splits["train"], None)


class TwoProcesses(TrainingArguments):
    world_size = 2


def test_several_processes_are_told_of_shards_and_evaluate_at_the_same_steps(tmp_path, caplog):
    path = str(images.make_parquet(tmp_path / "data", num_shards=3, images_per_shard=7))
    stream = load_image_data(DataArguments(train_dir=path, validation_dir=path, streaming=True)).splits["train"]
    args = TwoProcesses(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, eval_strategy="epoch",
        num_train_epochs=2, dataloader_num_workers=2, use_cpu=True,
    )  # fmt: skip
    changes = get_streaming_arguments(args, stream, 21)
    assert changes == {"max_steps": 6, "dataloader_num_workers": 1, "eval_strategy": "steps", "eval_steps": 3}
    assert args.dataloader_num_workers == 2  # the caller's are left alone
    assert "fewer" not in caplog.text
    get_streaming_arguments(args, stream.shard(num_shards=3, index=0), 21)
    assert "1 shards are fewer than 2 processes" in caplog.text
    with pytest.raises(
        ValueError, match="`eval_strategy` must be 'steps' for a stream that doesn't state .*, but is 'epoch'"
    ):
        args.max_steps = 6
        get_streaming_arguments(args, stream, None)


def test_max_samples(tmp_path):
    path = str(images.make_parquet(tmp_path / "data"))
    for streaming in (False, True):
        args = DataArguments(
            train_dir=path, validation_dir=path, streaming=streaming, max_train_samples=7, max_eval_samples=5
        )
        data = load_image_data(args)
        assert data.num_train_examples == 7 and len(images_of(data)) == 7
        validation = data.get_dataset("validation", grey)
        whole = load_image_data(replace(args, max_eval_samples=None)).get_dataset("validation", grey)
        assert len(validation) == 5
        assert [whole[row]["pixel_values"] for row in validation.rows] == [row["pixel_values"] for row in validation]
    with pytest.raises(ValueError, match="`num_train_samples` must be left out without `streaming`, but is 7"):
        DataArguments(train_dir=path, num_train_samples=7)
    for name in ("max_train_samples", "max_eval_samples", "num_train_samples", "num_labels"):
        for value in (0, -1):
            with pytest.raises(ValueError, match=f"`{name}` must be 1 or more, but is {value}"):
                DataArguments(**{name: value})


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_without_training_images_are_named(tmp_path, caplog, streaming):
    path = images.make_folder(tmp_path / "data")
    args = DataArguments(train_dir=str(path), validation_dir=str(path), streaming=streaming)
    load_image_data(args)
    assert "no training images" not in caplog.text
    data = load_image_data(replace(args, max_train_samples=2))
    labels = {row["label"] for row in data.splits["train"]}
    missing = [name for label, name in enumerate(images.CLASSES) if label not in labels]
    assert missing and caplog.messages[-1] == f"These classes have no training images: {missing}."


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_that_a_truncated_evaluation_lacks_are_named(tmp_path, caplog, streaming):
    path = str(images.make_parquet(tmp_path / "data"))
    args = DataArguments(train_dir=path, validation_dir=path, streaming=streaming, max_eval_samples=2)
    data = load_image_data(args)
    labels = data.splits["validation"]["label"]
    missing = [name for label, name in enumerate(images.CLASSES) if label not in labels]
    assert missing and caplog.messages == [f"These classes have no validation images: {missing}."]


def test_names_of_a_column_without_images_are_named(tmp_path, caplog):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])}
    )
    rows = {"image": [images.make_image(0, number) for number in range(4)], "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "a.parquet")
    path = str(tmp_path / "data")
    load_image_data(DataArguments(train_dir=path, validation_dir=path))
    assert caplog.messages == ["These classes have no training images: ['owl']."]


def test_a_streamed_folder_is_the_stored_one(tmp_path):
    path = str(images.make_folder(tmp_path / "data", images_per_class=8))
    images.make_folder(tmp_path / "two", classes=("cat", "dog"))
    of = {}
    for streaming in (False, True):
        args = DataArguments(train_dir=path, validation_dir=path, streaming=streaming, max_train_samples=8)
        data = load_image_data(args)
        assert data.num_train_examples == 8
        of[streaming] = [row["image"]["path"] for row in data.splits["train"]]
        with pytest.raises(ValueError, match=r"\['owl'\] are among the validation images, but not among the train"):
            load_image_data(replace(args, train_dir=str(tmp_path / "two")))
    assert of[True] == of[False]


@pytest.mark.parametrize(
    "changed", [{"horizontal_flip": False}, {"random_resized_crop_scale": [0.5, 1.0]}, {"mixup_alpha": 0.2}]
)
def test_settings_of_training_are_refused_by_scripts_that_measure(changed):
    assert set(DataArguments.NEED_TRAINING) <= {item.name for item in dataclasses.fields(DataArguments)}
    DataArguments(max_eval_samples=3).check_no_training()
    (name,) = changed
    with pytest.raises(ValueError, match=f"`{name}` must be left out in a script that doesn't train, but is"):
        DataArguments(**changed).check_no_training()
