# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""An example for detection in two real processes, in a group as `torchrun` makes it, with gloo, and in one."""

import json

import pytest
from detection.common import main
from helpers import harness, images
from helpers.dense import dense_config
from helpers.tiny import largest_difference, state_of
from transformers import AutoModelForObjectDetection


pytestmark = pytest.mark.distributed


def test_two_processes_train_and_evaluate_as_one(tmp_path, root):
    # Each process counts the objects of both, and nothing but the loss goes over the batch. transformers divides the
    # number of objects by that of processes twice, so that the loss is twice as large; clipped, its gradient is the same.
    config = dense_config("deformable_detr")
    config.backbone_config.drop_path_rate = config.dropout = config.attention_dropout = config.activation_dropout = 0.0
    config.save_pretrained(tmp_path / "config")
    args = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no", "--do_train"]
    args += ["--do_eval", "--num_scenes", "10", "--image_square_size", "64", "--config_name", str(tmp_path / "config")]
    args += ["--optim", "sgd", "--learning_rate", "0.05", "--max_steps", "2", "--logging_steps", "1", "--gradaug"]
    args += ["--min_width", "0.5", "--scales", "0.5", "--num_subnetworks", "2", "--warmup_steps", "0"]

    def batch(size):
        return ["--per_device_train_batch_size", str(size), "--per_device_eval_batch_size", "1"]

    one, two = tmp_path / "one", tmp_path / "two"
    main(images.load_script("run_object_detection").TASK, [*args, *batch(4), "--output_dir", str(one)])
    script = root / "examples" / "run_object_detection.py"
    harness.run_script_in_ranks(tmp_path, script, *args, *batch(2), "--ddp_backend", "gloo", "--output_dir", str(two))

    first, second = (AutoModelForObjectDetection.from_pretrained(folder) for folder in (one, two))
    start = AutoModelForObjectDetection.from_config(config)
    assert type(first) is type(second) is type(start)
    assert largest_difference(state_of(first), state_of(second)) < 1e-5
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (one, two)]
    for name in ("loss", "loss_full", "loss_subnetworks"):
        values = [[row[name] for row in log if name in row] for log in logs]
        assert len(values[0]) == 2 and values[0][0] != values[0][1]
        assert values[1] == pytest.approx([2 * value for value in values[0]], rel=1e-4)
    results = [json.loads((folder / "eval_results.json").read_text()) for folder in (one, two)]
    assert results[1]["eval_loss"] == pytest.approx(2 * results[0]["eval_loss"], rel=1e-4)
    for name in ("eval_map", "eval_map_50", "eval_mar_100"):
        assert results[1][name] == pytest.approx(results[0][name], abs=1e-6)
