# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Checks of the files of a data set, and images in one folder per class. The class is the first folder below the root,
however deep the image lies.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.fingerprint import Hasher
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import HfFileSystem

from ..messages import shorten


logger = logging.getLogger(__name__)

# Names of split folders. A suffix may follow, as in train2017, but no letter.
_SPLITS = {
    "train": r"train(ing)?(?![a-z])",
    "validation": r"(val(id(ation)?)?|dev|eval(uation)?)(?![a-z])",
    "test": r"test(ing)?(?![a-z])",
}


def name_data(folder: str | os.PathLike) -> str:
    """The folder's name. If that is the name of a split, such as `train`, the name of the folder around it."""
    path = Path(folder).resolve()  # `.` has a name too
    is_split = any(re.fullmatch(rf"{pattern}[\W\d_]*", path.name.lower()) for pattern in _SPLITS.values())
    return (is_split and path.parent.name) or path.name


def is_image(file: str) -> bool:
    """Whether a file is an image, by its ending."""
    return os.path.splitext(file)[1].lower() in ImageFolder.EXTENSIONS


def is_hidden(name: str) -> bool:
    """Whether a file or folder is of those that file managers and notebooks leave, such as copies and deleted files."""
    return name.startswith((".", "__MACOSX"))


def walk_visible(root: str, *left_out: str) -> Iterator[tuple[str, list[str]]]:
    """
    Each folder and its files, sorted, through links too, without hidden ones. A link to a folder that is listed already
    adds nothing.

    Args:
        root (`str`): The first folder.
        *left_out (`str`): Folders that are not listed if a link leads to them.
    """
    seen = {os.path.realpath(folder) for folder in left_out}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
        else:
            seen.add(real)
            yield folder, sorted(name for name in names if not is_hidden(name))


def walk_classes(root: str) -> Iterator[tuple[str, str, list[str]]]:
    """
    Each folder below the class folders of a root, with its class and the names of its files. Classes are in alphabetical
    order. Hidden folders and files are left out.

    Args:
        root (`str`): The folder of the class folders.

    Yields:
        `tuple[str, str, list[str]]`: The class, the folder's path and the sorted names of the files in it.
    """
    _, classes, _ = next(os.walk(root))
    for class_name in sorted(classes):
        if not is_hidden(class_name):
            # Each by itself, because several classes may link to one folder.
            for folder, names in walk_visible(os.path.join(root, class_name), root):
                yield class_name, folder, names


def check_no_splits(flag: str, root: str) -> None:
    """
    Raises an error if the folders of a root are splits, which would be mistaken for classes.

    Args:
        flag (`str`): Flag that names the root, for the error.
        root (`str`): The folder.

    Raises:
        `ValueError`: If folders are named after two splits or more.
    """
    found: dict[str, str] = {}
    for entry in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
        for split, pattern in _SPLITS.items():
            if re.match(pattern, entry.lower()):
                found.setdefault(split, entry)
    if len(found) > 1:
        advice = ", ".join(f"{split}_dir {os.path.join(root, folder)}" for split, folder in found.items())
        raise ValueError(
            f"`{flag}` must hold one folder per class, but '{root}' holds splits, {list(found.values())}: give {advice}."
        )


def check_one_split(flag: str, root: str, files: list[str]) -> None:
    """
    Raises an error if the files in a folder are of several splits, which would be mixed: training would see the test
    images.

    Args:
        flag (`str`): Flag that names the folder, for the error.
        root (`str`): The folder.
        files (`list[str]`): Files in it that are read. A file's split is in its name, or that of its innermost folder.

    Raises:
        `ValueError`: If files or folders are named after two splits or more.
    """
    found: dict[str, str] = {}
    for file in files:
        parts = os.path.relpath(file, root).split(os.sep)
        named = (
            (split, index, match.end())
            for index, part in reversed(list(enumerate(parts)))
            for split, pattern in _SPLITS.items()
            if (match := re.search(f"(?<![a-z]){pattern}", part.lower()))
        )
        if first := next(named, None):
            split, index, end = first
            is_folder = index < len(parts) - 1
            name = parts[index] if is_folder else f"{parts[index][:end]}*{os.path.splitext(file)[1]}"
            found.setdefault(split, os.path.join(root, *parts[:index], name))
    if len(found) > 1:
        advice = ", ".join(f"{split}_dir '{found[split]}'" for split in _SPLITS if split in found)
        raise ValueError(f"`{flag}` must hold the files of one split, but '{root}' holds several: give {advice}.")


def check_class_folders(builder: datasets.DatasetBuilder) -> None:
    """Raises an error if `datasets`, which takes the innermost folder, would find other classes."""
    if builder.name != "imagefolder":
        return
    for split, files in (builder.config.data_files or {}).items():
        if any(os.path.basename(file) in ImageFolder.METADATA_FILENAMES for file in files):
            continue
        parents = sorted({os.path.dirname(os.path.dirname(file)) for file in files if is_image(file)})
        if len(parents) > 1:
            raise ValueError(
                f"The class folders of the {split} images must lie in one folder, but lie in {shorten(parents, 3)}: give "
                "that of the class folders with train_dir, validation_dir and test_dir."
            )


