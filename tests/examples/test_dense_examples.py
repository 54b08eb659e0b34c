# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The example scripts for detection and instance segmentation, the data that they read, and their metrics."""

import json
import logging
from pathlib import Path

import pytest
import torch
from detection import coco
from detection.coco import CocoDataset, collate
from detection.common import DenseTrainer, load_backbone_weights, main, new_backbone
from helpers import images
from helpers.dense import save_small_model
from helpers.tiny import randomize, tiny_config, tiny_model
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
    CLIPConfig,
    Mask2FormerImageProcessor,
    ResNetConfig,
    RTDetrImageProcessor,
    pipeline,
)

from hf_gradaug import HubPushError


QUIET = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
SHORT = ["--num_scenes", "10", "--max_steps", "2", "--per_device_train_batch_size", "4", "--logging_steps", "1"]
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


@pytest.fixture(scope="module")
def tasks():
    return {name: images.load_script(f"run_{name}").TASK for name in ("object_detection", "instance_segmentation")}


@pytest.fixture
def folder(tmp_path):
    """Two pictures of 40 x 30 pixels: a cat and a crowd of dogs, and nothing."""
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "gray").save(tmp_path / "pictures" / name)
    cat = {"bbox": [4, 6, 10, 12], "segmentation": [[4, 6, 14, 6, 14, 18, 4, 18]], "area": 120}
    dogs = {"bbox": [20, 0, 20, 30], "segmentation": {"size": [30, 40], "counts": [600, 600]}, "area": 600}
    annotations = [
        {"id": 1, "image_id": 5, "category_id": 7, "iscrowd": 0, **cat},
        {"id": 2, "image_id": 5, "category_id": 3, "iscrowd": 1, **dogs},
    ]
    pictures = [{"id": 5, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}]
    pictures = [{**picture, "width": 40, "height": 30} for picture in pictures]
    contents = {"images": pictures, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "annotations.json").write_text(json.dumps(contents))
    return str(tmp_path / "pictures"), str(tmp_path / "annotations.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["object_detection", "instance_segmentation"])
def test_gradaug_on_the_embedded_scenes_leaves_everything_behind(tasks, name, tmp_path):
    task = tasks[name]
    metrics = main(task, [*QUIET, *SHORT, "--gradaug", "--do_train", "--do_eval", "--output_dir", str(tmp_path)])
    assert 0 <= metrics["eval_map"] <= metrics["eval_map_50"] <= 1
    assert json.loads((tmp_path / "eval_results.json").read_text())["eval_map_50"] == metrics["eval_map_50"]
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log if "loss_subnetworks" in row] == [1, 2]
    assert json.loads((tmp_path / "gradaug_config.json").read_text())["subnetwork_targets"] == "labels"
    with Image.open(tmp_path / "predictions.png") as picture:
        assert picture.size == (280 * 2, 280)  # the two validation scenes
    card = (tmp_path / "README.md").read_text()
    assert task.name in card and "learn from the batch's labels" in card and "scenes of handwritten digits" in card

    model, processor = task.auto_class.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)
    assert list(model.config.id2label.values()) == [str(digit) for digit in range(10)]
    find = pipeline(task.name, model=model, image_processor=processor)
    assert isinstance(find(str(tmp_path / "_scenes" / "validation" / "images" / "00000.png")), list)


@pytest.mark.slow
def test_a_dead_hub_keeps_no_evaluation_from_happening(tasks, hub, tmp_path, monkeypatch):
    class Trainer(DenseTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            hub.is_down = True

    monkeypatch.setattr("detection.common.DenseTrainer", Trainer)
    push = ["--push_to_hub", "--hub_model_id", "org/scenes", "--hub_strategy", "every_save"]
    push += ["--save_strategy", "steps", "--save_steps", "1", "--do_train", "--do_eval", "--output_dir", str(tmp_path)]
    with pytest.raises(HubPushError, match="hf upload"):
        main(tasks["object_detection"], [*QUIET, *SHORT, *push])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "train_results.json", "eval_results.json", "predictions.png", "README.md"} <= names


