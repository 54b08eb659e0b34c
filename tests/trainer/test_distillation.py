# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Training on the predictions of a teacher."""

import json

import pytest
import torch
import torch.nn.functional as F
from helpers import images
from helpers.tiny import TinyImages, largest_difference, parameters_of, state_of, tiny_model, tiny_trainer
from transformers import TrainerCallback

from hf_gradaug import DistillationTrainer


def trainer_of(tmp_path, model=None, teacher=None, weight=1.0, kwargs=None, **args):
    teacher = tiny_model("resnet-basic", seed=7) if teacher is None else teacher
    kwargs = {"teacher": teacher, "teacher_weight": weight, **(kwargs or {})}
    return tiny_trainer(tmp_path, model, DistillationTrainer, trainer_kwargs=kwargs, num_subnetworks=0, **args)


def test_no_weight_is_plain_training_exactly(tmp_path):
    plain = tiny_trainer(tmp_path, num_subnetworks=0)
    distilled = trainer_of(tmp_path, weight=0.0)
    plain.train()
    distilled.train()
    assert largest_difference(state_of(plain.model), state_of(distilled.model)) == 0
    assert distilled.state.total_flos == plain.state.total_flos
    lines = [row for row in distilled.state.log_history if "loss" in row]
    assert lines and not any("loss_teacher" in row for row in lines)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_is_the_formula_and_moves_the_student_alone(tmp_path, mixed):
    data = [TinyImages(8)[i] for i in range(8)]
    if mixed:
        for example in data:
            example["labels"] = torch.tensor([0.1, 0.1, 0.1]).scatter(0, torch.tensor(example["labels"]), 0.8)
    model = tiny_model(problem_type="single_label_classification")
    teacher = tiny_model("resnet-basic", seed=7)
    before, teacher_before = parameters_of(model), state_of(teacher)

    batch = torch.stack([example["pixel_values"] for example in data])
    labels = torch.stack([torch.as_tensor(example["labels"]) for example in data])
    reference = tiny_model()
    logits = reference(pixel_values=batch).logits
    with torch.no_grad():
        targets = F.softmax(teacher.eval()(pixel_values=batch).logits, dim=-1)
    label_loss = F.cross_entropy(logits, labels)
    teacher_loss = -(targets * F.log_softmax(logits, dim=-1)).sum(-1).mean()
    (label_loss + 0.5 * teacher_loss).backward()

    trainer = trainer_of(
        tmp_path, model, teacher.train(), 0.5, {"train_dataset": data}, max_steps=1, max_grad_norm=0.0,
        lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.train()
    expected = {name: before[name] - 0.05 * parameter.grad for name, parameter in reference.named_parameters()}
    assert largest_difference(parameters_of(model), expected) < 1e-6
    assert largest_difference(expected, before) > 1e-3
    assert largest_difference(state_of(teacher), teacher_before) == 0  # BatchNorm's statistics too
    assert all(parameter.grad is None for parameter in teacher.parameters())
    row = trainer.state.log_history[0]
    assert row["loss_labels"] == pytest.approx(label_loss.item(), rel=1e-5)
    assert row["loss_teacher"] == pytest.approx(teacher_loss.item(), rel=1e-5)
    assert row["loss"] == pytest.approx(row["loss_labels"] + 0.5 * row["loss_teacher"], rel=1e-4)


def test_accumulation_is_the_larger_batch_and_logs_the_same(tmp_path):
    runs = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_grad_norm=0.0, max_steps=2
        )  # fmt: skip
        trainer.train()
        runs.append(trainer)
    assert largest_difference(*(parameters_of(run.model) for run in runs)) < 1e-6
    logs = [[row for row in run.state.log_history if "loss" in row] for run in runs]
    assert len(logs[0]) == 2
    for row, other in zip(*logs, strict=True):
        for name in ("loss", "loss_labels", "loss_teacher"):
            assert row[name] == pytest.approx(other[name], rel=1e-4)


