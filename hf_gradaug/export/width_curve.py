# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Accuracy against width: measurement, table and plot."""

import itertools
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import length_hint
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..messages import as_numbers
from ..reporting.figures import COLORS, MARKERS, new_figure, show_percent, style_axes
from ..slimmable.depth import KeptBlocks
from ..slimmable.narrowing import check_width
from .calibration import batchnorm_layers, read_images, recalibrate_batchnorm
from .subnetworks import as_slimmable, copy_subnetwork, find_width_divisor, narrowed_fields


_RECALIBRATED, _KEPT = "accuracy_recalibrated", "accuracy"
# Titles and formats of the table's columns, by the keys of the rows.
_COLUMNS = {
    "width": ("width", "{:g}"),
    "kept_blocks": ("blocks", lambda stages: ", ".join(str(len(blocks)) for blocks in stages)),
    "parameters": ("parameters", "{:,}"),
    "flops": ("MFLOPs", lambda value: f"{value / 1e6:,.1f}"),
    "latency_1": ("ms, 1 image", lambda value: f"{1000 * value:.2f}"),
    "latency_batch": ("ms, a batch", lambda value: f"{1000 * value:.1f}"),
    _KEPT: ("top-1", "{:.2%}"),
    _RECALIBRATED: ("top-1, recalibrated", "{:.2%}"),
}
_PANELS = {_KEPT: "Without recalibration", _RECALIBRATED: "BatchNorm recalibrated"}

Rows = Sequence[Mapping[str, Any]]


def export_widths(
    model: PreTrainedModel,
    widths: Sequence[float],
    eval_data: Iterable[Mapping[str, Tensor]],
    calibration_data: Iterable[Mapping[str, Tensor]] | None = None,
    width_divisor: int | None = None,
    kept_blocks: KeptBlocks | None = None,
) -> Iterator[tuple[PreTrainedModel, dict[str, Any]]]:
    """
    Exports the sub-network of each width (see [`export_subnetwork`]) and measures the accuracy of the exported model.
    Each width is exported when the iterator comes to it, but wrong arguments raise at once.

    Args:
        model (`PreTrainedModel`):
            An image classifier whose family has a narrowing. It doesn't change.
        widths (`Sequence[float]`):
            Width multipliers, in (0, 1].
        eval_data (`Iterable[Mapping[str, torch.Tensor]]`):
            Batches with `pixel_values` (batch, channels, height, width) and integer `labels` (batch,), such as a
            `DataLoader`. Read once or twice for each width.
        calibration_data (`Iterable[Mapping[str, torch.Tensor]]`, *optional*):
            Batches to recompute BatchNorm's statistics from, see [`recalibrate_batchnorm`]. Read once for each width.
        width_divisor (`int`, *optional*):
            As in [`export_subnetwork`].
        kept_blocks (`Sequence[Sequence[int]]`, *optional*):
            For each stage, the indices of the residual blocks that the sub-networks keep. If not given, all are kept.

    Returns:
        `Iterator[tuple[PreTrainedModel, dict]]`: For each width, in the given order, the exported model and a row. The
        row has `width`, `parameters` (their number), `channels` (the narrower or shallower fields of the config),
        `kept_blocks` (as lists), `accuracy` (top-1, in [0, 1]) with the full network's BatchNorm statistics, and
        `accuracy_recalibrated`. The last is `None` without calibration data or without BatchNorm.

    Raises:
        `ValueError`: If a width is outside (0, 1], there are no widths, or `kept_blocks` don't fit. The iterator raises
            it if the data don't fit, or the model differs from its class and config.
        `TypeError`: If the model's family has no narrowing, its blocks aren't registered, or the data can be read only
            once.
    """
    widths = as_numbers("widths", widths)  # such as those of `np.linspace`
    for width in widths:
        check_width(width, "widths")
    for name, data in (("eval_data", eval_data), ("calibration_data", calibration_data)):
        if isinstance(data, Iterator):
            raise TypeError(
                f"`{name}` must be a `DataLoader` or a list, which can be read for each width, but is a {type(data).__name__}."
            )
    slimmable = as_slimmable(model)  # once, or each width would warn of the same hooks
    if width_divisor is None:
        width_divisor = find_width_divisor(model)  # once
    for width in widths:
        slimmable.subnetwork(width, width_divisor, kept_blocks)  # raises what it can't be, before any is measured
    return _measured_exports(slimmable, widths, eval_data, calibration_data, width_divisor, kept_blocks)


def _measured_exports(
    slimmable: PreTrainedModel,
    widths: Sequence[float],
    eval_data: Iterable[Mapping[str, Tensor]],
    calibration_data: Iterable[Mapping[str, Tensor]] | None,
    width_divisor: int,
    kept_blocks: KeptBlocks | None,
) -> Iterator[tuple[PreTrainedModel, dict[str, Any]]]:
    for width in widths:
        subnetwork = copy_subnetwork(slimmable, width, width_divisor, kept_blocks)
        row = {
            "width": width,
            "kept_blocks": None if kept_blocks is None else [list(blocks) for blocks in kept_blocks],
            "parameters": subnetwork.num_parameters(),
            "channels": {
                name: value for name, (_, value) in narrowed_fields(slimmable.config, subnetwork.config).items()
            },
            _KEPT: measure_accuracy(subnetwork, _shown(eval_data, f"width {width:g}")),
            _RECALIBRATED: None,
        }
        if calibration_data is not None and batchnorm_layers(subnetwork):
            recalibrate_batchnorm(subnetwork, _shown(calibration_data, f"width {width:g}, calibration"))
            row[_RECALIBRATED] = measure_accuracy(subnetwork, _shown(eval_data, f"width {width:g}, recalibrated"))
        yield subnetwork, row