@pytest.mark.slow
def test_plain_training_on_a_classifier_as_backbone(tasks, tmp_path, folder):
    classifier = tiny_model("resnet-basic", hidden_sizes=[8, 16, 24], seed=3)
    classifier.save_pretrained(tmp_path / "classifier")
    data = [
        "--train_dir",
        folder[0],
        "--train_annotations",
        folder[1],
        "--max_steps",
        "1",
        "--image_square_size",
        "64",
    ]
    out = tmp_path / "out"
    main(
        tasks["object_detection"],
        [*QUIET, *data, "--do_train", "--learning_rate", "0", "--output_dir", str(out)]
        + ["--backbone", str(tmp_path / "classifier"), "--logging_steps", "1"],
    )
    model = AutoModelForObjectDetection.from_pretrained(out)
    assert model.config.id2label == {0: "dog", 1: "cat"}  # by the numbers of the categories
    weights = dict(model.model.backbone.model.named_parameters())
    expected = dict(classifier.resnet.named_parameters())
    assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in expected)
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert any("loss" in row for row in log) and not any("loss_full" in row for row in log)


def test_a_classifier_of_another_family_or_width_is_no_backbone(tasks, tmp_path):
    task = tasks["object_detection"]
    model = task.new_model(tiny_config("resnet-basic"), {"num_labels": 2})
    for name, other in (
        ("family", tiny_model("convnext")),
        ("width", tiny_model("resnet-basic", hidden_sizes=[8, 16, 28])),
    ):
        other.save_pretrained(tmp_path / name)
        with pytest.raises(
            ValueError, match=rf"`backbone` must have all weights of the model's backbone, but '.*{name}' lacks \['"
        ):
            load_backbone_weights(model, str(tmp_path / name))


def test_coco_data_for_detection(folder):
    processor = RTDetrImageProcessor(size={"height": 64, "width": 64})
    dataset = CocoDataset(*folder, processor, with_targets=True)
    assert dataset.class_names == ["dog", "cat"] and len(dataset) == 2
    example, empty = dataset[0], dataset[1]
    assert example["pixel_values"].shape == empty["pixel_values"].shape == (3, 64, 64)
    assert example["labels"]["class_labels"].tolist() == [1]  # a crowd is no object to learn from
    assert torch.allclose(example["labels"]["boxes"], torch.tensor([[9 / 40, 12 / 30, 10 / 40, 12 / 30]]))
    assert example["targets"]["boxes"].tolist() == [[4, 6, 14, 18], [20, 0, 40, 30]]
    assert example["targets"]["labels"].tolist() == [1, 0] and example["targets"]["iscrowd"].tolist() == [0, 1]
    assert empty["labels"]["boxes"].shape == empty["targets"]["boxes"].shape == (0, 4)
    assert len(CocoDataset(*folder, processor, max_samples=1)) == 1


def test_coco_data_for_segmentation(folder):
    processor = Mask2FormerImageProcessor(size={"height": 60, "width": 80}, size_divisor=1)
    dataset = CocoDataset(*folder, processor, with_masks=True, with_targets=True)
    example, empty = dataset[0], dataset[1]
    assert example["mask_labels"].shape == (1, 60, 80) and example["class_labels"].tolist() == [1]
    rows, columns = example["mask_labels"][0].nonzero(as_tuple=True)
    assert abs(rows.min() - 12) <= 1 and abs(rows.max() - 35) <= 1  # twice 6 and 17, the mask's first row and its last
    assert abs(columns.min() - 8) <= 1 and abs(columns.max() - 27) <= 1
    assert example["targets"]["masks"].sum((1, 2)).tolist() == [120, 600]
    assert empty["mask_labels"].shape == (0, 60, 80) and empty["targets"]["masks"].shape == (0, 30, 40)


@pytest.mark.parametrize("left", [0, 12, 30])
def test_masks_lie_on_their_objects_in_the_resized_image(folder, change, left):
    polygon = [[left, 6, left + 10, 6, left + 10, 18, left, 18]]
    change(annotations={"bbox": [left, 6, 10, 12], "segmentation": polygon})
    picture = Image.new("RGB", (40, 30))
    picture.paste("white", (left, 6, left + 10, 18))
    picture.save(f"{folder[0]}/a.png")
    processor = Mask2FormerImageProcessor(size={"height": 240, "width": 320}, do_normalize=False)
    example = CocoDataset(*folder, processor, with_masks=True)[0]
    for side in (0, 1):
        assert (example["mask_labels"][0] > 0).any(side).equal((example["pixel_values"][0] > 0.5).any(side))


