# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Host time of a sub-network's pass relative to a plain pass: what Python and the launching of kernels take, without
arithmetic.

The networks have the depth of ResNet-50, ConvNeXt-T and ViT-S, few channels and small images, so that computing takes
next to nothing. A pass is one forward and backward. Plain passes and passes of sub-networks take turns, and each
figure is the median over the repetitions and the widths:

- plain: the full network without GradAug, with no gradients yet, as in an optimizer step;
- detached: a sub-network on detached copies of the weights, the default in training, which adds to the gradients;
- views: a sub-network on slices of the weights that autograd sees, as in the pass that synchronizes processes.

Then whole steps through `GradAug.passes`, without the optimizer: the full network and three sub-networks, at the
images' own size, relative to a plain step. With several processes (DistributedDataParallel over gloo) all passes but
the last run without synchronization, and only the steps are measured. A sub-network's own share of a step is
`pass_ratio`.

Each process has one thread. On a busy machine, `--clock cpu` leaves out what other programs take. On a GPU, the clock
stops when the last kernel is launched; the GPU is waited for between the measurements only.

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

from .common import describe_run, write_json


# The depths are the defaults of the configs. Each of `WIDTHS` changes all counts of 32 and more.
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "resnet-50": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=32, hidden_sizes=[64] * 4, num_labels=10)
    ),
    "convnext-tiny": lambda: transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(hidden_sizes=[32] * 4, image_size=32, num_labels=10)
    ),
    # As many heads as ViT-S has would not become fewer at these widths.
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

    models: list[str] = field(default_factory=lambda: [*MODELS], metadata={"help": "Of: " + ", ".join(MODELS)})
    repetitions: int = field(default=30, metadata={"help": "Measured rounds."})
    warmup: int = field(default=3, metadata={"help": "Rounds before those, 1 or more."})
    processes: int = field(default=1, metadata={"help": "Processes of DistributedDataParallel; 1 is without it."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "The other ones are by autocast, float16 without scaling the loss."}
    )
    device: str = field(default="cpu", metadata={"help": "Where the networks are."})
    clock: Literal["wall", "cpu"] = field(
        default="wall", metadata={"help": "cpu counts the time of the process alone, for a busy machine."}
    )
    smoke: bool = field(default=False, metadata={"help": "The smallest settings, to see that it runs."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})

    def __post_init__(self):
        if self.smoke:
            self.models, self.repetitions, self.warmup = self.models[:1], 1, 1
        for name in ("repetitions", "warmup", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, but is {getattr(self, name)}.")
        if unknown := set(self.models) - set(MODELS):
            raise ValueError(f"`models` must be of {[*MODELS]}, but has {sorted(unknown)}.")


class Bench:
    """A network with random weights, a batch for it, and the passes and steps that are timed."""

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
        """Microseconds until everything is launched."""
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
        """One round: each width of each mode, with a plain pass before."""
        slimmable, times = make_slimmable(self.model), {"plain": [], **{mode: [] for mode in MODES}}
        for (mode, detached), width in itertools.product(MODES.items(), WIDTHS):
            self.model.zero_grad()
            times["plain"].append(self.time(lambda: self.run_pass(self.model, contextlib.nullcontext())))
            times[mode].append(
                self.time(lambda: self.run_pass(slimmable, slimmable.subnetwork(width, detached=detached)))  # noqa: B023
            )
        return times

    def build_steps(self, processes: int) -> dict[str, Callable[[], None]]:
        """A function that runs a step, for plain training and by mode."""
        settings = GradAugSettings(num_subnetworks=len(WIDTHS), min_width=min(WIDTHS), scales=[1.0])
        gradaugs = {mode: GradAug(self.model, settings, detached=detached) for mode, detached in MODES.items()}
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
    """The figures of one process, by network."""
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
    """Medians and quartiles, and the ratio to the plain one."""
    plain, summary = statistics.median(times["plain"]), {}
    for arm, values in times.items():
        median = statistics.median(values)
        quartiles = statistics.quantiles(values, n=4)[::2] if len(values) > 1 else None
        summary[arm] = {"microseconds": median, "quartiles": quartiles, "ratio": median / plain, "count": len(values)}
    return summary


def measure_processes(args: HostTimeArguments) -> list[dict[str, Any]]:
    """The figures of each process."""
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
