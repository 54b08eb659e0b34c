# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Shared by the example scripts: arguments, training, evaluation, model card and logging."""

import argparse
import contextlib
import copy
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import huggingface_hub
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import HfArgumentParser, PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

from hf_gradaug import GradAugConfig, GradAugSettings, HubPushError, StopOnSignal, narrow_config
from hf_gradaug.data import get_class_names, match_classes
from hf_gradaug.messages import check_counts, shorten
from hf_gradaug.training import end_with_launcher


logger = logging.getLogger(__name__)

_HUB_FLAGS = (
    *("model_name_or_path", "config_name", "image_processor_name", "teacher", "backbone", "model", "models"),
    *("dataset_name", "hub_model_id"),
)


@dataclass(kw_only=True)
class CommonModelArguments:
    """Which model, pretrained or from scratch, and whether GradAug trains it."""

    # Of these, one at most is given. Each has classes and an image processor of its own.
    MODEL_SOURCES: ClassVar[tuple[str, ...]] = ("model_name_or_path", "config_name")
    # What the script can do with the model.
    ACTIONS: ClassVar[tuple[str, ...]] = ("do_train", "do_eval")

    gradaug: bool = field(
        default=False, metadata={"help": "Train with GradAug. Without it, the script trains the plain baseline."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained model: a Hub name or a folder."}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Config to train from scratch: a Hub name or a folder."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Use a new head if the pretrained head has other classes."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for downloads."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    token: str | None = field(default=None, metadata={"help": "Hub token for private models and data."})

    def __post_init__(self):
        given = {name: value for name in self.MODEL_SOURCES if (value := getattr(self, name))}
        if len(given) > 1:
            raise ValueError(
                f"Only one of {', '.join(f'`{name}`' for name in given)} can be given, but several are: {given}."
            )

    @property
    def hub(self) -> dict[str, Any]:
        """The arguments of `from_pretrained`."""
        return {"cache_dir": self.cache_dir, "revision": self.model_revision, "token": self.token}


@dataclass(kw_only=True)
class MeasuringArguments:
    """The device that a script measures on, and how it reads images."""

    num_workers: int = field(default=0, metadata={"help": "Number of processes that read images."})
    device: str = field(
        default="auto", metadata={"help": "Device: cpu, cuda, cuda:1, ...; auto uses a GPU if there is one."}
    )
    seed: int = field(default=42, metadata={"help": "Random seed."})

    def check_at_least(self, **least: int) -> None:
        """Raises a `ValueError` if a given value is below its minimum."""
        for name, minimum in {"num_workers": 0, "seed": 0, **least}.items():
            check_counts(self, name, least=minimum)


def make_training_parser(model: type, data: type, usage: str) -> HfArgumentParser:
    """
    A parser whose help shows the script's own flags first, by subject, and the Trainer's last.

    Args:
        model, data (`type`): Dataclasses of the script's own flags.
        usage (`str`): The first line of the help, instead of one with all flags.
    """
    parser = HfArgumentParser([model, data, GradAugConfig], usage=usage)
    ours, trainers, config = (
        [item.name for item in dataclasses.fields(arguments)]
        for arguments in (model, TrainingArguments, GradAugConfig)
    )
    subjects = {
        "model": ours,
        "data": [item.name for item in dataclasses.fields(data)],
        "GradAug": [name for name in config if name not in trainers],
        "Trainer": trainers,
    }
    # `HfArgumentParser` adds all flags to one group.
    actions: dict[str, list[argparse.Action]] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, []).append(action)
        if action.dest != "help":
            action.option_strings = action.option_strings[:1]  # shown; each is parsed with hyphens too
    parser._optionals._group_actions = actions["help"]
    for subject, names in subjects.items():
        group = parser.add_argument_group(subject)
        group._group_actions = [action for name in names for action in actions[name]]
    return parser


def given_flags(args: Sequence[str]) -> set[str]:
    """The names of the flags among the words of a command."""
    return {word[2:].split("=")[0].replace("-", "_") for word in args if word.startswith("--")}


def parse_training_arguments(parser: HfArgumentParser, args: Sequence[str]) -> tuple[Any, ...]:
    """Model, data and training arguments. Without `--gradaug` there are no sub-networks."""
    words = list(args)
    if not parser.parse_known_args(words)[0].gradaug:
        words += ["--num_subnetworks", "0"]  # parsed, because other arguments have their defaults from it
    model_args, data_args, training_args = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    if not model_args.gradaug:
        settings = {item.name for item in dataclasses.fields(GradAugSettings)}
        if unused := sorted(given_flags(args) & settings):
            logger.warning(
                f"The plain baseline is trained, and {shorten(unused)} have no effect: they need `gradaug`."
            )
    if training_args.enable_jit_checkpoint:
        raise ValueError(
            "`enable_jit_checkpoint` must be off in this script, but is on. The script saves a checkpoint at SIGTERM anyway."
        )
    if training_args.push_to_hub and not training_args.do_train:
        raise ValueError(
            "`push_to_hub` must be off without `do_train`, but is on. The pushed model card would describe "
            "this command instead of the run that trained the model. To push a trained model, run `hf upload`."
        )
    _check_actions(model_args, training_args)
    training_args.remove_unused_columns = False  # transforms and collators know which columns they need
    if training_args.device.type == "cpu":
        training_args.dataloader_pin_memory = False  # it would do nothing there but warn
    return model_args, data_args, training_args


def _check_actions(model_args: CommonModelArguments, training_args: TrainingArguments) -> None:
    """Raises a `ValueError` if there is nothing to do, or only a new model's random weights would be measured."""
    if training_args.do_predict and "do_predict" not in model_args.ACTIONS:
        raise ValueError("`do_predict` must be off in this script, but is on. Use `do_eval`.")
    if not any(getattr(training_args, action) for action in model_args.ACTIONS):
        actions = ", ".join(f"`{action}`" for action in model_args.ACTIONS)
        raise ValueError(f"One of {actions} must be on, but all are off. Give those that you want.")
    if not training_args.do_train and not model_args.model_name_or_path:
        raise ValueError(
            "`model_name_or_path` must be a trained model without `do_train`, but is "
            f"{model_args.model_name_or_path!r}. Name one, or give `do_train`."
        )


def load_pretrained(
    auto_class: type,
    name: str,
    config: PreTrainedConfig,
    data: str,
    class_names: Sequence[str],
    *,
    by_number: bool | None = None,
    ignore_mismatched_sizes: bool = False,
    **hub: Any,
) -> PreTrainedModel:
    """
    Loads a model in float32 for the classes of some data. If the head has the same classes, it is kept with their order.

    Args:
        auto_class (`type`): Class that loads the model.
        name (`str`): The model's name on the Hub, or its folder.
        config (`PreTrainedConfig`): Config of the model. Its classes change if the head is new or they had no names.
        data (`str`): Name of the data, for messages.
        class_names (`Sequence[str]`): Its classes.
        by_number (`bool`, *optional*): Whether classes are matched by number, see `match_classes`.
        ignore_mismatched_sizes (`bool`): Whether other classes get a new head.
        hub: Arguments of `from_pretrained`.

    Raises:
        `ValueError`: If the model has a head of other classes and `ignore_mismatched_sizes` is off.
    """
    names, other = get_class_names(config), None
    try:
        numbers = match_classes(name, names, data, class_names, by_number)
    except ValueError as error:
        numbers, other = list(range(len(class_names))), error
    is_nameless = set(names) <= {f"LABEL_{number}" for number in range(len(names))}
    if other or is_nameless:
        config.update(label_names([class_names[numbers.index(number)] for number in range(len(numbers))]))
    # A checkpoint in half precision would be trained in it, and lose small updates; `bf16` and `fp16` keep float32 weights.
    model, info = auto_class.from_pretrained(
        name,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=ignore_mismatched_sizes or other is not None,
        output_loading_info=True,
        **hub,
    )
    head = find_head(model)
    if other is None or head <= info["missing_keys"]:  # a backbone alone has no classes
        return model
    if not ignore_mismatched_sizes:
        raise ValueError(f"{other} To start with a new head, set `ignore_mismatched_sizes`.") from other
    logger.info(f"The head of '{name}' has other classes, so a new head is trained.")
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in head}
    return type(model).from_pretrained(None, config=model.config, state_dict=state, dtype=torch.float32)