@pytest.fixture
def change(folder):
    """Changes the annotations' file, and gives its arguments."""

    def change(**changes):
        path = Path(folder[1])
        contents = json.loads(path.read_text())
        for name, entry in changes.items():
            contents[name][0] |= entry
        path.write_text(json.dumps(contents))
        return folder

    return change


def test_entries_that_nothing_can_be_read_of_are_errors(folder, change):
    original = Path(folder[1]).read_text()
    for changes, words in (
        ({"images": {"id": 9}}, r"`id` of the images in .* must differ, but these occur more than once: \[9\]"),
        ({"annotations": {"id": 2}}, r"`id` of the annotations in .*: \[2\]"),
        ({"categories": {"id": 3}}, r"`id` of the categories in .*: \[3\]"),
        *(
            (
                {part: {"id": "a"}},
                rf"`id` of the {part} in .* must be all numbers or all strings, but is \['int', 'str'\]",
            )
            for part in ("images", "categories")
        ),
        ({"images": {"id": [1]}}, r"`id` of the images in .* but is \['int', 'list'\]"),
        ({"categories": {"name": "dog"}}, r"`name` of the categories in .*: \['dog'\]"),
        *(
            (
                {part: {name: None}},
                rf"Each of the {part} in .* must have `{name}`, but those at \[0\] in the list have",
            )
            for part, names in (("images", ("id", "file_name")), ("categories", ("id", "name")))
            for name in names
        ),
        *(
            ({"annotations": {name: None}}, rf"Each of the annotations in .* must have `{name}`, but those at \[0\]")
            for name in ("id", "image_id", "category_id")
        ),
        (
            {"annotations": {"category_id": "7"}},
            r"`category_id` of annotation 1 must be .* \[7, 3\], but is '7'. It is",
        ),
        (
            {"annotations": {"iscrowd": "0"}},
            "`iscrowd` of annotation 1 must be one of 0 and 1, but is '0'. .* in 1 of the 2",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            CocoDataset(*change(**changes), None)
        Path(folder[1]).write_text(original)


def test_annotations_of_no_image_are_told_and_none_with_an_image_is_an_error(folder, change, caplog):
    dataset = CocoDataset(*change(annotations={"image_id": "5"}), None)
    (message,) = caplog.messages
    assert "must be the `id` of an image, but 1 of 2 have others, such as ['5']. These annotations are not" in message
    assert [item["id"] for item in dataset.read(0)[1]] == [2]
    contents = json.loads(Path(folder[1]).read_text())
    for item in contents["annotations"]:
        item["image_id"] = "5"
    Path(folder[1]).write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=r"must be the `id` of an image, but 2 of 2 have others, such as \['5'\]\.$"):
        CocoDataset(*folder, None)


def test_a_file_that_two_images_name_is_told(change, caplog):
    CocoDataset(*change(images={"file_name": "b.png"}), None)
    (message,) = caplog.messages
    assert message.startswith("`file_name` of each image in") and "more than once: ['b.png']. The objects" in message


def test_ids_may_be_texts_and_what_is_not_read_may_be_anything(folder):
    path, processor = Path(folder[1]), RTDetrImageProcessor(size={"height": 64, "width": 64})
    expected = CocoDataset(*folder, processor, with_targets=True)[0]
    contents = json.loads(path.read_text())
    contents["images"][0]["id"] = "photo 5"
    contents["images"][1]["id"] = "photo 9"
    first, second = contents["annotations"]
    first |= {"image_id": "photo 5", "area": None, "iscrowd": None, "keypoints": [1, 1, 2] * 17}
    second |= {"image_id": "photo 5", "bbox": None, "iscrowd": 1}
    path.write_text(json.dumps(contents))
    example = CocoDataset(*folder, processor, with_targets=True)[0]
    for name in ("boxes", "class_labels"):
        assert example["labels"][name].equal(expected["labels"][name])
    assert all(example["targets"][name].equal(value) for name, value in expected["targets"].items())


@pytest.mark.parametrize("box", [[4, 6, 10], [4, 6, -1, 12], [float("nan"), 6, 10, 12], ["4", "6", "10", "12"]])
def test_a_box_that_is_none_is_named(change, box):
    dataset = CocoDataset(*change(annotations={"bbox": box}), None)
    with pytest.raises(
        ValueError, match="`bbox` of annotation 1 must be left, top, width and height in pixels, but is"
    ):
        dataset.read(0)


def test_boxes_beyond_the_image_are_told_once(change, caplog):
    dataset = CocoDataset(*change(annotations={"bbox": [14, 6, 26.9, 24]}), None)
    dataset.read(0)
    assert not caplog.messages
    dataset = CocoDataset(*change(annotations={"bbox": [14, 6, 34, 18]}), None)
    for _ in range(2):
        dataset.read(0)
    (message,) = caplog.messages
    assert "annotation 1, [14, 6, 34, 18], reaches beyond its image 'a.png' of 40 x 30 pixels" in message


def test_boxes_in_fractions_of_the_image_are_told_once(change, caplog):
    dataset = CocoDataset(*change(annotations={"bbox": [0.35, 0.2, 0.5, 0.6]}), None)
    for _ in range(2):
        dataset.read(0)
    (message,) = caplog.messages
    assert "annotation 1, [0.35, 0.2, 0.5, 0.6], is within the first pixel of its image 'a.png'" in message


def test_masks_without_area_are_no_objects_and_missing_ones_are_named(change, caplog):
    processor = Mask2FormerImageProcessor(size={"height": 60, "width": 80}, size_divisor=1)
    flat = {"bbox": [4, 6, 0, 0], "segmentation": [[4, 6, 4, 6, 4, 6, 4, 6]]}
    dataset = CocoDataset(*change(annotations=flat), processor, with_masks=True)
    for example in (dataset[0], dataset[0]):
        assert example["mask_labels"].shape == (0, 60, 80) and example["class_labels"].shape == (0,)
    (message,) = caplog.messages
    assert message.startswith("Annotation 1 has no area in its image 'a.png'")
    dataset = CocoDataset(*change(annotations={"segmentation": []}), processor, with_masks=True)
    with pytest.raises(ValueError, match="Annotation 1 must have a `segmentation`, but has none"):
        dataset.read(0)


def test_masks_that_no_pixel_is_left_of_are_no_objects(change):
    processor = Mask2FormerImageProcessor(size={"height": 8, "width": 8}, size_divisor=1)
    # Its pixels lie between those that are read.
    small = {"bbox": [3, 2, 3, 3], "segmentation": [[3, 2, 6, 2, 6, 5, 3, 5]], "area": 9}
    example = CocoDataset(*change(annotations=small), processor, with_masks=True, with_targets=True)[0]
    assert example["mask_labels"].shape == (0, 8, 8) and example["class_labels"].shape == (0,)
    assert example["targets"]["masks"].sum((1, 2)).tolist() == [9, 600]  # evaluation sees the original image


@pytest.mark.parametrize("box", [[4, 6, 0, 12], [4, 30, 10, 1], [-1, 6, 1, 12]])
def test_boxes_without_area_are_told_once(change, caplog, box):
    dataset = CocoDataset(*change(annotations={"bbox": box}), RTDetrImageProcessor(size={"height": 64, "width": 64}))
    for _ in range(2):
        assert dataset[0]["labels"]["class_labels"].shape == (0,)
    (message,) = caplog.messages
    assert message.startswith("Annotation 1 has no area in its image 'a.png'")


@pytest.mark.parametrize(
    "segmentation, words",
    [
        ([[4, 6, 14, 18]], "`segmentation` of annotation 1 must be polygons, each a list of six or more numbers"),
        ([[4, 6, 14, 6, 14, 18, 4]], "1 must be polygons, .* a polygon has an x without a y"),
        ([4, 6, 14, 6, 14, 18], "`segmentation` of annotation 1 must be polygons"),
        ({"counts": [600, 600]}, "`segmentation` of annotation 1 must be .* or run lengths, but can't be read"),
        ({"size": [30, 40], "counts": [600, 300]}, "1 must add up to the 30 x 40 pixels .*, 1200, but add up to 900"),
    ],
)
def test_a_mask_that_is_none_is_named(change, segmentation, words):
    for with_masks in (False, True):
        dataset = CocoDataset(*change(annotations={"segmentation": segmentation}), None, with_masks)
        with pytest.raises(ValueError, match=words):
            dataset.read(0)


def test_categories_without_annotated_images(folder):
    contents = json.loads(Path(folder[1]).read_text())
    del contents["annotations"][1]["iscrowd"]
    Path(folder[1]).write_text(json.dumps(contents))
    assert CocoDataset(*folder, None).find_unused() == []
    contents["annotations"][1]["iscrowd"] = 1  # no object to learn from
    contents["categories"].append({"id": 90, "name": "owl"})
    Path(folder[1]).write_text(json.dumps(contents))
    assert CocoDataset(*folder, None).find_unused() == ["dog", "owl"]


@pytest.mark.parametrize("with_masks", [False, True])
def test_average_precision_of_perfect_and_of_shifted_predictions(tasks, folder, tmp_path, with_masks, monkeypatch):
    name = "instance_segmentation" if with_masks else "object_detection"
    shift = 0

    def predict(processor, outputs, sizes):
        assert [size.tolist() for size in sizes] == [[30, 40]] * 2
        mask = torch.zeros(1, 30, 40, dtype=torch.bool)
        mask[:, 6:18, 4 + shift : 14 + shift] = True
        boxes = torch.tensor([[4.0 + shift, 6, 14 + shift, 18]])
        found = {"scores": torch.ones(1), "labels": torch.tensor([1])}
        found |= {"masks": mask} if with_masks else {"boxes": boxes}
        return [found, {key: value[:0] for key, value in found.items()}]

    monkeypatch.setattr(coco, "predict_objects", predict)
    arguments = [*QUIET, "--do_eval", "--validation_dir", folder[0], "--validation_annotations", folder[1]]
    arguments += ["--output_dir", str(tmp_path / "out"), "--image_square_size", "64"]
    arguments += ["--model_name_or_path", save_small_model(tasks[name], tmp_path / "model", ["dog", "cat"])]
    monkeypatch.setattr("detection.common.draw_predictions", lambda *args: Image.new("RGB", (1, 1)))
    assert main(tasks[name], arguments)["eval_map"] == pytest.approx(1)
    shift = 4  # the two overlap by 6 / 14
    assert main(tasks[name], arguments)["eval_map_50"] == 0
    shift = 3  # by 7 / 13, which is above 0.5 only
    metrics = main(tasks[name], arguments)
    assert metrics["eval_map_50"] == pytest.approx(1) and metrics["eval_map"] == pytest.approx(0.1)


def test_errors_name_the_argument(tasks, folder, tmp_path):
    task, out = tasks["object_detection"], ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(
        ValueError, match="`train_dir` and `train_annotations` must be given together, but are 'x' and None"
    ):
        main(task, [*QUIET, *out, "--do_train", "--train_dir", "x"])
    with pytest.raises(ValueError, match="`validation_dir` and `validation_annotations`"):
        main(
            task, [*QUIET, *out, "--do_train", "--do_eval", "--train_dir", folder[0], "--train_annotations", folder[1]]
        )
    with pytest.raises(ValueError, match="but several are: .*'model_name_or_path': 'a', 'backbone': 'b'"):
        main(task, [*QUIET, *out, "--do_train", "--model_name_or_path", "a", "--backbone", "b"])
    for words, message in (
        ([], "One of `do_train`, `do_eval` must be on, but all are off"),
        (["--do_eval"], "`model_name_or_path` must be a trained model without `do_train`, but is None"),
        (["--do_eval", "--backbone", "a"], "`model_name_or_path` must be a trained model without `do_train`"),
        (["--do_train", "--do_predict"], "`do_predict` must be off in this script, but is on. Use `do_eval`"),
    ):
        with pytest.raises(ValueError, match=message):
            main(task, [*QUIET, *out, *words])
    for name in ("max_train_samples", "max_eval_samples", "image_square_size"):
        with pytest.raises(ValueError, match=f"`{name}` must be 1 or more, but is -1"):
            main(task, [*QUIET, *out, "--do_train", f"--{name}", "-1"])
    with pytest.raises(ValueError, match="`num_scenes` must be 5 or more, but is 4"):
        main(task, [*QUIET, *out, "--do_train", "--num_scenes", "4"])
    (tmp_path / "wrong.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"wrong.json' must hold .*\['images', 'annotations', 'categories'\]"):
        CocoDataset(folder[0], str(tmp_path / "wrong.json"), None)
    (tmp_path / "wrong.json").write_text("[{}]")
    with pytest.raises(ValueError, match=r"\['images', 'annotations', 'categories'\]: it is a list"):
        CocoDataset(folder[0], str(tmp_path / "wrong.json"), None)
    assert not (tmp_path / "out").exists()


def test_small_models_are_what_the_scripts_say(tasks):
    for task, auto_class in zip(tasks.values(), (AutoModelForObjectDetection, AutoModelForUniversalSegmentation)):
        model = randomize(task.new_model(new_backbone(), {"num_labels": 10}))
        assert task.auto_class is auto_class and sum(parameter.numel() for parameter in model.parameters()) < 1e6


@pytest.mark.parametrize("stages", [3, 4])
def test_the_small_segmenter_takes_backbones_of_other_depths(tasks, stages):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20][:stages], "depths": [1] * stages}
    model = tasks["instance_segmentation"].new_model(ResNetConfig(**sizes, layer_type="basic"), {"num_labels": 10})
    outputs = model.eval()(pixel_values=torch.zeros(1, 3, 64, 64))
    assert outputs.masks_queries_logits.shape == (1, 20, 16, 16)  # a quarter of the image
    assert model.config.feature_strides == [4, 8, 16, 32][:stages]


