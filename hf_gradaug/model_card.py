# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The model card of a run, from what the run knows. What is not known is left out."""

import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import Trainer
from transformers.modelcard import TASK_TAG_TO_NAME_MAPPING, TrainingSummary

from .machine import describe_machine, describe_versions
from .settings import GradAugSettings, settings_as_dict


TAGS = ["gradaug"]
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
CITATION = """\
@inproceedings{yang2020gradaug,
  title     = {{GradAug: A New Regularization Method for Deep Neural Networks}},
  author    = {Yang, Taojiannan and Zhu, Sijie and Chen, Chen},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020}
}"""

# The arguments of a Trainer that make a model what it is; those that are off are left out.
_TRAINING_SETTINGS = [
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "lr_milestones",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "fp16",
    "bf16",
]
# What an evaluation logs beside its metrics.
_NO_METRICS = re.compile(r"loss|runtime|\w+_per_second|\w*compilation_time|\w*mem_\w+")
# What sub-networks learn from, in the words of the card.
_TARGETS = {"soft": "the full network's soft predictions", "labels": "the batch's labels"}


def write_model_card(
    trainer: Trainer,
    summary: TrainingSummary,
    settings: GradAugSettings,
    curves: str | None = None,
    data_settings: Mapping[str, Any] | None = None,
) -> None:
    """
    Writes the card of a run to `README.md` in its output folder, from the template of this package.

    Args:
        trainer (`Trainer`):
            The trainer of the run: its arguments, state, data sets and model are read.
        summary (`TrainingSummary`):
            What transformers finds out for its own cards: names, tags, licence, origin, task and data.
        settings ([`GradAugSettings`]):
            The settings of GradAug. With 0 sub-networks the card doesn't speak of it.
        curves (`str`, *optional*):
            Name of the picture of the training curves, relative to the card.
        data_settings (`Mapping[str, Any]`, *optional*):
            What was done to the training images, by name, as far as the caller knows. Values that are `None` or `False` are
            left out.
    """
    if not summary.finetuned_from or os.path.isdir(summary.finetuned_from):
        summary.finetuned_from = None  # no name on the Hub: built from a config, or loaded from a folder
    is_gradaug = settings.num_subnetworks > 0
    metrics = _last_metrics(trainer.state.log_history)
    tags = _listify(summary.tags) + (TAGS if is_gradaug else [])
    tasks, datasets = _listify(summary.tasks), _listify(summary.dataset)
    results = _eval_results(summary, metrics)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=tasks[0] if tasks else None,
        language=summary.language,
        license=summary.license,
        base_model=summary.finetuned_from,
        tags=list(dict.fromkeys(tags)),
        datasets=_listify(summary.dataset_tags) or None,
        metrics=[result.metric_type for result in results] or None,
        model_name=summary.model_name,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=summary.model_name,
        origin=_origin(trainer, summary.finetuned_from, datasets, is_gradaug),
        results=_table("metric", {name.replace("_", " "): value for name, value in metrics.items()}),
        curves=curves,
        load=_how_to_load(trainer, tasks),
        targets=_TARGETS[settings.subnetwork_targets],
        has_own_code=bool(getattr(trainer.model, "_auto_class", None)),
        gradaug_settings=_table("GradAug setting", _as_code(settings_as_dict(settings))) if is_gradaug else "",
        training_settings=_table(
            "setting", _as_code(_training_settings(trainer) | dict(data_settings or {})), skip_off=True
        ),
        run=_table("run", _describe_run(trainer), skip_off=True),
        limits="\n".join(f"- {limit}" for limit in _limits(metrics)),
        citation=CITATION,
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)  # of the sections that are left out
    card.save(Path(trainer.args.output_dir) / "README.md")


def _origin(trainer: Trainer, base_model: str | None, datasets: list[str], is_gradaug: bool) -> str:
    model = f"This {trainer.model.config.model_type} model was "
    how = f"fine-tuned from [{base_model}](https://huggingface.co/{base_model})" if base_model else "trained"
    where = f" on {' and '.join(datasets)}" if datasets else ""
    return f"{model}{how}{where}{', with [GradAug](https://arxiv.org/abs/2006.07989)' if is_gradaug else ''}."


