# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The recipes parse, and mean what their source says. So do flags beside them."""

import re

import pytest
import torch
import yaml
from helpers import images
from helpers.tiny import tiny_model
from transformers import ConvNextImageProcessor, Trainer


RECIPES = sorted((images.ROOT / "examples" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def script():
    return images.load_script("run_image_classification")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_key_of_a_recipe_arrives(script, path, tmp_path):
    recipe = yaml.safe_load(path.read_text())
    words = [] if "do_train" in recipe else ["--do_train"]
    parsed = script.parse_arguments([str(path), "--output_dir", str(tmp_path), "--use_cpu", *words])
    assert recipe.pop("report_to", "none") == "none"  # the arguments turn it into an empty list
    for key, value in recipe.items():
        owner = next(arguments for arguments in parsed if hasattr(arguments, key))
        if key != "output_dir" and not (key == "num_subnetworks" and not recipe.get("gradaug")):
            assert getattr(owner, key) == value, key


@pytest.mark.parametrize("name", ["imagenet_resnet50", "imagenet_resnet50_cutmix", "imagenet_resnet50_fast"])
def test_the_imagenet_recipe_is_the_published_one(script, name, tmp_path):
    path = images.ROOT / "examples" / "recipes" / f"{name}.yaml"
    model_args, data_args, args = script.parse_arguments([str(path), "--output_dir", str(tmp_path), "--use_cpu"])
    assert (args.num_subnetworks, args.min_width, args.num_train_epochs) == (3, 0.9, 120)
    assert [round(224 * scale) for scale in args.scales] == [224, 192, 160, 128]
    processes = 2 if name.endswith("_fast") else 8
    assert processes * args.per_device_train_batch_size * args.gradient_accumulation_steps == 512
    assert data_args.cutmix_alpha == (1.0 if "cutmix" in name else 0.0)
    kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    assert kwargs == (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9, "nesterov": True})
    model, processor = script.build_model(model_args, "data", [str(label) for label in range(1000)])
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032  # torchvision's ResNet-50
    assert dict(processor.size) == {"shortest_edge": 224}


def test_the_optimizer_has_nesterov_momentum(script, tmp_path):
    model = torch.nn.Linear(2, 2)
    path = images.ROOT / "examples" / "recipes" / "imagenet_resnet50.yaml"
    *_, args = script.parse_arguments([str(path), "--output_dir", str(tmp_path), "--use_cpu", "--report_to", "none"])
    args.eval_strategy = "no"
    optimizer = Trainer(model, args, train_dataset=[0]).create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(
        (group["momentum"], group["nesterov"], group["lr"]) == (0.9, True, 0.2) for group in optimizer.param_groups
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]


def test_flags_override_a_recipe_and_unknown_keys_raise(script, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train_dir: here\nlearning_rate: 0.5\nnum_train_epochs: 7\n")
    _, data_args, args = script.parse_arguments(
        [str(path), "--do_train", "--learning_rate", "0.25", "--output_dir", str(tmp_path), "--use_cpu"]
    )
    assert (data_args.train_dir, args.learning_rate, args.num_train_epochs) == ("here", 0.25, 7)
    assert args.num_subnetworks == 0  # no --gradaug
    path = tmp_path / "mine.json"
    path.write_text('{"lerning_rate": 0.5}')
    with pytest.raises(ValueError, match=r"mine.json has unknown keys \['lerning_rate'\]"):
        script.parse_arguments([str(path)])


def test_logs_of_the_plain_baseline_leave_losses_out_as_the_trainer_does(script):
    filters = []
    for flags in ([], ["--gradaug"], ["--logging_nan_inf_filter", "false"]):
        filters.append(script.parse_arguments(["--output_dir", "out", "--do_train", *flags])[2].logging_nan_inf_filter)
    assert filters == [True, False, False]


def test_flags_that_another_flag_leaves_without_effect(script, tmp_path, caplog):
    with pytest.raises(ValueError, match="`mix_prob` must be 1.0 without `cutmix_alpha` or .*, but is 0.5"):
        script.parse_arguments(["--output_dir", "out", "--do_train", "--mix_prob", "0.5"])
    tiny_model("resnet-basic").save_pretrained(tmp_path / "model")
    ConvNextImageProcessor().save_pretrained(tmp_path / "model")
    words = re.escape(f"`model_type` must be left out with '{tmp_path / 'model'}', a model of type 'resnet'")
    for name in ("model_name_or_path", "config_name"):
        flags = ["--output_dir", "out", "--do_train", f"--{name}", str(tmp_path / "model"), "--model_type"]
        args = script.parse_arguments([*flags, "convnext"])[0]
        with pytest.raises(ValueError, match=f"{words}, but is 'convnext'"):
            script.build_model(args, "data", ["a", "b", "c"])
        script.build_model(script.parse_arguments([*flags, "resnet"])[0], "data", ["a", "b", "c"])
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("model_type: convnext\nimage_size: 64")
        script.build_model(script.parse_arguments([str(recipe), *flags[:-1]])[0], "data", ["a", "b", "c"])
        assert "no effect" not in caplog.text
        script.parse_arguments([*flags[:-1], "--image_size", "384", "--crop_pct", "0.875"])
        assert f"'{flags[4]}' is used, and ['image_size', 'crop_pct'] have no effect" in caplog.text
        caplog.clear()
    both = ["--model_name_or_path", "one", "--config_name", "other"]  # whose classes may have another order
    with pytest.raises(ValueError, match="Only one of `model_name_or_path`, `config_name` can be given, .*'other'"):
        script.parse_arguments(["--output_dir", "out", "--do_train", *both])
    recipe.write_text("config_name: other")
    args = script.parse_arguments([str(recipe), "--output_dir", "out", "--do_train", *both[:2]])[0]
    assert (args.model_name_or_path, args.config_name) == ("one", None)


def test_a_config_in_half_precision_gives_a_model_in_float32(script, tmp_path):
    tiny_model("resnet-basic").bfloat16().save_pretrained(tmp_path)
    ConvNextImageProcessor().save_pretrained(tmp_path)
    args = script.parse_arguments(["--output_dir", "out", "--do_train", "--config_name", str(tmp_path)])[0]
    model, _ = script.build_model(args, "data", ["a", "b", "c"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
