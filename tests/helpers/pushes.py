# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Trainers that push, and what they push."""

from pathlib import Path

from transformers import ConvNextImageProcessor

from helpers.tiny import tiny_trainer


NAME = "org/tiny"
MODEL = {"README.md", "config.json", "gradaug_config.json", "model.safetensors", "preprocessor_config.json"}
MODEL |= {"training_args.bin", "training_curves.png"}
# The parts that a checkpoint has too.
IN_CHECKPOINT = MODEL - {"README.md", "training_curves.png"}
STATE = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}


def make_trainer(folder, model=None, **args):
    """A trainer that pushes, saves in each of its three steps and has an image processor."""
    processor = ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0)
    trainer_kwargs = {"processing_class": processor, **args.pop("trainer_kwargs", {})}
    defaults = {"push_to_hub": True, "hub_model_id": NAME, "save_strategy": "steps", "save_steps": 1}
    # Else a push is left out while the last one is under way, which depends on the machine.
    defaults["hub_always_push"] = True
    return tiny_trainer(folder, model, trainer_kwargs=trainer_kwargs, **{**defaults, **args})


def files_of(folder: Path) -> dict[str, bytes]:
    """What the Trainer pushes of its output folder."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(path): (folder / path).read_bytes() for path in paths if not path.parts[0].startswith("checkpoint-")}