def has_image_processor(name: str, **hub: Any) -> bool:
    """Whether a model is stored with an image processor. Raises an `OSError` if this can't be found out."""
    files = (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)
    return any(cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub) for file in files)


def find_head(model: PreTrainedModel) -> set[str]:
    """The names of the tensors that have an entry per class."""
    larger = copy.deepcopy(model.config)
    larger.num_labels += 1
    with torch.device("meta"):
        others = type(model)(larger).state_dict()
    return {name for name, tensor in model.state_dict().items() if others[name].shape != tensor.shape}


def check_has_subnetworks(config: PreTrainedConfig, settings: GradAugSettings) -> None:
    """Raises a `TypeError` or `ValueError` if the model's family, or its backbone's, can't have these sub-networks."""
    if settings.num_subnetworks:
        narrow_config(config, settings.smallest_width, settings.width_divisor)


def label_names(class_names: Sequence[str]) -> dict[str, dict]:
    """The classes, as a config takes them."""
    return {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}


def train_and_evaluate(trainer: Trainer) -> dict[str, float]:
    """Trains and evaluates as the trainer's arguments say, saves model and state, and returns evaluation's metrics."""
    metrics: dict[str, float] = {}
    if trainer.args.do_train:
        train_and_save(trainer)
    if trainer.args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if trainer.args.do_train:
        trainer.save_state()
    return metrics


