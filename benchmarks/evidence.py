# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Writes the tables of docs/results into the pages that show them.

    python -m benchmarks.evidence

On the pages in docs/evidence/, the text between `<!-- results: NAME -->` and `<!-- end of results -->` becomes the table
of docs/results/NAME.md.
"""

import re
from pathlib import Path

from .common import ROOT


PAGES = sorted((ROOT / "docs" / "evidence").glob("*.md"))
PLACE = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def fill(text: str, results: Path) -> str:
    """The text with the tables that its marks name."""
    return PLACE.sub(lambda mark: f"{mark[1]}\n{(results / f'{mark[2]}.md').read_text('utf-8')}\n{mark[3]}", text)


def main() -> None:
    for page in PAGES:
        page.write_text(fill(page.read_text("utf-8"), ROOT / "docs" / "results"), "utf-8")


if __name__ == "__main__":
    main()
