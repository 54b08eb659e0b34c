# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""For the example scripts of detection and instance segmentation: data in COCO's format, and average precision."""

import contextlib
import io
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics.detection import MeanAveragePrecision
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import BaseImageProcessor

from hf_gradaug.data import decode_image, match_classes
from hf_gradaug.messages import check_counts, shorten

from .scenes import ANNOTATIONS, IMAGES, write_digit_scenes


logger = logging.getLogger(__name__)

# Kinds of warnings, each of which a data set logs once.
_WARNINGS = _TURNED, _BEYOND, _FRACTION, _EMPTY = range(4)

# What each entry of a file must have.
_FIELDS = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}
# What is read of an annotation. Image processors fail where only some have more, such as keypoints.
_READ = (*_FIELDS["annotations"], "bbox", "segmentation", "area", "iscrowd")


@dataclass
class CocoArguments:
    """Images and annotations for training and evaluation. Without any, the embedded scenes of digits."""

    train_dir: str | None = field(default=None, metadata={"help": "Folder with the training images."})
    train_annotations: str | None = field(
        default=None, metadata={"help": "Annotations of the training images, as COCO instances (.json)."}
    )
    validation_dir: str | None = field(default=None, metadata={"help": "Folder with the validation images."})
    validation_annotations: str | None = field(
        default=None, metadata={"help": "Annotations of the validation images, in the same form."}
    )
    image_square_size: int = field(
        default=640, metadata={"help": "Height and width in pixels that all images are resized to."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Maximum number of training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Maximum number of validation images."})
    num_scenes: int = field(
        default=1500, metadata={"help": "Embedded scenes to train on; a fifth as many to validate."}
    )

    def __post_init__(self):
        for split in ("train", "validation"):
            folder, annotations = getattr(self, f"{split}_dir"), getattr(self, f"{split}_annotations")
            if (folder is None) != (annotations is None):
                raise ValueError(
                    f"`{split}_dir` and `{split}_annotations` must be given together, but are {folder!r} and {annotations!r}."
                )
        check_counts(self, "max_train_samples", "max_eval_samples", "image_square_size")
        check_counts(self, "num_scenes", least=5)

    @property
    def names_dataset(self) -> bool:
        return self.train_dir is not None or self.validation_dir is not None

    def paths(self, split: str, output_dir: str) -> tuple[str, str] | None:
        """Pictures' folder and annotations' file of a split, if there is one; embedded scenes are written first."""
        if self.names_dataset:
            folder = getattr(self, f"{split}_dir")
            return None if folder is None else (folder, getattr(self, f"{split}_annotations"))
        folder = os.path.join(output_dir, "_scenes", split)  # names with "_" are not pushed to the Hub
        write_digit_scenes(folder, split, self.num_scenes if split == "train" else self.num_scenes // 5)
        return os.path.join(folder, IMAGES), os.path.join(folder, ANNOTATIONS)


def _is_turn_ambiguous(path: str, size: tuple[int, int] | None) -> bool:
    """
    Whether EXIF turns an image, but nothing tells whether its annotations are turned: there is no size, or the turned
    image has the size of the stored one. Only the head of the file is read.

    Args:
        path (`str`): The file.
        size (`tuple[int, int]`, *optional*): Width and height that annotations refer to, as in [`decode_image`].
    """
    with Image.open(path) as file:
        if file.format == "PNG" and "exif" not in file.info:  # it would be decoded
            return False
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
        return 2 <= orientation <= 8 and (size is None or orientation in (2, 3, 4) or file.width == file.height)


def _find_repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_different(what: str, values: Iterable[Any], annotations: str) -> None:
    if twice := _find_repeated(values):
        raise ValueError(f"{what} in '{annotations}' must differ, but these occur more than once: {shorten(twice)}.")


def _read_annotations(path: str) -> COCO:
    """Reads a file in COCO's format. pycocotools alone ignores its faults, or ends in a bare `KeyError`."""
    with open(path, encoding="utf-8") as file:
        contents = json.load(file)
    parts = contents if isinstance(contents, dict) else {}
    # There may be no objects, but there must be images and classes.
    if missing := [part for part in _FIELDS if not parts.get(part) and (part, parts.get(part)) != ("annotations", [])]:
        kind = "" if parts else f": it is a {type(contents).__name__}"
        raise ValueError(f"'{path}' must hold instances in COCO's format, but has no {missing}{kind}.")
    for part, names in _FIELDS.items():
        for name in names:
            if lacking := [index for index, entry in enumerate(parts[part]) if entry.get(name) is None]:
                raise ValueError(
                    f"Each of the {part} in '{path}' must have `{name}`, but those at {shorten(lacking)} in the list have none."
                )
    for part in ("images", "categories"):  # which are sorted by it
        kinds = sorted({type(entry["id"]).__name__ for entry in parts[part]})
        if kinds != ["str"] and not {*kinds} <= {"int", "float"}:
            raise ValueError(
                f"`id` of the {part} in '{path}' must be all numbers or all strings, but is {shorten(kinds)}."
            )
    coco = COCO()
    coco.dataset = contents
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    for part, found in {"images": coco.imgs, "annotations": coco.anns, "categories": coco.cats}.items():
        if len(found) < len(parts[part]):
            _check_different(f"`id` of the {part}", (entry["id"] for entry in parts[part]), path)
    _check_references(coco, path)
    return coco


def _check_references(coco: COCO, path: str) -> None:
    """Compares the entries of a file with each other: classes, images, and files."""
    annotations = coco.dataset["annotations"]
    for name, allowed, what in (
        ("category_id", coco.cats, f"the categories {shorten(coco.cats)}"),
        ("iscrowd", (0, 1, None), "0 and 1"),
    ):
        if wrong := {item["id"]: item[name] for item in annotations if item.get(name) not in allowed}:
            number, value = next(iter(wrong.items()))
            raise ValueError(
                f"`{name}` of annotation {number} must be one of {what}, but is {value!r}. It is wrong in {len(wrong)} of the "
                f"{len(annotations)} annotations in '{path}'."
            )
    if lost := [item for item in annotations if item["image_id"] not in coco.imgs]:
        text = (
            f"`image_id` of each annotation in '{path}' must be the `id` of an image, but {len(lost)} of {len(annotations)} "
            f"have others, such as {shorten(dict.fromkeys(item['image_id'] for item in lost), 3)}"
        )
        if len(lost) == len(annotations):
            raise ValueError(f"{text}.")
        logger.warning(f"{text}. These annotations are not used.")
    if twice := _find_repeated(image["file_name"] for image in coco.dataset["images"]):
        logger.warning(
            f"`file_name` of each image in '{path}' must differ, but these occur more than once: {shorten(twice)}. The objects "
            "of one entry are background in the others: merge them, unless they are equal."
        )


class CocoDataset(Dataset):
    """
    Pictures and their instances, as inputs of a model.

    Args:
        folder (`str`):
            The folder that the annotations' file names are relative to.
        annotations (`str`):
            A file in COCO's format for instances.
        processor (`BaseImageProcessor`):
            The image processor of the model.
        with_masks (`bool`, *optional*, defaults to `False`):
            Returns `mask_labels` and `class_labels` for MaskFormer and Mask2Former, instead of `labels`.
        with_targets (`bool`, *optional*, defaults to `False`):
            Adds `targets` for [`CocoEvaluationMixin`], in pixels of the original image.
        max_samples (`int`, *optional*):
            Keeps only the first images.

    Raises:
        `ValueError`: If the file isn't in that format, two of its entries have one number or name, a category is
            unknown, or no annotation belongs to an image.
    """

    def __init__(
        self,
        folder: str,
        annotations: str,
        processor: BaseImageProcessor,
        with_masks: bool = False,
        with_targets: bool = False,
        max_samples: int | None = None,
    ):
        self.coco = _read_annotations(annotations)
        self.folder, self.processor = folder, processor
        self.with_masks, self.with_targets = with_masks, with_targets
        # COCO's own category numbers have gaps.
        self.categories = sorted(self.coco.getCatIds())
        self.class_names = [category["name"] for category in self.coco.loadCats(self.categories)]
        _check_different("`name` of the categories", self.class_names, annotations)
        self._labels = {category: label for label, category in enumerate(self.categories)}
        self._ids = sorted(self.coco.getImgIds())[:max_samples]
        # Shared with data-loading workers, which start anew in each epoch: one warning, not one from each.
        self._warned = torch.zeros(len(_WARNINGS), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._ids)

    def use_classes(self, class_names: list[str], name: str) -> None:
        """
        Gives the categories the numbers that classes of their names have in a model.

        Args:
            class_names (`list[str]`): The model's classes, in the order of their numbers.
            name (`str`): What an error calls these pictures.

        Raises:
            `ValueError`: If they are other categories.
        """
        numbers = match_classes("model", class_names, name, self.class_names)
        self._labels = {category: numbers[label] for category, label in self._labels.items()}
        self.class_names = list(class_names)

    def read(self, index: int) -> tuple[Image.Image, list[dict[str, Any]]]:
        """A picture and its annotations, whose `category_id` is the label, from 0 without gaps."""
        entry = self.coco.imgs[self._ids[index]]
        path = os.path.join(self.folder, entry["file_name"])
        size = (entry["width"], entry["height"]) if {"width", "height"} <= entry.keys() else None
        picture = decode_image({"path": path, "bytes": None}, f"picture {entry['id']}", size)
        if not self._warned[_TURNED] and _is_turn_ambiguous(path, size):
            self._warn(
                _TURNED,
                f"Image '{entry['file_name']}' has an EXIF orientation, and the size in the JSON can't tell whether its "
                "annotations are for the upright image or the stored one. Upright is assumed, here and in further such "
                "images. If that is wrong, save turned images again without EXIF.",
            )
        entry.update(width=picture.width, height=picture.height)  # which its masks need
        return picture, [self._complete(item) for item in self.coco.imgToAnns[entry["id"]]]

    def _warn(self, number: int, message: str) -> None:
        """Each kind of warning is logged once."""
        if not self._warned[number]:
            self._warned[number] = True
            logger.warning(message)

    def find_unused(self) -> list[str]:
        """The names of the categories of which the images have no object but crowds."""
        found = (item for number in self._ids for item in self.coco.imgToAnns[number])
        used = {item["category_id"] for item in found if not item.get("iscrowd")}
        return [category["name"] for category in self.coco.loadCats(self.categories) if category["id"] not in used]

    def _complete(self, item: dict[str, Any]) -> dict[str, Any]:
        """What is read of an annotation, with its label as `category_id`. Box and area may be those of its mask."""
        item = {name: item[name] for name in _READ if item.get(name) is not None}
        item["category_id"] = self._labels[item["category_id"]]
        entry = self.coco.imgs[item["image_id"]]
        if "bbox" in item:
            self._check_box(item)
        if item.get("segmentation"):
            rle = self._encode(item)
            found = {"bbox": coco_mask.toBbox(rle).tolist(), "area": float(coco_mask.area(rle))}
        elif self.with_masks:
            raise ValueError(f"Annotation {item['id']} must have a `segmentation`, but has none.")
        elif "bbox" in item:
            found = {"area": item["bbox"][2] * item["bbox"][3]}
        else:
            raise ValueError(f"Annotation {item['id']} must have `bbox` or `segmentation`, but has neither.")
        item = {**found, **item}
        left, top, width, height = item["bbox"]
        shown = (min(left + width, entry["width"]) - max(left, 0), min(top + height, entry["height"]) - max(top, 0))
        if not found["area"] if self.with_masks else min(shown) <= 0:
            self._warn(
                _EMPTY,
                f"Annotation {item['id']} has no area in its image '{entry['file_name']}', and others may have none. In "
                "training it is left out. In evaluation it counts as an object that no model finds.",
            )
        return item

    def _encode(self, item: dict[str, Any]) -> dict[str, Any]:
        """The mask of an annotation, as run lengths."""
        entry, polygons = self.coco.imgs[item["image_id"]], item["segmentation"]
        try:
            if isinstance(polygons, list) and any(len(polygon) % 2 for polygon in polygons):
                raise ValueError("a polygon has an x without a y")  # pycocotools would drop it
            rle = self.coco.annToRLE(item)
            height, width = rle["size"]
            counts = polygons["counts"] if isinstance(polygons, dict) else None
        except Exception as error:  # pycocotools raises a plain one, too
            raise ValueError(
                f"`segmentation` of annotation {item['id']} must be polygons, each a list of six or more numbers, or run "
                f"lengths, but can't be read ({type(error).__name__}: {error})."
            ) from error
        if (height, width) != (entry["height"], entry["width"]):
            raise ValueError(
                f"The mask of annotation {item['id']} must have the size of its image '{entry['file_name']}', {entry['height']} x "
                f"{entry['width']}, but has {height} x {width}."
            )
        if isinstance(counts, list) and sum(counts) != height * width:
            raise ValueError(
                f"The run lengths of annotation {item['id']} must add up to the {height} x {width} pixels of its image, "
                f"{height * width}, but add up to {sum(counts)}."
            )
        return rle

    def _check_box(self, item: dict[str, Any]) -> None:
        box, entry = item["bbox"], self.coco.imgs[item["image_id"]]
        is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(each, (int, float)) for each in box)
        if not is_box or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
            raise ValueError(
                f"`bbox` of annotation {item['id']} must be left, top, width and height in pixels, but is {box}."
            )
        left, top, width, height = box
        if 0 < max(box) <= 1 < min(entry["width"], entry["height"]):
            self._warn(
                _FRACTION,
                f"`bbox` of annotation {item['id']}, {box}, is within the first pixel of its image '{entry['file_name']}', "
                "and others may. It must be in pixels, not in fractions of the image.",
            )
        if min(left, top) < -1 or left + width > entry["width"] + 1 or top + height > entry["height"] + 1:
            self._warn(
                _BEYOND,
                f"`bbox` of annotation {item['id']}, {box}, reaches beyond its image '{entry['file_name']}' of "
                f"{entry['width']} x {entry['height']} pixels, and others may. It must be left, top, width and height, not "
                "right and bottom.",
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture, annotations = self.read(index)
        objects = [item for item in annotations if not item.get("iscrowd")]
        if self.with_masks:
            inputs = self.processor(images=picture, return_tensors="pt")
            example = {name: inputs[name][0] for name in ("pixel_values", "pixel_mask") if name in inputs}
            # As the processor resizes images: without aligned corners, which `RandomScale` has.
            size = list(example["pixel_values"].shape[-2:])
            masks = resize(self._masks(objects, picture), size, InterpolationMode.NEAREST_EXACT)
            # Image processors leave out boxes without area, too. Resized, a small mask may have no pixel.
            has_area = masks.bool().flatten(1).any(1)
            labels = torch.tensor([item["category_id"] for item in objects], dtype=torch.long)
            example["mask_labels"], example["class_labels"] = masks[has_area].float(), labels[has_area]
        else:
            record = {"image_id": index, "annotations": objects}  # an `id` may be a text
            inputs = self.processor(images=picture, annotations=record, return_tensors="pt")
            example = {name: inputs[name][0] for name in ("pixel_values", "pixel_mask", "labels") if name in inputs}
        if self.with_targets:
            example["targets"] = self._targets(annotations, picture)
        return example

    def _masks(self, annotations: list[dict[str, Any]], picture: Image.Image) -> Tensor:
        masks = [self.coco.annToMask(item) for item in annotations]
        return torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, picture.height, picture.width)

    def _targets(self, annotations: list[dict[str, Any]], picture: Image.Image) -> dict[str, Tensor]:
        boxes = torch.tensor([item["bbox"] for item in annotations], dtype=torch.float).view(-1, 4)
        targets = {
            "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
            "labels": torch.tensor([item["category_id"] for item in annotations], dtype=torch.long),
            "iscrowd": torch.tensor([item.get("iscrowd", 0) for item in annotations], dtype=torch.long),
            "area": torch.tensor([item["area"] for item in annotations], dtype=torch.float),
            "size": torch.tensor([picture.height, picture.width]),
        }
        if self.with_masks:
            targets["masks"] = self._masks(annotations, picture).bool()
        return targets


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of examples whose pictures have one size: these in tensors, all else in lists, an entry a picture."""
    batch: dict[str, Any] = {name: [example[name] for example in examples] for name in examples[0]}
    for name in ("pixel_values", "pixel_mask"):
        if name in batch:
            batch[name] = torch.stack(batch[name])
    return batch


class CocoEvaluationMixin:
    """
    Gives a Trainer average precision by COCO's protocol: `class MyTrainer(CocoEvaluationMixin, GradAugTrainer)`.

    The metrics are torchmetrics': `map` over IoU thresholds 0.5 to 0.95, `map_50`, `map_75`, by size of the objects,
    and recall. Sizes of which there are no objects have no metric.

    Args:
        *args, **kwargs:
            The Trainer's. `processing_class` has to be the model's image processor, and the evaluation data to hold
            `targets`.
        with_masks (`bool`, *optional*, defaults to `False`):
            Compares masks, and not boxes.
    """

    def __init__(self, *args, with_masks: bool = False, **kwargs):
        self._average_precision = MeanAveragePrecision(iou_type="segm" if with_masks else "bbox")
        super().__init__(*args, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._average_precision.to(self.args.device).reset()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics = self._average_precision.compute()
        names = [name for name in metrics if not name.endswith("_per_class") and name != "classes"]
        # -1 stands for sizes of which there are no objects.
        output.metrics.update(
            {f"{metric_key_prefix}_{name}": metrics[name].item() for name in names if metrics[name] >= 0}
        )
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        targets = inputs.pop("targets")
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**self._prepare_inputs(inputs))
        predictions = predict_objects(self.processing_class, outputs, [target.pop("size") for target in targets])
        # torchmetrics needs as many images from each process. Without objects, those that are there twice count nothing.
        new = self._count_new(len(targets))
        for found in (*predictions[new:], *targets[new:]):
            found.update({name: value[:0] for name, value in found.items()})
        # Where the processes can exchange them.
        self._average_precision.update(*send_to_device((predictions, targets), self.args.device))
        return outputs["loss"].detach().mean(), None, None

    def _count_new(self, batch_size: int) -> int:
        """How many images of a batch are its own: accelerate fills the last batch of each process with the first images."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder < 1:
            return batch_size
        return min(max(state.remainder - self.accelerator.process_index * batch_size, 0), batch_size)


def predict_objects(
    processor: BaseImageProcessor, outputs: Any, sizes: list[Tensor], threshold: float = 0.0
) -> list[dict[str, Tensor]]:
    """
    The objects that a model finds in each image.

    Args:
        processor (`BaseImageProcessor`):
            The image processor of the model.
        outputs (`ModelOutput`):
            The model's.
        sizes (`list[torch.Tensor]`):
            Height and width of each picture in pixels.
        threshold (`float`, *optional*, defaults to `0.0`):
            The least score.

    Returns:
        `list[dict[str, torch.Tensor]]`: On the CPU, `scores` and `labels` of shape `(n,)`, and `boxes`, `(n, 4)` as
        left, top, right, bottom in pixels, or `masks`, `(n, height, width)` booleans.
    """
    outputs = type(outputs)(
        {name: value.detach().float().cpu() for name, value in outputs.items() if isinstance(value, Tensor)}
    )
    sizes = [tuple(size.tolist()) for size in sizes]
    if "masks_queries_logits" not in outputs:
        return processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
    found = processor.post_process_instance_segmentation(
        outputs, threshold=threshold, target_sizes=sizes, return_binary_maps=True
    )
    predictions = []
    for size, result in zip(sizes, found, strict=True):
        segments = result["segments_info"]
        masks = result["segmentation"].bool() if segments else torch.zeros(0, *size, dtype=torch.bool)
        scores = torch.tensor([segment["score"] for segment in segments])
        labels = torch.tensor([segment["label_id"] for segment in segments], dtype=torch.long)
        predictions.append({"scores": scores, "labels": labels, "masks": masks})
    return predictions
