# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""An extension of griffe: links and types in the style of transformers' docstrings become those of the site."""

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object


PAGES = Path(__file__).parent / "api"
DOCUMENTED = {
    path.rpartition(".")[2]: path
    for page in PAGES.glob("*.md")
    for path in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.M)
}


# The types of arguments, and the names of errors and of returned types, which the site shows as code anyway.
TYPES = re.compile(r"(?<=\()\[?`[^\n]+?(?=\):$)|^ {4,}`[\w.\[\], |]+`(?=: |$)", re.M)


def link(match: re.Match) -> str:
    """[`GradAug`] or [`~hf_gradaug.training.StreamMixin`] as a link; as code, if the site doesn't describe it."""
    name = match[1].lstrip("~").split(".")
    shown = name[-1] if match[1].startswith("~") else match[1]
    target = DOCUMENTED.get(name[-1]) or (
        len(name) > 1 and DOCUMENTED.get(name[-2]) and f"{DOCUMENTED[name[-2]]}.{name[-1]}"
    )
    return f"[`{shown}`][{target}]" if target else f"`{shown}`"


class HuggingFaceDocstrings(Extension):
    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = TYPES.sub(lambda match: re.sub(r"\[`|`\]|[`*~]", "", match[0]), obj.docstring.value)
            obj.docstring.value = re.sub(r"\[`([^`\]]+)`\](?![\[(])", link, text)
