# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The model card of a run, from what the run knows. What is not known is left out."""

import logging
import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as LOCAL_BUILDERS
from huggingface_hub import EvalResult, ModelCard, ModelCardData, model_info
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer
from transformers.modelcard import TASK_TAG_TO_NAME_MAPPING, TrainingSummary

from ..settings import GradAugSettings, settings_as_dict
from .machine import describe_machine, describe_versions
from .training_curves import plot_training_curves


logger = logging.getLogger(__name__)

TAGS = ["gradaug"]
CURVES = "training_curves.png"
TEMPLATE = Path(__file__).parents[1] / "templates" / "model_card.md"
CITATION = """\
@inproceedings{yang2020gradaug,
  title     = {{GradAug: A New Regularization Method for Deep Neural Networks}},
  author    = {Yang, Taojiannan and Zhu, Sijie and Chen, Chen},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020}
}"""

# Training arguments that affect the model. Arguments that are off are left out.
_TRAINING_SETTINGS = [
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "lr_milestones",
    "warmup_steps",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
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
# Of these, what the optimizer itself knows better, and what a schedule of the user's own replaces.
_OF_OPTIMIZER = ["learning_rate", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"]
_OF_SCHEDULE = ["lr_scheduler_type", "lr_scheduler_kwargs", "lr_milestones", "warmup_steps"]
# What an evaluation logs beside its metrics.
_NO_METRICS = re.compile(r"(\w+_)?(loss|runtime|\w+_per_second|model_preparation_time|\w*compilation_time|mem_\w+)")


class ModelCardMixin:
    """
    Writes the model card of a Trainer that has `gradaug_settings`. The licence of a base model is looked up once. If
    the model will be pushed, this happens before training.
    """

    def __init__(self, *args, **kwargs):
        self._licences: dict[str | None, str | None] = {}  # of base models
        self._first_step = 0  # of the last start
        super().__init__(*args, **kwargs)
        self._origin = self._base_model()  # FSDP's parameters don't tell it any more

    def init_hf_repo(self, *args, **kwargs) -> None:  # transformers 5.17 has no `private` yet
        super().init_hf_repo(*args, **kwargs)
        if self.is_world_process_zero():
            self._licence_of(self._base_model())

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        started = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._first_step = self.state.global_step
        return started

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        # For the card. Most schedules do so themselves, but `ReduceLROnPlateau` doesn't.
        for group in (self.optimizer if optimizer is None else optimizer).param_groups:
            group.setdefault("initial_lr", group["lr"])
        return super().create_scheduler(num_training_steps, optimizer)

    def _own_settings(self) -> dict[str, Any]:
        """A trainer's own arguments, for the card's table of settings."""
        return {}

    def _base_model(self) -> str | None:
        """Where the weights were loaded from. A new model may have a config of the Hub, which has that name too."""
        if not any(getattr(parameter, "_is_hf_initialized", False) for parameter in self.model.parameters()):
            return None
        return getattr(getattr(self.model, "config", None), "_name_or_path", None)

    def _licence_of(self, base_model: str | None) -> str | None:
        if base_model not in self._licences:
            self._licences[base_model] = find_licence(base_model, self.args.hub_token)
        return self._licences[base_model]

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        data_settings: dict[str, Any] | None = None,
    ) -> None:
        """
        Writes the model card, `README.md`, with its plot `training_curves.png`, to the output folder.

        Args:
            language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args:
                The Trainer's arguments. `dataset` names the data, and `dataset_tags` are its identifiers on the Hub.
            data_settings (`dict[str, Any]`, *optional*):
                Augmentation of the training images, such as `{"cutmix_alpha": 1.0}`, for the table of settings.
        """
        if not self.is_world_process_zero():
            return
        os.makedirs(self.args.output_dir, exist_ok=True)
        curves = os.path.join(self.args.output_dir, CURVES)
        try:
            plot_training_curves(self.state.log_history, curves)
        except ImportError as error:
            logger.warning(f"The model card shows no training curves. {error}")
            curves = None
        except ValueError:  # nothing was logged yet
            curves = None
        base = self._origin if finetuned_from is None else finetuned_from
        base = base if base and is_hub_name(base) else None  # else built from a config, or loaded from a folder
        summary = TrainingSummary.from_trainer(
            self,
            language=language,
            license=license or self._licence_of(base),
            tags=[tags] if isinstance(tags, str) else list(tags or []),  # a copy: it is added to
            model_name=model_name,
            finetuned_from="",  # with a name, it would ask the Hub for the licence each time
            tasks=tasks,
            dataset_tags=dataset_tags,
            dataset=dataset,
            dataset_args=dataset_args,
        )
        summary.finetuned_from = base
        _write_card(self, summary, curves and CURVES, data_settings)


def _write_card(
    trainer: Trainer, summary: TrainingSummary, curves: str | None, data_settings: Mapping[str, Any] | None
) -> None:
    """Writes `README.md` by the template of this package. The path of the curves' plot is relative to the card."""
    settings = trainer.gradaug_settings
    is_gradaug = settings.num_subnetworks > 0
    metrics, step = _last_evaluation(trainer)
    tags = _listify(summary.tags) + (TAGS if is_gradaug else [])
    # What `datasets` calls the reading of local files is no data set, and the Hub refuses the card of one that it can't have.
    dataset_tags = [
        name for name in _listify(summary.dataset_tags) if is_hub_name(name) and name not in LOCAL_BUILDERS
    ]
    datasets = [name for name in _listify(summary.dataset) if name not in LOCAL_BUILDERS]
    tasks, results = _listify(summary.tasks), _eval_results(summary, datasets, dataset_tags, metrics)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=tasks[0] if tasks else None,
        language=summary.language,
        license=summary.license,
        base_model=summary.finetuned_from,
        tags=list(dict.fromkeys(tags)),
        datasets=dataset_tags or None,
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
        step=step,
        curves=curves,
        load=_how_to_load(trainer, tasks),
        **_describe_method(trainer, settings),
        has_own_code=bool(getattr(trainer.model, "_auto_class", None)),
        gradaug_settings=_table("GradAug setting", _as_code(_gradaug_settings(trainer, settings)))
        if is_gradaug
        else "",
        training_settings=_table(
            "setting",
            _as_code(_training_settings(trainer) | trainer._own_settings() | dict(data_settings or {})),
            skip_off=True,
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
    repository = trainer.hub_model_id or "path/to/this/folder"  # the card may be uploaded later, by hand
    # A class that transformers doesn't have is saved with the model.
    auto_class = getattr(trainer.model, "_auto_class", None)
    code = ", trust_remote_code=True" if auto_class else ""
    if trainer.hub_model_id and trainer.args.hub_revision:
        code = f', revision="{trainer.args.hub_revision}"{code}'
    if tasks and trainer.processing_class is not None:  # without the image processor, a pipeline can't be made
        return f'from transformers import pipeline\n\npipe = pipeline("{tasks[0]}", model="{repository}"{code})'
    name = auto_class or type(trainer.model).__name__
    return f'from transformers import {name}\n\nmodel = {name}.from_pretrained("{repository}"{code})'


def _last_evaluation(trainer: Trainer) -> tuple[dict[str, float], int]:
    """The metrics of the current model, each loss before its metrics, and their optimizer step; 0 if unknown."""
    state = trainer.state
    rows = [row for row in state.log_history if "train_loss" in row or any(map(_is_of_evaluation, row))]
    ends = [number for number, row in enumerate(rows) if "train_loss" in row]
    evaluations = [row for row in rows if "train_loss" not in row]
    step = evaluations[-1]["step"] if evaluations else 0
    if ends:
        after = rows[ends[-1] + 1 :]
        if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
            # Whose weights were loaded at the end. At `best_global_step` there may have been no save.
            step = int(state.best_model_checkpoint.rsplit("-", 1)[1])
        evaluations = after or [row for row in evaluations if row["step"] == step]
    # Several data sets have a row each.
    last = [row for row in evaluations if row["step"] == evaluations[-1]["step"]]
    values = {name.removeprefix("eval_"): row[name] for row in last for name in filter(_is_of_evaluation, row)}
    losses = {name: value for name, value in values.items() if name == "loss" or name.endswith("_loss")}
    return losses | {name: value for name, value in values.items() if not _NO_METRICS.fullmatch(name)}, step


def _is_of_evaluation(name: str) -> bool:
    return name.startswith("eval_")


def _eval_results(
    summary: TrainingSummary, datasets: list[str], dataset_tags: list[str], metrics: Mapping[str, float]
) -> list[EvalResult]:
    """Entries of the model index, which needs a task and a data set."""
    tasks = _listify(summary.tasks)
    if not tasks or not datasets:
        return []
    # Data that is not on the Hub has no identifier there: its name does instead.
    identifier = dataset_tags[0] if dataset_tags else re.sub(r"[^\w.\-/]+", "-", datasets[0]).strip("-").lower()
    return [
        EvalResult(
            task_type=tasks[0],
            task_name=TASK_TAG_TO_NAME_MAPPING.get(tasks[0]),
            dataset_type=identifier,
            dataset_name=datasets[0],
            dataset_args=(_listify(summary.dataset_args) or [None])[0],
            metric_type=name.removeprefix("macro_"),  # the Hub knows F1, but not by its averages
            metric_name=name.replace("_", " ").capitalize().replace("f1", "F1"),
            metric_value=value,
        )
        for name, value in metrics.items()
        if not _NO_METRICS.fullmatch(name)
    ]


def _describe_method(trainer: Trainer, settings: GradAugSettings) -> dict[str, bool]:
    """What settings change in the template's words about the method."""
    has_transform = getattr(trainer, "_gradaug_transform", None) is not None
    return {
        "are_whole": settings.smallest_width == 1 and not settings.draws_depth,
        "skips_steps": settings.subnetwork_every > 1,
        "is_untransformed": not has_transform and not settings.rotations and {*settings.scales} == {1.0},
        "sees_part": settings.subnetwork_batch_fraction < 1,
        "learns_from_labels": settings.subnetwork_targets == "labels",
    }


def _gradaug_settings(trainer: Trainer, settings: GradAugSettings) -> dict[str, Any]:
    shown = settings_as_dict(settings)
    if getattr(trainer, "_gradaug_transform", None) is not None:
        shown.update(scales="own transform", rotations="own transform")
    return shown


def _training_settings(trainer: Trainer) -> dict[str, Any]:
    args = trainer.args
    settings = {name: getattr(args, name, None) for name in _TRAINING_SETTINGS}
    if "adam" not in args.optim:
        settings.update(adam_beta1=None, adam_beta2=None, adam_epsilon=None)
    settings["max_grad_norm"] = args.max_grad_norm or "0"  # told, because the Trainer's default clips
    settings["max_steps" if args.max_steps <= 0 else "num_train_epochs"] = None  # the other one counts
    if optimizer := _describe_optimizer(trainer):
        settings.update(dict.fromkeys(_OF_OPTIMIZER), optimizer=optimizer)
    schedule = getattr(trainer, "lr_scheduler", None)
    if schedule is not None and not trainer._created_lr_scheduler:  # the user's own
        settings.update(dict.fromkeys(_OF_SCHEDULE))
        settings["learning rate schedule"] = type(getattr(schedule, "scheduler", schedule)).__name__
    # The configuration of Accelerate may set it too.
    precision = trainer.accelerator.mixed_precision
    settings.update(fp16=precision == "fp16", bf16=precision == "bf16")
    # With `auto_find_batch_size`, it may be smaller than in the arguments.
    batch_size = trainer._train_batch_size
    settings["per_device_train_batch_size"] = batch_size // max(1, args.n_gpu)
    # Images in an optimizer step, as the authors give it.
    settings["global batch size"] = batch_size * args.world_size * args.gradient_accumulation_steps
    return settings


def _describe_optimizer(trainer: Trainer) -> str | None:
    """
    The optimizer, with the settings that it starts with. If it doesn't exist yet, `None` or what it was given as.

    They may differ from the arguments: after a resume they are the checkpoint's. Groups of parameters may differ too:
    each of their values is shown once.
    """
    kind, values = getattr(trainer, "optimizer_cls_and_kwargs", None) or (None, {})
    groups, optimizer = [values], trainer.optimizer
    if optimizer is not None:
        groups = optimizer.param_groups
        if isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        if trainer.is_deepspeed_enabled:
            optimizer = getattr(optimizer, "optimizer", optimizer)
        kind = type(optimizer)
    if kind is None:
        return None
    shown: dict[str, dict[str, None]] = {}
    for group in groups:
        for name, value in {**group, "lr": group.get("initial_lr", group.get("lr"))}.items():
            if value and name not in ("params", "param_names", "initial_lr"):
                shown.setdefault(name, {})[_show(value)] = None
    described = ", ".join(f"{name} {' and '.join(values)}" for name, values in shown.items())
    return f"{kind.__name__} ({described})"


def _describe_run(trainer: Trainer) -> dict[str, Any]:
    args, machine = trainer.args, describe_machine(trainer.args.device.type)
    cpu = f"{machine['cpu']}, {machine['cores']} cores"
    hardware = machine["gpu"] or (cpu if machine["device"] == "cpu" else f"{machine['device']}, beside {cpu}")
    times = [row["train_runtime"] for row in trainer.state.log_history if "train_runtime" in row]
    versions = describe_versions("accelerate", "datasets")
    start = trainer._first_step
    # Settings before the start are not known: a resumed run may have others.
    resumed = f"after optimizer step {start}; settings, hardware and versions are those since then" if start else None
    return {
        "hardware": hardware,
        "processes": args.world_size if args.world_size > 1 else None,
        "resumed": resumed,
        "training time since the last start": f"{times[-1]:.0f} s" if times else None,
        "training images": _count(trainer.train_dataset),
        "evaluation images": _count(trainer.eval_dataset),
        "optimizer steps": trainer.state.global_step,
        "seed": str(args.seed),  # 0 is a seed too
        "seed of the data": None if args.data_seed is None else str(args.data_seed),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def is_hub_name(name: str) -> bool:
    """
    Whether a name has the form of a Hub repository and is not a local path.

    Args:
        name (`str`):
            The argument of `from_pretrained` or `load_dataset`.
    """
    if os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def find_licence(name: str | None, token: str | None = None) -> str | None:
    """The licence in the card of a model on the Hub, if the Hub can be reached."""
    if not name or not is_hub_name(name):
        return None
    try:
        card = model_info(name, token=token).card_data
    except (HTTPError, ValueError, OfflineModeIsEnabled):  # a proxy's page is no JSON
        return None
    return None if card is None else card.license


def _count(dataset: Any) -> int | None:
    """The length of a single data set, if it has one."""
    return len(dataset) if hasattr(dataset, "__len__") and not isinstance(dataset, dict) else None


def _limits(metrics: Mapping[str, float]) -> list[str]:
    limits = ["This is one run with one seed. The variation between seeds was not measured."]
    if metrics:
        limits.append("The results are on the evaluation set. If it was used to choose settings, they are optimistic.")
    limits.append(
        "Not measured: other data, corrupted or adversarial images, and differences between groups of people."
    )
    return limits


def _listify(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _as_code(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"`{name}`" if name.isidentifier() else name: value for name, value in settings.items()}


def _table(title: str, values: Mapping[str, Any], skip_off: bool = False) -> str:
    """A Markdown table of names and values, or `""`. `skip_off` drops values that are `None`, `False`, 0 or empty."""
    rows = [f"| {_show(name)} | {_show(value)} |" for name, value in values.items() if value or not skip_off]
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
