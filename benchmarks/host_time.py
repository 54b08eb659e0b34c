# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Host time of a sub-network's pass, relative to a plain pass: the time for Python and for launching kernels.

The networks have the depth of ResNet-50, ConvNeXt-T and ViT-S, but few channels and small images. So the arithmetic
takes almost no time. A pass is one forward and backward. Plain passes and sub-network passes take turns. Each time is
the median over the repetitions and widths:

- plain: the full network without GradAug. It starts without gradients, as in an optimizer step;
- detached: a sub-network on detached copies of the weights, the default in training. It adds to the gradients;
- views: a sub-network on slices of the weights that autograd sees, as in the pass that synchronizes processes.

Then whole steps of `GradAug.passes` are measured, without the optimizer. A step is the full network and three
sub-networks on images of the original size. Its time is relative to a plain step. `pass_ratio` is the extra time per
sub-network, in plain steps.

With several processes (DistributedDataParallel over gloo), only the steps are measured. All passes but the last run
without synchronization.

Each process has one thread. On a busy machine, use `--clock cpu` to exclude the time of other programs. On a GPU, the
timer stops when the last kernel is launched. The benchmark waits for the GPU only between measurements.

Command:

    python -m benchmarks.host_time --output host-time.json
    python -m benchmarks.host_time --processes 2 --output host-time-2.json
    python -m benchmarks.host_time --device cuda --dtype bfloat16 --output host-time-cuda.json
"""

import contextlib
import functools
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import HfArgumentParser, PreTrainedModel, set_seed

from hf_gradaug import GradAug, GradAugSettings, make_slimmable
from hf_gradaug.messages import check_counts

from .common import describe_run, write_json


# The depths are the defaults of the configs. Each of `WIDTHS` changes all counts of 32 and more.
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "resnet-50": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=32, hidden_sizes=[64] * 4, num_labels=10)
    ),
    "convnext-tiny": lambda: transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(hidden_sizes=[32] * 4, image_size=32, num_labels=10)
    ),
    # 32 heads, because each of `WIDTHS` then removes some. The 6 heads of ViT-S would all stay at 0.97 and 0.93.
    "vit-small": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=64, num_attention_heads=32, intermediate_size=64, image_size=32, patch_size=16, num_labels=10
        )
    ),
}
WIDTHS = (0.97, 0.93, 0.9)
MODES = {"detached": True, "views": False}
IMAGE_SIZE = 32
BATCH_SIZE = 2  # with one image, BatchNorm would see a single value per channel


@dataclass
class HostTimeArguments:
    """Options of the benchmark."""

    models: list[str] = field(
        default_factory=lambda: [*MODELS], metadata={"help": "Networks to measure: " + ", ".join(MODELS)}
    )
    repetitions: int = field(default=30, metadata={"help": "Measured rounds."})
    warmup: int = field(default=3, metadata={"help": "Unmeasured first rounds, 1 or more."})
    processes: int = field(default=1, metadata={"help": "Processes; 2 or more use DistributedDataParallel."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32",
        metadata={"help": "Autocast dtype; float32 is without autocast. float16 has no loss scaling."},
    )
    device: str = field(default="cpu", metadata={"help": "Device of the networks."})
    clock: Literal["wall", "cpu"] = field(
        default="wall",
        metadata={"help": "wall measures elapsed time. cpu measures the CPU time of the process, for busy machines."},
    )
    smoke: bool = field(default=False, metadata={"help": "Run the smallest settings as a quick check."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})

    def __post_init__(self):
        if self.smoke:
            self.models, self.repetitions, self.warmup = self.models[:1], 1, 1
        check_counts(self, "repetitions", "warmup", "processes")
        if unknown := set(self.models) - set(MODELS):
            raise ValueError(f"`models` must be of {[*MODELS]}, but has {sorted(unknown)}.")


class Bench:
    """A network with random weights, a batch, and the timed passes and steps."""

    def __init__(self, args: HostTimeArguments, name: str):
        set_seed(0)
        self.clock = time.process_time if args.clock == "cpu" else time.perf_counter
        self.device = torch.device(args.device)
        self.model = MODELS[name]().to(self.device).train()
        self.batch = {
            "pixel_values": torch.randn(BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE, device=self.device),
            "labels": torch.arange(BATCH_SIZE, device=self.device),
        }
        self.autocast = functools.partial(
            torch.autocast, self.device.type, dtype=getattr(torch, args.dtype), enabled=args.dtype != "float32"
        )

    def time(self, function: Callable[[], Any]) -> float:
        """Microseconds until the function returns. On a GPU, its kernels may still run."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start = self.clock()
        function()
        return 1e6 * (self.clock() - start)

    def run_pass(self, model: nn.Module, network: contextlib.AbstractContextManager) -> None:
        with network:
            with self.autocast():
                logits: Tensor = model(pixel_values=self.batch["pixel_values"]).logits
            logits.sum().backward()

    def time_passes(self) -> dict[str, list[float]]:
        """One round: a plain pass before each width of each mode."""
        slimmable, times = make_slimmable(self.model), {"plain": [], **{mode: [] for mode in MODES}}
        for (mode, detached), width in itertools.product(MODES.items(), WIDTHS):
            self.model.zero_grad()
            times["plain"].append(self.time(lambda: self.run_pass(self.model, contextlib.nullcontext())))
            times[mode].append(
                self.time(lambda: self.run_pass(slimmable, slimmable.subnetwork(width, detached=detached)))  # noqa: B023
            )
        return times

    def build_steps(self, processes: int) -> dict[str, Callable[[], None]]:
        """The functions that run one step: plain training, and GradAug by mode."""
        settings = GradAugSettings(num_subnetworks=len(WIDTHS), min_width=min(WIDTHS), scales=[1.0])
        gradaugs = {mode: GradAug(self.model, settings) for mode in MODES}
        for mode, detached in MODES.items():
            gradaugs[mode].detached = detached
        model = self.model if processes == 1 else DistributedDataParallel(self.model)

        def run_plain() -> None:
            self.model.zero_grad()
            with self.autocast():
                loss = model(**self.batch).loss
            loss.backward()

        def run(gradaug: GradAug) -> None:
            self.model.zero_grad()
            for gradaug_pass in gradaug.passes(self.batch, step=0):  # the same widths in every step
                alone = gradaug_pass.is_last or processes == 1
                with contextlib.nullcontext() if alone else model.no_sync(), gradaug_pass:
                    with self.autocast():
                        loss = gradaug_pass.compute(model)
                    loss.backward()

        return {"plain": run_plain, **{mode: functools.partial(run, gradaug) for mode, gradaug in gradaugs.items()}}


