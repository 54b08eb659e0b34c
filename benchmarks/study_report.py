# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The table and the plot of a study, from its lines of results."""

import functools
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy import stats

from hf_gradaug.reporting.figures import COLORS, MARKERS, new_figure, style_axes

from .grid import Cell, Grid
from .study import Study, as_list


@dataclass
class Mean:
    """A mean over seeds, and half its 95 % interval by Student's t (infinite for one seed)."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        half = math.inf
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(statistics.mean(values), half)

    def show(self, sign: str = "", times: int = 100) -> str:
        half = f"{times * self.half:.2f}" if math.isfinite(self.half) else "?"
        return f"{times * self.mean:{sign}.2f} ± {half}"


# How good a model's probabilities are: what a table calls it, and what it is multiplied by. Shown where all runs measured it.
PROBABILITIES = {"loss": ("loss", 1), "expected_calibration_error": ("calibration error, %", 100)}


@dataclass
class Row:
    """
    One candidate of an arm on a data set.

    Differences are over the seeds that both arms have. They are to the baseline, and by name to the arm's counterparts
    (`against`). `probabilities` has the mean and difference of each measure. Compute is relative to one run of the
    baseline, and includes a teacher's run.
    """

    arm: str
    settings: dict[str, Any] | None
    is_baseline: bool
    has_gradaug: bool
    seeds: int
    result: Mean
    difference: Mean | None
    counterparts: dict[str, Mean] = field(default_factory=dict)
    macro_f1: float | None = None
    compute: float | None = None
    probabilities: dict[str, tuple[Mean, Mean | None]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        if self.settings is None:
            return self.arm
        words = ", ".join(f"{name} {value}" for name, value in self.settings.items() if name != "gradaug")
        return f"{self.arm}: {words or 'defaults'}"


def get_rows(grid: Grid, dataset: str) -> list[Row]:
    """The rows of a data set, as far as it has run, in the order of the study's arms."""
    study = grid.study

    def values(arm: str, candidate: int = 0, metric: str = study.measured) -> dict[int, float]:
        records = {seed: grid.record(Cell(dataset, arm, candidate, seed)) for seed in study.seeds}
        return {seed: record["metrics"].get(metric) for seed, record in records.items() if record is not None}

    def difference(mine: Mapping[int, float], arm: str, metric: str = study.measured) -> Mean | None:
        others = values(arm, metric=metric)
        differences = [value - others[seed] for seed, value in mine.items() if seed in others]
        return Mean.of(differences) if differences else None

    baseline_flops = grid.flops(dataset, study.baseline)
    rows = []
    for arm, candidates in grid.arms[dataset].items():
        for candidate, settings in enumerate(candidates):
            mine = values(arm, candidate)
            if not mine:
                continue
            f1 = [*values(arm, candidate, study.name_metric("macro_f1")).values()]
            flops = grid.flops(dataset, arm, candidate)
            is_baseline = (arm, candidate) == (study.baseline, 0)
            probabilities = {}
            for name in PROBABILITIES:
                metric = study.name_metric(name)
                measured = values(arm, candidate, metric)
                if None not in [*measured.values(), *values(study.baseline, metric=metric).values()]:
                    compared = None if is_baseline else difference(measured, study.baseline, metric)
                    probabilities[name] = Mean.of([*measured.values()]), compared
            against = {other: difference(mine, other) for other in as_list(settings.get("against", []))}
            rows.append(
                Row(
                    arm,
                    settings if len(candidates) > 1 else None,
                    is_baseline,
                    settings.get("gradaug", study.flags.get("gradaug", False)),
                    len(mine),
                    Mean.of([*mine.values()]),
                    None if is_baseline else difference(mine, study.baseline),
                    {other: found for other, found in against.items() if found},
                    None if None in f1 else statistics.mean(f1),
                    flops / baseline_flops if flops and baseline_flops else None,
                    probabilities,
                )
            )
    return rows


def format_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *lines))


def make_table(rows: Sequence[Row], baseline: str) -> str:
    has_counterparts = any(row.counterparts for row in rows)
    titles = ["arm", "seeds", "accuracy, %", f"against {baseline}"]
    measures = PROBABILITIES if all({*PROBABILITIES} == {*row.probabilities} for row in rows) else {}
    titles += ["against its counterparts"] * has_counterparts + ["macro-F1, %"]
    titles += [*(title for title, _ in measures.values()), "compute"]
    lines = []
    for row in rows:
        cells = [row.label, str(row.seeds), row.result.show(), row.difference.show("+") if row.difference else ""]
        if has_counterparts:
            cells.append("; ".join(f"{arm}: {found.show('+')}" for arm, found in row.counterparts.items()))
        cells.append("" if row.macro_f1 is None else f"{100 * row.macro_f1:.2f}")
        for name, (_, times) in measures.items():
            mean, compared = row.probabilities[name]
            cells.append(f"{times * mean.mean:.2f}" + (f" ({compared.show('+', times)})" if compared else ""))
        lines.append([*cells, "" if row.compute is None else f"{row.compute:.2f} x"])
    return format_table(titles, lines)


