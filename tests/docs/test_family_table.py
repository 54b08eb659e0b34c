# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The tables of families in docs/models.md agree with the registries, and hold for the sizes that configs have by default."""

import math
import re

import pytest
from helpers import families
from helpers.dense import DENSE_TYPES

from hf_gradaug import narrow_config, supported_model_types
from hf_gradaug.slimmable.depth import droppable_model_types
from hf_gradaug.slimmable.selection import select
from hf_gradaug.slimmable.skeleton import build_skeleton, check_same, shapes_of


def table(root, heading: str, title: str) -> dict[str, str]:
    """By model type, the second cell of its row in the section's table."""
    section = (root / "docs" / "models.md").read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?)(?: \| .*)? \|$", section, re.M)
    assert (rows[0][0], rows[0][1]) == ("`model_type`", title)
    return {name: cell for names, cell in rows[1:] for name in re.findall(r"`(\w+)`", names)}


def test_table_of_families(root):
    assert set(table(root, "Model families", "what is narrowed")) == set(supported_model_types()) - DENSE_TYPES


def test_table_of_random_depth(root):
    cells = table(root, "Random depth", "random depth")
    assert set(cells) == set(table(root, "Model families", "what is narrowed"))
    assert {name for name, cell in cells.items() if cell == "yes"} == set(droppable_model_types()) - DENSE_TYPES
    assert all(cell.startswith("no: ") for name, cell in cells.items() if name not in droppable_model_types())


def default_config(family: str):
    return families._find(f"{families.CLASSES[family]}Config")()


# By model type, one of its entries. Hiera's first stage has one head.
DEFAULTS = {default_config(family).model_type: family for family in families.CLASSES}


@pytest.mark.parametrize("model_type", sorted(set(DEFAULTS) - {"hiera"}))
def test_default_size_narrows(model_type):
    family = DEFAULTS[model_type]
    config = default_config(family)
    full = shapes_of(build_skeleton(config, families.model_class(family)))
    sizes = [number_of_entries(full)]
    for width in (0.9, 0.75, 0.5):
        narrower = narrow_config(config, width)
        if narrower.to_dict() != config.to_dict():
            narrow = shapes_of(build_skeleton(narrower, families.model_class(family)))
            check_same("parameter or buffer", full, narrow, width)
            for name in narrow:
                select(name, full[name], narrow[name], config, narrower)
            sizes.append(number_of_entries(narrow))
    # Of Swin's heads in thirds, 0.9 keeps all.
    assert len(sizes) == (3 if model_type in ("swin", "swinv2") else 4)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[1] and sizes[-1] < sizes[0] / 2


def number_of_entries(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def test_defaults_are_all_families():
    assert set(DEFAULTS) == set(supported_model_types()) - DENSE_TYPES
    with pytest.raises(ValueError, match="hiera narrows by whole heads"):
        narrow_config(default_config("hiera"), 0.5)
