# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The README and the pages: short, without broken links, and the site names every public name once."""

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.images import ROOT

import hf_gradaug


README = (ROOT / "README.md").read_text("utf-8")
TOP = (
    *("GradAugTrainer", "GradAugConfig", "GradAugMixin", "GradAug", "GradAugSettings", "make_slimmable"),
    *("register_narrowing", "register_depth", "export_subnetwork", "recalibrate_batchnorm", "DistillationTrainer"),
    *("StopOnSignal", "TrainingStream", "load_settings", "save_settings"),
)


def test_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 190 and len(README.split()) <= 2000 and max(map(len, lines)) <= 500


def test_page_of_settings_has_every_field():
    fields = {item.name for item in dataclasses.fields(hf_gradaug.GradAugSettings)} | {"lr_milestones"}
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.M)) | {"lr_milestones"} & set(re.findall(r"`(\w+)`", page))
    assert rows == fields


def test_pages_are_short():
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "results"]
    assert len(pages) > 25 and {"evidence.md", "digits.md", "robustness.md"} <= {page.name for page in pages}
    assert not [page.name for page in pages if len(page.read_text("utf-8").splitlines()) > 200]


def test_links_of_the_readme():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 20
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.slow
def test_site_is_built_strictly(tmp_path, subprocess_env):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=subprocess_env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "hf_gradaug" / "index.html").read_text("utf-8")
    assert all(f'id="hf_gradaug.{name}"' in page for name in TOP)
    assert "[`" not in page, "a link in a docstring was not understood"


def test_site_names_every_public_name_once():
    described = [
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    ]
    objects = [
        getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in described
    ]
    assert len({id(value) for value in objects}) == len(objects)
    public = {id(getattr(hf_gradaug, name)): name for name in hf_gradaug.__all__}
    for folder in sorted(Path(hf_gradaug.__file__).parent.iterdir()):
        if (folder / "__init__.py").is_file():
            module = importlib.import_module(f"hf_gradaug.{folder.name}")
            public |= {id(getattr(module, name)): f"{folder.name}.{name}" for name in module.__all__}
    missing = public.keys() - {id(value) for value in objects}
    assert not {public[key] for key in missing}
    assert {path for path in described if path.count(".") == 1} == {f"hf_gradaug.{name}" for name in TOP}
