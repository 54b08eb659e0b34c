# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Writes the best checkpoint of a study, with its card. The best model on the validation images is trained once more. It
is then measured on the test images, which played no part in the choice.

    python -m benchmarks.best_checkpoint benchmarks/studies/solar-cells.yaml --output_dir outputs/solar-cells

Models with a teacher are left out, because their own command alone can't train them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard

from .common import run_example
from .grid import Cell, Grid, as_argv
from .study import Study
from .study_report import Mean


LOAD = "\n## How to load\n"


def find_best(grid: Grid) -> Cell:
    """
    The cell with the highest metric on the validation images; the first of equal cells.

    Raises:
        `ValueError`: If the study was not measured on the test images, or is unfinished.
    """
    study = grid.study
    missing = sum(grid.record(cell) is None for cell in grid.cells)
    if study.split != "test" or missing:
        state = f"{missing} of its cells have not run" if missing else f"it is of the {study.split} images"
        raise ValueError(f"`study` must be of the test images and complete, but is {study.path}, and {state}.")
    cells = [cell for cell in grid.cells if grid.teacher(cell) is None]
    return max(cells, key=lambda cell: grid.record(cell)["metrics"]["eval_accuracy"])


def describe_choice(grid: Grid, best: Cell) -> str:
    study = grid.study
    arm = [cell for cell in grid.cells if (cell.dataset, cell.arm) == (best.dataset, best.arm)]
    mean = Mean.of([grid.record(cell)["metrics"][study.measured] for cell in arm])
    return (
        f"The evaluation set is the test split. It played no part in the choice of this model, of the arm '{best.arm}' with "
        f"seed {best.seed}, which of the {len(grid.cells)} models of the study `{study.name}` was the best on the validation "
        f"split. The {len(arm)} models of its arm have a test accuracy of {mean.show()} %: mean over seeds and 95 % "
        "interval."
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="The study's YAML file.")
    parser.add_argument("--output_dir", type=Path, required=True, help="New folder for the model and its card.")
    parser.add_argument("--results_dir", default="docs/results", help="Folder with the study's results (.jsonl).")
    args = parser.parse_args(argv)
    if args.output_dir.exists():
        raise ValueError(f"`output_dir` must be a new folder, but is '{args.output_dir}'.")
    grid = Grid(Study.read(args.study), args.results_dir)
    best = find_best(grid)
    flags = grid.flags(best)
    if "test_dir" not in flags:
        raise ValueError(f"`study` must have a test_dir for the data set '{best.dataset}', but {args.study} has none.")
    # The card shows the evaluation, which takes no part in the training. Here it is of the test images.
    flags |= {
        "validation_dir": flags["test_dir"],
        "do_predict": False,
        "disable_tqdm": False,
        "output_dir": str(args.output_dir),
    }
    run_example("run_image_classification", as_argv(flags))
    card = ModelCard.load(args.output_dir / "README.md")
    card.text = card.text.replace(LOAD, f"\n{describe_choice(grid, best)}\n{LOAD}", 1)
    card.save(args.output_dir / "README.md")


if __name__ == "__main__":
    main()
