# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Classes of models, data and teachers are matched by their names, and other names are an error."""

import csv
import json
import re

import pytest
import torch
from helpers import images
from helpers.tiny import tiny_model
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, pipeline

from hf_gradaug import PixelClassifier, evaluate_robustness
from hf_gradaug.data import DataArguments, get_class_names, load_image_data, make_image_processor, match_classes
from hf_gradaug.robustness import RobustnessSettings


NAMES = ["cat", "dog", "owl"]
SHUFFLED = ["dog", "owl", "cat"]
QUIET = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]


@pytest.mark.parametrize("classes", [NAMES, ["0", "1", "2"], ["LABEL_0", "LABEL_1", "LABEL_2"]])
def test_equal_names_and_mere_numbers_keep_their_order(classes, caplog):
    assert match_classes("resnet", classes, "photos", NAMES) == [0, 1, 2]
    is_told = "matched by number" in caplog.text and "['0', '1', '2'] and ['cat', 'dog', 'owl']" in caplog.text
    assert is_told == (classes != NAMES)
    assert match_classes("resnet", NAMES, "photos", classes) == [0, 1, 2]


def test_another_order_is_matched_by_name_unless_told_otherwise():
    assert match_classes("resnet", SHUFFLED, "photos", NAMES) == [2, 0, 1]
    assert match_classes("resnet", ["2", "0", "1"], "photos", ["0", "1", "2"]) == [1, 2, 0]
    assert match_classes("resnet", SHUFFLED, "photos", NAMES, by_number=True) == [0, 1, 2]
    labels, folders = [f"LABEL_{number}" for number in range(12)], sorted(str(number) for number in range(12))
    assert match_classes("resnet", labels, "photos", folders) == [int(name) for name in folders]
    assert match_classes("resnet", labels, "photos", folders, by_number=True) == list(range(12))
    assert match_classes("resnet", ["n01", "n02"], "photos", ["tench", "goldfish"], by_number=True) == [0, 1]
    # Of ImageNet's cranes, one is a bird.
    assert match_classes("resnet", ["crane", "crane"], "photos", ["crane", "crane"]) == [0, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            ["cat", "dog", "bat"],
            "class 2 is 'owl' and 'bat'. Rename them, or if the order is the same, match them by number: `classes_by_number`.",
        ),
        (["Cat", "dog", "owl"], "class 0 is 'cat' and 'Cat'"),
        (["cat", "dog", "dog"], "class 2 is 'owl' and 'dog'"),
        (["cat", "dog"], "'resnet' has 3 classes, but photos has 2: ['cat', 'dog', 'owl'] and ['cat', 'dog']."),
        ([str(i) for i in range(99)], "photos has 99: ['cat', 'dog', 'owl'] and ['0', '1', '2', ...] (99 in all)"),
    ],
)
def test_other_names_and_another_number_are_errors(data, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        match_classes("resnet", NAMES, "photos", data, by_number=False)


def test_scripts_that_match_by_name_alone_advise_nothing_else():
    with pytest.raises(ValueError, match=r"Rename them\.$"):
        match_classes("resnet", NAMES, "photos", ["cat", "dog", "bat"])


def test_data_advise_the_setting_that_they_have(folder):
    data = load_image_data(DataArguments(validation_dir=str(folder)))
    with pytest.raises(ValueError, match="Rename them, or if .*: `classes_by_number`"):
        data.with_classes("resnet", ["ant", "bee", "cow"])


def test_names_are_in_the_order_of_their_numbers_whatever_type_these_have():
    config = PreTrainedConfig(id2label={2: "owl", 0: "cat", 1: "dog"})
    assert get_class_names(config) == NAMES
    config.id2label = {"2": "owl", "0": "cat", "1": "dog"}
    assert get_class_names(config) == NAMES
    config.id2label = {0: "cat", 7: "dog"}
    with pytest.raises(ValueError, match=re.escape("`id2label` must be 0..1, but are [0, 7]")):
        get_class_names(config)


# What a checkpoint says of images, in every script


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return images.make_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Knows the classes by their grey, and has another order of them than folders have."""
    path = tmp_path_factory.mktemp("models") / "greys"
    model = tiny_model(num_labels=3, id2label=dict(enumerate(SHUFFLED)))
    processor = make_image_processor(20, 1.0)
    pixels = torch.stack(
        [
            processor(images.make_image(NAMES.index(name), 2), return_tensors="pt")["pixel_values"][0]
            for name in SHUFFLED
        ]
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(200):
        torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits, torch.arange(3)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("flags", [[], ["--max_eval_samples", "7", "--skip_bad_images"]])
def test_evaluation_and_predictions_are_the_pipelines(checkpoint, folder, tmp_path, flags):
    script = images.load_script("run_image_classification")
    metrics = script.main(
        [*QUIET, "--model_name_or_path", checkpoint, "--validation_dir", str(folder), "--do_eval", "--do_predict",
         "--test_dir", str(folder), "--output_dir", str(tmp_path), *flags]
    )  # fmt: skip
    with open(tmp_path / "predictions.csv") as file:
        predictions = {int(row["index"]): row["prediction"] for row in csv.DictReader(file)}
    files = sorted(folder.rglob("*.png"))
    served = [best["label"] for (best, *_) in pipeline("image-classification", checkpoint)([str(f) for f in files])]
    assert served == [file.parent.name for file in files]
    assert predictions == {index: served[index] for index in predictions} and len(predictions) == (7 if flags else 12)
    assert metrics["eval_accuracy"] == 1


def test_a_head_of_the_same_classes_is_kept_and_of_others_is_new(checkpoint, folder, tmp_path):
    script = images.load_script("run_image_classification")
    common = [*QUIET, "--model_name_or_path", checkpoint, "--do_eval"]
    renamed = images.make_folder(tmp_path / "renamed", classes=("ant", "bee", "cow"))
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="is 'dog' and 'ant'.*`classes_by_number`.*set `ignore_mismatched_sizes`"):
        script.main([*common, "--validation_dir", str(renamed), "--output_dir", str(out)])
    args = [
        "--ignore_mismatched_sizes",
        "--do_train",
        "--max_steps",
        "1",
        "--learning_rate",
        "0",
        "--output_dir",
        str(out),
    ]
    for data, names in ((folder, SHUFFLED), (renamed, ["ant", "bee", "cow"])):
        script.main([*common, *args, "--train_dir", str(data), "--validation_dir", str(data)])
        model = AutoModelForImageClassification.from_pretrained(out)
        old = AutoModelForImageClassification.from_pretrained(checkpoint)
        assert get_class_names(model.config) == names
        for name, parameter in model.named_parameters():
            kept = parameter.equal(old.get_parameter(name))
            assert kept == (names == SHUFFLED or not name.startswith("classifier")), name


def test_a_model_without_names_gets_those_of_folders_that_are_numbers(tmp_path):
    folders = sorted(str(number) for number in range(12))
    model = tiny_model(num_labels=12)
    model.save_pretrained(tmp_path)
    images.load_script("run_image_classification")
    from common import load_pretrained

    for by_number, names in ((False, [str(number) for number in range(12)]), (True, folders)):
        config = AutoConfig.from_pretrained(tmp_path)
        loaded = load_pretrained(
            AutoModelForImageClassification, str(tmp_path), config, "photos", folders, by_number=by_number
        )
        assert get_class_names(loaded.config) == names
        assert loaded.classifier.weight.equal(model.classifier.weight)


def test_a_backbone_without_a_head_takes_any_classes(folder, tmp_path):
    tiny_model().base_model.save_pretrained(tmp_path / "backbone")
    make_image_processor(20, 1.0).save_pretrained(tmp_path / "backbone")
    script = images.load_script("run_image_classification")
    args = [*QUIET, "--model_name_or_path", str(tmp_path / "backbone"), "--validation_dir", str(folder), "--do_eval"]
    assert "eval_loss" in script.main([*args, "--output_dir", str(tmp_path / "out")])


def test_the_loop_without_trainer(checkpoint, folder, tmp_path):
    script = images.load_script("run_image_classification_no_trainer")
    args = ["--model_name_or_path", checkpoint, "--train_dir", str(folder), "--validation_dir", str(folder)]
    args += [
        "--max_train_steps",
        "1",
        "--learning_rate",
        "0",
        "--num_subnetworks",
        "0",
        "--scales",
        "1",
        "--output_dir",
        str(tmp_path),
    ]
    assert script.main(args) == 1
    assert get_class_names(AutoModelForImageClassification.from_pretrained(tmp_path).config) == SHUFFLED


def test_the_loop_without_trainer_takes_a_new_head(folder, tmp_path):
    tiny_model(num_labels=2, id2label={0: "ant", 1: "bee"}).save_pretrained(tmp_path / "other")
    make_image_processor(20, 1.0).save_pretrained(tmp_path / "other")
    script = images.load_script("run_image_classification_no_trainer")
    args = ["--model_name_or_path", str(tmp_path / "other"), "--ignore_mismatched_sizes", "--num_subnetworks", "0"]
    for split in ("train", "validation"):
        args += [f"--{split}_dir", str(folder)]
    script.main([*args, "--max_train_steps", "1", "--output_dir", str(tmp_path / "out")])
    assert get_class_names(AutoModelForImageClassification.from_pretrained(tmp_path / "out").config) == NAMES


def test_export(checkpoint, folder, tmp_path):
    script = images.load_script("export_subnetworks")
    args = [checkpoint, "--widths", "0.5", "--validation_dir", str(folder), "--train_dir", str(folder)]
    *_, full = script.main([*args, "--repetitions", "1", "--calibration_samples", "8", "--output_dir", str(tmp_path)])
    assert full["accuracy"] == 1


def test_robustness_of_models_with_different_orders(checkpoint, folder, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(checkpoint)
    order = [SHUFFLED.index(name) for name in NAMES]
    head = model.classifier
    with torch.no_grad():
        head.weight.copy_(head.weight[order])
        head.bias.copy_(head.bias[order])
    model.config.id2label = dict(enumerate(NAMES))
    other = tmp_path / "sorted"
    model.save_pretrained(other)
    make_image_processor(20, 1.0).save_pretrained(other)
    data = load_image_data(DataArguments(validation_dir=str(folder)))
    classifiers = {str(name): PixelClassifier.from_pretrained(str(name)) for name in (checkpoint, other)}
    results = evaluate_robustness(classifiers, data, RobustnessSettings(corruptions=[], epsilons=[2, 60]))
    first, second = results.accuracy.values()
    assert first == second and first["clean"] == 1 and min(first.values()) < 1  # the attack knows the true class


def test_a_teacher_in_another_order_teaches_the_same(checkpoint, folder, tmp_path):
    script = images.load_script("run_image_classification")
    losses = []
    for teacher in (checkpoint, str(tmp_path / "sorted")):
        if teacher != checkpoint:
            model = AutoModelForImageClassification.from_pretrained(checkpoint)
            order = [SHUFFLED.index(name) for name in NAMES]
            with torch.no_grad():
                for parameter in model.classifier.parameters():
                    parameter.copy_(parameter[order])
            model.config.id2label = dict(enumerate(NAMES))
            model.save_pretrained(teacher)
        out = tmp_path / f"out-{len(losses)}"
        script.main(
            [*QUIET, "--teacher", teacher, "--train_dir", str(folder), "--validation_dir", str(folder), "--do_train",
             "--max_steps", "1", "--logging_steps", "1", "--model_type", "resnet", "--image_size", "20", "--output_dir",
             str(out), "--config_overrides", "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"]
        )  # fmt: skip
        log = json.loads((out / "trainer_state.json").read_text())["log_history"]
        losses.append(log[0]["loss_teacher"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
