# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""One training, many models: the study's arms share one compute, and the table compares models of the same seed."""

import json

import pytest
import yaml
from helpers import images
from helpers.studies import fill
from helpers.tiny import tiny_model

from benchmarks import one_training
from benchmarks.grid import Cell
from benchmarks.study import Study
from hf_gradaug.data import make_image_processor


TOGETHER = ["width 1", "width 0.5"]
ARMS = {
    "width 1": {},
    "width 0.5": {"config_overrides": "hidden_sizes=[8]"},
    "one training": {"gradaug": True, "min_width": 0.5},
    "width 1, shared compute": {"compute_of": "one training", "together": TOGETHER},
    "width 0.5, shared compute": {
        "config_overrides": "hidden_sizes=[8]", "compute_of": "one training", "together": TOGETHER,
    },
}  # fmt: skip
STUDY = {
    "datasets": {"digits": {}},
    "flags": {"max_steps": 100},
    "seeds": [1, 2, 3],
    "baseline": "width 1",
    "arms": ARMS,
}
SHARED = {"width 1, shared compute": 8.0, "width 0.5, shared compute": 2.0}
FLOPS = {"width 1": 4.0, "width 0.5": 1.0, "one training": 10.0}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path


def test_networks_by_themselves_share_the_compute_of_the_one_training(path, tmp_path):
    accuracies = {(arm, 0): [0.5] * 3 for arm in FLOPS}
    grid = fill(path, tmp_path, accuracies, flops=FLOPS)
    flags = grid.flags(Cell("digits", "width 0.5, shared compute", 0, 1))
    assert flags["max_steps"] == 200  # 100 times 10 / (4 + 1)
    assert flags["config_overrides"] == "hidden_sizes=[8]" and "together" not in flags
    assert grid.level("digits", "width 1, shared compute") == 1 + grid.level("digits", "one training")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"together": ["width 1"]}, "`together` must be given with `compute_of`"),
        ({"compute_of": "one training", "together": ["width 2"]}, "`together` of the arm .* is 'width 2'"),
    ],
)
def test_mistakes_are_named(path, settings, words):
    path.write_text(yaml.safe_dump({**STUDY, "arms": {**ARMS, "width 1, shared compute": settings}}, sort_keys=False))
    with pytest.raises(ValueError, match=words):
        Study.read(path)


def test_arms_of_equal_compute_may_be_left_out(path, tmp_path):
    path.write_text(yaml.safe_dump({**STUDY, "arms": {arm: ARMS[arm] for arm in FLOPS}}, sort_keys=False))
    grid = fill(path, tmp_path, {(arm, 0): [0.5] * 3 for arm in FLOPS}, flops=FLOPS)
    assert one_training.get_compute(grid, "digits") == {"one training": 2.5, "each by itself": 1.25}


def test_table_compares_models_of_a_seed():
    rows = [{"width": 0.5, "parameters": 1000, "flops": 2e6}, {"width": 1.0, "parameters": 4000, "flops": 8e6}]
    curves = {"one training": [[0.5, 0.6, 0.7], [0.9] * 3], "each by itself": [[0.6, 0.8, 0.7], [0.8] * 3]}
    table = one_training.make_table(rows, curves).splitlines()
    assert table[0] == "| width | parameters | MFLOPs | one training, % | each by itself, % |"
    # 10.00 is the deviation of 10, 20 and 0, and of 50, 60 and 70; 4.303 is Student's t
    assert table[2] == "| 0.5 | 1,000 | 2.0 | 60.00 ± 24.84 | 70.00 (+10.00 ± 24.84) |"
    assert table[3] == "| 1 | 4,000 | 8.0 | 90.00 ± 0.00 | 80.00 (-10.00 ± 0.00) |"


def test_sub_networks_of_the_models_are_measured(path, tmp_path):
    data, work = images.make_folder(tmp_path / "data", images_per_class=8, classes=("a", "b")), str(tmp_path)
    folders = dict.fromkeys(("train_dir", "validation_dir", "test_dir"), str(data))
    path.write_text(yaml.safe_dump({**STUDY, "datasets": {"greys": folders}}, sort_keys=False))
    flags = [str(path), "--results_dir", str(tmp_path / "results"), "--work_dir", work]
    fill(path, tmp_path, {(arm, 0): [0.5] * 3 for arm in FLOPS}, flops=FLOPS)
    with pytest.raises(ValueError, match="`study` must have run whole, but of .*some.yaml 6 cells are missing"):
        one_training.main(flags)
    fill(path, tmp_path, {(f"{arm}, shared compute", 0): [0.25] * 3 for arm in TOGETHER}, flops={**FLOPS, **SHARED})
    for seed in STUDY["seeds"]:
        folder = tmp_path / "some" / Cell("greys", "one training", 0, seed).folder
        model = tiny_model("resnet-basic", seed, num_labels=2, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
        model.save_pretrained(folder)
        make_image_processor(32, 1.0).save_pretrained(folder)
    results = one_training.main(flags)
    assert [row["width"] for row in results["runs"][0]["rows"]] == [0.5, 1]
    for place, key in enumerate(("accuracy_recalibrated", "accuracy")):
        measured = [run["rows"][place][key] for run in results["runs"]]
        assert results["curves"]["one training"][place] == measured and all(0 <= value <= 1 for value in measured)
    assert [*results["curves"].values()][1:] == [[[0.5] * 3] * 2, [[0.25] * 3] * 2]
    assert [*results["compute"].values()] == [2.5, 1.25, 2.5]
    text = (tmp_path / "results" / "some-widths.md").read_text()
    assert text.startswith("**greys**: accuracy on the test images of 3 seeds.") and "one training: 2.50 x" in text
    assert json.loads((tmp_path / "results" / "some-widths.json").read_text()) == results
    assert (tmp_path / "results" / "some-widths.png").stat().st_size > 5_000
