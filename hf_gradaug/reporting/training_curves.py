# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The picture of a training run: losses, evaluation accuracy and learning rate."""

import os
from typing import Any

from .figures import new_figure, show_percent, style_axes


_FULL, _SUBNETWORKS, _OBJECTIVE, _GREY = "#1f5fa8", "#d9782d", "#9aa3ad", "#5b6570"


def _series(log_history: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    rows = [row for row in log_history if key in row]
    return [row["step"] for row in rows], [row[key] for row in rows]


def plot_training_curves(log_history: list[dict[str, Any]], path: str | os.PathLike) -> None:
    """
    Draw the curves of a run of [`GradAugTrainer`] or of any Trainer into a picture.

    Three panels over the optimizer steps: the loss of the full network and of the sub-networks (of a plain run, the
    training loss) with the evaluation loss, the evaluation accuracy, and the learning rate.

    Args:
        log_history (`list[dict]`):
            `trainer.state.log_history`: each row has `step`; read are `loss`, `loss_full`, `loss_subnetworks`,
            `eval_loss`, `eval_accuracy`, `eval_top5_accuracy` and `learning_rate`, as far as they are there.
        path (`str` or `os.PathLike`):
            The file to write; its ending chooses the format.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if the history holds nothing to draw.
    """
    losses = {
        "full network": ("loss_full", _FULL, "-"),
        "sub-networks, summed": ("loss_subnetworks", _SUBNETWORKS, "-"),
        "evaluation": ("eval_loss", _GREY, "--"),
    }
    if not any("loss_full" in row for row in log_history):
        losses = {"training": ("loss", _FULL, "-"), "evaluation": ("eval_loss", _GREY, "--")}
    accuracies = {
        "top-1": ("eval_accuracy", _FULL, "-"),
        "top-5": ("eval_top5_accuracy", _OBJECTIVE, "-"),
    }
    if not any(key in row for row in log_history for key in ("loss", "eval_loss", "eval_accuracy")):
        raise ValueError("`log_history` must hold losses or evaluations to draw, but has none.")

    figure = new_figure(13, 3.8)
    panels = figure.subplots(1, 3)
    contents = (
        ("Loss", losses, "log"),
        ("Evaluation accuracy", accuracies, "linear"),
        ("Learning rate", {"": ("learning_rate", _FULL, "-")}, "linear"),
    )
    for axes, (title, lines, scale) in zip(panels, contents, strict=True):
        for label, (key, color, style) in lines.items():
            steps, values = _series(log_history, key)
            if steps:
                marker = "o" if key.startswith("eval") and len(steps) <= 60 else None
                axes.plot(steps, values, style, color=color, label=label, marker=marker, markersize=3, linewidth=1.6)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(title.lower() + (" (log scale)" if scale == "log" else ""))
        axes.set_yscale(scale)
        style_axes(axes)
        if len(axes.lines) and len(lines) > 1:
            axes.legend(frameon=False)
    accuracy_values = _series(log_history, "eval_accuracy")[1]
    if accuracy_values:
        show_percent(panels[1].yaxis)
        panels[1].annotate(
            f"{accuracy_values[-1]:.1%}",
            (_series(log_history, "eval_accuracy")[0][-1], accuracy_values[-1]),
            textcoords="offset points",
            xytext=(-4, -14),
            ha="right",
            color=_FULL,
        )
    panels[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    figure.savefig(path, dpi=150)
