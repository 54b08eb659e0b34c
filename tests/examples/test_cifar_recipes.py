# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The CIFAR recipes mean what the authors' code does, and run; the options that they needed."""

import json

import datasets
import numpy as np
import pytest
import torch
from helpers import images
from helpers.tiny import largest_difference, parameters_of, tiny_model, tiny_trainer
from transformers import AutoModelForImageClassification, Trainer, TrainerCallback

from hf_gradaug import GradAugConfig
from hf_gradaug.data import get_eval_transform, get_train_transform, make_image_processor


MEAN = [value / 255 for value in (125.3, 123.0, 113.9)]
STD = [value / 255 for value in (63.0, 62.1, 66.7)]
PUBLISHED = {
    "cifar100_wrn28_10": {"batch": 128, "epochs": 200, "lr": 0.1, "decay": 5e-4, "milestones": None, "parameters": 36_536_884},
    "cifar100_pyramidnet200": {
        "batch": 64, "epochs": 300, "lr": 0.25, "decay": 1e-4, "milestones": [150, 225], "parameters": 26_844_952,
    },
    "cifar10_wrn28_10": {
        "batch": 128, "epochs": 200, "lr": 0.1, "decay": 5e-4, "milestones": None, "parameters": 36_479_194,
    },
    "cifar10_resnet110_depth": {
        "batch": 128, "epochs": 200, "lr": 0.1, "decay": 1e-4, "milestones": None, "parameters": 1_730_522,
    },
}  # fmt: skip
RECIPES = sorted((images.ROOT / "examples" / "recipes").glob("cifar*.yaml"))
TINY = {
    "cifar100_wrn28_10": "embedding_size=4,hidden_sizes=[8,12,16],depths=[1,1,1]",
    "cifar100_pyramidnet200": "embedding_size=4,alpha=6,depths=[1,1,1]",
    "cifar10_wrn28_10": "embedding_size=4,hidden_sizes=[8,12,16],depths=[1,1,1]",
    "cifar10_resnet110_depth": "embedding_size=4,hidden_sizes=[4,8,12],depths=[2,2,2]",
}