def train_and_save(trainer: Trainer) -> None:
    """
    Trains, saves the model, and logs and saves the metrics.

    `resume_from_checkpoint` of the trainer's arguments may be `"true"`, for the newest complete checkpoint. If there is
    no checkpoint, the run starts from the beginning. A failed push is logged, and evaluation goes on. The push at the
    script's end retries it and decides the exit code.

    Args:
        trainer (`Trainer`):
            A trainer with [`HubMixin`], such as a [`GradAugTrainer`].

    Raises:
        `SystemExit`: If SIGTERM or SIGINT (Ctrl-C) stopped the run, with 128 and the signal's number.
    """
    args = trainer.args
    checkpoint = args.resume_from_checkpoint
    if checkpoint and checkpoint.lower() == "true":
        checkpoint = has_checkpoint(trainer) or None  # True: the newest complete one
        if checkpoint is None and trainer.is_world_process_zero():
            logger.warning(f"There is no checkpoint in '{args.output_dir}': the run starts from the beginning.")
    stop = StopOnSignal((signal.SIGTERM, signal.SIGINT))
    trainer.add_callback(stop)
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    except HubPushError as error:
        logger.error(error)
        result = error.train_output
    if stop.received:
        if trainer.is_world_process_zero():
            logger.warning(
                f"{stop.received.name} stopped the run after step {trainer.state.global_step}. Its checkpoint is in "
                f"'{args.output_dir}'. To continue, run the same command with --resume_from_checkpoint true."
            )
        sys.exit(128 + stop.received)
    if not args.push_to_hub:  # with it, `train` has saved the model, and `save_model` would push it
        trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)


def has_checkpoint(trainer: Trainer) -> bool:
    """Whether the output folder holds a checkpoint, complete or not. One process looks, so that all do the same."""
    folder, found = trainer.args.output_dir, [False]
    if trainer.is_world_process_zero():
        found = [os.path.isdir(folder) and get_last_checkpoint(folder) is not None]
    return broadcast_object_list(found)[0]


def write_card(trainer: Trainer, **card: Any) -> None:
    """Writes the model card, and with `push_to_hub` pushes it with the model."""
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    elif trainer.args.do_train:
        trainer.create_model_card(**card)