def _how_to_load(trainer: Trainer, tasks: list[str]) -> str:
    repository = trainer.hub_model_id or trainer.args.output_dir
    # A class that transformers doesn't have is saved with the model.
    auto_class = getattr(trainer.model, "_auto_class", None)
    code = ", trust_remote_code=True" if auto_class else ""
    if tasks:
        return f'from transformers import pipeline\n\npipe = pipeline("{tasks[0]}", model="{repository}"{code})'
    name = auto_class or type(trainer.model).__name__
    return f'from transformers import {name}\n\nmodel = {name}.from_pretrained("{repository}"{code})'


def _last_metrics(log_history: list[dict[str, Any]]) -> dict[str, float]:
    """The metrics of the last evaluation, its loss first."""
    rows = [row for row in log_history if any(name.startswith("eval_") for name in row)]
    last = {
        name.removeprefix("eval_"): value for name, value in (rows or [{}])[-1].items() if name.startswith("eval_")
    }
    loss = {"loss": last["loss"]} if "loss" in last else {}
    return loss | {name: value for name, value in last.items() if not _NO_METRICS.fullmatch(name)}


def _eval_results(summary: TrainingSummary, metrics: Mapping[str, float]) -> list[EvalResult]:
    """Entries of the model index, which needs a task and a data set."""
    tasks, names = _listify(summary.tasks), _listify(summary.dataset)
    if not tasks or not names:
        return []
    # Data that is not on the Hub has no identifier there: its name does instead.
    identifier = (_listify(summary.dataset_tags) or [re.sub(r"[^\w.\-/]+", "-", names[0]).strip("-").lower()])[0]
    return [
        EvalResult(
            task_type=tasks[0],
            task_name=TASK_TAG_TO_NAME_MAPPING.get(tasks[0]),
            dataset_type=identifier,
            dataset_name=names[0],
            dataset_args=(_listify(summary.dataset_args) or [None])[0],
            metric_type=name,
            metric_name=name.replace("_", " ").capitalize(),
            metric_value=value,
        )
        for name, value in metrics.items()
        if name != "loss"
    ]


def _training_settings(trainer: Trainer) -> dict[str, Any]:
    args = trainer.args
    settings = {name: getattr(args, name, None) for name in _TRAINING_SETTINGS}
    settings["max_steps" if args.max_steps <= 0 else "num_train_epochs"] = None  # the other one counts
    # As the authors' figures are given: images in an optimizer step.
    settings["images in a step"] = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    return settings


def _describe_run(trainer: Trainer) -> dict[str, Any]:
    args, machine = trainer.args, describe_machine(trainer.args.device.type)
    hardware = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    times = [row["train_runtime"] for row in trainer.state.log_history if "train_runtime" in row]
    versions = describe_versions("accelerate", "datasets")
    return {
        "hardware": f"{args.world_size} x {hardware}" if args.world_size > 1 else hardware,
        "training time since the last start": f"{times[-1]:.0f} s" if times else None,
        "training images": _count(trainer.train_dataset),
        "evaluation images": _count(trainer.eval_dataset),
        "optimizer steps": trainer.state.global_step,
        "seed": str(args.seed),  # 0 is a seed too
        "seed of the data": None if args.data_seed is None else str(args.data_seed),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _count(dataset: Any) -> int | None:
    """The length of a data set that has one and is a single one."""
    return len(dataset) if hasattr(dataset, "__len__") and not isinstance(dataset, dict) else None


def _limits(metrics: Mapping[str, float]) -> list[str]:
    limits = ["One run with one seed: how much another seed changes is not known from it."]
    if metrics:
        limits.append("The figures are of the evaluation set. If it was used to choose settings, they are too good.")
    limits.append(
        "Other data, corrupted or manipulated images, and differences between groups of people that images may show were not "
        "measured."
    )
    return limits


def _listify(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _as_code(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"`{name}`" if name.isidentifier() else name: value for name, value in settings.items()}


def _table(title: str, values: Mapping[str, Any], skip_off: bool = False) -> str:
    """A Markdown table of names and values, or an empty string. `skip_off` leaves out what is `None`, `False`, 0 or empty."""
    rows = [f"| {name} | {_show(value)} |" for name, value in values.items() if value or not skip_off]
    return "\n".join([f"| {title} | value |", "|---|---|", *rows]) if rows else ""


def _show(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_show, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Enum):
        return _show(value.value)
    # A line break or a bar would end the cell.
    return "none" if value is None else re.sub(r"\s*\n\s*", " ", str(value)).replace("|", "\\|")