def test_an_attempt_that_is_repeated_is_not_in_the_log(tmp_path):
    class NoMemory(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1 and state.train_batch_size > 4:
                raise RuntimeError("CUDA out of memory.")

    kwargs = {"callbacks": [NoMemory()]}
    trainer = trainer_of(tmp_path, auto_find_batch_size=True, max_steps=2, logging_steps=2, kwargs=kwargs)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["loss"] == pytest.approx(row["loss_labels"] + row["loss_teacher"], rel=1e-4)


def test_label_smoothing_and_evaluation_leave_the_teacher_out(tmp_path):
    trainer = trainer_of(tmp_path, label_smoothing_factor=0.1)
    trainer.train()
    assert any("loss_teacher" in row for row in trainer.state.log_history)
    plain = tiny_trainer(tmp_path, trainer.model, num_subnetworks=0, label_smoothing_factor=0.1)
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def test_a_copy_as_teacher_costs_a_third_of_a_step_more(tmp_path):
    plain = tiny_trainer(tmp_path, num_subnetworks=0)
    distilled = trainer_of(tmp_path, teacher=tiny_model())
    plain.train()
    distilled.train()
    assert distilled.state.total_flos / plain.state.total_flos == pytest.approx(4 / 3)


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="`teacher_weight` must be 0 or more, but is -1"):
        trainer_of(tmp_path, weight=-1)
    with pytest.raises(ValueError, match="`compute_loss_func` must be None with a teacher, but is given"):
        trainer_of(tmp_path, kwargs={"compute_loss_func": lambda *_, **__: None})
    with pytest.raises(ValueError, match="`num_subnetworks` must be 0 with a teacher, .* but is 3"):
        tiny_trainer(tmp_path, cls=DistillationTrainer, trainer_kwargs={"teacher": tiny_model()})
    with pytest.raises(ValueError, match="`temperature` must be 1 with a teacher, but is 2"):
        trainer_of(tmp_path, temperature=2)
    with pytest.raises(ValueError, match="'teacher' has 4 classes, but the model has 3"):
        trainer_of(tmp_path, teacher=tiny_model(num_labels=4))
    names = {"id2label": {0: "cat", 1: "owl", 2: "dog"}}
    with pytest.raises(ValueError, match="class 2 is 'dog' and 'emu'. Rename them"):
        trainer_of(tmp_path, tiny_model(id2label={0: "cat", 1: "owl", 2: "emu"}), teacher=tiny_model(**names))
    with pytest.raises(ValueError, match="problem_type` is 'regression'"):
        trainer_of(tmp_path, teacher=tiny_model(problem_type="regression"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [("", "ConvNextForImageClassification"), ("outputs/plain/", "plain"), ("google/vit", "google/vit")],
)
def test_the_card_names_the_teacher(tmp_path, name, shown):
    teacher = tiny_model()
    teacher.name_or_path = name
    trainer_of(tmp_path, teacher=teacher, weight=0.5).create_model_card(data_settings={"cutmix_alpha": 1.0})
    card = (tmp_path / "README.md").read_text()
    assert f"| `teacher` | {shown} |" in card and "| `teacher_weight` | 0.5 |" in card and "| `cutmix_alpha` |" in card


def test_the_example_distils_from_a_folder(tmp_path, caplog):
    script = images.load_script("run_image_classification")
    folder = str(images.make_folder(tmp_path / "images"))
    common = [
        "--train_dir", folder, "--validation_dir", folder, "--use_cpu", "--report_to", "none", "--disable_tqdm", "true",
        "--save_strategy", "no", "--model_type", "resnet", "--image_size", "20", "--do_train", "--do_eval", "--max_steps", "2",
        "--logging_steps", "1", "--config_overrides", "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic",
    ]  # fmt: skip
    script.main([*common, "--output_dir", str(tmp_path / "teacher")])
    teacher = ["--teacher", str(tmp_path / "teacher")]
    out = tmp_path / "student"
    script.main([*common, *teacher, "--teacher_weight", "2", "--cutmix_alpha", "1", "--output_dir", str(out)])
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    rows = [row for row in log if "loss_teacher" in row]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_labels"] + 2 * row["loss_teacher"], rel=1e-3)
    card = (out / "README.md").read_text()
    assert "| `teacher` | teacher |" in card and "| `teacher_weight` | 2 |" in card
    script.main(
        [*common, *teacher, "--image_size", "22", "--max_steps", "1", "--output_dir", str(tmp_path / "larger")]
    )
    assert f"The teacher '{tmp_path / 'teacher'}' is for images of 20 x 20 pixels" in caplog.text
    black_to_0 = ["--image_mean", "0", "0", "0", "--image_std", "1", "1", "1"]
    with pytest.raises(ValueError, match="`teacher` must have the model's image processor, .* by `image_mean`"):
        script.main([*common, *teacher, *black_to_0, "--output_dir", str(tmp_path / "none")])
    with pytest.raises(ValueError, match="`teacher` must not be given with `gradaug`, but is '.*teacher'"):
        script.main([*common, *teacher, "--gradaug", "--output_dir", str(tmp_path / "none")])
    with pytest.raises(ValueError, match="`teacher_weight` must be 1.0 without a `teacher`, but is 2.0"):
        script.main([*common, "--teacher_weight", "2", "--output_dir", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_teacher_is_checked_where_a_function_makes_the_model(tmp_path):
    kwargs = {"teacher": tiny_model(seed=7), "model": None, "model_init": lambda: tiny_model()}
    trainer = tiny_trainer(tmp_path, None, DistillationTrainer, trainer_kwargs=kwargs, num_subnetworks=0)
    trainer.train()
    assert any("loss_teacher" in row for row in trainer.state.log_history)
    kwargs["model_init"] = lambda: tiny_model(num_labels=5)
    with pytest.raises(ValueError, match="'teacher' has 3 classes, but the model has 5"):
        tiny_trainer(tmp_path, None, DistillationTrainer, trainer_kwargs=kwargs, num_subnetworks=0)
