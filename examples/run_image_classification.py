# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Train an image classifier with GradAug. Without `--gradaug`, the same trainer trains the plain baseline.

On the embedded handwritten digits, with recipes/digits.yaml as defaults:

    accelerate launch examples/run_image_classification.py --gradaug --output_dir outputs/digits --do_train --do_eval

Fine-tune a pretrained model on your own images:

    accelerate launch examples/run_image_classification.py --gradaug --output_dir out --do_train --do_eval \
        --train_dir photos/train --validation_dir photos/validation --model_name_or_path microsoft/resnet-50 \
        --ignore_mismatched_sizes

As another baseline, distil from a teacher, which is a model with the same classes:

    accelerate launch examples/run_image_classification.py --teacher outputs/plain --output_dir outputs/distilled --do_train \
        --do_eval

Use a recipe (.yaml or .json). Flags after it override its values:

    accelerate launch examples/run_image_classification.py examples/recipes/imagenet_resnet50.yaml --bf16
"""

import ast
import csv
import dataclasses
import difflib
import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import evaluate
import numpy as np
import torch
import yaml
from common import (
    CommonModelArguments,
    check_has_subnetworks,
    given_flags,
    has_image_processor,
    label_names,
    launch,
    load_pretrained,
    make_training_parser,
    parse_training_arguments,
    train_and_evaluate,
    write_card,
)
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch.utils.data import Dataset
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    set_seed,
)

from hf_gradaug import DistillationTrainer, GradAugConfig, GradAugTrainer, load_classifier
from hf_gradaug.data import (
    DataArguments,
    ImageCollator,
    InMemoryDataset,
    get_class_names,
    get_eval_transform,
    get_image_size,
    get_streaming_arguments,
    get_train_transform,
    load_image_data,
    make_image_processor,
)
from hf_gradaug.messages import shorten
from hf_gradaug.slimmable import check_image_size
from hf_gradaug.transforms import scaled_size


logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).parent
# Settings of a new image processor.
PROCESSOR_SETTINGS = ("image_size", "crop_pct", "image_mean", "image_std")
MODEL_TYPES = sorted(config.model_type for config in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)


@dataclass(kw_only=True)
class ModelArguments(CommonModelArguments):
    """Options of the model, and whether GradAug trains it."""

    ACTIONS: ClassVar[tuple[str, ...]] = (*CommonModelArguments.ACTIONS, "do_predict")

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Distil from this model instead of using GradAug: a folder or Hub name, with the same classes."
        },
    )
    teacher_weight: float = field(default=1.0, metadata={"help": "Weight of the loss on the teacher's predictions."})
    model_type: str | None = field(
        default=None,
        metadata={
            "help": f"Model to train from scratch: {', '.join(MODEL_TYPES)}. With --gradaug, see docs/models.md."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Config fields to set, such as hidden_sizes=[32,64],depths=[1,1],layer_type=basic"},
    )
    image_processor_name: str | None = field(
        default=None, metadata={"help": "Image processor: a Hub name or a folder. Defaults to the model's own."}
    )
    image_size: int = field(
        default=224, metadata={"help": "Image size in pixels for a model without an image processor."}
    )
    crop_pct: float = field(
        default=0.875,
        metadata={
            "help": "Side of the crop in evaluation, as a fraction of the resized image's, for a model without an image processor."
        },
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={"help": "Mean per channel of pixels in [0, 1], without an image processor. Defaults to ImageNet's."},
    )
    image_std: list[float] | None = field(
        default=None,
        metadata={"help": "Standard deviation per channel, without an image processor. Defaults to ImageNet's."},
    )
    sync_batchnorm: bool = field(
        default=False, metadata={"help": "Compute BatchNorm's batch statistics over the images of all GPUs."}
    )
    channels_last: bool = field(
        default=False,
        metadata={"help": "Use the channels_last memory format. It speeds up convolutions on GPUs."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the model's code from the Hub."})

    def __post_init__(self):
        super().__post_init__()
        if self.teacher and self.gradaug:
            raise ValueError(
                f"`teacher` must not be given with `gradaug`, but is '{self.teacher}'. Leave one of them out."
            )
        if self.teacher_weight != 1.0 and not self.teacher:
            raise ValueError(
                f"`teacher_weight` must be 1.0 without a `teacher`, but is {self.teacher_weight}. Name a teacher."
            )

    @property
    def hub(self) -> dict[str, Any]:
        return {**super().hub, "trust_remote_code": self.trust_remote_code}


def names_recipe(args: Sequence[str]) -> bool:
    """Whether the first argument is a recipe file."""
    return bool(args) and args[0].endswith((".json", ".yaml", ".yml"))


def read_recipe(path: str | Path) -> dict:
    """The values of a .json or .yaml file. Raises a `ValueError` for unknown keys."""
    with open(path, encoding="utf-8") as file:
        recipe = json.load(file) if str(path).endswith(".json") else yaml.safe_load(file)
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} must hold keys and values, but holds {type(recipe).__name__}.")
    classes = (ModelArguments, DataArguments, GradAugConfig)
    known = {item.name for arguments in classes for item in dataclasses.fields(arguments) if item.init}
    if unknown := sorted(set(recipe) - known):
        raise ValueError(f"{path} has unknown keys {shorten(unknown)}. See --help for the known ones.")
    return recipe


def parse_arguments(args: Sequence[str]) -> tuple[ModelArguments, DataArguments, GradAugConfig]:
    """Parses the flags. A recipe given first sets the defaults. If no data is named, the digits' recipe does too."""
    args = list(args)
    parser = make_training_parser(ModelArguments, DataArguments, "%(prog)s [RECIPE] [FLAGS]")
    recipe = read_recipe(args.pop(0)) if names_recipe(args) else {}
    if (given := given_flags(args)) & {"train_dir", "validation_dir", "test_dir"} and "dataset_name" not in given:
        names = ("dataset_name", *DataArguments.NEED_DATASET_NAME)
        recipe = {name: value for name, value in recipe.items() if name not in names}
    sources = {*ModelArguments.MODEL_SOURCES}
    replaced = {*sources, "model_type"} if given & sources else set()
    if given & {*sources, "image_processor_name"}:
        replaced |= {*PROCESSOR_SETTINGS}
    recipe = {name: value for name, value in recipe.items() if name not in replaced}
    parser.set_defaults(**recipe)
    flags, _ = parser.parse_known_args(args)
    processor = flags.image_processor_name or flags.config_name or flags.model_name_or_path
    if processor and (unused := [name for name in PROCESSOR_SETTINGS if name in given | recipe.keys()]):
        logger.warning(
            f"The image processor of '{processor}' is used, and {shorten(unused)} have no effect. To change it, save an image "
            "processor with other settings, and name its folder with `image_processor_name`."
        )
    if not any(getattr(flags, name) for name in DataArguments.DATA_SOURCES):
        digits = read_recipe(EXAMPLES / "recipes" / "digits.yaml")
        if flags.model_name_or_path or flags.model_type or flags.config_name:
            digits.pop("model_type")
            digits.pop("config_overrides")
        parser.set_defaults(**{**digits, **recipe})
    model_args, data_args, training_args = parse_training_arguments(parser, args)
    if training_args.do_predict and not (data_args.dataset_name or data_args.test_dir):
        raise ValueError(
            "`test_dir` must be given with `do_predict`, but is None. For the validation images, use `do_eval`."
        )
    if not data_args.names_dataset:
        logger.info("No data is named: the embedded digits, with recipes/digits.yaml for what is not given.")
    return model_args, data_args, training_args


