# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Draws one optimizer step of GradAug, as docs/step.png.

Command:

    python docs/draw_step.py
"""

from pathlib import Path

import matplotlib


matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle  # noqa: E402


# Units of the drawing are pixels. The README shows about half of them, so the text is large.
WIDTH, HEIGHT, DPI = 1660, 1164, 100

INK, GRAY = "#1f2733", "#566170"
FULL, SUB, TARGET = "#2766ad", "#c96f0a", "#24804e"
FULL_PALE, SUB_PALE, TARGET_PALE, SHARED_PALE = "#e8f1fb", "#fdf1df", "#e4f4ea", "#f2f4f7"

SUBNETWORKS = [(0.97, 192), (0.94, 160), (0.90, 128)]  # width multiplier, image size in pixels
LAYERS, CHANNELS = 4, 10  # as drawn
FULL_Y, SUB_YS = 969, (662, 484, 306)  # middles of the rows
BATCH_X, NETWORK_X, LOSS_X = 172, 350, 1130  # middle of the batches, left edges of the boxes
NETWORK_WIDTH, LOSS_WIDTH = 600, 430
SCALE = 0.68  # of the images


def text(axes: Axes, x: float, y: float, string: str, size: float = 20, color: str = INK, **options) -> None:
    axes.text(x, y, string, **{"fontsize": size, "color": color, "ha": "center", "va": "center", **options})


def box(axes: Axes, x: float, y: float, width: float, height: float, color: str, edge: str) -> None:
    """A rounded box; `(x, y)` is the middle of its left edge."""
    shape = {"boxstyle": "round,pad=0,rounding_size=14", "facecolor": color, "edgecolor": edge, "linewidth": 2}
    axes.add_patch(FancyBboxPatch((x, y - height / 2), width, height, **shape))


def arrow(axes: Axes, *points: tuple[float, float], color: str = INK) -> None:
    """A line through the points, with a head at the last one."""
    axes.plot(*zip(*points), color=color, linewidth=2.6, solid_capstyle="butt", solid_joinstyle="round")
    (x, y), (end_x, end_y) = points[-2:]
    length = ((end_x - x) ** 2 + (end_y - y) ** 2) ** 0.5
    axes.lines[-1].set_data(*zip(*points[:-1], (end_x - (end_x - x) * 8 / length, end_y - (end_y - y) * 8 / length)))
    head = {"arrowstyle": "-|>,head_length=13,head_width=6.5", "mutation_scale": 1, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch((x, y), (end_x, end_y), color=color, linewidth=0.5, joinstyle="miter", **head))


def draw_network(axes: Axes, x: float, y: float, width: float, color: str) -> None:
    """Layers as columns of channels. What a sub-network leaves out is empty. `(x, y)` is the middle of the left edge."""
    cell, pitch, layer_pitch, thickness = 10, 12.5, 56, 30
    bottom = y - CHANNELS * pitch / 2
    for layer in range(LAYERS):
        left = x + layer * layer_pitch
        if layer:
            axes.plot([left - layer_pitch + thickness + 3, left - 3], [y, y], color=color, linewidth=2)
        for channel in range(CHANNELS):  # the leading ones are at the top
            base = bottom + (CHANNELS - 1 - channel) * pitch
            used = min(max(width * CHANNELS - channel, 0), 1) * cell
            axes.add_patch(Rectangle((left, base), thickness, cell, facecolor="white", linewidth=0))
            axes.add_patch(Rectangle((left, base + cell - used), thickness, used, facecolor=color, linewidth=0))
            axes.add_patch(Rectangle((left, base), thickness, cell, fill=False, edgecolor=color, linewidth=1.2))


def draw_batch(axes: Axes, y: float, pixels: int, color: str) -> None:
    """A stack of images, to scale."""
    side = pixels * SCALE
    for shift in (7, 0, -7):
        corner = (BATCH_X - side / 2 + shift, y - side / 2 + shift)
        axes.add_patch(Rectangle(corner, side, side, facecolor="white", edgecolor=color, linewidth=2))
    text(axes, BATCH_X - 7, y - 7, f"{pixels} px", size=16, color=color)


def draw_full_network(axes: Axes) -> None:
    text(axes, BATCH_X, FULL_Y + 118, "batch", size=22, weight="bold")
    draw_batch(axes, FULL_Y, 224, INK)
    text(axes, BATCH_X, FULL_Y - 112, "images $x$, labels $y$", size=18, color=GRAY)
    arrow(axes, (BATCH_X + 224 * SCALE / 2 + 11, FULL_Y), (NETWORK_X, FULL_Y))

    box(axes, NETWORK_X, FULL_Y, NETWORK_WIDTH, 190, FULL_PALE, FULL)
    draw_network(axes, NETWORK_X + 40, FULL_Y, 1, FULL)
    text(axes, NETWORK_X + 275, FULL_Y + 22, "full network", size=24, color=FULL, weight="bold", ha="left")
    text(axes, NETWORK_X + 275, FULL_Y - 24, "all channels", ha="left")

    fork = (NETWORK_X + NETWORK_WIDTH + 108, FULL_Y)
    for y, color in ((FULL_Y + 68, FULL), (FULL_Y - 86, TARGET)):
        arrow(axes, (fork[0], FULL_Y), (fork[0], y), (LOSS_X, y), color=color)
    axes.plot([NETWORK_X + NETWORK_WIDTH, fork[0]], [FULL_Y, FULL_Y], color=FULL, linewidth=2.6)
    text(axes, NETWORK_X + NETWORK_WIDTH + 61, FULL_Y + 20, "logits", size=16, color=GRAY)

    box(axes, LOSS_X, FULL_Y + 68, LOSS_WIDTH, 112, "white", FULL)
    text(axes, LOSS_X + LOSS_WIDTH / 2, FULL_Y + 90, "loss: cross-entropy", size=21)
    text(axes, LOSS_X + LOSS_WIDTH / 2, FULL_Y + 48, "with the labels $y$", size=18, color=GRAY)
    box(axes, LOSS_X, FULL_Y - 86, LOSS_WIDTH, 112, TARGET_PALE, TARGET)
    text(axes, LOSS_X + LOSS_WIDTH / 2, FULL_Y - 64, "soft targets $q$", size=21, color=TARGET, weight="bold")
    text(axes, LOSS_X + LOSS_WIDTH / 2, FULL_Y - 106, "softmax, detached", size=18, color=GRAY)


def draw_subnetwork(axes: Axes, y: float, width: float, pixels: int) -> None:
    draw_batch(axes, y, pixels, SUB)
    arrow(axes, (BATCH_X + pixels * SCALE / 2 + 11, y), (NETWORK_X, y), color=SUB)

    box(axes, NETWORK_X, y, NETWORK_WIDTH, 152, SUB_PALE, SUB)
    draw_network(axes, NETWORK_X + 40, y, width, SUB)
    text(axes, NETWORK_X + 275, y + 36, "sub-network", size=23, color=SUB, weight="bold", ha="left")
    text(axes, NETWORK_X + 275, y - 2, f"width multiplier {width:.2f}", size=19, ha="left")
    text(axes, NETWORK_X + 275, y - 38, "leading channels", size=18, color=GRAY, ha="left")

    arrow(axes, (NETWORK_X + NETWORK_WIDTH, y), (LOSS_X, y), color=SUB)
    text(axes, NETWORK_X + NETWORK_WIDTH + 94, y + 22, "softmax $p$", size=16, color=GRAY)
    box(axes, LOSS_X, y, LOSS_WIDTH, 100, "white", SUB)
    text(axes, LOSS_X + LOSS_WIDTH / 2, y, "loss: KL$(q\\,\\|\\,p)$", size=21)


def draw() -> Figure:
    plt.rcParams.update({"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"})
    figure = plt.figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")

    # Behind everything: the networks share their weights.
    bottom, top = SUB_YS[-1] - 100, FULL_Y + 158
    box(axes, NETWORK_X - 28, (bottom + top) / 2, NETWORK_WIDTH + 56, top - bottom, SHARED_PALE, "#c5ccd6")
    text(axes, NETWORK_X + NETWORK_WIDTH / 2, FULL_Y + 126, "the same weights", size=20, color=GRAY)

    draw_full_network(axes)
    for y, (width, pixels) in zip(SUB_YS, SUBNETWORKS):
        draw_subnetwork(axes, y, width, pixels)
        arrow(
            axes,
            (BATCH_X - 224 * SCALE / 2 - 9, FULL_Y),
            (32, FULL_Y),
            (32, y),
            (BATCH_X - pixels * SCALE / 2 - 9, y),
            color=SUB,
        )
        right = LOSS_X + LOSS_WIDTH
        arrow(axes, (right, FULL_Y - 86), (right + 58, FULL_Y - 86), (right + 58, y), (right, y), color=TARGET)
    text(axes, BATCH_X + 8, SUB_YS[0] + 114, "random\ntransformation $T$", size=18, color=SUB, linespacing=1.3)

    middle = NETWORK_X + NETWORK_WIDTH / 2
    arrow(axes, (middle, bottom), (middle, 128))
    box(axes, 32, 74, WIDTH - 64, 104, INK, INK)
    end = "The gradients of all passes add up in the same weights"
    text(axes, 80, 74, end, size=22, color="white", ha="left")
    arrow(axes, (1075, 74), (1180, 74), color="white")
    text(axes, WIDTH - 80, 74, "one optimizer step", size=24, color="white", weight="bold", ha="right")
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_name("step.png"), dpi=DPI)