class TidyLines(logging.Filter):
    """The Trainer's messages without blank lines around them, and without its advertisement."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = str(record.msg).strip("\n")
        return bool(record.msg) and not record.msg.startswith("Training completed. Do not forget")


def describe_result(metrics: dict[str, float], training_args: GradAugConfig) -> str:
    """The result of a run, and its folder."""
    names = {"eval_accuracy": "accuracy", "eval_map_50": "AP50", "eval_map": "AP"}
    reached = " and ".join(f"{name} {metrics[key]:.2%}" for key, name in names.items() if key in metrics)
    on_data = f"{reached} on the validation images. " if reached else ""
    return f"Done: {on_data}The results are in '{training_args.output_dir}'."


def launch(
    parse: Callable[[Sequence[str]], tuple[Any, ...]],
    run: Callable[..., dict[str, float]],
    args: Sequence[str] | None,
    logger_name: str,
) -> dict[str, float]:
    """
    Runs a training script: logs on the main process, parses, runs, and ends the process group.

    Args:
        parse (`Callable`): Parses words of the command line into model, data and training arguments.
        run (`Callable`): Takes these arguments, and returns metrics.
        args (`Sequence[str]`, *optional*): The words. Defaults to the arguments of this process.
        logger_name (`str`): Name of the script's logger.

    Raises:
        `SystemExit`: If SIGINT (Ctrl-C) stopped the script, with 130.
    """
    end_with_launcher()
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.WARNING)
    for name in (logger_name, "hf_gradaug"):
        logging.getLogger(name).setLevel(logging.INFO if int(os.environ.get("RANK", 0)) == 0 else logging.WARNING)
    arguments = parse(sys.argv[1:] if args is None else args)
    if arguments[-1].should_log:
        transformers.utils.logging.set_verbosity_info()
        for handler in logging.getLogger("transformers").handlers:
            handler.addFilter(TidyLines())
    try:
        with naming_unreachable_hub(*arguments):
            metrics = run(*arguments)
        logging.getLogger(logger_name).info(describe_result(metrics, arguments[-1]))
        return metrics
    except KeyboardInterrupt:  # outside of the training, which ends with a checkpoint
        if arguments[-1].should_log:
            logger.warning(f"SIGINT stopped the script. {_how_to_go_on(arguments[-1])}")
        sys.exit(128 + signal.SIGINT)
    finally:
        PartialState().destroy_process_group()  # gloo aborts at exit otherwise


def _how_to_go_on(args: TrainingArguments) -> str:
    has_checkpoint = os.path.isdir(args.output_dir) and get_last_checkpoint(args.output_dir)
    if args.do_train and has_checkpoint:
        return f"To continue from the checkpoint in '{args.output_dir}', run the same command with --resume_from_checkpoint true."
    return "The same command starts from the beginning."


@contextlib.contextmanager
def naming_unreachable_hub(*arguments: Any) -> Iterator[None]:
    """
    Ends the script with one line if the Hub can't be reached. The line names the flag that needs the Hub, and a
    remedy.

    Args:
        arguments (`Any`): Parsed arguments. Their flags that may name something on the Hub are checked.

    Raises:
        `SystemExit`: Instead of a connection error that the client has retried.
    """
    try:
        yield
    except Exception as error:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(cause)
        offline = (OfflineModeIsEnabled, LocalEntryNotFoundError)
        failures = [cause for cause in chain if isinstance(cause, (HTTPError, ConnectionError, *offline))]
        # An answer of the Hub, such as that there is no such model, is no failed connection.
        if not failures or any(getattr(cause, "response", None) is not None for cause in chain):
            raise
        flags = [
            (name, value)
            for group in arguments
            for name in _HUB_FLAGS
            for values in [getattr(group, name, None) or []]
            for value in ([values] if isinstance(values, str) else values)
            if not os.path.exists(value)
        ]
        text = " ".join(map(str, chain))
        named = [(name, value) for name, value in flags if value in text] or flags
        if not named and any(getattr(group, "push_to_hub", False) for group in arguments):
            named = [("push_to_hub", True)]
        if not named:
            raise
        asked = ", ".join(f"`{name}` is {value!r}" for name, value in named)
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise SystemExit(
                f"{asked}, but HF_HUB_OFFLINE is set and there is no earlier download. Unset HF_HUB_OFFLINE, or leave the flag out."
            ) from None
        raise SystemExit(
            f"{asked}, but the Hub at {huggingface_hub.constants.ENDPOINT} can't be reached ({type(failures[0]).__name__}). "
            "Try again later, name a local folder, or set HF_HUB_OFFLINE=1 to use what was downloaded before."
        ) from None