def parse_config_overrides(text: str) -> dict:
    """Parses `a=[1,2],b=basic` into a dict. Values are Python or JSON literals, else strings."""
    overrides = {}
    for item in re.split(r",(?=\s*\w+\s*=)", text):
        name, separator, value = (part.strip() for part in item.partition("="))
        if not separator or not name.isidentifier() or not value:
            raise ValueError(f"`config_overrides` must be of the form name=value,name=value, but has '{item}'.")
        constants = {"true": True, "false": False, "null": None}
        try:
            overrides[name] = constants[value] if value in constants else ast.literal_eval(value)
        except (SyntaxError, ValueError):
            if value[0] in "[({'\"":
                raise ValueError(f"`config_overrides` must have Python or JSON literals, but has '{value}'.") from None
            overrides[name] = value
    return overrides


def build_model(args: ModelArguments, data: str, class_names: list[str], by_number: bool = False):
    """The pretrained or new model for the classes of the data, and its image processor."""
    hub = args.hub
    labels = {} if args.model_name_or_path else label_names(class_names)
    overrides = parse_config_overrides(args.config_overrides) if args.config_overrides else {}
    source = args.config_name or args.model_name_or_path
    if args.model_type and not source and args.model_type not in MODEL_TYPES:
        similar = difflib.get_close_matches(args.model_type, MODEL_TYPES)
        raise ValueError(
            f"`model_type` must be one of those in --help, such as {', '.join([*similar, 'resnet'])}, but is "
            f"'{args.model_type}'."
        )
    if not args.model_type and not source:
        raise ValueError(
            "Name a model: `model_name_or_path`, or for training from scratch `model_type` or `config_name`."
        )
    base = AutoConfig.from_pretrained(source, **hub) if source else AutoConfig.for_model(args.model_type)
    if source and args.model_type not in (None, base.model_type):
        raise ValueError(
            f"`model_type` must be left out with '{source}', a model of type '{base.model_type}', but is '{args.model_type}'."
        )
    if unknown := [name for name in overrides if not hasattr(base, name)]:
        raise ValueError(
            f"`config_overrides` must name settings of {type(base).__name__}, but has {shorten(unknown)}."
        )
    try:
        if source:
            config = AutoConfig.from_pretrained(source, **overrides, **labels, **hub)
        else:
            config = AutoConfig.for_model(args.model_type, **overrides, **labels)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(
            f"`config_overrides` must make a config, but is '{args.config_overrides}': {error}"
        ) from error
    config.problem_type = "single_label_classification"
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and "AutoModelForImageClassification" not in (
        getattr(config, "auto_map", None) or {}
    ):
        raise ValueError(
            f"'{source}' is a model of type '{config.model_type}', which has no image-classification head. --help lists the "
            "types that have one, at model_type."
        )
    if args.model_name_or_path:
        model = load_pretrained(
            AutoModelForImageClassification,
            args.model_name_or_path,
            config,
            data,
            class_names,
            by_number=by_number,
            ignore_mismatched_sizes=args.ignore_mismatched_sizes,
            **hub,
        )
    else:
        logger.info(f"A new {config.model_type} is trained from scratch.")
        # In float32, as `load_pretrained` does, whatever the config says.
        model = AutoModelForImageClassification.from_config(
            config, dtype=torch.float32, trust_remote_code=args.trust_remote_code
        )
    if args.image_processor_name or source:
        processor = AutoImageProcessor.from_pretrained(args.image_processor_name or source, **hub)
    else:
        processor = make_image_processor(args.image_size, args.crop_pct, args.image_mean, args.image_std)
    return model, processor


