# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The example scripts from end to end, and their errors."""

import csv
import functools
import io
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from helpers import harness, images
from huggingface_hub.errors import HTTPError
from sklearn.metrics import f1_score
from torch.utils.data import DataLoader
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BertConfig,
    CLIPConfig,
    ResNetConfig,
    pipeline,
)

from hf_gradaug import plot_training_curves
from hf_gradaug.data import DataArguments, ImageCollator, get_eval_transform, load_image_data
from hf_gradaug.reporting import new_figure, training_curves


TINY = "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"
MODEL = ["--model_type", "resnet", "--config_overrides", TINY, "--image_size", "20", "--crop_pct", "1.0"]
QUIET = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]


@pytest.fixture(scope="module")
def script():
    return images.load_script("run_image_classification")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(images.make_folder(tmp_path_factory.mktemp("folder") / "images"))


@pytest.fixture
def run(script, tmp_path, folder):
    """Runs the script on the folder, into tmp_path / "out"."""

    def run(*args, data=("--train_dir", folder, "--validation_dir", folder), model=MODEL):
        return script.main([*data, *model, *QUIET, "--output_dir", str(tmp_path / "out"), *args])

    return run


def test_gradaug_on_an_image_folder_leaves_everything_behind(run, tmp_path, folder):
    metrics = run(
        "--gradaug", "--do_train", "--do_eval", "--do_predict", "--test_dir", folder, "--per_device_train_batch_size", "4", "--logging_steps", "1",
        "--num_train_epochs", "1", "--eval_strategy", "epoch", "--cutmix_alpha", "1", "--mixup_alpha", "1", "--color_jitter", "0.4",
    )  # fmt: skip
    out = tmp_path / "out"
    results = {
        name: json.loads((out / f"{name}_results.json").read_text()) for name in ("train", "eval", "predict", "all")
    }
    assert results["all"]["eval_accuracy"] == metrics["eval_accuracy"] == results["predict"]["predict_accuracy"]
    assert np.isfinite(metrics["eval_loss"]) and "eval_top5_accuracy" not in metrics  # three classes
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log if "loss_subnetworks" in row] == [1, 2, 3]
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and {row["prediction"] for row in rows} <= set(images.CLASSES)
    card = (out / "README.md").read_text()
    assert "image-classification" in card and "[](" not in card
    assert (out / "training_curves.png").read_bytes().startswith(b"\x89PNG")

    # What is saved is a standard model that knows its classes.
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.config.problem_type == "single_label_classification"
    assert list(model.config.id2label.values()) == list(images.CLASSES)
    classify = pipeline("image-classification", model=model, image_processor=AutoImageProcessor.from_pretrained(out))
    assert classify(images.make_image(1, 0))[0]["label"] in images.CLASSES


def test_plain_training_is_a_plain_run_of_the_same_trainer(run, tmp_path):
    run("--do_train", "--max_steps", "2", "--logging_steps", "1")
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert any("loss" in row for row in log) and not any("loss_full" in row for row in log)
    assert not (tmp_path / "out" / "eval_results.json").exists()