def check_shards(files: dict[str, list[str]], token: str | None = None) -> None:
    """
    Raises an error if Parquet files have different label names: `datasets` uses the first file's for all.

    Args:
        files (`dict[str, list[str]]`): Local files or URLs by split. Other URLs than the Hub's are not read.
        token (`str`, *optional*): Token for private Hub datasets.

    Raises:
        `ValueError`: If a column has other class names in some file.
    """
    named: dict[str, Any] = {}
    local = [file for of_split in files.values() for file in of_split if "://" not in file]
    # Of files on the Hub, each of which takes several requests, the first of each split.
    remote = [next((file for file in of_split if file.startswith("hf://")), None) for of_split in files.values()]
    for file in [*local, *filter(None, remote)]:
        for column, feature in datasets.Features.from_arrow_schema(_read_schema(file, token)).items():
            if not isinstance(feature, datasets.ClassLabel):
                continue
            first, names = named.setdefault(column, (file, feature.names))
            if names != feature.names:
                raise ValueError(
                    f"Column '{column}' must have the same classes in all files, but has {shorten(names, 3)} in {first}, "
                    f"and {shorten(feature.names, 3)} in {file}."
                )


def _read_schema(file: str, token: str | None) -> pa.Schema:
    if "://" not in file:
        return pq.read_schema(file)
    with HfFileSystem(token=token).open(file) as opened:  # reads the end of the file alone
        return pq.read_schema(opened)


def _find_images(flag: str, root: str) -> list[tuple[str, str]]:
    """Images and their classes, sorted by path; the class of an image in the root itself is empty."""
    check_no_splits(flag, root)
    deeper, others = set(), set()
    _, folders, files = next(os.walk(root))
    found = [(os.path.join(root, name), "") for name in files if is_image(name) and not is_hidden(name)]
    for class_name, folder, files in walk_classes(root):
        images = [name for name in files if is_image(name)]
        found += [(os.path.join(folder, name), class_name) for name in images]
        others |= {os.path.splitext(name)[1] for name in files if not is_image(name)}
        if images and (relative := os.path.relpath(folder, root)) != class_name:
            deeper.add(relative)
    found.sort()
    classes = {name for _, name in found}
    empty = sorted(name for name in folders if not name.startswith(".") and name not in classes)
    if "" in classes and len(classes) > 1:
        stray = [os.path.basename(path) for path, name in found if not name]
        raise ValueError(
            f"`{flag}` must hold one folder per class, but in '{root}' images lie beside the class folders: "
            f"{shorten(stray, 3)}. Move them into the folder of their class, or away."
        )
    if empty and "" not in classes:
        logger.warning(f"{flag} '{root}' has folders without images, which are no classes: {shorten(empty)}.")
    if others:
        logger.warning(
            f"{flag} '{root}' has files in class folders that are left out, because they end like no known image: "
            f"{shorten(sorted(others))}."
        )
    if deeper:
        logger.info(
            f"{flag} '{root}' has folders in class folders: {shorten(sorted(deeper), 3)}. The class of their images is the "
            "first folder."
        )
    return found


def load_folders(roots: dict[str, str], cache_dir: str | None = None) -> dict[str, datasets.Dataset]:
    """
    Lists images and their classes. The classes are those of all splits together.

    Args:
        roots (`dict[str, str]`): Folders by split; the flags in errors are `{split}_dir`.
        cache_dir (`str`, *optional*): Where `datasets` keeps its files.

    Returns:
        `dict[str, Dataset]`: With the columns `image` and `label`; an unlabelled test split has only images.

    Raises:
        `ValueError`: If a root holds splits, or images beside class folders. Also if the training or validation root
            has no class folders, or there are fewer than two classes.
    """
    found = {split: _find_images(f"{split}_dir", root) for split, root in roots.items()}
    names = sorted({name for images in found.values() for _, name in images if name})
    for split, images in found.items():
        if split != "test" and not all(name for _, name in images):
            raise ValueError(
                f"`{split}_dir` must hold one folder of images per class, but '{roots[split]}' holds images themselves."
            )
    if len(names) < 2 and set(found) != {"test"}:
        raise ValueError(
            f"{', '.join(roots.values())} must hold two class folders or more, but the classes are {names}."
        )
    loaded = {}
    for split, images in found.items():
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        if not images[0][1]:
            del features["label"]
        # Rewritten files are other data.
        changed = [os.stat(path).st_mtime_ns for path, _ in images]
        loaded[split] = datasets.Dataset.from_generator(
            lambda: ({"image": path, "label": name} if name else {"image": path} for path, name in images),  # noqa: B023
            features=features,
            cache_dir=cache_dir,
            fingerprint=Hasher.hash([images, names, changed]),
        )
    return loaded