def check_sees_the_same(teacher: str, image_processor, trust_remote_code: bool, **hub: Any) -> None:
    """Raises a `ValueError` if a teacher's image processor gives pixels other values: it gets the model's images."""
    if not has_image_processor(teacher, **hub):
        return
    its_own = AutoImageProcessor.from_pretrained(teacher, trust_remote_code=trust_remote_code, **hub)
    seen = []
    for processor in (image_processor, its_own):
        height, width = get_image_size(processor)
        images = [Image.new("RGB", (width, height), colour) for colour in ("black", "white", "orange")]
        seen.append([get_eval_transform(processor)(image)[:, height // 2, width // 2] for image in images])
    if not torch.allclose(*map(torch.stack, seen), atol=1e-3):
        raise ValueError(
            f"`teacher` must have the model's image processor, up to the size, but is '{teacher}', whose image processor "
            "normalizes pixels to other values. Give the model the teacher's, by `image_processor_name`, or by `image_mean` "
            "and `image_std`."
        )
    if (size := get_image_size(its_own)) != get_image_size(image_processor):
        logger.warning(f"The teacher '{teacher}' is for images of {size[0]} x {size[1]} pixels, and gets the model's.")


def synchronize_batchnorm(model: torch.nn.Module, device: torch.device):
    """
    Makes BatchNorm use the images of all processes. Returns the model and the `build` function for its sub-networks.

    Names, weights and checkpoints don't change. Every process draws the same widths, so a sub-network's statistics
    have the same channels in all processes.
    """
    if not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ValueError(
            f"`sync_batchnorm` must be off without BatchNorm, but is on, and a model of type '{model.config.model_type}' has none."
        )
    if device.type == "cpu" and torch.distributed.is_initialized():
        raise ValueError(
            "`sync_batchnorm` must be off on CPUs, whose processes PyTorch can't synchronize, but is on. Use GPUs."
        )
    convert, plain_class = torch.nn.SyncBatchNorm.convert_sync_batchnorm, type(model)
    return convert(model), lambda config: convert(plain_class(config))


def top_classes(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The top five classes, best first, and the top probability. Evaluation keeps these instead of all logits."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    confidence = logits.float().softmax(dim=-1).amax(dim=-1)
    return logits.topk(min(5, logits.shape[-1]), dim=-1).indices, confidence


def calibration_error(confidence: np.ndarray, hits: np.ndarray, num_bins: int = 15) -> float:
    """
    The expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 5).

    It is the mean difference between confidence and accuracy over bins of equal width. Each bin is weighted by its
    fraction of the images.
    """
    bins = np.clip(np.ceil(confidence * num_bins) - 1, 0, num_bins - 1).astype(int)
    return float(np.abs(np.bincount(bins, weights=confidence - hits)).sum() / len(hits))


def run(model_args: ModelArguments, data_args: DataArguments, training_args: GradAugConfig) -> dict[str, float]:
    """Trains, evaluates and predicts as the arguments say. Returns the last metrics."""
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="load the data"):
        data = load_image_data(data_args, training_args.seed, model_args.cache_dir, model_args.token)
        metric = evaluate.load(str(EXAMPLES / "metrics" / "image_classification"), keep_in_memory=True)
    model, image_processor = build_model(model_args, data.name, data.class_names, data.classes_by_number)
    data = data.with_classes(model_args.model_name_or_path, get_class_names(model.config))
    build = None
    if model_args.channels_last:
        model.to(memory_format=torch.channels_last)  # images take the format of the first convolution's weights
    if model_args.sync_batchnorm:
        model, build = synchronize_batchnorm(model, training_args.device)
    trainer_class = partial(GradAugTrainer, build=build)
    if model_args.teacher:
        hub = {name: value for name, value in model_args.hub.items() if name != "revision"}  # which is the model's
        teacher = load_classifier(model_args.teacher, **hub)
        check_sees_the_same(model_args.teacher, image_processor, **hub)
        if data.classes_by_number:
            teacher.config.id2label = model.config.id2label
        if model_args.channels_last:
            teacher.to(memory_format=torch.channels_last)
        trainer_class = partial(DistillationTrainer, teacher=teacher, teacher_weight=model_args.teacher_weight)
    check_has_subnetworks(model.config, training_args)  # before the check of image sizes, which depends on the family
    size = get_image_size(image_processor)
    scales = training_args.scales if training_args.num_subnetworks else []
    with torch.device("meta"):
        meta_model = type(model)(model.config)
    for scale in (1.0, *scales):
        check_image_size(meta_model, scaled_size(size, scale), size)

    collator = ImageCollator(len(data.class_names), data_args.cutmix_alpha, data_args.mixup_alpha, data_args.mix_prob)
    train_transform = get_train_transform(image_processor, **data_args.train_augmentation)
    eval_transform = get_eval_transform(image_processor)
    train_dataset = eval_dataset = None

    def get_eval_dataset(split: str) -> Dataset:
        dataset = data.get_dataset(split, eval_transform)
        return InMemoryDataset(dataset, image_processor) if data_args.in_memory else dataset

    if training_args.do_train:
        train_dataset = data.get_dataset(
            "train",
            train_transform,
            mix=True,
            seed=training_args.seed,
            buffer_size=data_args.shuffle_buffer_size,
        )
        if data_args.streaming:
            changes = get_streaming_arguments(training_args, train_dataset, data.num_train_examples)
            for name, value in changes.items():
                setattr(training_args, name, value)
        if data_args.in_memory:
            train_dataset = InMemoryDataset(
                train_dataset, image_processor, data_args.random_crop_padding, data_args.horizontal_flip
            )
    if training_args.do_eval:  # an `eval_strategy` turns it on
        eval_dataset = get_eval_dataset("validation")
    if training_args.do_predict:
        test_dataset = get_eval_dataset("test")

    def compute_metrics(result: EvalPrediction) -> dict[str, float]:
        best, confidence = result.predictions
        error = calibration_error(confidence, best[:, 0] == result.label_ids)
        found = metric.compute(predictions=best, references=result.label_ids)
        return {**found, "expected_calibration_error": error}

    trainer = trainer_class(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collator,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=top_classes,
        processing_class=image_processor,
    )
    metrics = train_and_evaluate(trainer)
    if training_args.do_predict:
        result = trainer.predict(test_dataset, metric_key_prefix="predict")
        trainer.log_metrics("predict", result.metrics)
        trainer.save_metrics("predict", result.metrics)
        if trainer.is_world_process_zero():
            with open(Path(training_args.output_dir) / "predictions.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["index", "prediction"])
                best = (data.class_names[top] for top, *_ in result.predictions[0])
                writer.writerows(zip(test_dataset.rows, best, strict=True))
    card = {
        "finetuned_from": model_args.model_name_or_path,
        "tasks": "image-classification",
        "dataset": data.name,
        "tags": ["vision"],
        "data_settings": data_args.train_augmentation | data_args.mixing,
    }
    if data_args.dataset_name:
        card["dataset_tags"] = data_args.dataset_name
    write_card(trainer, **card)
    return metrics


def main(args: list[str] | None = None) -> dict[str, float]:
    args = sys.argv[1:] if args is None else list(args)
    try:
        return launch(parse_arguments, run, args, logger.name)
    except ValueError as error:
        if not names_recipe(args):
            raise
        # The user may not know all values of the recipe.
        message = str(error)
        names = [
            name
            for name in read_recipe(args[0])
            if name not in given_flags(args) and re.search(rf"\b{name}\b", message)
        ]
        if not names:
            raise
        flags = " ".join(f"--{name}" for name in names)
        raise ValueError(f"{message} The recipe {args[0]} sets {', '.join(names)}; override with {flags}.") from error


if __name__ == "__main__":
    main()