def _finite(half: float) -> float:
    return 100 * half if math.isfinite(half) else 0.0


def plot_points(tables: Mapping[str, Sequence[Row]], measured: str, path: Path) -> None:
    """
    One panel per data set, two in a row, with one line per arm: mean and 95 % interval. Arms with GradAug have a colour
    of their own. A dashed line is the baseline's mean.
    """
    several = any(row.seeds > 1 for rows in tables.values() for row in rows)
    spread = "mean and 95 % interval" if several else "one run each"
    labels = list(dict.fromkeys(row.label for rows in tables.values() for row in rows))
    columns = min(2, len(tables))
    lines = -(-len(tables) // columns)
    names = [textwrap.fill(label, 48) for label in labels]
    line = 0.1 + 0.18 * (1 + max(name.count("\n") for name in names))
    figure = new_figure(8, lines * (0.7 + line * len(labels)) + 0.4)
    panels = [*figure.subplots(lines, columns, squeeze=False).flat]
    for number, (axes, (dataset, rows)) in enumerate(zip(panels, tables.items())):
        style_axes(axes)
        for row in rows:
            place, color = labels.index(row.label), COLORS[row.has_gradaug]
            axes.errorbar(
                100 * row.result.mean, place, xerr=_finite(row.result.half), color=color, marker="o", capsize=3
            )
            if row.is_baseline:
                axes.axvline(100 * row.result.mean, color=COLORS[0], linestyle="--", linewidth=1)
        axes.set_yticks(range(len(labels)), [""] * len(labels) if number % columns else names)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        left, right = axes.get_xlim()
        axes.set_xlim(max(left, 0), min(right, 100))  # where an interval of few runs reaches further, it is cut
        axes.set_title(dataset, loc="left", fontsize=11, fontweight="bold")
    for axes in panels[len(tables) :]:
        axes.remove()
    figure.supxlabel(f"{measured}: {spread}", fontsize=10)
    figure.savefig(path, dpi=150)


def plot_curves(tables: Mapping[str, Sequence[Row]], measured: str, path: Path, study: Study) -> None:
    """One line per arm against the number in the data sets' names: accuracy, and the difference to the baseline."""
    figure = new_figure(9.6, 4.2)
    left, right = figure.subplots(1, 2)
    places = {dataset: place for dataset, place in study.get_places().items() if dataset in tables}
    arms = list(dict.fromkeys(row.arm for rows in tables.values() for row in rows))
    for number, arm in enumerate(arms):
        beside = 1.04 ** (number - (len(arms) - 1) / 2)  # so that no interval hides another
        rows = {places[dataset] * beside: row for dataset, rows in tables.items() for row in rows if row.arm == arm}
        style = {"color": COLORS[number], "marker": MARKERS[number], "markersize": 4, "capsize": 3, "label": arm}
        for axes, points in (
            (left, {place: row.result for place, row in rows.items()}),
            (right, {place: row.difference or Mean(0, 0) for place, row in rows.items()}),
        ):
            halves = [_finite(point.half) for point in points.values()]
            axes.errorbar([*points], [100 * point.mean for point in points.values()], halves, **style)
    for axes, title in ((left, measured), (right, f"against {study.baseline}, points")):
        style_axes(axes)
        axes.set_xscale("log")
        axes.set_xticks([*places.values()], [f"{place:g}" for place in places.values()], minor=False)
        axes.minorticks_off()
        axes.set_xlabel(study.axis)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(arms), frameon=False)
    figure.savefig(path, dpi=150)


def write_report(grid: Grid, folder: str | Path | None = None) -> str:
    """Writes NAME.md and NAME.png, beside the study's lines if no folder is given; returns the text."""
    study, folder = grid.study, grid.results.parent if folder is None else folder
    tables = {dataset: get_rows(grid, dataset) for dataset in study.datasets}
    tables = {dataset: rows for dataset, rows in tables.items() if rows}
    if not tables:
        return "No cell has run."
    text = "\n\n".join(
        f"**{dataset}**, on the {study.split} images\n\n{make_table(rows, study.baseline)}"
        for dataset, rows in tables.items()
    )
    if missing := sum(grid.record(cell) is None for cell in grid.cells):
        text += f"\n\n**Unfinished**: {missing} of {len(grid.cells)} cells have not run."
    Path(folder, f"{study.name}.md").write_text(text + "\n", "utf-8")
    plot = plot_points if study.axis is None else functools.partial(plot_curves, study=study)
    plot(tables, f"{study.split} accuracy, %", Path(folder, f"{study.name}.png"))
    return text
