# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""One grammar for the errors about arguments: "`name` must be X, but is Y." and then what to do."""

import ast
import re

import pytest
from helpers.images import ROOT


FILES = sorted(file for folder in ("hf_gradaug", "examples") for file in (ROOT / folder).rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
# A message about an argument begins with its name, which is in backticks, or a placeholder for such a name.
ARGUMENT = re.compile(r"`|[a-z]\w*_\w+ |([a-z]\w*|\{\w+\}) (is|are|has) ")
GRAMMAR = re.compile(r"`[^`]+`(( and|, with|, of| of|, in| in) [^,]*)? must .*?\bbut\b ", re.S)
NO_ARGUMENT = {"{what}", "{path}"}  # what they stand for is no argument


def text_of(node: ast.expr) -> str:
    """A string, its placeholders as they are in the source."""
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(map(text_of, node.values))
        case ast.FormattedValue():
            return "{" + ast.unparse(node.value) + "}"
        case ast.BinOp():
            return text_of(node.left) + text_of(node.right)
    return ""


def messages(file) -> list[str]:
    """What the errors about values say."""
    nodes = ast.walk(ast.parse(file.read_text("utf-8")))
    errors = [node.exc for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return [
        text_of(error.args[0])
        for error in errors
        if ast.unparse(error.func) in ("ValueError", "TypeError") and error.args
    ]


def breaks_grammar(message: str) -> bool:
    start = ARGUMENT.match(message)
    is_argument = start is not None and message.split()[0] not in NO_ARGUMENT
    return is_argument and not GRAMMAR.match(message)


def test_grammar_is_told_apart():
    assert not breaks_grammar("`width` must be in (0, 1], but is {width}. Choose another.")
    assert not breaks_grammar("`a_dir` and `b_dir` must be given together, but are {a} and {b}.")
    assert not breaks_grammar("No column holds images. Name it with `image_column_name`.")
    for message in ("width is {width}, but must be in (0, 1].", "`width` is {width}.", "max_steps is missing."):
        assert breaks_grammar(message)


# Lists that have fewer than ten items.
SHORT = ("list(SEVERITIES)", "list(scale)", "list(batch)", "list(found.values())", "[*outputs]", "sorted(lacking)[:5]")


def test_messages_list_ten_things_at_most():
    """A list that may be long goes through `shorten`."""
    long = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Raise):
                shown = [ast.unparse(part.value) for part in ast.walk(node) if isinstance(part, ast.FormattedValue)]
                lists = re.compile(r"(sorted|list)\(|\[\*|unknown$|\w+_types\(\)$")
                long += [f"{file.name}: {text}" for text in shown if lists.match(text) and text not in SHORT]
    assert long == []


def test_there_are_messages():
    assert sum(len(messages(file)) for file in FILES) > 100


@pytest.mark.parametrize("file", [*FILES, *BENCHMARKS], ids=lambda file: str(file.relative_to(ROOT)))
def test_errors_keep_the_grammar(file):
    assert not [message for message in messages(file) if breaks_grammar(message)]
