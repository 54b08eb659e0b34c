# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Plots robustness: accuracy against epsilon, and under each corruption."""

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..reporting.figures import COLORS, MARKERS, new_figure, show_percent, style_axes
from .settings import Condition, RobustnessSettings


if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def plot_robustness(
    accuracies: Mapping[str, Mapping[str, float] | Sequence[Mapping[str, float]]],
    settings: RobustnessSettings,
    path: str | os.PathLike,
) -> None:
    """
    Plots the accuracies of models. The upper panel shows them against epsilon, one line per model. The lower panel
    shows them under each corruption, averaged over its severities, one point per model.

    Args:
        accuracies (`Mapping[str, Mapping[str, float] | Sequence[Mapping[str, float]]]`):
            Accuracies by model label, as in `RobustnessResults.accuracy`. A list of accuracies, one entry per seed, is
            drawn as mean and standard deviation.
        settings ([`RobustnessSettings`]):
            The conditions to draw. A panel without conditions is left out.
        path (`str` or `os.PathLike`):
            The file to write. Its extension sets the format.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there are no epsilons and no corruptions.
    """
    runs = {label: [runs] if isinstance(runs, Mapping) else list(runs) for label, runs in accuracies.items()}
    epsilons, corruptions = sorted(settings.epsilons), settings.corruptions
    heights = ([3.2] if epsilons else []) + ([4.2] if corruptions else [])
    if not heights:
        raise ValueError("`settings` must have epsilons or corruptions to draw, but has none.")

    figure = new_figure(8, sum(heights) + 0.4)
    panels = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    for axes in panels:
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("accuracy")
        show_percent(axes.yaxis, decimals=0)
        style_axes(axes, grid="y")

    for number, (label, repeats) in enumerate(runs.items()):
        style = {
            "color": COLORS[number % len(COLORS)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 6,
            "capsize": 3,
            "label": label,
        }
        # Beside each other, so that none hides another.
        shift = (number - (len(runs) - 1) / 2) * 0.6 / len(runs)
        if epsilons:
            keys = [Condition(epsilon=epsilon).key for epsilon in epsilons]
            points = [_mean_and_deviation([run[key] for run in repeats]) for key in keys]
            _draw(panels[0], epsilons, points, len(repeats) > 1, style)
        if corruptions:
            points = []
            for corruption in corruptions:
                keys = [Condition(corruption=corruption, severity=level).key for level in settings.severities]
                points.append(_mean_and_deviation([statistics.mean(run[key] for key in keys) for run in repeats]))
            places = [index + shift for index in range(len(corruptions))]
            _draw(panels[-1], places, points, len(repeats) > 1, style | {"linestyle": "none"})
    if epsilons:
        panels[0].set_title("FGSM attack", loc="left", fontsize=12, fontweight="bold")
        panels[0].set_xlabel("epsilon: largest change of a pixel value, in 1/255")
    if corruptions:
        names = [corruption.replace("_", " ") for corruption in corruptions]
        panels[-1].set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        for place in range(len(names) - 1):
            panels[-1].axvline(place + 0.5, color="#e3e6ea", linewidth=0.8)
        panels[-1].set_title("Corruptions, mean over the severities", loc="left", fontsize=12, fontweight="bold")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def _draw(axes: "Axes", places: Sequence[float], points: Sequence, with_deviation: bool, style: dict) -> None:
    means, deviations = zip(*points)
    axes.errorbar(places, means, deviations if with_deviation else None, **style)
