# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Shared by the scripts for detection and instance segmentation: arguments, training, and a plot."""

import copy
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from common import (
    CommonModelArguments,
    check_has_subnetworks,
    has_image_processor,
    label_names,
    launch,
    load_pretrained,
    make_training_parser,
    parse_training_arguments,
    train_and_evaluate,
    write_card,
)
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from transformers import (
    IMAGE_PROCESSOR_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    set_seed,
)
from transformers.backbone_utils import BackboneMixin

from hf_gradaug import GradAugConfig, GradAugTrainer
from hf_gradaug.data import get_class_names, get_pixel_map, warn_of_missing

from .coco import (
    CocoArguments,
    CocoDataset,
    CocoEvaluationMixin,
    collate,
    predict_objects,
)


logger = logging.getLogger(__name__)

PICTURE = "predictions.png"
# One a class, for the first classes: told apart by colour-blind readers too, on dark pictures.
_COLOURS = [
    "#56b4e9",
    "#e69f00",
    "#00c794",
    "#f0e442",
    "#ff7f4d",
    "#cc79a7",
    "#ffffff",
    "#a5d8ff",
    "#ffd28a",
    "#b8b8b8",
]


@dataclass(kw_only=True)
class DenseModelArguments(CommonModelArguments):
    """Which model, pretrained or from scratch, and whether GradAug trains it."""

    MODEL_SOURCES: ClassVar[tuple[str, ...]] = (*CommonModelArguments.MODEL_SOURCES, "backbone")

    backbone: str | None = field(
        default=None,
        metadata={"help": "Classifier (Hub name or folder) whose weights initialize the new model's backbone."},
    )


@dataclass(frozen=True)
class DenseTask:
    """
    What differs between the scripts.

    Args:
        name (`str`): The Hub's name of the task.
        auto_class (`type`): Loads and builds the models.
        with_masks (`bool`): Whether objects are masks, and not boxes.
        new_processor (`Callable[..., BaseImageProcessor]`): Image processor of a new model, by the images' size and
            further settings.
        new_model (`Callable[[PreTrainedConfig, dict], PreTrainedModel]`): The small model, by its backbone and labels.
        defaults (`dict[str, Any]`): Arguments for the embedded scenes, where the command doesn't give others.
    """

    name: str
    auto_class: type
    with_masks: bool
    new_processor: Callable[..., BaseImageProcessor]
    new_model: Callable[[PreTrainedConfig, dict[str, Any]], PreTrainedModel]
    defaults: dict[str, Any]


class DenseTrainer(CocoEvaluationMixin, GradAugTrainer):
    """[`GradAugTrainer`] with average precision."""


def parse_arguments(task: DenseTask, args: Sequence[str]) -> tuple[DenseModelArguments, CocoArguments, GradAugConfig]:
    """Flags, with the task's defaults if no data is named."""
    parser = make_training_parser(DenseModelArguments, CocoArguments, "%(prog)s [FLAGS]")
    parser.set_defaults(subnetwork_targets="labels")
    flags, _ = parser.parse_known_args(args)
    if flags.train_dir is None and flags.validation_dir is None:
        logger.info("No data is named: the embedded scenes of digits.")
        parser.set_defaults(**task.defaults)
    return parse_training_arguments(parser, args)


def new_backbone() -> ResNetConfig:
    """Config of the small model's backbone."""
    return ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic")


def build_model(task: DenseTask, args: DenseModelArguments, data: str, class_names: list[str]) -> PreTrainedModel:
    """The model, pretrained or new, for the categories of the data."""
    hub, labels = args.hub, label_names(class_names)
    if name := args.model_name_or_path:
        config = AutoConfig.from_pretrained(name, **hub)
        ignore = args.ignore_mismatched_sizes
        return load_pretrained(task.auto_class, name, config, data, class_names, ignore_mismatched_sizes=ignore, **hub)
    logger.info("A new model is trained from scratch.")
    if args.config_name:
        config = AutoConfig.from_pretrained(args.config_name, **labels, **hub)
        return task.auto_class.from_config(config, dtype=torch.float32)  # for the reason of `load_pretrained`
    if args.backbone is None:
        return task.new_model(new_backbone(), labels)
    model = task.new_model(AutoConfig.from_pretrained(args.backbone, **hub), labels)
    load_backbone_weights(model, args.backbone, **hub)
    return model


