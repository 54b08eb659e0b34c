# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The card says what the run knows, and no more. The cards of `model_cards/` are valid and agree with their recipes."""

import re

import jinja2
import pytest
import torch
import transformers
import yaml
from datasets import load_dataset
from helpers import images
from helpers.images import ROOT
from helpers.tiny import TinyImages, tiny_config, tiny_model, tiny_trainer
from huggingface_hub import ModelCard
from PIL import Image
from transformers import ConvNextForImageClassification, ConvNextImageProcessor, TrainerCallback

from hf_gradaug import GradAugTrainer
from hf_gradaug.data import make_image_processor
from hf_gradaug.reporting.model_card import _OF_OPTIMIZER, TEMPLATE, _show, _table, find_licence


CARDS = sorted((ROOT / "model_cards").glob("*.md"))


def rows_of(text: str) -> dict[str, str]:
    """First and second cell of all rows of the card's tables."""
    return dict(re.findall(r"^\| `?(.+?)`? \| (.*?) \|$", text, re.M))


def compute_metrics(result) -> dict[str, float]:
    best = torch.from_numpy(result.predictions).argmax(-1)
    return {"accuracy": (best == torch.from_numpy(result.label_ids)).float().mean().item()}


@pytest.fixture
def from_scratch():
    return ConvNextForImageClassification(tiny_config("convnext"))


def test_card_of_a_gradaug_run(tmp_path, from_scratch):
    arguments = {"min_width": 0.8, "weight_decay": 0.01, "optim_args": "momentum=0.9,nesterov=True", "seed": 0}
    kwargs = {"compute_metrics": compute_metrics, "processing_class": make_image_processor(32, 1.0)}
    trainer = tiny_trainer(tmp_path, from_scratch, trainer_kwargs=kwargs, **arguments, max_steps=2)
    trainer.train()
    metrics = trainer.evaluate()
    tags = ["vision"]
    trainer.create_model_card(
        dataset="my photos", tags=tags, license="mit", data_settings={"cutmix_alpha": 1.0, "mixup_alpha": 0.0}
    )
    assert tags == ["vision"]  # the caller's own
    card = ModelCard.load(tmp_path / "README.md")
    card.validate()
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-classification", "mit")
    assert {"gradaug", "vision", "generated_from_trainer"} == set(data.tags)
    assert data.base_model is None and data.datasets is None and data.language is None
    (result,) = data.eval_results
    assert (result.task_type, result.dataset_type, result.dataset_name) == (
        "image-classification",
        "my-photos",
        "my photos",
    )
    assert (result.metric_type, result.metric_value) == ("accuracy", metrics["eval_accuracy"])
    assert data.model_name == tmp_path.name

    assert (
        "This convnext model was trained on my photos, with [GradAug](https://arxiv.org/abs/2006.07989)." in card.text
    )
    rows = rows_of(card.text)
    assert rows["min_width"] == "0.8" and rows["scales"] == "1, 0.8571, 0.7143, 0.5714" and rows["rotations"] == "none"
    assert rows["optimizer"] == "SGD (weight_decay 0.01, lr 0.05, momentum 0.9, nesterov True)"
    assert rows["lr_scheduler_type"] == "linear" and not rows.keys() & set(_OF_OPTIMIZER)
    assert rows["max_steps"] == "2" and "num_train_epochs" not in rows
    assert rows["global batch size"] == "8" and rows["optimizer steps"] == "2" and rows["seed"] == "0"
    assert (rows["training images"], rows["evaluation images"]) == ("32", "12")
    assert rows["cutmix_alpha"] == "1" and "mixup_alpha" not in rows
    assert rows["loss"] == f"{metrics['eval_loss']:.4g}" and rows["accuracy"] == f"{metrics['eval_accuracy']:.4g}"
    assert "cores" in rows["hardware"] and rows["training time since the last start"].endswith(" s")
    assert f"torch {torch.__version__}" in rows["versions"]
    assert f"transformers {transformers.__version__}" in rows["versions"]
    for section in ("Results", "How to load", "Method", "Training", "Limits", "Citation"):
        assert f"\n## {section}\n" in card.text
    assert 'model="path/to/this/folder"' in card.text and "yang2020gradaug" in card.text
    assert str(tmp_path) not in card.text
    assert "(training_curves.png)" in card.text
    with Image.open(tmp_path / "training_curves.png") as picture:
        assert picture.width > 1000
    for invented in ("More information needed", "None", "unknown", "{{ ", "\n\n\n"):
        assert invented not in str(card)