def measure(args: HostTimeArguments, rendezvous: str | None = None, rank: int = 0) -> dict[str, dict[str, Any]]:
    """The results of one process, by network."""
    torch.set_num_threads(1)
    if args.processes > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=args.processes
        )
    try:
        return {name: measure_model(args, name, shown=rank == 0) for name in args.models}
    finally:
        if args.processes > 1:
            torch.distributed.destroy_process_group()


def measure_model(args: HostTimeArguments, name: str, shown: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    bench = Bench(args, name)
    if args.processes == 1:
        figures["passes"] = summarize(repeat(args, bench.time_passes, f"{name}, passes", shown))
    steps = bench.build_steps(args.processes)

    def time_steps() -> dict[str, list[float]]:
        return {arm: [bench.time(step)] for arm, step in steps.items()}

    figures["steps"] = summarize(repeat(args, time_steps, f"{name}, steps", shown))
    plain = figures["steps"]["plain"]["microseconds"]
    for mode in MODES:
        of_mode = figures["steps"][mode]
        of_mode["pass_ratio"] = (of_mode["microseconds"] - plain) / len(WIDTHS) / plain
    return figures


def repeat(
    args: HostTimeArguments, measure_round: Callable[[], dict[str, list[float]]], what: str, shown: bool
) -> dict[str, list[float]]:
    numbers = tqdm(range(args.warmup + args.repetitions), what, unit=" rounds", disable=not shown)
    rounds = [measure_round() for _ in numbers][args.warmup :]
    return {arm: [value for times in rounds for value in times[arm]] for arm in rounds[0]}


def summarize(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, quartiles, count, and the ratio to `plain`, by arm."""
    plain, summary = statistics.median(times["plain"]), {}
    for arm, values in times.items():
        median = statistics.median(values)
        quartiles = statistics.quantiles(values, n=4)[::2] if len(values) > 1 else None
        summary[arm] = {"microseconds": median, "quartiles": quartiles, "ratio": median / plain, "count": len(values)}
    return summary


def measure_processes(args: HostTimeArguments) -> list[dict[str, Any]]:
    """The results of each process."""
    if args.processes == 1:
        return [measure(args)]
    with tempfile.TemporaryDirectory() as folder:
        run = functools.partial(measure, args, f"{folder}/rendezvous")
        with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            return list(pool.map(run, range(args.processes)))


def print_table(processes: Iterable[dict[str, Any]]) -> None:
    print(f"{'network':16}{'process':>8}{'what':>8}{'mode':>10}{'ms':>10}{'x plain':>10}{'a pass':>10}")
    for rank, models in enumerate(processes):
        for name, parts in models.items():
            for what, arms in parts.items():
                for arm, figures in arms.items():
                    ratio = f"{figures['pass_ratio']:10.2f}" if "pass_ratio" in figures else ""
                    shown = f"{figures['microseconds'] / 1000:10.2f}{figures['ratio']:10.2f}{ratio}"
                    print(f"{name:16}{rank:>8}{what:>8}{arm:>10}{shown}")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = list(sys.argv[1:] if argv is None else argv)
    (args,) = HfArgumentParser(HostTimeArguments).parse_args_into_dataclasses(argv)
    description = describe_run("host_time", argv, args.device)
    description["hardware"]["threads"] = 1
    results = {
        **description,
        "settings": {name: value for name, value in asdict(args).items() if name != "output"},
        "widths": WIDTHS,
        "processes": measure_processes(args),
    }
    print_table(results["processes"])
    write_json(results, args.output)
    return results


if __name__ == "__main__":
    main()
