# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Small image sets on disk, in the forms that the example scripts read."""

import importlib.util
import io
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


ROOT = Path(__file__).resolve().parents[2]
# The scripts find what they share beside them.
sys.path.append(str(ROOT / "examples"))
CLASSES = ("cat", "dog", "owl")


def load_script(name: str):
    """An example script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def make_image(label: int, number: int, size: int = 20) -> Image.Image:
    """An image of one grey, which names it: 80 * label + number."""
    return Image.fromarray(np.full((size, size, 3), 80 * label + number, dtype=np.uint8))


def make_folder(path: Path, images_per_class: int = 4, classes: tuple[str, ...] = CLASSES) -> Path:
    """One folder a class."""
    for label, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for number in range(images_per_class):
            make_image(label, number).save(path / name / f"{number}.png")
    return path


def make_parquet(path: Path, num_shards: int = 4, images_per_shard: int = 6, named: bool = True) -> Path:
    """Parquet shards with an `image` and a `label` column; the labels are class labels or bare integers."""
    path.mkdir(parents=True)
    label = datasets.ClassLabel(names=list(CLASSES)) if named else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label, "weight": datasets.Value("float32")})
    for shard in range(num_shards):
        numbers = range(shard * images_per_shard, (shard + 1) * images_per_shard)
        rows = {
            "image": [make_image(number % 3, number) for number in numbers],
            "label": [number % 3 for number in numbers],
            "weight": [0.0 for _ in numbers],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path / f"{shard}.parquet")
    return path


def name_splits(path: Path, files: dict[str, str]) -> None:
    """Makes a folder of shards one that the Hub might hold: its card gives each split the files of a pattern."""
    splits = "".join(f"  - split: {name}\n    path: {pattern}\n" for name, pattern in files.items())
    (path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")


def make_tar(path: Path, num_shards: int = 2, images_per_shard: int = 6) -> Path:
    """WebDataset shards with `png` and `cls` members."""
    path.mkdir(parents=True)
    for shard in range(num_shards):
        with tarfile.open(path / f"{shard}.tar", "w") as archive:
            for number in range(shard * images_per_shard, (shard + 1) * images_per_shard):
                content = io.BytesIO()
                make_image(number % 3, number).save(content, "PNG")
                for ending, data in (("png", content.getvalue()), ("cls", str(number % 3).encode())):
                    member = tarfile.TarInfo(f"{number:04d}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return path


def decode(value: dict) -> int:
    """The grey of a stored image of [`make_image`]."""
    return int(np.array(datasets.Image().decode_example(value))[0, 0, 0])