def test_help_shows_own_flags_first(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--help"])
    text = capsys.readouterr().out
    flags = ("--gradaug", "--train_dir", "--min_width", "--lr_milestones", "--output_dir")
    places = [text.find(f"  {flag} ") for flag in flags]
    titles = [text.find(f"\n{title}:\n") for title in ("model", "data", "GradAug", "Trainer")]
    assert -1 not in places + titles and "--train-dir" not in text
    assert titles[0] < places[0] < titles[1] < places[1] < titles[2] < places[2] < places[3] < titles[3] < places[4]
    assert script.parse_arguments(["--output-dir", "x", "--do-train", "--train-dir", "y"])[1].train_dir == "y"


def test_a_run_ends_with_what_it_reached_and_where(run, tmp_path, caplog, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(logging.getLogger("transformers").handlers[0], "stream", log)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*pin_memory.*")
        metrics = run("--do_train", "--do_eval", "--max_steps", "1")
    reached = f"accuracy {metrics['eval_accuracy']:.2%} on the validation images"
    assert caplog.messages[-1] == f"Done: {reached}. The results are in '{tmp_path / 'out'}'."
    assert "Running training" in log.getvalue() and "share your model" not in log.getvalue()
    assert "[transformers] \n" not in log.getvalue() and "\n\n" not in log.getvalue()


def test_channels_last(run, script, monkeypatch):
    layouts = []

    class Trainer(script.GradAugTrainer):
        def training_step(self, model, *args):
            kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4]
            layouts.extend(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
            return super().training_step(model, *args)

    monkeypatch.setattr(script, "GradAugTrainer", Trainer)
    run("--gradaug", "--channels_last", "--do_train", "--max_steps", "1")
    assert layouts and all(layouts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_gradaug_on_streamed_shards(run, tmp_path, kind):
    make = images.make_parquet if kind == "parquet" else images.make_tar
    path = str(make(tmp_path / "data", num_shards=2))
    flags = ["--num_labels", "3", "--num_train_samples", "12"] if kind == "tar" else []
    metrics = run(
        "--gradaug", "--streaming", *flags, "--do_train", "--do_eval", "--num_train_epochs", "2",
        "--per_device_train_batch_size", "4", "--dataloader_num_workers", "2", "--eval_strategy", "epoch",
        data=("--train_dir", path, "--validation_dir", path),
    )  # fmt: skip
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["max_steps"] == state["global_step"] == 6
    assert 0 <= metrics["eval_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_resume(run, tmp_path, folder, streaming):
    path = str(images.make_parquet(tmp_path / "data", num_shards=2)) if streaming else folder
    data = {"data": ("--train_dir", path, "--validation_dir", path)}
    common = ["--do_train", "--gradaug", "--per_device_train_batch_size", "4", "--max_steps", "4"]
    common += ["--streaming"] if streaming else []
    run(*common, "--save_strategy", "steps", "--save_steps", "2", **data)
    whole = AutoModelForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    run(*common, "--resume_from_checkpoint", checkpoint, "--output_dir", str(tmp_path / "again"), **data)
    resumed = AutoModelForImageClassification.from_pretrained(tmp_path / "again").state_dict()
    assert all(whole[name].equal(resumed[name]) for name in whole)
    # Without a checkpoint, the run starts from the beginning; damaged ones are an error.
    run(*common, "--resume_from_checkpoint", "true", "--output_dir", str(tmp_path / "first"), **data)
    first = AutoModelForImageClassification.from_pretrained(tmp_path / "first").state_dict()
    assert all(whole[name].equal(first[name]) for name in whole)
    (tmp_path / "first" / "checkpoint-2").mkdir()
    (tmp_path / "first" / "checkpoint-2" / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match="must not be set without a complete checkpoint"):
        run(*common, "--resume_from_checkpoint", "true", "--output_dir", str(tmp_path / "first"), **data)


@pytest.mark.slow
def test_errors_come_before_training(run, script, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    images.make_folder(tmp_path / "two", classes=("cat", "dog"))
    BertConfig().save_pretrained(tmp_path / "bert")
    cases = [
        ({"data": ("--train_dir", str(tmp_path / "empty"))}, "`train_dir` must hold images, .*, but '.*empty' holds no images"),
        ({"data": ("--train_dir", "no/such")}, "`train_dir` must be a folder, or a glob .*, but is 'no/such'"),
        (
            {"data": ("--train_dir", folder, "--validation_dir", str(tmp_path / "two"))},
            r"\['owl'\] are among the train images, but not among the validation images",
        ),
        ({"extra": ("--label_column_name", "kind")}, r"`label_column_name` must be one of the columns \['image', 'label'\], but is 'kind'"),
        ({"data": ("--train_dir", folder, "--image_column_name", "photo")}, r"`image_column_name` must be one of .*, but is 'photo'"),
        ({"extra": ("--num_labels", "2")}, "`num_labels` must be 3, the classes of column 'label', but is 2"),
        ({"data": ("--train_dir", folder), "extra": ("--train_val_split", "0.1")}, "`?train_val_split`?.* 0.1: .* number of classes"),
        (
            {"model": ["--model_type", "convnext", "--image_size", "36"], "extra": ("--gradaug",)},
            "Images of 31 x 31 pixels, scaled from 36 x 36, are too small: ConvNextForImageClassification takes 32 x 32",
        ),
        (
            {"model": ["--model_type", "convnext", "--image_size", "20"]},
            "Images of 20 x 20 pixels are too small: ConvNextForImageClassification takes 32 x 32 at the least",
        ),
        ({"model": ["--config_name", str(tmp_path / "bert"), "--image_processor_name", "x"]}, "no image-classification head"),
        ({"model": ["--model_type", "bert"]}, "`model_type` must be one of .*resnet.*, but is 'bert'"),
        ({"model": []}, "Name a model"),
        ({"model": ["--model_type", "resnet", "--config_overrides", "hidden=[8]"]}, r"`config_overrides` must name settings of ResNetConfig, but has \['hidden'\]"),
        ({"model": ["--model_type", "resnet", "--config_overrides", "depths=[1,"]}, "`config_overrides` must have Python or JSON literals"),
        ({"model": ["--model_type", "resnet", "--config_overrides", "layer_type=wide"]}, "`config_overrides` must make a config, but is 'layer_type=wide'"),
        ({"extra": ("--mix_prob", "1.5")}, "`mix_prob` must be in .*, but is 1.5"),
        ({"extra": ("--random_resized_crop_scale", "0.9")}, r"`random_resized_crop_scale` must be .*, but is \[0.9\]"),
    ]  # fmt: skip
    for kwargs, message in cases:
        extra = kwargs.pop("extra", ())
        with pytest.raises(ValueError, match=message):
            run("--do_train", "--max_steps", "1", *extra, **kwargs)
        assert not (tmp_path / "out" / "trainer_state.json").exists()


def test_an_unreadable_image_is_named_by_the_script_with_workers(run, tmp_path, folder):
    broken = images.make_folder(tmp_path / "images") / "owl" / "1.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match="Unreadable image: .*owl/1.png"):
        run(
            "--do_train",
            "--max_steps",
            "3",
            "--dataloader_num_workers",
            "1",
            data=("--train_dir", str(broken.parents[1]), "--validation_dir", folder),
        )


@pytest.mark.parametrize(
    ("flag", "place"), [("enable_jit_checkpoint", "in this script"), ("push_to_hub", "without `do_train`")]
)
def test_a_second_handler_of_sigterm_and_a_card_without_training_are_refused(script, tmp_path, flag, place):
    with pytest.raises(ValueError, match=f"`{flag}` must be off {place}, but is on"):
        script.parse_arguments(["--output_dir", str(tmp_path), f"--{flag}", "--do_eval"])


def test_flags_that_the_plain_baseline_does_not_use_are_named(script, caplog):
    flags = ["--output_dir", "out", "--do_train", "--model_type", "resnet"]
    script.parse_arguments([*flags, "--gradaug", "--min_width", "0.5", "--nonfinite_loss", "skip"])
    script.parse_arguments(flags)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    *_, args = script.parse_arguments([*flags, "--min-width=0.5", "--scales", "1", "0.5", "--nonfinite_loss", "skip"])
    assert args.num_subnetworks == 0
    assert (
        "plain baseline is trained, and ['min_width', 'nonfinite_loss', 'scales'] have no effect: they need `gradaug`"
        in caplog.text
    )


def test_config_overrides(script):
    text = "hidden_sizes=[8, 16],layer_type=basic, drop=0.5,flag=true,pair=(1,2),nothing=null"
    assert script.parse_config_overrides(text) == {
        "hidden_sizes": [8, 16], "layer_type": "basic", "drop": 0.5, "flag": True, "pair": (1, 2), "nothing": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match="must be of the form name=value,name=value, but has 'basic'"):
        script.parse_config_overrides("basic")


@pytest.fixture(scope="module")
def digits(root, tmp_path_factory):
    """Trains an arm as `make train` does, but with three of ten epochs and one thread; gives the output folder."""

    @functools.cache
    def train(arm: str) -> Path:
        folder = tmp_path_factory.mktemp(arm)
        flags = ["--output_dir", str(folder), "--do_train", "--do_eval", "--disable_tqdm", "True"]
        flags += ["--num_train_epochs", "3", *(["--gradaug"] if arm == "gradaug" else [])]
        script = str(root / "examples" / "run_image_classification.py")
        log = folder / "log"
        run = harness.finish(harness.start(log, harness.run_script, script, *flags), log, timeout=300)
        assert run.code == 0, run.text
        return folder

    return train


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["plain", "gradaug"])
def test_both_arms_learn_the_digits(digits, arm):
    """The project's main job."""
    assert json.loads((digits(arm) / "all_results.json").read_text())["eval_accuracy"] >= 0.95


@pytest.mark.slow
def test_a_width_of_the_training_is_as_accurate_as_the_full_network(digits, tmp_path):
    """The smallest width is 0.9."""
    flags = ["--widths", "0.9", "--output_dir", str(tmp_path), "--device", "cpu"]
    row, full = images.load_script("export_subnetworks").main([str(digits("gradaug")), *flags])
    exported = AutoModelForImageClassification.from_pretrained(tmp_path / "width-0.9").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "width-0.9")
    held_out = load_image_data(DataArguments()).get_dataset("validation", get_eval_transform(processor))
    correct = 0
    with torch.no_grad():
        for batch in DataLoader(held_out, 128, collate_fn=ImageCollator(10)):
            correct += (exported(batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).sum().item()
    accuracy = correct / len(held_out)
    assert full["accuracy"] > 0.9
    assert accuracy >= full["accuracy"] - 0.01
    assert row["accuracy"] < accuracy  # with the full network's statistics it is not


@pytest.mark.slow
def test_digits_with_no_data_named(script, tmp_path):
    args = ["--output_dir", str(tmp_path), *QUIET, "--gradaug", "--do_train", "--do_eval", "--max_steps", "2"]
    metrics = script.main([*args, "--max_train_samples", "128", "--max_eval_samples", "20"])
    assert "eval_top5_accuracy" in metrics
    config = ResNetConfig.from_pretrained(tmp_path)
    assert config.layer_type == "basic" and config.num_labels == 10


def test_own_loop(tmp_path, folder, capsys):
    script = images.load_script("run_image_classification_no_trainer")
    common = ["--train_dir", folder, "--validation_dir", folder, "--output_dir", str(tmp_path)]
    common += ["--max_train_steps", "3", "--cutmix_alpha", "1"]
    batches = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"]
    accuracy = script.main([*common, *batches, "--width_divisor", "8"])
    assert 0 <= accuracy <= 1 and "evaluation: 100%" in capsys.readouterr().err
    assert json.loads((tmp_path / "gradaug_config.json").read_text())["width_divisor"] == 8  # as exports need it
    trained = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert list(trained.config.id2label.values()) == list(images.CLASSES)
    # A pretrained model's running statistics move in the first epoch.
    script.main([*common, "--max_train_steps", "1", "--model_name_or_path", str(tmp_path)])
    buffers = dict(AutoModelForImageClassification.from_pretrained(tmp_path).named_buffers())
    assert buffers and not any(torch.equal(buffer, buffers[name]) for name, buffer in trained.named_buffers())
    with pytest.raises(FloatingPointError, match=r"The loss of .* is not finite in optimizer step 2"):
        script.main([*common, "--learning_rate", "1e30"])
    with pytest.raises(ValueError, match="`nonfinite_loss` must be 'stop' in this script, but is 'skip'"):
        script.main([*common, "--nonfinite_loss", "skip"])


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(images.ROOT / "examples" / "metrics" / "image_classification"), keep_in_memory=True)


def test_metric_counts_top_1_and_top_5(metric):
    ranked = [[0, 1, 2, 3, 4], [5, 0, 1, 2, 3], [3, 2, 1, 0, 6], [9, 8, 7, 6, 5]]
    # Of the classes 0, 3, 4, 5 and 9, 0 and 9 have an F1 of 1.
    assert metric.compute(predictions=ranked, references=[0, 3, 4, 9]) == {
        "accuracy": 0.5,
        "macro_f1": 0.4,
        "top5_accuracy": 0.75,
    }
    assert metric.compute(predictions=[[0, 1], [1, 0]], references=[0, 0]) == {
        "accuracy": 0.5,
        "macro_f1": pytest.approx(1 / 3),
    }


def test_metric_averages_f1_over_classes_as_scikit_learn_does(metric):
    generator = np.random.default_rng(0)
    true = generator.choice([0, 1, 2, 4], size=60, p=[0.7, 0.1, 0.1, 0.1])
    guesses = np.where(generator.random(60) < 0.6, true, generator.choice([0, 1, 2, 3, 7], size=60))
    results = metric.compute(predictions=guesses[:, None].tolist(), references=true.tolist())
    assert 0.3 < results["macro_f1"] < results["accuracy"]
    assert results["macro_f1"] == pytest.approx(f1_score(true, guesses, average="macro"))


def test_curves_of_gradaug_and_plain_runs(tmp_path, monkeypatch):
    plain = [{"step": step, "loss": 1 / step, "learning_rate": 0.1, "epoch": 1.0} for step in range(1, 4)]
    gradaug = [{**row, "loss_full": 0.5, "loss_subnetworks": 0.2} for row in plain]
    for name, log in (("plain", plain), ("gradaug", [*gradaug, {"step": 3, "eval_loss": 0.4, "eval_accuracy": 0.9}])):
        plot_training_curves(log, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    figures = []
    monkeypatch.setattr(training_curves, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1])
    for accuracy, shown in ((0.785, "78.5%"), (78.5, "78.5")):
        log = [{"step": 3, "eval_loss": 0.4, "eval_accuracy": accuracy}, {"step": 3, "eval_accuracy": 0.1}]
        plot_training_curves(log, tmp_path / "curves.png")  # the second is of the best weights, loaded at the end
        assert [text.get_text() for text in figures[-1].subfigs[0].axes[1].texts] == [shown]
    with pytest.raises(ValueError, match="`log_history` must hold losses or evaluations"):
        plot_training_curves([{"step": 1, "train_runtime": 3.0}], tmp_path / "none.png")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_stream_accumulate_and_evaluate(tmp_path):
    path = str(images.make_parquet(tmp_path / "data", num_shards=3, images_per_shard=7))
    harness.run_script_in_ranks(
        tmp_path, images.ROOT / "examples" / "run_image_classification.py", "--train_dir", path, "--validation_dir", path, *MODEL, *QUIET,
        "--gradaug", "--streaming", "--do_train", "--do_eval", "--num_train_epochs", "2", "--per_device_train_batch_size", "2",
        "--gradient_accumulation_steps", "2", "--per_device_eval_batch_size", "4", "--eval_strategy", "epoch",
        "--output_dir", str(tmp_path / "out"), "--ddp_backend", "gloo",
    )  # fmt: skip
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 6  # 21 images: 6 batches of 4, accumulated by 2, twice
    assert [row["step"] for row in state["log_history"] if "eval_loss" in row] == [3, 6, 6]
    accuracy = json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_accuracy"]
    assert round(accuracy * 21, 6) == round(accuracy * 21)  # out of 21 images, none twice


def test_an_error_about_a_value_of_the_recipe_names_the_recipe(script, tmp_path, folder):
    recipe = str(images.ROOT / "examples" / "recipes" / "cifar100_wrn28_10.yaml")
    args = [
        recipe,
        "--train_dir",
        folder,
        "--validation_dir",
        folder,
        "--output_dir",
        str(tmp_path / "out"),
        "--use_cpu",
    ]
    message = (
        r"`image_column_name` must be .* but is 'img'. The recipe .*wrn28_10.yaml sets image_column_name; override"
    )
    with pytest.raises(ValueError, match=message):
        script.main(args)
    with pytest.raises(
        ValueError, match="`label_column_name` must .* but is 'fine_label'.* sets label_column_name; override"
    ):
        script.main([*args, "--image_column_name", "image"])
    with pytest.raises(ValueError) as error:
        script.main([*args, "--image_column_name", "photo"])
    assert "recipe" not in str(error.value)


@pytest.mark.parametrize(
    ("flag", "script"),
    [
        ("--model_name_or_path", "run_image_classification"),
        ("--dataset_name", "run_image_classification"),
        ("--teacher", "run_image_classification"),
        ("--model_name_or_path", "run_object_detection"),
        ("--model_name_or_path", "run_image_classification_no_trainer"),
        ("--models", "evaluate_robustness"),
        ("model", "export_subnetworks"),
        ("--push_to_hub", "run_image_classification"),
    ],
)
def test_an_unreachable_hub_is_one_line_that_names_the_flag(tmp_path, monkeypatch, flag, script):
    http = sys.modules[HTTPError.__module__]  # whichever the Hub's client uses

    def refuse(*args, **kwargs):
        raise http.ConnectError("Connection refused")

    monkeypatch.setattr(http.Client, "request", refuse)
    monkeypatch.setattr(http.Client, "send", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    value = [] if flag == "--push_to_hub" else ["someone/something"]
    words = [flag, *value] if flag.startswith("--") else value
    if script.startswith("run"):
        words += ["--output_dir", str(tmp_path / "out")]
    if script in ("run_image_classification", "run_object_detection"):
        words += ["--do_train", "--max_steps", "1", *QUIET]
    if script in ("evaluate_robustness", "export_subnetworks"):
        words += ["--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    name = flag.removeprefix("--")
    shown = "True" if name == "push_to_hub" else "'someone/something'"
    with pytest.raises(SystemExit) as error:
        module = images.load_script(script)
        module.main(*([module.TASK] if script == "run_object_detection" else []), words)
    message = str(error.value)
    assert message.startswith(f"`{name}` is {shown}, but the Hub at http") and "HF_HUB_OFFLINE=1" in message
    assert "\n" not in message and error.value.__suppress_context__
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.slow
def test_offline_and_not_downloaded_before(tmp_path, subprocess_env):
    script = images.ROOT / "examples" / "run_image_classification.py"
    words = ["--model_name_or_path", "someone/something", "--do_train", "--output_dir", str(tmp_path / "out"), *QUIET]
    done = subprocess.run(
        [sys.executable, str(script), *words], env={**subprocess_env, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "`model_name_or_path` is 'someone/something', but HF_HUB_OFFLINE is set" in done.stderr


def test_own_data_takes_the_place_of_the_recipes(script):
    recipe = str(images.ROOT / "examples" / "recipes" / "cifar100_wrn28_10.yaml")
    assert script.parse_arguments([recipe])[1].dataset_name == "uoft-cs/cifar100"
    assert script.parse_arguments([recipe, "--train-dir", "x"])[1].dataset_name is None
    _, both, _ = script.parse_arguments([recipe, "--train_dir", "x", "--dataset_name", "y"])
    with pytest.raises(
        ValueError, match="`dataset_name` must be left out where `train_dir` is given, but is 'y' and 'x'"
    ):
        load_image_data(both)


def test_a_model_without_sub_networks_is_named_before_its_sizes(run):
    config = "vision_config={'hidden_size':8,'num_attention_heads':2,'num_hidden_layers':1,'intermediate_size':8,'image_size':20}"
    words = ["--do_train", "--gradaug", "--max_steps", "1"]
    with pytest.raises(
        TypeError, match="no sub-networks for model type 'clip'. Supported: .* Set `num_subnetworks=0`"
    ):
        run(*words, model=["--model_type", "clip", "--config_overrides", config, "--image_size", "48"])


def test_own_loop_names_a_model_without_sub_networks_before_the_data_are_read(tmp_path):
    CLIPConfig().save_pretrained(tmp_path)
    words = ["--train_dir", "nowhere", "--validation_dir", "nowhere", "--output_dir", str(tmp_path / "out")]
    script = images.load_script("run_image_classification_no_trainer")
    with pytest.raises(
        TypeError, match="no sub-networks for model type 'clip'. Supported: .* Set `num_subnetworks=0`"
    ):
        script.main([*words, "--model_name_or_path", str(tmp_path)])
