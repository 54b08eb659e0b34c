# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The best checkpoint of a study: chosen on the validation images, measured on the test images."""

import json

import pytest
import yaml
from helpers import images
from helpers.studies import fill
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification

from benchmarks import best_checkpoint


NET = "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"
# (arm, seed): accuracy on the validation images.
VALIDATION = {("plain", 1): 0.5, ("plain", 2): 0.7, ("GradAug", 1): 0.9, ("GradAug", 2): 0.8, ("taught", 1): 1.0}


def make_study(tmp_path):
    for split, number in (("train", 4), ("validation", 3), ("test", 5)):
        images.make_folder(tmp_path / "data" / split, number)
    flags = {"model_type": "resnet", "config_overrides": NET, "image_size": 16, "max_steps": 1, "use_cpu": True}
    arms = {"plain": {}, "GradAug": {"gradaug": True}, "taught": {"teacher_arm": "plain"}}
    study = {"datasets": {"shapes": {"folder": str(tmp_path / "data")}}, "flags": flags, "seeds": [1, 2], "arms": arms}
    path = tmp_path / "shapes.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), "utf-8")
    grid = fill(path, tmp_path, {("plain", 0): [0.9, 0.8], ("GradAug", 0): [0.5, 0.7], ("taught", 0): [0.9, 0.9]})
    for cell, line in grid.lines.items():
        line["metrics"]["eval_accuracy"] = VALIDATION.get((cell.arm, cell.seed), 0.0)
    grid.results.write_text("".join(json.dumps(line) + "\n" for line in grid.lines.values()), "utf-8")
    return path, grid


@pytest.mark.slow
def test_best_model_on_the_validation_images_is_trained_again(tmp_path):
    path, _ = make_study(tmp_path)
    folders = ["--output_dir", str(tmp_path / "out"), "--results_dir", str(tmp_path / "results")]
    best_checkpoint.main([str(path), *folders])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    card.validate()
    assert "of the arm 'GradAug' with seed 1, which of the 6 models of the study `shapes`" in card.text
    assert "The 2 models of its arm have a test accuracy of 60.00 ± 127.06 %" in card.text
    assert "| evaluation images | 15 |" in card.text and "| seed | 1 |" in card.text
    accuracy = json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_accuracy"]
    assert {result.metric_type: result.metric_value for result in card.data.eval_results}["accuracy"] == accuracy
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.hidden_sizes == [8, 16]
    with pytest.raises(ValueError, match="`output_dir` must be a new folder, but is"):
        best_checkpoint.main([str(path), *folders])


def test_studies_without_a_choice_are_refused(tmp_path):
    _, grid = make_study(tmp_path)
    grid.lines.popitem()
    with pytest.raises(ValueError, match="but is .*, and 1 of its cells have not run"):
        best_checkpoint.find_best(grid)
    grid.study.split = "validation"
    with pytest.raises(ValueError, match="`study` must .*shapes.yaml"):
        best_checkpoint.find_best(grid)
