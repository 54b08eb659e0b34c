# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Runs `benchmarks.step` for a list of settings, each a change of the one before it that matters for speed, measures what
GradAug's own work takes in a step of ResNet-50, and draws a picture.

    python -m benchmarks.step_grid --output benchmarks/results/step-grid.json --plot docs/step-grid.png

Figures are compared inside of an entry, whose arms take turns. Entries run one after the other: what the machine did
meanwhile is between them.
"""

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import HfArgumentParser

from hf_gradaug import subnetwork
from hf_gradaug.reporting import new_figure

from . import step
from .common import describe_run, write_json


# What is added to the base of each model, one after the other.
ENTRIES = {
    "float32": "",
    "channels_last": "--channels_last",
    "channels_last, divisor 8": "--channels_last --width_divisor 8",
    "channels_last, divisor 16": "--channels_last --width_divisor 16",
    "channels_last, divisor 16, compiled": "--channels_last --width_divisor 16 --compile",
    "bfloat16": "--dtype bfloat16",
    "bfloat16, channels_last, divisor 16": "--dtype bfloat16 --channels_last --width_divisor 16",
}


@dataclass
class GridArguments:
    """Options of the grid. What `benchmarks.step` also has is handed on to it."""

    models: list[str] = field(default_factory=lambda: [*step.MODELS], metadata={"help": "Which networks."})
    entries: list[str] = field(default_factory=lambda: [*ENTRIES], metadata={"help": "Which settings."})
    batch_size: int = field(default=8, metadata={"help": "Images in a batch."})
    image_size: int = field(default=224, metadata={"help": "Height and width of the batch in pixels."})
    repetitions: int = field(default=3, metadata={"help": "Measured steps of each arm."})
    overhead_batch_size: int = field(
        default=32, metadata={"help": "Images in a batch of the step whose overhead is measured; 0 leaves it out."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    plot: str | None = field(default=None, metadata={"help": "File for the picture."})

    def __post_init__(self):
        for name, known in (("models", step.MODELS), ("entries", ENTRIES)):
            if unknown := set(getattr(self, name)) - set(known):
                raise ValueError(f"`{name}` must be of {[*known]}, but has {sorted(unknown)}.")


@contextlib.contextmanager
def timed(owner: Any, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Adds up what the calls of a function take."""
    function: Callable = getattr(owner, name)
    seconds[name] = 0.0

    def call(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - start

    with mock.patch.object(owner, name, call):
        yield


def measure_overhead(args: step.BenchmarkArguments) -> dict[str, Any]:
    """
    Seconds of a step of GradAug that its own work takes, once the skeletons are built: finding the sub-network for a width,
    slicing and copying the weights, adding the gradients, and putting the skeleton back. On the CPU, where calls wait.
    """
    seconds: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(step.fixed_widths())
        run = step.build_step(args, "gradaug", passes=[])
        run()
        for owner, name in (
            (subnetwork._Subnetworks, "get"),
            (subnetwork._Subnetwork, "bind"),
            (subnetwork._Subnetwork, "unbind"),
            (subnetwork, "_add_gradient"),
        ):
            stack.enter_context(timed(owner, name, seconds))
        start = time.perf_counter()
        run()
        whole = time.perf_counter() - start
    return {
        "batch_size": args.batch_size,
        "seconds_of_step": whole,
        "seconds": seconds,
        "share": sum(seconds.values()) / whole,
    }


def plot(results: dict[str, Any], path: str) -> None:
    """Bars of images per second, one group an entry, one panel a model."""
    models = list(dict.fromkeys(entry["settings"]["model"] for entry in results["entries"].values()))
    figure = new_figure(6 * len(models), 4.5)
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models):
        entries = {n: e for n, e in results["entries"].items() if e["settings"]["model"] == model}
        names = [name.split(": ")[1] for name in entries]
        for number, (arm, color) in enumerate(zip(step.ARMS, ("0.75", "tab:blue", "tab:orange", "tab:red"))):
            places = [index + 0.2 * (number - 1.5) for index in range(len(names))]
            ratios = [entry["arms"][arm]["time_ratio"] for entry in entries.values()]
            bars = axes.barh(places, ratios, height=0.2, label=arm, color=color)
            if arm != "plain":
                axes.bar_label(bars, fmt=" %.2f", fontsize=7)
        limits = [entry["flop_ratio"] for entry in entries.values()]
        axes.plot(limits, range(len(limits)), "k|", markersize=14, label="by FLOPs")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        most = max(figures["time_ratio"] for entry in entries.values() for figures in entry["arms"].values())
        axes.set(title=model, xlim=(0, 1.1 * most), xlabel="time of a step, x the plain step of the same setting")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = list(sys.argv[1:] if argv is None else argv)
    (args,) = HfArgumentParser(GridArguments).parse_args_into_dataclasses(argv)
    sizes = ["--image_size", str(args.image_size), "--repetitions", str(args.repetitions)]
    results: dict[str, Any] = {
        **describe_run("step_grid", argv, "cuda" if torch.cuda.is_available() else "cpu"),
        "entries": {},
    }
    for model in args.models:
        for entry in args.entries:
            flags = ["--model", model, "--batch_size", str(args.batch_size), *sizes, *ENTRIES[entry].split()]
            print(f"\n{model}: {entry}", flush=True)
            # Peak memory doesn't depend on the layout; compiled code holds other buffers.
            measured = step.measure(flags, memory=entry in ("float32", "bfloat16"))
            step.print_table(measured)
            results["entries"][f"{model}: {entry}"] = measured
            write_json(results, args.output)  # what is done is kept, whatever comes
            gc.collect()
            torch.compiler.reset()
    if args.overhead_batch_size > 0:
        flags = ["--batch_size", str(args.overhead_batch_size), "--image_size", str(args.image_size)]
        (step_args,) = HfArgumentParser(step.BenchmarkArguments).parse_args_into_dataclasses(flags)
        results["overhead"] = measure_overhead(step_args)
        print(f"\nOverhead: {results['overhead']}")
        write_json(results, args.output)
    if args.plot is not None:
        plot(results, args.plot)
    return results


if __name__ == "__main__":
    main()