@pytest.fixture(scope="module")
def script():
    return images.load_script("run_image_classification")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Folders with the splits and columns of the data sets on the Hub, by the column of their labels."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("fine_label", "label")}
    fine, coarse = datasets.ClassLabel(names=list(images.CLASSES)), datasets.ClassLabel(names=["mammal", "bird"])
    features = datasets.Features({"img": datasets.Image(), "fine_label": fine, "coarse_label": coarse})
    for split, length in (("train", 16), ("test", 6)):
        labels = [number % 3 for number in range(length)]
        rows = {
            "img": [images.make_image(label, number, size=32) for number, label in enumerate(labels)],
            "fine_label": labels,
            "coarse_label": [label // 2 for label in labels],
        }
        hundred = datasets.Dataset.from_dict(rows, features=features)
        ten = hundred.remove_columns("coarse_label").rename_column("fine_label", "label")
        for folder, dataset in ((folders["fine_label"], hundred), (folders["label"], ten)):
            dataset.to_parquet(folder / f"{split}.parquet")
    return {name: str(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_is_the_published_one(script, recipe, tmp_path):
    name, cutmix = recipe.stem.removesuffix("_cutmix"), recipe.stem.endswith("_cutmix")
    expected, path = PUBLISHED[name], recipe
    model_args, data_args, args = script.parse_arguments([str(path), "--output_dir", str(tmp_path), "--use_cpu"])
    assert (args.num_subnetworks, args.num_train_epochs) == (3, expected["epochs"])
    by_depth = name == "cifar10_resnet110_depth"
    assert args.subnetwork_kind == ("depth" if by_depth else "width")
    assert (args.min_survival if by_depth else args.min_width) == 0.8
    assert [32 * scale for scale in args.scales] == [32, 28, 24]
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == expected["batch"]
    assert (args.weight_decay, args.warmup_steps, args.max_grad_norm) == (expected["decay"], 0, 0)
    kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    assert kwargs == (torch.optim.SGD, {"lr": expected["lr"], "momentum": 0.9, "nesterov": True})
    assert args.lr_scheduler_type == ("constant" if expected["milestones"] else "cosine")
    milestones = args.lr_milestones and [share * args.num_train_epochs for share in args.lr_milestones]
    assert milestones == expected["milestones"]
    assert (data_args.cutmix_alpha, data_args.mix_prob) == ((1.0, 0.5) if cutmix else (0.0, 1.0))
    assert data_args.train_augmentation == {"random_crop_padding": 4, "horizontal_flip": True, "color_jitter": 0}
    with torch.device("meta"):
        model, processor = script.build_model(
            model_args, "data", [str(label) for label in range(10 if "cifar10_" in name else 100)]
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["parameters"]
    assert processor.image_mean == pytest.approx(MEAN, abs=1e-5)
    assert processor.image_std == pytest.approx(STD, abs=1e-5)
    image = images.make_image(1, 20, size=32)  # of this size already: nothing is resized nor cut off
    grey = 100 / 255
    expected_pixels = torch.tensor([(grey - mean) / std for mean, std in zip(MEAN, STD)]).view(3, 1, 1)
    torch.testing.assert_close(
        get_eval_transform(processor)(image), expected_pixels.expand(3, 32, 32), atol=1e-3, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_runs(script, cifar, name, tmp_path):
    recipes = images.ROOT / "examples" / "recipes"
    path = recipes / f"{name}.yaml"
    if (recipes / f"{name}_cutmix.yaml").exists():
        path = recipes / f"{name}_cutmix.yaml"
    has_cutmix, label = path.stem.endswith("_cutmix"), "label" if "cifar10_" in name else "fine_label"
    metrics = script.main(
        [
            str(path), "--dataset_name", cifar[label], "--config_overrides", TINY[name], "--output_dir", str(tmp_path),
            "--max_steps", "4", "--per_device_train_batch_size", "8", "--dataloader_num_workers", "0", "--use_cpu",
            "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true",
        ]
    )  # fmt: skip
    assert np.isfinite(metrics["eval_loss"]) and metrics["eval_accuracy"] * 6 == pytest.approx(
        round(metrics["eval_accuracy"] * 6)
    )
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log if "loss_subnetworks" in row] == [1, 2, 3, 4]
    card = (tmp_path / "README.md").read_text()
    assert "| `random_crop_padding` | 4 |" in card and "trust_remote_code=True" in card
    assert all((row in card) == has_cutmix for row in ("| `cutmix_alpha` | 1 |", "| `mix_prob` | 0.5 |"))
    assert "random_resized_crop_scale" not in card  # not what was done
    assert ("| `lr_milestones` | 0.5, 0.75 |" in card) == (name == "cifar100_pyramidnet200")
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert list(model.config.id2label.values()) == list(images.CLASSES)


class LearningRates(TrainerCallback):
    """Notes the learning rate of each optimizer step."""

    def __init__(self):
        self.rates = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])


def train_in_steps(path, resume=None, **changes):
    rates = LearningRates()
    settings = {"max_steps": 8, "learning_rate": 0.2, "lr_scheduler_type": "constant", "lr_milestones": [0.75, 0.5]}
    settings |= {"save_strategy": "steps", "save_steps": 5, "num_subnetworks": 1, **changes}
    trainer = tiny_trainer(path, tiny_model(), trainer_kwargs={"callbacks": [rates]}, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, rates.rates


@pytest.mark.slow
def test_the_learning_rate_falls_at_the_milestones_and_resumes(tmp_path):
    trainer, rates = train_in_steps(tmp_path)
    assert rates == pytest.approx([0.2] * 4 + [0.02] * 2 + [0.002] * 2)
    weights = parameters_of(trainer.model)
    resumed, rest = train_in_steps(tmp_path, resume=str(tmp_path / "checkpoint-5"))
    assert rest == rates[5:]
    assert largest_difference(parameters_of(resumed.model), weights) == 0
    trainer.train()  # begins anew
    assert rates[8:] == rates[:8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_milestones": [0.5, 1.5]}, r"`lr_milestones` must be .* in \(0, 1\), but is \[0.5, 1.5\]"),
        ({"lr_milestones": 0.5}, r"`lr_milestones` must be a list of one or more fractions .* in \(0, 1\), but is 0.5"),
        ({"lr_milestones": []}, r"`lr_milestones` must be a list of one or more .* but is \[\]"),
        ({"lr_milestones": [0.5], "lr_scheduler_type": "cosine"}, "`lr_scheduler_type` must be 'constant' .* but is 'cosine'"),
    ],
)  # fmt: skip
def test_milestones_that_make_no_schedule_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        GradAugConfig(str(tmp_path), **{"lr_scheduler_type": "constant", **settings})


def test_random_crop_with_padding():
    processor = make_image_processor(8, crop_pct=1.0, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, axis=2)
    transform = get_train_transform(processor, horizontal_flip=False, random_crop_padding=2)
    padded = np.pad(pixels[:, :, 0], 2, mode="reflect")
    places = {padded[i : i + 8, j : j + 8].tobytes(): (i, j) for i in range(5) for j in range(5)}
    torch.manual_seed(0)
    crops = [transform(images.Image.fromarray(pixels)) for _ in range(300)]
    found = {places[(crop[0] * 255).round().to(torch.uint8).numpy().tobytes()] for crop in crops}
    assert found == set(places.values())  # every place, and nothing else
    # Other sizes are resized to the image processor's first.
    assert transform(images.make_image(0, 0, size=20)).shape == (3, 8, 8)
    for padding in (0, 8):
        with pytest.raises(
            ValueError, match=rf"`random_crop_padding` must be in 1..7 for images of 8 x 8, but is {padding}"
        ):
            get_train_transform(processor, random_crop_padding=padding)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "`image_size` must be 1 or more, but is 0"),
        ({"crop_pct": 1.5}, r"`crop_pct` must be in \(0, 1\], but is 1.5"),
        ({"image_mean": [0.5]}, r"`image_mean` must be three numbers, .*, but is \[0.5\]"),
        ({"image_std": [1.0, 1.0, 0.0]}, r"`image_std` must be three numbers above 0, .*, but is \[1.0, 1.0, 0.0\]"),
    ],
)
def test_image_processors_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_image_processor(**{"image_size": 32, **settings})
