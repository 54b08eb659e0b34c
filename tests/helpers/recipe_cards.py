# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
The settings in the cards of `model_cards/`, as the card of a trainer of the recipe has them before it trains.

`python -m helpers.recipe_cards`, in tests/, writes them into the cards again.
"""

import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from transformers import TrainingArguments

from helpers.images import ROOT, load_script
from hf_gradaug.reporting.model_card import _as_code, _table, _training_settings
from hf_gradaug.settings import settings_as_dict


RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))


def card_of(recipe: Path) -> Path:
    return ROOT / "model_cards" / f"{recipe.stem}.md"


def settings_tables(recipe: Path) -> list[str]:
    """The tables of GradAug's settings and of the training's."""
    flags = [str(recipe), "--gradaug", "--use_cpu", "--output_dir", "out"]
    _, data_args, args = load_script("run_image_classification").parse_arguments(flags)
    # The paper's batch on ImageNet is that of several processes.
    processes = 512 // args.per_device_train_batch_size if recipe.stem.startswith("imagenet_") else 1
    with patch.object(TrainingArguments, "world_size", processes):
        accelerator = SimpleNamespace(mixed_precision="bf16" if args.bf16 else "no")
        trainer = SimpleNamespace(
            args=args, accelerator=accelerator, optimizer=None, _train_batch_size=args.train_batch_size
        )
        training = _training_settings(trainer) | data_args.train_augmentation | data_args.mixing
    return [
        _table("GradAug setting", _as_code(settings_as_dict(args))),
        _table("setting", _as_code(training), skip_off=True),
    ]


def tables_of(card: str) -> list[str]:
    return re.findall(r"^\| (?:GradAug )?setting \| value \|\n(?:\|.*\|(?:\n|\Z))+", card, re.M)


if __name__ == "__main__":
    for recipe in RECIPES:
        card = card_of(recipe).read_text("utf-8")
        for old, new in zip(tables_of(card), settings_tables(recipe), strict=True):
            card = card.replace(old, new + "\n")
        card_of(recipe).write_text(card, "utf-8")