def test_macro_f1_is_f1_to_the_hub(tmp_path, from_scratch):
    kwargs = {"compute_metrics": lambda _: {"accuracy": 0.5, "macro_f1": 0.25}}
    trainer = tiny_trainer(tmp_path, from_scratch, num_subnetworks=0, trainer_kwargs=kwargs)
    trainer.evaluate()
    trainer.create_model_card(dataset="my photos", tasks="image-classification")
    card = ModelCard.load(tmp_path / "README.md")
    results = [(result.metric_type, result.metric_name, result.metric_value) for result in card.data.eval_results]
    assert results == [("accuracy", "Accuracy", 0.5), ("f1", "Macro F1", 0.25)]
    assert card.data.metrics == ["accuracy", "f1"] and rows_of(card.text)["macro f1"] == "0.25"


def test_card_of_a_plain_run_that_knows_little(tmp_path, from_scratch):
    trainer = tiny_trainer(tmp_path, from_scratch, num_subnetworks=0, max_steps=1)
    trainer.create_model_card()  # not even trained
    card = ModelCard.load(tmp_path / "README.md")
    card.validate()
    assert "This convnext model was trained." in card.text
    assert "gradaug" not in card.data.tags and "2006.07989" not in card.text and "## Method" not in card.text
    assert card.data.eval_results is None and "## Results" not in card.text and "evaluation set" not in card.text
    assert card.data.base_model is None and card.data.license is None and card.data.datasets is None
    assert "training_curves.png" not in card.text and not (tmp_path / "training_curves.png").exists()
    assert "training time" not in card.text


def test_origin(tmp_path, from_scratch):
    trainer = tiny_trainer(tmp_path / "out", from_scratch)
    trainer.create_model_card(
        finetuned_from="org/base", dataset=["food101", "pets"], dataset_tags=["food101", "org/pets"]
    )
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "org/base" and card.data.datasets == ["food101", "org/pets"]
    assert "was fine-tuned from [org/base](https://huggingface.co/org/base) on food101 and pets, with" in card.text

    from_scratch.config._name_or_path = "org/base"  # as of a config that was loaded from the Hub
    tiny_trainer(tmp_path / "out", from_scratch).create_model_card()
    assert "org/base" not in (tmp_path / "out" / "README.md").read_text()

    tiny_model().save_pretrained(tmp_path / "base")
    model = ConvNextForImageClassification.from_pretrained(tmp_path / "base")
    for given in ({}, {"finetuned_from": str(tmp_path / "base")}):
        tiny_trainer(tmp_path / "out", model).create_model_card(**given)
        card = ModelCard.load(tmp_path / "out" / "README.md")
        assert card.data.base_model is None and str(tmp_path / "base") not in str(card)


@pytest.mark.parametrize(("save_steps", "steps", "accuracy", "step"), [(1, 3, "0.9", 1), (2, 4, "0.2", 4)])
def test_metrics_are_those_of_the_weights(tmp_path, from_scratch, save_steps, steps, accuracy, step):
    """Step 1 is the best. Saved in every second step, nothing has its weights, and the last ones stay."""
    accuracies = iter([0.9, 0.4, 0.3, 0.2])
    trainer = tiny_trainer(
        tmp_path,
        from_scratch,
        trainer_kwargs={"compute_metrics": lambda result: {"accuracy": next(accuracies)}},
        **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"},
        save_steps=save_steps,
        max_steps=steps,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    trainer.train()
    assert trainer.state.best_global_step == 1
    trainer.create_model_card(dataset="my photos")
    text = (tmp_path / "README.md").read_text()
    assert rows_of(text)["accuracy"] == accuracy and f"after optimizer step {step}:" in text


class CardAtLog(TrainerCallback):
    """Writes the card whenever the loss of training is logged, as a push during training does."""

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.trainer.create_model_card()


def test_during_training_metrics_are_the_last_ones(tmp_path, from_scratch):
    """Not those of the best checkpoint, even if each logged line has a runtime, as with counted tokens."""
    accuracies = iter([0.9, 0.4, 0.3])
    card = CardAtLog()
    trainer = tiny_trainer(
        tmp_path,
        from_scratch,
        trainer_kwargs={"compute_metrics": lambda result: {"accuracy": next(accuracies)}, "callbacks": [card]},
        **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1},
        max_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        include_num_input_tokens_seen="all",
    )
    card.trainer = trainer
    trainer.train()
    assert "train_runtime" in trainer.state.log_history[0]
    text = (tmp_path / "README.md").read_text()  # before the third evaluation
    assert rows_of(text)["accuracy"] == "0.4" and "after optimizer step 2:" in text


