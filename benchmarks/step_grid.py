# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Runs `benchmarks.step` for a list of settings that affect speed, and plots the results.

It also measures the overhead of a ResNet-50 step: the time beyond the step's arithmetic. This compares GradAug with
separate models of the same widths.

    python -m benchmarks.step_grid --output outputs/step-grid.json --plot outputs/step-grid.png

Compare only times of the same entry: its arms take turns. Entries run one after the other, so load on the machine may
differ between them.
"""

import gc
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from hf_gradaug.reporting.figures import COLORS, new_figure, style_axes

from . import step
from .common import describe_run, write_json
from .grid import as_argv


# The words of an entry and the flags that each adds. A number replaces the braces.
WORDS = {
    "float32": "",
    "bfloat16": "--dtype bfloat16",
    "float16": "--dtype float16",
    "channels_last": "--channels_last",
    "divisor": "--width_divisor {}",
    "fraction": "--subnetwork_batch_fraction {}",
    "batch": "--batch_size {}",
    "compiled": "--torch_compile",
    "graphs": "--cuda_graphs",
}
ENTRIES = [
    "float32",
    "channels_last",
    "channels_last, divisor 8",
    "channels_last, divisor 16",
    "channels_last, divisor 16, compiled",
    "bfloat16",
    "bfloat16, channels_last, divisor 16",
]


def get_flags(entry: str) -> list[str]:
    """
    The flags of `benchmarks.step` for an entry, such as `"bfloat16, divisor 16"`.

    Raises:
        `ValueError`: If a word is unknown.
    """
    flags = []
    for part in entry.split(", "):
        word, *numbers = part.split(" ")
        if word not in WORDS or len(numbers) != WORDS[word].count("{}"):
            raise ValueError(
                f"`entries` must be made of {[*WORDS]}, with a number where {{}} stands, but has '{part}'."
            )
        flags += WORDS[word].format(*numbers).split()
    return flags


@dataclass
class GridArguments:
    """Options of the grid. Options that `benchmarks.step` also has are passed on to it."""

    models: list[str] = field(default_factory=lambda: [*step.MODELS], metadata={"help": "Networks to measure."})
    entries: list[str] = field(
        default_factory=lambda: [*ENTRIES],
        metadata={
            "help": "Settings to measure. Each combines some of these, separated by commas: " + ", ".join(WORDS)
        },
    )
    arms: list[str] = field(
        default_factory=lambda: [*step.ARMS], metadata={"help": "Arms to measure: " + ", ".join(step.ARMS)}
    )
    batch_size: int = field(default=8, metadata={"help": "Images in a batch."})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Height and width of the images in pixels. Defaults to the network's usual size."},
    )
    repetitions: int = field(default=3, metadata={"help": "Measured steps of each arm."})
    warmup: int = field(default=1, metadata={"help": "Unmeasured first steps of each arm."})
    overhead_batch_size: int = field(
        default=32,
        metadata={
            "help": "Batch size to measure the overhead with; 0 skips this. The overhead is the time of a ResNet-50 step beyond its arithmetic."
        },
    )
    smoke: bool = field(default=False, metadata={"help": "Run the smallest settings as a quick check."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    plot: str | None = field(default=None, metadata={"help": "File for the plot. Its extension sets the format."})

    def __post_init__(self):
        if self.smoke:
            self.models, self.overhead_batch_size = ["wrn-16-4"], min(2, self.overhead_batch_size)
            self.entries = self.entries[2:3] if self.entries == ENTRIES else self.entries
        if unknown := set(self.models) - set(step.MODELS):
            raise ValueError(f"`models` must be of {[*step.MODELS]}, but has {sorted(unknown)}.")
        for entry in self.entries:
            get_flags(entry)


ARM_NAMES = {
    "plain": "plain training",
    "gradaug": "GradAug",
    "views": "authors' way: slices that autograd sees",
    "naive": "the same, one backward for all losses",
    "separate": "separate models, no shared weights",
}


def plot(results: dict[str, Any], path: str) -> None:
    """Plots step times relative to the plain step of the same entry: one panel per model, one group per entry."""
    models = list(dict.fromkeys(entry["settings"]["model"] for entry in results["entries"].values()))
    figure = new_figure(8, 0.5 + 3.6 * len(models))
    for axes, model in zip(figure.subplots(len(models), 1, squeeze=False)[:, 0], models):
        style_axes(axes, grid="x")
        entries = {n: e for n, e in results["entries"].items() if e["settings"]["model"] == model}
        names = [name.split(": ")[1].replace(", ", ",\n") for name in entries]
        for number, (arm, color) in enumerate(zip(step.ARMS, (COLORS[-1], *COLORS))):
            measured = {n: e["arms"][arm]["time_ratio"] for n, e in enumerate(entries.values()) if arm in e["arms"]}
            if not measured:
                continue
            places = [index + 0.19 * (number - 1.5) for index in measured]
            bars = axes.barh(places, [*measured.values()], height=0.17, label=ARM_NAMES[arm], color=color)
            if arm != "plain":
                axes.bar_label(bars, fmt=" %.2f", fontsize=9)
        limits = [entry["flop_ratio"] for entry in entries.values()]
        axes.plot(limits, range(len(limits)), "k|", markersize=40)
        axes.plot([], [], "k|", markersize=12, label="GradAug by arithmetic (FLOPs)")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        most = max(figures["time_ratio"] for entry in entries.values() for figures in entry["arms"].values())
        axes.set(xlim=(0, 1.1 * most), xlabel="time of a step, in plain steps of the same setting")
        axes.set_title(model, loc="left", fontsize=12, fontweight="bold")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = list(sys.argv[1:] if argv is None else argv)
    (args,) = HfArgumentParser(GridArguments).parse_args_into_dataclasses(argv)
    shared = as_argv({"repetitions": args.repetitions, "warmup": args.warmup, "image_size": args.image_size})
    shared += ["--smoke"] * args.smoke
    results: dict[str, Any] = {
        **describe_run("step_grid", argv, "cuda" if torch.cuda.is_available() else "cpu"),
        "entries": {},
    }
    for model in args.models:
        for entry in args.entries:
            flags = ["--model", model, "--batch_size", str(args.batch_size), *shared, *get_flags(entry)]
            print(f"\n{model}: {entry}", flush=True)
            try:
                # Slow on a CPU, where it depends only on the dtype. Compiled code holds other buffers.
                memory = torch.cuda.is_available() or entry in ("float32", "bfloat16")
                measured = step.measure([*flags, "--arms", *args.arms], memory=memory)
                step.print_table(measured)
            except Exception as error:  # for example out of memory; other entries may fit
                traceback.print_exc()
                measured = {"error": repr(error)}
            results["entries"][f"{model}: {entry}"] = measured
            write_json(results, args.output)  # keeps finished entries if a later one fails
            gc.collect()
            torch.compiler.reset()
    if args.overhead_batch_size > 0:
        flags = ["--batch_size", str(args.overhead_batch_size), *shared, "--arms", "gradaug", "separate"]
        measured = step.measure(flags, memory=False)
        times = [measured["arms"][arm]["seconds_median"] for arm in ("gradaug", "separate")]
        results["overhead"] = {**measured, "share": 1 - times[1] / times[0]}
        print(f"\nOverhead: {results['overhead']['share']:.1%} of a step with a batch of {args.overhead_batch_size}")
        write_json(results, args.output)
    if failed := [name for name, entry in results["entries"].items() if "error" in entry]:
        sys.exit(f"Some entries failed: {failed}")
    if args.plot is not None:
        plot(results, args.plot)
    return results


if __name__ == "__main__":
    main()
