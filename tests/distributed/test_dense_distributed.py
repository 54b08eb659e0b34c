# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""An example for detection in two real processes, in a group as `torchrun` makes it, with gloo, and in one."""

import json

import pytest
import torch
from detection import common
from detection.common import main
from helpers import harness, images
from helpers.dense import dense_config, save_small_model
from helpers.tiny import largest_difference, state_of
from PIL import Image
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
    args += ["--resume_from_checkpoint", "true"]  # there is none: both processes must find that

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


def evaluate_exactly(model, folder, out, size, task):
    """In the child: an evaluation in which the model finds the only object of the first image, and no other."""
    from detection import coco

    def predict(processor, outputs, sizes):
        found = [{"scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.long)} for _ in sizes]
        for each, (height, width) in zip(found, [pair.tolist() for pair in sizes], strict=True):
            each["boxes"] = torch.tensor([[4.0, 6, 14, 18]])
            each["masks"] = torch.zeros(1, height, width, dtype=torch.bool)
            each["masks"][:, 6:18, 4:14] = True
        return found

    coco.predict_objects = predict
    args = ["--use_cpu", "--ddp_backend", "gloo", "--report_to", "none", "--disable_tqdm", "true", "--do_eval"]
    args += ["--validation_dir", folder, "--validation_annotations", f"{folder}/some.json", "--output_dir", out]
    args += ["--image_square_size", "64", "--per_device_eval_batch_size", str(size)]
    common.draw_predictions = lambda *args: Image.new("RGB", (1, 1))
    main(images.load_script(f"run_{task}").TASK, [*args, "--model_name_or_path", model])


@pytest.mark.parametrize("size, task", [(1, "object_detection"), (8, "instance_segmentation")])
def test_images_that_fill_the_last_batch_count_once(tmp_path, size, task):
    data = tmp_path / "data"
    data.mkdir()
    pictures, annotations = [], []
    for number in range(3):
        Image.new("RGB", (40, 30)).save(data / f"{number}.png")
        pictures.append({"id": number, "file_name": f"{number}.png"})
        left = 4 if number == 0 else 24
        polygon = [left, 6, left + 10, 6, left + 10, 18, left, 18]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": [polygon]})
    contents = {"images": pictures, "annotations": annotations, "categories": [{"id": 1, "name": "light"}]}
    (data / "some.json").write_text(json.dumps(contents))
    model = save_small_model(images.load_script(f"run_{task}").TASK, tmp_path / "model", ["light"])
    for run in harness.run_ranks(tmp_path, evaluate_exactly, model, str(data), str(tmp_path / "out"), size, task):
        assert run.code == 0, run.text
    metrics = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert metrics["eval_mar_100"] == pytest.approx(1 / 3)