def _shown(data: Iterable, what: str) -> Iterable:
    """The batches with a progress bar, unless those of transformers are off."""
    # An iterator, because the bar would otherwise begin the data twice, and a DataLoader its workers.
    return transformers_logging.tqdm(iter(data), desc=what, unit="batch", total=length_hint(data) or None)


def evaluate_widths(
    model: PreTrainedModel,
    widths: Sequence[float],
    eval_data: Iterable[Mapping[str, Tensor]],
    calibration_data: Iterable[Mapping[str, Tensor]] | None = None,
    width_divisor: int | None = None,
    kept_blocks: KeptBlocks | None = None,
) -> list[dict[str, Any]]:
    """
    The accuracy-against-width curve of a model. One sub-network is in memory at a time.

    Args:
        model, widths, eval_data, calibration_data, width_divisor, kept_blocks:
            As in [`export_widths`], which also lists the errors.

    Returns:
        `list[dict]`: The rows of [`export_widths`], in the order of `widths`.
    """
    exports = export_widths(model, widths, eval_data, calibration_data, width_divisor, kept_blocks)
    return [row for _, row in exports]


@torch.no_grad()
def measure_accuracy(model: PreTrainedModel, eval_data: Iterable[Mapping[str, Tensor]]) -> float:
    """Top-1 accuracy in [0, 1] of a model in eval mode. Arguments and errors are as in [`export_widths`]."""
    correct = total = 0
    for batch in eval_data:
        images = read_images(batch, model, "eval_data")
        labels = batch.get("labels")
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.is_floating_point():
            found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else repr(labels)
            raise ValueError(f"`labels` of `eval_data` must be integers ({len(images)},), but are {found}.")
        correct += int((model(pixel_values=images).logits.argmax(-1) == labels.to(images.device)).sum())
        total += len(labels)
    if not total:
        raise ValueError("`eval_data` must have one batch or more, but has none.")
    return correct / total


def format_widths(rows: Rows) -> str:
    """
    The rows of [`evaluate_widths`] as a table in Markdown.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            Rows of [`evaluate_widths`]. They may also have `flops` (of one image), `latency_1` and `latency_batch` (in
            seconds). A column without values is left out.

    Returns:
        `str`: The table, whose columns are aligned in plain text.
    """
    columns = {key: column for key, column in _COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    table = []
    for row in rows:
        values = [(row.get(key), show) for key, (_, show) in columns.items()]
        table.append(
            ["-" if value is None else (show if callable(show) else show.format)(value) for value, show in values]
        )
    titles = [title for title, _ in columns.values()]
    return tabulate(table, titles, "pipe", disable_numparse=True, colalign=["right"] * len(titles))


def plot_widths(curves: Mapping[str, Rows | Sequence[Rows]], path: str | os.PathLike) -> None:
    """
    Plots accuracy against width, one line per model, with and without recalibrated BatchNorm.

    Args:
        curves (`Mapping[str, Sequence[Mapping] | Sequence[Sequence[Mapping]]]`):
            By model label, the rows of [`evaluate_widths`]. A list of such rows, one entry per seed, is drawn as mean
            and standard deviation.
        path (`str` or `os.PathLike`):
            The file to write. Its extension sets the format.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there is nothing to draw.
    """
    if not curves or not all(curves.values()):
        raise ValueError(f"`curves` must have rows for each model, but is {dict(curves)}.")

    runs_by_model = {label: [runs] if isinstance(runs[0], Mapping) else list(runs) for label, runs in curves.items()}
    every_row = [row for runs in runs_by_model.values() for rows in runs for row in rows]
    panels = {key: title for key, title in _PANELS.items() if any(row.get(key) is not None for row in every_row)}

    figure = new_figure(0.8 + 3.8 * len(panels), 4.2)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (key, title) in zip(all_axes, panels.items()):
        styles = zip(itertools.cycle(COLORS), itertools.cycle(MARKERS), itertools.cycle(("-", "--", ":")))
        for number, ((label, runs), (color, marker, line)) in enumerate(zip(runs_by_model.items(), styles)):
            points: dict[float, list[float]] = {}
            for row in (row for rows in runs for row in rows if row.get(key) is not None):
                points.setdefault(row["width"], []).append(row[key])
            if not points:  # a model without BatchNorm beside one with it
                continue
            widths = sorted(points)
            means = [statistics.mean(points[width]) for width in widths]
            deviations = [statistics.stdev(points[width]) if len(points[width]) > 1 else 0 for width in widths]
            # Beside each other, because curves meet where all are as good as the full network.
            places = [width + 0.008 * (number - (len(runs_by_model) - 1) / 2) for width in widths]
            axes.plot(places, means, line, color=color, label=label, marker=marker, markersize=6, linewidth=1.6)
            axes.errorbar(places, means, deviations, fmt="none", ecolor=color, capsize=3, elinewidth=1.2)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        axes.set_xlabel("width multiplier")
        axes.set_ylim(None, 1.02)
        show_percent(axes.yaxis)
        style_axes(axes)
    all_axes[0].set_ylabel("top-1 accuracy")
    # Below the panels, because curves can be anywhere in them.
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
