# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Shared style of this project's plots."""

from typing import TYPE_CHECKING, Literal


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


# Colours that colour-blind readers can distinguish (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def new_figure(width: float, height: float) -> "Figure":
    """
    An empty figure with the Agg canvas. It works without a display and doesn't touch the user's pyplot.

    Args:
        width, height (`float`): Size in inches.

    Raises:
        `ImportError`: If matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The plot needs matplotlib: pip install 'hf_gradaug[examples]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: "Axes", grid: Literal["both", "x", "y"] = "both") -> None:
    """A pale grid behind the data, and no frame above and to the right."""
    axes.grid(True, axis=grid, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def show_percent(axis: "Axis", decimals: int | None = None) -> None:
    """Shares in 0..1 along the axis as percentages, with as many decimals as they need if none are given."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=decimals))