@pytest.mark.parametrize("flag", ["model_name_or_path", "config_name", "backbone"])
@pytest.mark.parametrize("name", ["object_detection", "instance_segmentation"])
def test_a_model_without_sub_networks_is_named_before_the_data_are_read(tasks, name, flag, tmp_path):
    CLIPConfig().save_pretrained(tmp_path)
    nowhere = ["--train_dir", "nowhere", "--train_annotations", "nowhere.json", "--output_dir", str(tmp_path / "out")]
    words = [*QUIET, "--do_train", "--gradaug", *nowhere, f"--{flag}", str(tmp_path)]
    with pytest.raises(
        TypeError, match="no sub-networks for model type 'clip'. Supported: .* Set `num_subnetworks=0`"
    ):
        main(tasks[name], words)


@pytest.mark.parametrize(
    "orientation, size, is_ambiguous",
    [
        (1, (30, 30), False),
        # Turned by 90 degrees, a picture that isn't square has other sizes upright and stored, which tell.
        (6, (40, 30), False),
        (3, (40, 30), True),
        (6, (30, 30), True),
        (2, None, True),
    ],
)
def test_a_turned_image_that_no_size_tells_is_named_when_it_is_read(tmp_path, caplog, orientation, size, is_ambiguous):
    exif = Image.Exif()
    exif[0x0112] = orientation
    names = {2: "turned.jpg", 4: "another.jpg"}
    for name in names.values():
        Image.new("RGB", size or (40, 30)).save(tmp_path / name, exif=exif)
    entry = {"width": size[0], "height": size[1]} if size else {}
    contents = {
        "images": [{"id": number, "file_name": name, **entry} for number, name in names.items()],
        "annotations": [],
        "categories": CATEGORIES,
    }
    (tmp_path / "annotations.json").write_text(json.dumps(contents))
    dataset = CocoDataset(str(tmp_path), str(tmp_path / "annotations.json"), None)
    assert not caplog.messages
    for index in (0, 1, 0):
        dataset.read(index)
    assert len(caplog.messages) == is_ambiguous
    for message in caplog.messages:
        assert message.startswith("Image 'turned.jpg' has an EXIF orientation") and "Upright is assumed" in message


def test_workers_warn_of_turned_images_once_in_all_epochs(folder, capfd):
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "gray").save(f"{folder[0]}/{name}", exif=exif)
    dataset = CocoDataset(*folder, RTDetrImageProcessor(size={"height": 64, "width": 64}))
    loader = DataLoader(dataset, collate_fn=collate, num_workers=1)
    handler = logging.StreamHandler()  # records of a worker stay there, its output doesn't
    coco.logger.addHandler(handler)
    try:
        for _ in range(2):
            assert len(list(loader)) == 2
    finally:
        coco.logger.removeHandler(handler)
    assert capfd.readouterr().err.count("has an EXIF orientation") == 1