class NoMemory(TrainerCallback):
    """Fails like a GPU where a micro-batch has more than four images."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.train_batch_size > 4:
            raise RuntimeError("CUDA out of memory.")


def test_batch_size_is_the_one_that_was_found(tmp_path, from_scratch):
    kwargs = {"callbacks": [NoMemory()]}
    trainer = tiny_trainer(
        tmp_path, from_scratch, auto_find_batch_size=True, gradient_accumulation_steps=2, trainer_kwargs=kwargs
    )
    trainer.train()
    trainer.create_model_card()
    rows = rows_of((tmp_path / "README.md").read_text())
    assert rows["per_device_train_batch_size"] == "4" and rows["global batch size"] == "8"


@pytest.mark.parametrize("how", ["optimizers", "optimizer_cls_and_kwargs"])
def test_a_given_optimizer_is_the_one_of_the_card(tmp_path, from_scratch, how):
    values = {"lr": 0.3, "momentum": 0.7}
    optimizer = torch.optim.SGD(from_scratch.parameters(), **values, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    given = {"optimizers": (optimizer, schedule), "optimizer_cls_and_kwargs": (torch.optim.SGD, values)}[how]
    trainer = tiny_trainer(
        tmp_path, from_scratch, optim="adamw_torch", weight_decay=0.02, warmup_steps=5, trainer_kwargs={how: given}
    )
    trainer.train()
    trainer.create_model_card()
    rows = rows_of((tmp_path / "README.md").read_text())
    assert not rows.keys() & set(_OF_OPTIMIZER)
    if how == "optimizers":
        assert rows["optimizer"] == "SGD (lr 0.3, momentum 0.7, weight_decay 0.01)"
        assert rows["learning rate schedule"] == "StepLR" and "warmup_steps" not in rows
    else:
        assert rows["optimizer"] == "SGD (weight_decay 0.02, lr 0.3, momentum 0.7)"
        assert (rows["lr_scheduler_type"], rows["warmup_steps"]) == ("linear", "5")


class OwnOptimizer(GradAugTrainer):
    def create_optimizer(self, *args):
        head = {"params": self.model.classifier.parameters(), "lr": 0.3}
        self.optimizer = torch.optim.SGD([{"params": self.model.convnext.parameters()}, head], lr=0.03)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
        return self.lr_scheduler


def test_an_overridden_optimizer_is_the_one_of_the_card(tmp_path, from_scratch):
    """With a learning rate for each of its groups, at the start of the schedule."""
    trainer = tiny_trainer(tmp_path, from_scratch, cls=OwnOptimizer, optim="adamw_torch", weight_decay=0.02)
    trainer.train()
    trainer.create_model_card()
    rows = rows_of((tmp_path / "README.md").read_text())
    assert rows["optimizer"] == "SGD (lr 0.03 and 0.3)" and not rows.keys() & {"optim", "weight_decay"}
    assert rows["learning rate schedule"] == "StepLR" and "lr_scheduler_type" not in rows


def test_a_learning_rate_is_the_first_one(tmp_path, from_scratch):
    trainer = tiny_trainer(
        tmp_path,
        from_scratch,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "threshold": 1e6},  # no evaluation is better than the first
        metric_for_best_model="loss",
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] < 0.05
    trainer.create_model_card()
    assert rows_of((tmp_path / "README.md").read_text())["optimizer"] == "SGD (lr 0.05)"


@pytest.mark.parametrize("given", [False, True])
def test_a_resumed_optimizer_is_the_one_of_the_card(tmp_path, from_scratch, given):
    """It goes on with the settings of the checkpoint, whatever the arguments are now."""
    for steps, rate, decay, momentum in ((1, 0.02, 0.01, 0.9), (2, 0.05, 0.0, 0.5)):
        values = {"lr": rate, "momentum": momentum, "weight_decay": decay}
        optimizers = (torch.optim.SGD(from_scratch.parameters(), **values) if given else None, None)
        trainer = tiny_trainer(
            tmp_path,
            from_scratch,
            trainer_kwargs={"optimizers": optimizers},
            learning_rate=rate,
            weight_decay=decay,
            optim_args=f"momentum={momentum}",
            save_strategy="steps",
            save_steps=1,
            max_steps=steps,
        )
        trainer.train(resume_from_checkpoint=steps > 1)
    group = trainer.optimizer.param_groups[0]
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.9, 0.01)
    trainer.create_model_card()
    optimizer = rows_of((tmp_path / "README.md").read_text())["optimizer"]
    assert sorted(optimizer[5:-1].split(", ")) == ["lr 0.02", "momentum 0.9", "weight_decay 0.01"]


def test_settings_of_a_resumed_run_are_those_since_the_last_start(tmp_path, from_scratch):
    for steps, width in ((2, 0.6), (3, 0.8)):
        arguments = {"max_steps": steps, "min_width": width, "save_strategy": "steps", "save_steps": 2}
        trainer = tiny_trainer(tmp_path, from_scratch, **arguments)
        trainer.train(resume_from_checkpoint=steps > 2)
        trainer.create_model_card()
        rows = rows_of((tmp_path / "README.md").read_text())
        assert rows["min_width"] == str(width) and ("resumed" in rows) == (steps > 2)
    assert rows["resumed"] == "after optimizer step 2; settings, hardware and versions are those since then"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_width": 1.0}, "trains sub-networks in each step|see randomly transformed copies of the batch and"),
        (
            {"subnetwork_every": 2},
            "trains smaller sub-networks in some steps|see randomly transformed copies of the batch and",
        ),
        ({"scales": [1.0]}, "trains smaller sub-networks in each step|see the batch and"),
        ({"subnetwork_batch_fraction": 0.5}, "each step|see randomly transformed copies of a part of the batch and"),
    ],
)
def test_method_is_the_one_of_the_settings(tmp_path, from_scratch, settings, words):
    tiny_trainer(tmp_path, from_scratch, **settings).create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert all(part in text for part in words.split("|"))


def test_transform_and_precision_are_those_of_the_run(tmp_path, from_scratch, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch --mixed_precision bf16` does
    trainer = tiny_trainer(tmp_path, from_scratch, trainer_kwargs={"transform": lambda images, generator: images})
    trainer.create_model_card()
    rows = rows_of((tmp_path / "README.md").read_text())
    assert rows["scales"] == rows["rotations"] == "own transform" and rows["bf16"] == "True" and "fp16" not in rows


def test_a_branch_of_the_hub_is_loaded(tmp_path, hub):
    arguments = {"push_to_hub": True, "hub_model_id": "me/tuned", "hub_revision": "new-data", "max_steps": 1}
    for processor, code in (
        (make_image_processor(32, 1.0), 'pipeline("image-classification", model="me/tuned", revision="new-data")'),
        # A pipeline would need it.
        (None, 'ConvNextForImageClassification.from_pretrained("me/tuned", revision="new-data")'),
    ):
        tiny_trainer(tmp_path, trainer_kwargs={"processing_class": processor}, **arguments).create_model_card()
        text = (tmp_path / "README.md").read_text()
        assert code in text and ("pipeline(" in text) == (processor is not None)


def test_timings_are_no_metrics_and_every_data_set_counts(tmp_path, from_scratch):
    trainer = tiny_trainer(
        tmp_path,
        from_scratch,
        trainer_kwargs={
            "compute_metrics": compute_metrics,
            "eval_dataset": {"here": TinyImages(12), "there": TinyImages(8)},
        },
    )
    trainer.evaluate()  # without training, which adds a timing more
    trainer.create_model_card(dataset="my photos")
    card = ModelCard.load(tmp_path / "README.md")
    assert [result.metric_type for result in card.data.eval_results] == ["here_accuracy", "there_accuracy"]
    results = card.text.split("## How to load")[0]
    assert set(rows_of(results)) - {"metric"} == {"here loss", "there loss", "here accuracy", "there accuracy"}


def test_local_data_has_no_name_on_the_hub(tmp_path, from_scratch, hub):
    images.make_folder(tmp_path / "photos")
    dataset = load_dataset("imagefolder", data_dir=str(tmp_path / "photos"), split="train")
    trainer = tiny_trainer(tmp_path, from_scratch, trainer_kwargs={"train_dataset": dataset, "eval_dataset": None})
    for given in ({}, {"dataset": "photos", "dataset_tags": str(tmp_path / "photos")}):
        trainer.create_model_card(**given)
        card = ModelCard.load(tmp_path / "README.md")
        card.validate()
        assert (
            card.data.datasets is None and "imagefolder" not in str(card) and str(tmp_path / "photos") not in str(card)
        )


def test_a_config_of_the_hub_is_no_origin(tmp_path, hub):
    tiny_model("resnet-basic").push_to_hub("me/base")
    ModelCard("---\nlicense: apache-2.0\n---\n# Base").push_to_hub("me/base")
    data = str(images.make_folder(tmp_path / "photos"))
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(tmp_path / "processor")
    flags = {
        "--config_name": "me/base",
        "--image_processor_name": tmp_path / "processor",
        "--train_dir": data,
        "--validation_dir": data,
        "--output_dir": tmp_path / "out",
        "--cache_dir": tmp_path / "cache",
        "--max_steps": 1,
        "--report_to": "none",
    }
    words = ["--do_train", "--use_cpu", *(str(word) for flag in flags.items() for word in flag)]
    images.load_script("run_image_classification").main(words)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model is None and card.data.license is None and "fine-tuned" not in card.text


@pytest.mark.slow
def test_fine_tuned_from_the_hub(tmp_path, hub):
    ConvNextForImageClassification(tiny_config("convnext")).push_to_hub("me/base")
    ModelCard("---\nlicense: apache-2.0\n---\n# Base").push_to_hub("me/base")
    model = ConvNextForImageClassification.from_pretrained("me/base", cache_dir=tmp_path / "cache")
    kwargs = {"processing_class": make_image_processor(32, 1.0)}
    arguments = {"push_to_hub": True, "hub_model_id": "me/tuned", "max_steps": 1}
    trainer = tiny_trainer(tmp_path, model, trainer_kwargs=kwargs, **arguments)
    trainer.train()
    # The licence is known already, so that the card is on disk before the first request of a push.
    hub.is_down = True
    trainer.create_model_card()
    assert ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"
    hub.is_down = False
    trainer.push_to_hub(dataset="my photos")
    card = ModelCard.load("me/tuned")
    assert (card.data.base_model, card.data.license) == ("me/base", "apache-2.0")
    assert 'model="me/tuned"' in card.text and "](training_curves.png)" in card.text


def test_a_page_instead_of_the_hubs_answer_is_no_licence(hub):
    hub.fail("GET", "/api/models/me/base", 200, times=1)
    assert find_licence("me/base") is None and [fault.times for fault in hub.faults] == [0]


def test_cells_stay_cells():
    assert _table("t", {"a": "x\ny|z", "b": None, "c": 0, "d": False}) == (
        "| t | value |\n|---|---|\n| a | x y\\|z |\n| b | none |\n| c | 0 |\n| d | False |"
    )
    assert _table("t", {"accuracy cat|dog": 0.5}).endswith("\n| accuracy cat\\|dog | 0.5 |")
    assert _table("t", {"a": 0, "b": None, "c": False, "d": ""}, skip_off=True) == ""
    assert _show([1.0, 6 / 7]) == "1, 0.8571"


@pytest.mark.parametrize(
    "metadata",
    [
        "datasets: [./photos]",
        "base_model: /tmp/x",
        "pipeline_tag: banana",
        "license: nonsense",
        "tags: [1]",
    ],
)
def test_the_hub_of_the_tests_refuses_bad_cards(metadata, hub):
    card = ModelCard("# A card")
    card.content = f"---\n{metadata}\n---\n# A card"
    with pytest.raises(ValueError, match="is not valid|must be"):
        card.validate()


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card_of_the_project(path):
    card = ModelCard.load(path)
    card.validate()
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-classification"
    assert "gradaug" in card.data.tags and "yang2020gradaug" in card.text
    if path.stem.startswith("authors_"):  # figures that are not ours say whose they are
        (result,) = card.data.eval_results
        assert "not verified" in result.metric_name and "Yang, Zhu and Chen" in result.source_name
        assert result.metric_value == (0.7967 if "cutmix" in path.stem else 0.7878)
        assert "We have not verified these figures" in card.text


def test_links_of_the_cards_resolve():
    links = [
        (path, link) for path in CARDS for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text("utf-8"))
    ]
    assert links
    for path, link in links:
        file, _, anchor = link.partition("#")
        target = path.parent / file
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.M)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], link


def test_card_of_the_digits_agrees_with_its_recipe():
    recipe = yaml.safe_load((ROOT / "examples" / "recipes" / "digits.yaml").read_text())
    rows = rows_of((ROOT / "model_cards" / "digits.md").read_text())
    shown = {"learning_rate", "num_train_epochs", "min_width", "scales", "weight_decay"} & recipe.keys()
    assert len(shown) >= 3
    assert {name: rows[name] for name in shown} == {name: _show(recipe[name]) for name in shown}


def test_method_is_what_a_run_would_write():
    template = TEMPLATE.read_text().split("\n## Method\n")[1].split("{{ gradaug_settings }}")[0]
    method = jinja2.Template(template).render(learns_from_labels=False).strip()
    assert method.startswith("[GradAug]") and all(method in path.read_text() for path in CARDS)