def load_backbone_weights(model: nn.Module, name: str, **hub: Any) -> None:
    """
    Starts the backbone of a detector or segmenter with the weights of a classifier, such as one that GradAug trained.

    Args:
        model (`nn.Module`):
            The model, whose config has the classifier's config as `backbone_config`.
        name (`str`):
            Name or folder of the classifier.
        hub:
            Arguments of `from_pretrained`.

    Raises:
        `ValueError`: If the classifier hasn't the weights of this backbone.
    """
    (backbone,) = [module for module in model.modules() if isinstance(module, BackboneMixin)]
    # A copy of the config, because it becomes the loaded model's.
    loaded, info = type(backbone).from_pretrained(
        name, config=copy.deepcopy(backbone.config), output_loading_info=True, ignore_mismatched_sizes=True, **hub
    )
    # Norms of the feature maps are a backbone's own.
    lacking = {key for key in info["missing_keys"] if "hidden_states_norms" not in key}
    lacking |= {key for key, *_ in info["mismatched_keys"]}
    if lacking:
        raise ValueError(
            f"`backbone` must have all weights of the model's backbone, but {name!r} lacks {sorted(lacking)[:5]}."
        )
    backbone.load_state_dict(loaded.state_dict(), strict=False)  # frozen BatchNorm doesn't count batches


def get_normalization(backbone: str, **hub: Any) -> dict[str, Any]:
    """
    The settings with which any image processor gives pixels the values that a classifier was trained on.

    Args:
        backbone (`str`): Name or folder of the classifier.
        hub: Arguments of `from_pretrained`.

    Raises:
        `ValueError`: If its image processor does more to colours than rescaling and normalizing each channel.
    """
    if not has_image_processor(backbone, **hub):
        logger.warning(
            f"The backbone '{backbone}' has no image processor: pixels may have other values than it learned."
        )
        return {}
    processor = AutoImageProcessor.from_pretrained(backbone, **hub)
    pixels = get_pixel_map(processor, size=(64, 64))
    scale = pixels.weight.diagonal()
    if not torch.allclose(pixels.weight, scale.diag(), atol=1e-4) or not scale.all():
        raise ValueError(
            f"`backbone` must be a classifier whose image processor normalizes each channel by itself, but is '{backbone}', "
            f"whose {type(processor).__name__} mixes or reorders them."
        )
    numbers = {"image_mean": 0 - pixels.bias / scale, "image_std": 1 / scale}
    return {"do_normalize": True, **{name: [round(x, 6) for x in each.tolist()] for name, each in numbers.items()}}


def load_processor(task: DenseTask, args: DenseModelArguments, side: int) -> BaseImageProcessor:
    """The model's image processor, or that of a new model. That of its family reads scores as the model means them."""
    # The data, evaluation and losses need whole images without padding, and boxes as fractions of them.
    settings = {"size": {"height": side, "width": side}, "do_pad": False}
    if args.model_name_or_path:
        settings |= {"do_resize": True, "pad_size": None, "do_convert_annotations": True}
        return AutoImageProcessor.from_pretrained(args.model_name_or_path, **settings, **args.hub)
    if args.config_name:
        config = AutoConfig.from_pretrained(args.config_name, **args.hub)
        if (own := IMAGE_PROCESSOR_MAPPING.get(type(config), None)) is not None:  # D-FINE has none
            return own["torchvision"](**settings)
    return task.new_processor(side, **(get_normalization(args.backbone, **args.hub) if args.backbone else {}))


