# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The picture of a measurement of robustness: accuracy against epsilon, and under each corruption."""

import os
import statistics
from collections.abc import Mapping, Sequence

from ..reporting.figures import new_figure, show_percent, style_axes
from .settings import Condition, RobustnessSettings


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def plot_robustness(
    accuracies: Mapping[str, Mapping[str, float] | Sequence[Mapping[str, float]]],
    settings: RobustnessSettings,
    path: str | os.PathLike,
) -> None:
    """
    Draw the accuracies of models into a picture: on the left against the epsilon of the attack, a line a model; on the
    right under each corruption, averaged over its severities, a bar a model.

    Args:
        accuracies (`Mapping[str, Mapping[str, float] | Sequence[Mapping[str, float]]]`):
            By the label of a model, its accuracies, as in `RobustnessResults.accuracy`. Several, as from trainings
            with several seeds, are drawn as their mean and standard deviation.
        settings ([`RobustnessSettings`]):
            The conditions to draw. A panel without any is left out.
        path (`str` or `os.PathLike`):
            The file to write; its ending chooses the format.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there are no epsilons and no corruptions, so that there is nothing to draw.
    """
    runs = {label: [runs] if isinstance(runs, Mapping) else list(runs) for label, runs in accuracies.items()}
    epsilons, corruptions = sorted(settings.epsilons), settings.corruptions
    widths = ([4.4] if epsilons else []) + ([2.6 + 0.4 * len(corruptions)] if corruptions else [])
    if not widths:
        raise ValueError("`settings` must have epsilons or corruptions to draw, but has none.")

    figure = new_figure(sum(widths), 4.6)
    panels = list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
    for axes in panels:
        axes.set_ylim(0, 1.02)
        show_percent(axes.yaxis, decimals=0)
        style_axes(axes, grid="y")
    figure.supylabel("accuracy", fontsize=10)

    if epsilons:
        axes = panels[0]
        keys = [Condition(epsilon=epsilon).key for epsilon in epsilons]
        for number, (label, repeats) in enumerate(runs.items()):
            points = [_mean_and_deviation([run[key] for run in repeats]) for key in keys]
            means, deviations = zip(*points)
            errors = deviations if len(repeats) > 1 else None
            axes.errorbar(
                epsilons, means, errors, color=f"C{number % 10}", marker="o", markersize=4, capsize=3, label=label
            )
        axes.set_title("FGSM attack", loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("epsilon, of 255")
    if corruptions:
        axes = panels[-1]
        width = 0.8 / len(runs)
        for number, (label, repeats) in enumerate(runs.items()):
            bars = []
            for corruption in corruptions:
                keys = [Condition(corruption=corruption, severity=level).key for level in settings.severities]
                bars.append(_mean_and_deviation([statistics.mean(run[key] for key in keys) for run in repeats]))
            means, deviations = zip(*bars)
            places = [index + (number - (len(runs) - 1) / 2) * width for index in range(len(corruptions))]
            errors = {"yerr": deviations, "capsize": 2} if len(repeats) > 1 else {}
            axes.bar(places, means, width, color=f"C{number % 10}", label=label, error_kw={"linewidth": 1}, **errors)
        axes.margins(x=0.02)
        names = [corruption.replace("_", " ") for corruption in corruptions]
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
        axes.set_title("Corruptions", loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("mean of severities " + ", ".join(map(str, settings.severities)))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
