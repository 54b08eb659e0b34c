# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The package as a whole: import, metadata, documentation, and the rules that every source file keeps."""

import ast
import dataclasses
import importlib
import inspect
import re
import runpy
import subprocess
import sys

import pytest
import setuptools
import yaml
from transformers import HfArgumentParser

import hf_gradaug


MAX_LINES = 500


@pytest.fixture
def metadata(root, monkeypatch):
    """The keyword arguments that setup.py gives to `setuptools.setup`."""
    caught = {}
    monkeypatch.setattr(setuptools, "setup", caught.update)
    monkeypatch.chdir(root)
    runpy.run_path("setup.py")
    return caught


@pytest.fixture
def citation(root):
    return yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))


def test_import_is_silent_and_lazy(root, subprocess_env):
    code = "import sys, hf_gradaug; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=subprocess_env, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == 0, "`import hf_gradaug` imported torch or transformers"


def test_metadata(metadata, root):
    assert metadata["name"] == "hf_gradaug"
    assert metadata["version"] == hf_gradaug.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])
    assert metadata["license"] == "Apache-2.0"
    assert (root / "LICENSE").read_text("utf-8").split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert metadata["packages"][0] == "hf_gradaug"
    assert all(name.split(".")[0] == "hf_gradaug" for name in metadata["packages"])
    assert (root / "hf_gradaug" / "py.typed").is_file()
    extras = metadata["extras_require"]
    assert set(extras) == {"examples", "robustness", "detection", "evidence", "docs", "test", "quality", "dev"}
    assert set(extras["dev"]) == {*extras["test"], *extras["quality"]}
    used_by_tests = ("examples", "robustness", "detection", "evidence", "docs")
    assert set(extras["test"]) > {requirement for name in used_by_tests for requirement in extras[name]}


def test_every_file_of_the_package_is_installed(metadata, root):
    (package,) = metadata["package_data"]
    folder = root / package
    installed = {path for pattern in metadata["package_data"][package] for path in folder.glob(pattern)}
    others = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others and others == installed


def test_every_requirement_has_a_lower_end_and_a_pin(metadata, root):
    names = []
    for requirement in metadata["install_requires"] + metadata["extras_require"]["dev"]:
        match = re.fullmatch(r"([\w-]+)[>=]=[\w.]+(,<\d+)?(; .+)?", requirement)
        assert match, f"{requirement!r} has no lower end"
        names.append(match[1].lower())
    pins = re.findall(r"^([\w.-]+)==", (root / "constraints.txt").read_text("utf-8"), re.M)
    missing = set(names) - {name.lower() for name in pins}
    assert not missing, f"constraints.txt doesn't pin {sorted(missing)}"


def test_linter_has_one_pin(metadata, root):
    (pin,) = metadata["extras_require"]["quality"]
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    assert [hook["additional_dependencies"] for hook in hooks] == [[pin]] * len(hooks)
    assert pin in (root / "constraints.txt").read_text("utf-8").splitlines()


def test_citation(citation):
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == hf_gradaug.__version__
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert paper["title"] == "GradAug: A New Regularization Method for Deep Neural Networks"
    assert [author["family-names"] for author in paper["authors"]] == ["Yang", "Zhu", "Chen"]
    assert paper["identifiers"][0]["value"] == "arXiv:2006.07989"


@pytest.mark.parametrize("name", sorted(set(hf_gradaug.__all__) - {"__version__"}))
def test_public_name_is_documented(name):
    value = getattr(hf_gradaug, name)
    doc = value.__doc__ or ""
    # A dataclass without a docstring is given its signature as one.
    assert len(doc.split()) > 3 and not doc.startswith(f"{name}("), f"`{name}` has no docstring"


def declaring_class(field):
    """The class that a field of `GradAugConfig` comes from, and in whose docstring it has its entry."""
    return next(cls for cls in hf_gradaug.GradAugConfig.__mro__ if field.name in inspect.get_annotations(cls))


def own_fields():
    """The fields of `GradAugConfig` that this package adds to those of `TrainingArguments`, or overrides."""
    fields = dataclasses.fields(hf_gradaug.GradAugConfig)
    return [field for field in fields if declaring_class(field).__module__.startswith("hf_gradaug.")]


@pytest.mark.parametrize("field", own_fields(), ids=lambda field: field.name)
def test_config_field_is_documented(field):
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    doc = inspect.getdoc(declaring_class(field))
    entry = re.search(rf"^ *{field.name} \((.+?)\):\n", doc, re.M)
    assert entry, f"the docstring has no entry for `{field.name}`"
    stated = re.search(r"defaults to `(.+)`$", entry[1])
    if stated is None:
        assert default is None and "*optional*" in entry[1], f"the docstring states no default for `{field.name}`"
    else:
        # Not a literal: a list of fractions is written as such.
        value = eval(stated[1], {"__builtins__": {}})
        assert value == default and type(value) is type(default)
    assert len(field.metadata["help"].split()) > 2


def test_config_help_renders(monkeypatch):
    # Argparse wraps lines, and between the words of an option too, if the terminal is narrow.
    monkeypatch.setenv("COLUMNS", "200")
    text = HfArgumentParser(hf_gradaug.GradAugConfig).format_help()
    assert len(own_fields()) > 15
    for field in own_fields():
        assert f"--{field.name}" in text
        # The start is enough: the rest may be wrapped.
        assert " ".join(field.metadata["help"].split()[:3]) in " ".join(text.split())


def test_source_files_are_short(tracked_files):
    lengths = {str(file): len(file.read_text("utf-8").splitlines()) for file in tracked_files if file.suffix == ".py"}
    assert not {file: length for file, length in lengths.items() if length > MAX_LINES}


def test_library_never_prints(root):
    found = []
    for file in sorted((root / "hf_gradaug").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{file.name}:{node.lineno}")
    assert not found


def test_examples_use_public_names(root):
    found = []
    for file in sorted((root / "examples").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module.split(".")[0] != "hf_gradaug":
                continue
            module = importlib.import_module(node.module)
            public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
            is_deep = node.module.count(".") > 1
            found += [
                f"{file.name}: {node.module}.{item.name}" for item in node.names if is_deep or item.name not in public
            ]
    assert not found


def test_repository_stands_alone(tracked_files):
    # Only this repository is cloned: what lies beside it on a developer's machine is not there for others.
    outside = ("../" + "shared").encode()
    assert not [str(file) for file in tracked_files if outside in file.read_bytes()]