def run(
    task: DenseTask, model_args: DenseModelArguments, data_args: CocoArguments, training_args: GradAugConfig
) -> dict[str, float]:
    """Trains and evaluates as the arguments say; returns the last metrics."""
    set_seed(training_args.seed)
    # An `eval_strategy` turns `do_eval` on.
    wanted = [
        split for split, use in (("train", training_args.do_train), ("validation", training_args.do_eval)) if use
    ]
    if source := model_args.model_name_or_path or model_args.config_name or model_args.backbone:
        # Its error says why a model can't be loaded.
        check_has_subnetworks(AutoConfig.from_pretrained(source, **model_args.hub), training_args)
    processor = load_processor(task, model_args, data_args.image_square_size)
    with training_args.main_process_first(desc="write the scenes"):
        paths = {split: data_args.paths(split, training_args.output_dir) for split in wanted}
    if lacking := [split for split, path in paths.items() if path is None]:
        raise ValueError(f"Data is missing: give `{lacking[0]}_dir` and `{lacking[0]}_annotations`.")
    limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    datasets = {
        split: CocoDataset(*path, processor, task.with_masks, split == "validation", limits[split])
        for split, path in paths.items()
    }
    if "train" in datasets:
        warn_of_missing(datasets["train"].find_unused(), "training")
    split, first = next(iter(datasets.items()))
    model = build_model(task, model_args, f"the {split} pictures", first.class_names)
    for split, dataset in datasets.items():
        dataset.use_classes(get_class_names(model.config), f"the {split} pictures")
    trainer = DenseTrainer(
        model=model,
        args=training_args,
        train_dataset=datasets.get("train"),
        eval_dataset=datasets.get("validation"),
        data_collator=collate,
        processing_class=processor,
        with_masks=task.with_masks,
    )
    metrics = train_and_evaluate(trainer)
    if training_args.do_eval and trainer.is_world_process_zero():
        picture = draw_predictions(model, processor, datasets["validation"])
        picture.save(os.path.join(training_args.output_dir, PICTURE))
    if training_args.do_train:
        name = data_args.train_annotations or "scenes of handwritten digits (scikit-learn)"
        card = {"tasks": task.name, "dataset": os.path.basename(name), "tags": ["vision"]}
        card["finetuned_from"] = model_args.model_name_or_path
        write_card(trainer, **card)
    return metrics


def draw_predictions(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: CocoDataset,
    count: int = 12,
    threshold: float = 0.5,
    side: int = 280,
) -> Image.Image:
    """The first images of a data set, four in a row, with what the model finds in them and how sure it is."""
    count = min(count, len(dataset))
    sheet = Image.new("RGB", (side * min(4, count), side * -(-count // 4)))
    model.eval()
    for index in range(count):
        picture, _ = dataset.read(index)
        inputs = processor(images=picture, return_tensors="pt").to(model.device)
        with torch.no_grad():
            outputs = model(**inputs)
        (found,) = predict_objects(processor, outputs, [torch.tensor([side, side])], threshold)
        tile = _draw_objects(picture.resize((side, side)), found, dataset.class_names)
        sheet.paste(tile, (side * (index % 4), side * (index // 4)))
    return sheet


def _draw_objects(picture: Image.Image, found: dict[str, torch.Tensor], names: list[str]) -> Image.Image:
    """Masks and boxes in the colour of their class, each with a label where no other label is."""
    font, taken = ImageFont.load_default(size=16), []
    labels = found["labels"].tolist()
    for i, (score, label) in enumerate(zip(found["scores"].tolist(), labels)):
        colour = _COLOURS[label % len(_COLOURS)]
        if "masks" in found:
            mask = found["masks"][i].numpy()
            picture.paste(Image.new("RGB", picture.size, colour), mask=Image.fromarray((mask * 150).astype(np.uint8)))
            rows, columns = np.nonzero(mask)
            left, top, right, bottom = columns.min(), rows.min(), columns.max(), rows.max()
        else:
            left, top, right, bottom = found["boxes"][i].tolist()
        draw = ImageDraw.Draw(picture)
        if "boxes" in found:
            draw.rectangle((left, top, right, bottom), outline=colour, width=3)
        text = f"{names[label]}: {score:.0%}"
        width, height = draw.textbbox((0, 0), text, font=font)[2:]
        x = min(max(left, 0), picture.width - width)
        places = [(x, y) for y in (top - height - 2, bottom + 2, *range(0, picture.height, height))]
        for x, y in places:
            box = (x, y, x + width, y + height)
            is_inside = 0 <= y <= picture.height - height
            if is_inside and not any(
                box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken
            ):
                break
        taken.append(box)
        draw.rectangle(box, fill="black")
        draw.text((x, y), text, fill=colour, font=font)
    return picture


def main(task: DenseTask, args: list[str] | None = None) -> dict[str, float]:
    """Parses the arguments and runs the task."""
    return launch(partial(parse_arguments, task), partial(run, task), args, logger.name)
