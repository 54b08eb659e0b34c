# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Plots a run: losses, evaluation accuracy and learning rate."""

import os
from typing import Any

from .figures import COLORS, new_figure, show_percent, style_axes


_FULL, _SUBNETWORKS, _EVALUATION = COLORS[:3]
_GREY = COLORS[-1]


def _series(log_history: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    values: dict[float, float] = {}
    for row in log_history:
        if key in row:  # the first of a step: after the training, the best weights may be evaluated at its last step
            values.setdefault(row["step"], row[key])
    return [*values], [*values.values()]


def plot_training_curves(log_history: list[dict[str, Any]], path: str | os.PathLike) -> None:
    """
    Plots the curves of a run of [`GradAugTrainer`] or any other Trainer.

    There are three panels over the optimizer steps: losses, evaluation accuracy and learning rate. The first panel
    shows the loss of the full network, of the sub-networks and of the evaluation. For a plain run it shows the
    training and the evaluation loss. Training losses are measured on augmented images, so they are usually higher than
    evaluation losses.

    Args:
        log_history (`list[dict]`):
            `trainer.state.log_history`. Each row has `step` and any of `loss`, `loss_full`, `loss_subnetworks`,
            `eval_loss`, `eval_accuracy`, `eval_top5_accuracy` and `learning_rate`.
        path (`str` or `os.PathLike`):
            The file to write. Its extension sets the format.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If the history has no values to plot.
    """
    losses = {
        "full network, augmented images": ("loss_full", _FULL, "-"),
        "sub-networks, summed": ("loss_subnetworks", _SUBNETWORKS, ":"),
        "full network, evaluation images": ("eval_loss", _EVALUATION, "--"),
    }
    if not any("loss_full" in row for row in log_history):
        losses = {"augmented images": ("loss", _FULL, "-"), "evaluation images": ("eval_loss", _EVALUATION, "--")}
    accuracies = {
        "top-1": ("eval_accuracy", _FULL, "-"),
        "top-5": ("eval_top5_accuracy", _GREY, "--"),
    }
    if not any(key in row for row in log_history for key in ("loss", "eval_loss", "eval_accuracy")):
        raise ValueError("`log_history` must hold losses or evaluations to draw, but has none.")

    figure = new_figure(8, 6)
    above, below = figure.subfigures(2, 1, height_ratios=(2, 1))
    panels = [*above.subplots(1, 2), below.subplots()]
    contents = (
        ("Loss", losses, "log"),
        ("Evaluation accuracy", accuracies, "linear"),
        ("Learning rate", {"": ("learning_rate", _FULL, "-")}, "linear"),
    )
    for axes, (title, lines, scale) in zip(panels, contents, strict=True):
        for label, (key, color, style) in lines.items():
            steps, values = _series(log_history, key)
            if steps:
                marker = "o" if len(steps) == 1 or (key.startswith("eval") and len(steps) <= 60) else None
                axes.plot(steps, values, style, color=color, label=label, marker=marker, markersize=3, linewidth=1.6)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(title.lower() + (" (log scale)" if scale == "log" else ""))
        axes.set_yscale(scale)
        style_axes(axes)
        if len(axes.lines) and len(lines) > 1:  # below the panel, where no curve is
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2), borderaxespad=0)
    accuracy_values = _series(log_history, "eval_accuracy")[1]
    if accuracy_values:
        is_share = max(accuracy_values) <= 1  # some metrics are percentages already
        if is_share:
            show_percent(panels[1].yaxis)
        panels[1].annotate(
            f"{accuracy_values[-1]:.1%}" if is_share else f"{accuracy_values[-1]:.1f}",
            (_series(log_history, "eval_accuracy")[0][-1], accuracy_values[-1]),
            textcoords="offset points",
            xytext=(-4, -14),
            ha="right",
            color=_FULL,
        )
    panels[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    figure.savefig(path, dpi=150)
