# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Every code block of the README and the pages: Python is compiled and, where it is a program, run; commands parse."""

import argparse
import ast
import builtins
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from helpers import harness, images


ROOT = images.ROOT
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "evidence").glob("*.md"))
KINDS = {"bash", "bibtex", "diff", "python", "yaml"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCKS = [(page, kind, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text("utf-8"))]
# Programs that start from what other programs have made.
STARTS_FROM = ("you/digits", "model_best.pth.tar", "outputs/plain")


def blocks(kind: str) -> list:
    """The different blocks of a kind, as parameters of a test."""
    pages = {text: page.stem for page, its_kind, text in BLOCKS if its_kind == kind}
    return [pytest.param(text, id=f"{page}-{number}") for number, (text, page) in enumerate(pages.items())]


def is_program(text: str) -> bool:
    """Whether Python defines all names that it reads, and starts from nothing that isn't there."""
    nodes = list(ast.walk(ast.parse(text)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    defined = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    defined |= {
        item.asname or item.name for node in nodes for item in getattr(node, "names", []) if hasattr(item, "asname")
    }
    defined |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    needed = {node.id for node in names} - defined - set(dir(builtins))
    return not needed and not any(name in text for name in STARTS_FROM)


def commands(text: str) -> list[list[str]]:
    """The commands of a block of bash, as words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_kinds_are_known():
    assert {kind for _, kind, _ in BLOCKS} == KINDS


@pytest.mark.parametrize("text", blocks("python"))
def test_python_compiles_and_finds_its_names(text):
    compile(text, "block", "exec")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            exec(ast.unparse(node), {})


PROGRAMS = [block for block in blocks("python") if is_program(block.values[0])]


def test_there_are_programs():
    assert any("trainer.train()" in block.values[0] for block in PROGRAMS)
    assert len(PROGRAMS) > 5


@pytest.mark.slow
@pytest.mark.parametrize("text", PROGRAMS)
def test_programs_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "program.py"
    program.write_text(text.replace("num_train_epochs=4", "max_steps=2"), "utf-8")
    log = tmp_path / "log"
    run = harness.finish(harness.start(log, runpy.run_path, str(program), None, "__main__"), log)
    assert run.code == 0, run.text


def test_quick_start_is_in_the_readme_alone():
    ((page, text),) = [(page, text) for page, _, text in BLOCKS if "trainer.evaluate()" in text]
    assert page.name == "README.md" and 15 <= len(text.splitlines()) <= 35
    assert "README has a complete program" in (ROOT / "docs" / "quickstart.md").read_text("utf-8")


class Parsed(Exception):
    """A parser has understood all words."""


def check_words(main, words: list[str], monkeypatch) -> None:
    """That a script's parser takes the words; nothing is run."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_only(self, args=None, namespace=None):
        _, unknown = parse(self, args, namespace)
        assert not unknown
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_only)
        main(words)


def check_script(path: str, words: list[str], monkeypatch) -> None:
    assert (ROOT / path).is_file()
    script = images.load_script(Path(path).stem)
    task = getattr(script, "TASK", None)
    check_words(script.main if task is None else lambda words: script.main(task, words), words, monkeypatch)


@pytest.mark.parametrize("text", blocks("bash"))
def test_commands_parse(text, monkeypatch):
    monkeypatch.chdir(ROOT)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for words in commands(text):
        match words:
            case ["make", target]:
                assert re.search(rf"^{target}:", makefile, re.M)
            case ["source", path]:
                assert path == ".venv/bin/activate"
            case ["hf", "auth", "login"] | ["hf", "download", *_]:
                pass
            case ["pip", "install", "-e", requirement]:
                extras = re.fullmatch(r"\.\[([\w,]+)\]", requirement)[1].split(",")
                assert set(extras) <= set(
                    re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text("utf-8"), re.M)
                )
            case ["python", "-m", module, *rest]:
                check_words(importlib.import_module(module).main, rest, monkeypatch)
            case ["python", path, *rest]:
                check_script(path, rest, monkeypatch)
            case ["accelerate", "launch", *rest]:
                args = launch_command_parser().parse_args(rest)
                assert args.config_file is None or (ROOT / args.config_file).is_file()
                check_script(args.training_script, args.training_script_args, monkeypatch)
            case _:
                pytest.fail(f"No test knows the command {shlex.join(words)}")


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_a_recipe(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    script = images.load_script("run_image_classification")
    assert script.read_recipe(path) == yaml.safe_load(text)
