# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
One run, many models: the sub-networks of one run, compared with separately trained networks of the same widths.

    python -m benchmarks.accuracy benchmarks/studies/digits-one-training.yaml --jobs 2
    python -m benchmarks.one_training benchmarks/studies/digits-one-training.yaml

The study has the arm `one training`, a run with GradAug, and arms `width W`, each a network of that width. It may also
have arms `width W, shared compute`, which together have the compute of the one run. Sub-networks are exported from the
study's models, their BatchNorm is recalibrated on training images, and they are measured on the study's split. The
results are docs/results/STUDY-widths.json, with a table and a plot beside it.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_gradaug.reporting.figures import COLORS, new_figure, style_axes

from .common import describe_run, run_example, write_json
from .grid import Cell, Grid, as_argv
from .study import Study
from .study_report import Mean, format_table


ONE = "one training"
# What a table calls the networks that were trained by themselves, by the endings of their arms.
ALONE = {"": "each by itself", ", shared compute": "each by itself, the same compute in all"}


@dataclass
class OneTrainingArguments:
    """Options of the benchmark."""

    device: str = field(default="cpu", metadata={"help": "Device to measure the sub-networks on: cpu, cuda, ..."})
    results_dir: str = field(
        default="docs/results", metadata={"help": "Folder with the study's results (.jsonl), and for the new ones."}
    )
    work_dir: str = field(default="outputs/accuracy", metadata={"help": "Folder with the study's models."})


def find_alone(study: Study) -> dict[str, str]:
    """Of `ALONE`, what the study has."""
    return {ending: name for ending, name in ALONE.items() if f"{study.baseline}{ending}" in study.arms}


def find_widths(study: Study) -> list[float]:
    """The widths of the arms, ascending."""
    found = [re.fullmatch(r"width ([\d.]+)", arm) for arm in study.arms]
    return sorted(float(match[1]) for match in found if match)


def export(grid: Grid, dataset: str, seed: int, args: OneTrainingArguments) -> list[dict[str, Any]]:
    """A row for each width of the network that was trained once; the last is the network itself."""
    cell = Cell(dataset, ONE, 0, seed)
    folder, flags = grid.models / cell.folder, grid.flags(cell)
    options = {
        "widths": [width for width in find_widths(grid.study) if width < 1],
        "train_dir": flags["train_dir"],
        "validation_dir": flags[f"{grid.study.split}_dir"],
        "output_dir": folder / "widths",
        "device": args.device,
        "seed": seed,
        "repetitions": 1,
    }
    return run_example("export_subnetworks", [str(folder), *as_argv(options)])


def get_accuracy(row: Mapping[str, Any]) -> float:
    return row["accuracy"] if row["width"] == 1 else row["accuracy_recalibrated"]


def make_curves(
    grid: Grid, dataset: str, runs: Mapping[int, Sequence[Mapping[str, Any]]]
) -> dict[str, list[list[float]]]:
    """By the name of a method, the accuracies of each width, one per seed."""
    widths, seeds = find_widths(grid.study), list(runs)
    curves = {ONE: [[get_accuracy(runs[seed][i]) for seed in seeds] for i in range(len(widths))]}
    for ending, name in find_alone(grid.study).items():
        cells = [[Cell(dataset, f"width {width:g}{ending}", 0, seed) for seed in seeds] for width in widths]
        curves[name] = [[grid.record(cell)["metrics"][grid.study.measured] for cell in of_width] for of_width in cells]
    return curves


def get_compute(grid: Grid, dataset: str) -> dict[str, float]:
    """By method, the compute of all its widths, relative to one run of the full width."""
    widths, unit = find_widths(grid.study), grid.flops(dataset, grid.study.baseline)
    arms = {name: [f"width {width:g}{ending}" for width in widths] for ending, name in find_alone(grid.study).items()}
    return {name: sum(grid.flops(dataset, arm) for arm in of) / unit for name, of in {ONE: [ONE], **arms}.items()}


def make_table(rows: Sequence[Mapping[str, Any]], curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """A line for each width. Differences are to the sub-network of the same seed."""
    lines = []
    for i, row in enumerate(rows):
        cells = [f"{row['width']:g}", f"{row['parameters']:,}", f"{row['flops'] / 1e6:,.1f}"]
        for name, values in curves.items():
            shown = Mean.of(values[i])
            difference = Mean.of([value - other for value, other in zip(values[i], curves[ONE][i])])
            cells.append(shown.show() if name == ONE else f"{100 * shown.mean:.2f} ({difference.show('+')})")
        lines.append(cells)
    return format_table(["width", "parameters", "MFLOPs", *(f"{name}, %" for name in curves)], lines)


def plot(
    rows: Sequence[Mapping[str, Any]], curves: Mapping[str, Sequence[Sequence[float]]], title: str, path: Path
) -> None:
    """Accuracy against FLOPs, with 95 % intervals. The first curve, which has GradAug, has its colour in all studies."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    style_axes(axes)
    flops = [row["flops"] / 1e6 for row in rows]
    colors = (COLORS[1], COLORS[0], *COLORS[2:])
    for number, (name, values) in enumerate(curves.items()):
        means = [Mean.of(of_width) for of_width in values]
        places = [place * 1.03 ** (number - 1) for place in flops]  # so that no interval hides another
        halves = [100 * mean.half if len(values[0]) > 1 else 0 for mean in means]
        style = {"color": colors[number], "marker": "o", "capsize": 3, "label": name}
        axes.errorbar(places, [100 * mean.mean for mean in means], halves, **style)
    axes.set_xscale("log")
    axes.set_xticks(flops, [f"{value:.3g}" for value in flops])
    axes.minorticks_off()
    axes.set_xlabel("MFLOPs of an image")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(OneTrainingArguments)
    parser.add_argument("study", help="The study's YAML file. All of its cells must have run.")
    args, rest = parser.parse_args_into_dataclasses(argv)
    study = Study.read(rest.study)
    grid, dataset = Grid(study, args.results_dir, args.work_dir), next(iter(study.datasets))
    if missing := [cell for cell in grid.cells if grid.record(cell) is None]:
        raise ValueError(
            f"`study` must have run whole, but of {study.path} {len(missing)} cells are missing: {missing[0]}."
        )
    description = describe_run("one_training", argv, args.device)
    runs = {seed: export(grid, dataset, seed, args) for seed in study.seeds}
    curves, rows = make_curves(grid, dataset, runs), runs[study.seeds[0]]
    cost = get_compute(grid, dataset)
    results = {**description, "dataset": dataset, "split": study.split, "seeds": study.seeds, "compute": cost}
    results |= {"curves": curves, "runs": [{"seed": seed, "rows": found} for seed, found in runs.items()]}
    path = Path(args.results_dir) / f"{study.name}-widths.json"
    write_json(results, str(path))
    paid = "; ".join(f"{name}: {value:.2f} x" for name, value in cost.items())
    text = f"**{dataset}**: accuracy on the {study.split} images of {len(runs)} seeds. Compute, in plain runs of the full width: {paid}."
    text += f"\n\n{make_table(rows, curves)}\n"
    path.with_suffix(".md").write_text(text, "utf-8")
    plot(rows, curves, f"{dataset}: {study.split} accuracy, %", path.with_suffix(".png"))
    print(text)
    return results


if __name__ == "__main__":
    main()
