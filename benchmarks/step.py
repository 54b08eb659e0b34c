# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of one optimizer step. Arms:

- plain: training without GradAug;
- gradaug: GradAug with its defaults;
- views: the authors' implementation. Each weight of a sub-network is a slice that autograd sees;
- naive: like `views`, with one joint backward;
- separate: each sub-network is a model with its own weights. Its time is the time of the step's arithmetic on this
  machine. The rest of a GradAug step is overhead. This arm trains nothing useful.

The arms take turns in one run, so other load on the machine affects all of them. Each time is the median of the
repetitions. On a GPU, the timer waits until the GPU has finished. The weights are random. Every step uses the same
widths and sizes, so all steps do the same work. Transforming the batch for the sub-networks is measured; loading data
is not.

bfloat16 and float16 use autocast. float16 also uses a `GradScaler`, as in training. It synchronizes with the GPU once
per step.

Command:

    python -m benchmarks.step --batch_size 16 --image_size 224 --repetitions 5 --output results.json
    python -m benchmarks.step --dtype bfloat16 --channels_last --width_divisor 32 --output results.json

`python -m benchmarks.step_grid` runs a list of settings and plots the results.

Peak memory is the peak of PyTorch's allocations: weights, gradients, momentum and activations. CUDA's allocator reports
it. On the CPU it comes from the events of `torch.profiler`, and each arm runs in its own process.

The system's peak is the reserved memory on CUDA. On Linux without CUDA it is the growth of the peak resident size. That
includes oneDNN's buffers and freed memory that the C library keeps. It varies between runs, and is lower with
`MALLOC_MMAP_THRESHOLD_=131072` in the environment.
"""

import copy
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import HfArgumentParser, PreTrainedConfig, PreTrainedModel, set_seed

from hf_gradaug import (
    GradAug,
    GradAugSettings,
    RandomScale,
    WideResNetConfig,
    WideResNetForImageClassification,
    narrow_config,
    soft_target_loss,
    soft_targets,
)
from hf_gradaug.messages import check_counts
from hf_gradaug.transforms import scaled_count, scaled_size

from .common import ROOT, describe_run, write_json


@dataclass(frozen=True)
class Network:
    """A network to measure, and its usual image size."""

    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    image_size: int = 224


MODELS = {
    "resnet-50": Network(transformers.ResNetForImageClassification, transformers.ResNetConfig(num_labels=1000)),
    "convnext-tiny": Network(
        transformers.ConvNextForImageClassification, transformers.ConvNextConfig(num_labels=1000)
    ),
    "wrn-16-4": Network(
        WideResNetForImageClassification,
        WideResNetConfig(hidden_sizes=[64, 128, 256], depths=[2, 2, 2], num_labels=100),
        image_size=32,
    ),
}
ARMS = ("plain", "gradaug", "views", "naive", "separate")
# The paper's ImageNet settings: 3 sub-networks, min width 0.9, and each smaller size once.
WIDTHS = (0.97, 0.93, 0.9)
SCALES = (6 / 7, 5 / 7, 4 / 7)
SEED = 56936  # step 0 draws these sizes, and these widths to within 0.0005
TIME_BAR = 1.05  # of the FLOP ratio
MEMORY_BAR = 1.10


@dataclass
class BenchmarkArguments:
    """Options of the benchmark."""

    model: Literal["resnet-50", "convnext-tiny", "wrn-16-4"] = field(
        default="resnet-50", metadata={"help": "Network to measure."}
    )
    batch_size: int = field(default=16, metadata={"help": "Images in a batch."})
    image_size: int | None = field(
        default=None, metadata={"help": "Height and width of the batch in pixels; 224, and 32 for wrn-16-4."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Autocast dtype; float32 is without autocast, float16 with a GradScaler."}
    )
    channels_last: bool = field(default=False, metadata={"help": "Use channels_last for weights and images."})
    width_divisor: int = field(default=1, metadata={"help": "Rounds channel counts to multiples of this number."})
    subnetwork_batch_fraction: float = field(
        default=1.0, metadata={"help": "Fraction of the batch that each sub-network sees."}
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the network and its sub-networks with torch.compile."}
    )
    cuda_graphs: bool = field(
        default=False, metadata={"help": "Capture the passes of the arm gradaug as CUDA graphs."}
    )
    repetitions: int = field(default=5, metadata={"help": "Measured steps of each arm."})
    warmup: int = field(default=1, metadata={"help": "Unmeasured first steps of each arm, 1 or more."})
    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": "Arms to measure: " + ", ".join(ARMS)}
    )
    memory: bool = field(default=True, metadata={"help": "Also measure the peak memory of each arm."})
    device: str = field(
        default="auto", metadata={"help": "Device: cpu, cuda, cuda:1, ...; auto uses a GPU if there is one."}
    )
    smoke: bool = field(default=False, metadata={"help": "Run the smallest settings as a quick check."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    memory_of: str | None = field(
        default=None, metadata={"help": "Only print the peak memory of this arm. For internal use."}
    )

    def __post_init__(self):
        if self.smoke:
            self.model, self.batch_size, self.image_size, self.repetitions, self.warmup = "wrn-16-4", 2, 32, 1, 1
            self.arms = ["plain", "gradaug"] if self.arms == [*ARMS] else self.arms
        self.image_size = MODELS[self.model].image_size if self.image_size is None else self.image_size
        check_counts(self, "batch_size", "image_size", "width_divisor", "repetitions", "warmup")
        if unknown := set(self.arms) - set(ARMS):
            raise ValueError(f"`arms` must be of {ARMS}, but has {sorted(unknown)}.")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")


def count_flops(config: PreTrainedConfig, model_class: type[PreTrainedModel], size: tuple[int, int]) -> int:
    """FLOPs of a forward and backward per image, counted on the meta device without computing."""
    with torch.device("meta"):
        model = model_class(config).train()
        # Two images: BatchNorm needs more than one value per channel, and the last feature map may be one pixel.
        images = torch.empty(2, config.num_channels, *size)
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=images).logits.sum().backward()
    return counter.get_total_flops() // 2


@functools.cache
def flop_ratio(
    name: str = "resnet-50", image_size: int = 224, width_divisor: int = 1, subnetwork_batch_fraction: float = 1.0
) -> float:
    """FLOPs of a GradAug step with `WIDTHS` and `SCALES`, relative to those of a plain step."""
    network, size = MODELS[name], (image_size, image_size)
    flops = [count_flops(network.config, network.model_class, size)]
    for width, scale in zip(WIDTHS, SCALES):
        narrow = narrow_config(network.config, width, width_divisor)
        subnetwork_flops = count_flops(narrow, network.model_class, scaled_size(size, scale))
        flops.append(subnetwork_batch_fraction * subnetwork_flops)
    return sum(flops) / flops[0]


def make_settings(args: BenchmarkArguments, arm: str) -> GradAugSettings:
    return GradAugSettings(
        num_subnetworks=len(WIDTHS),
        min_width=min(WIDTHS),
        scales=list(SCALES),
        width_divisor=args.width_divisor,
        subnetwork_batch_fraction=args.subnetwork_batch_fraction,
        width_choices=list(WIDTHS[:-1]) if args.torch_compile else None,
        cuda_graphs=args.cuda_graphs and arm == "gradaug",
    )


def build_step(args: BenchmarkArguments, arm: str, passes: list[dict[str, Any]]) -> Callable[[], None]:
    """
    A function that runs one optimizer step of an arm, with its own network, optimizer and batch. It appends the width
    and size of each GradAug pass to `passes`.
    """
    set_seed(0)
    device = torch.device(args.device)
    memory_format = torch.channels_last if args.channels_last else torch.preserve_format

    def build(config: PreTrainedConfig) -> PreTrainedModel:
        # A copy, because GradAug edits the config.
        model = MODELS[args.model].model_class(copy.deepcopy(config)).to(device, memory_format=memory_format)
        return model.train()

    def compiled(model: PreTrainedModel) -> Callable[..., Any]:
        # Static shapes: one graph for each width and size. The kernels are the fastest, and the warm-up the longest.
        return torch.compile(model, dynamic=False) if args.torch_compile else model

    config = MODELS[args.model].config
    network = build(config)
    images = torch.randn(args.batch_size, config.num_channels, args.image_size, args.image_size, device=device)
    batch = {
        "pixel_values": images.to(memory_format=memory_format),
        "labels": torch.randint(config.num_labels, (args.batch_size,), device=device),
    }
    # A small learning rate keeps the weights in a realistic range over many steps.
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=args.dtype == "float16")
    autocast = functools.partial(
        torch.autocast, device.type, dtype=getattr(torch, args.dtype), enabled=args.dtype != "float32"
    )

    def update() -> None:
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    model = compiled(network)
    if arm in ("plain", "separate"):
        narrow = [narrow_config(config, width, args.width_divisor) for width in WIDTHS] if arm == "separate" else []
        others = [compiled(build(other)) for other in narrow]
        scales = [RandomScale([scale]) for scale in SCALES]
        images_of_others = batch["pixel_values"][: scaled_count(args.batch_size, args.subnetwork_batch_fraction)]

        def separate_step() -> None:
            with autocast():
                outputs = model(**batch)
            scaler.scale(outputs.loss).backward()
            targets = soft_targets(outputs.logits)[: len(images_of_others)]
            for other, scale in zip(others, scales):
                with autocast():
                    logits = other(pixel_values=scale(images_of_others, torch.default_generator)).logits
                    loss = soft_target_loss(logits, targets)
                scaler.scale(loss).backward()
                other.zero_grad()
            update()

        return separate_step

    gradaug = GradAug(network, make_settings(args, arm), seed=SEED)
    gradaug.detached = arm == "gradaug"

    def gradaug_step() -> None:
        joint_loss: Tensor | float = 0.0
        for gradaug_pass in gradaug.passes(batch, step=0):
            with gradaug_pass:
                with autocast():
                    loss = gradaug_pass.compute(model)
                if arm == "naive":
                    joint_loss = joint_loss + loss
                else:
                    scaler.scale(loss).backward()
            passes.append({"width": gradaug_pass.width, "size": list(gradaug_pass.size)})
        if arm == "naive":
            scaler.scale(joint_loss).backward()
        update()

    return gradaug_step


def time_steps(args: BenchmarkArguments) -> tuple[dict[str, list[float]], dict[str, list[dict[str, Any]]]]:
    """Seconds of each repetition by arm, and the passes of a GradAug step by arm."""
    passes: dict[str, list] = {arm: [] for arm in args.arms}
    synchronize = torch.cuda.synchronize if args.on_cuda else lambda: None
    seconds: dict[str, list[float]] = {arm: [] for arm in args.arms}
    steps = {arm: build_step(args, arm, passes[arm]) for arm in args.arms}
    rounds = range(-args.warmup, args.repetitions)
    with tqdm(total=len(rounds) * len(steps), unit=" steps") as progress:
        for repetition in rounds:
            for arm, step in steps.items():
                progress.set_description(f"time, {arm}")
                synchronize()
                start = time.perf_counter()
                step()
                synchronize()
                if repetition >= 0:
                    seconds[arm].append(time.perf_counter() - start)
                progress.update()
    return seconds, {arm: ran[: len(WIDTHS) + 1] for arm, ran in passes.items() if ran}


def _resident_bytes(name: str) -> int | None:
    # Not `resource.getrusage`: a child process inherits its parent's peak.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None  # not on Linux
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def measure_memory(args: BenchmarkArguments, arm: str) -> dict[str, int | None]:
    """Peak memory of an arm in bytes, as the module docstring defines it. On the CPU, call it in a fresh process."""

    def run_two_steps() -> None:
        step = build_step(args, arm, passes=[])
        step()  # the momentum exists from the second step on
        step()

    if args.on_cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        run_two_steps()
        return {
            "peak_memory_bytes": torch.cuda.max_memory_allocated() - allocated,
            "system_peak_bytes": torch.cuda.max_memory_reserved() - reserved,
        }
    # The profiler uses memory too, so the system's peak is measured first, in separate steps.
    before = _resident_bytes("VmRSS")
    run_two_steps()
    resident = None if before is None else _resident_bytes("VmHWM") - before
    gc.collect()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        run_two_steps()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    peak = max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")
    return {"peak_memory_bytes": peak, "system_peak_bytes": resident}


def measure_memory_apart(argv: Sequence[str], arm: str) -> dict[str, int | None]:
    """[`measure_memory`] in a fresh process with the same arguments."""
    command = [sys.executable, "-m", "benchmarks.step", *argv, "--memory_of", arm]
    env = {"KINETO_LOG_LEVEL": "5", **os.environ}  # silences the profiler's messages
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env, cwd=ROOT)
    return json.loads(result.stdout.splitlines()[-1])


def summarize(args: BenchmarkArguments, seconds: dict[str, list[float]], memory: dict[str, dict]) -> dict[str, Any]:
    """Results of each arm. Ratios to the arm `plain` need that arm."""
    arms: dict[str, Any] = {}
    for arm, values in seconds.items():
        median = statistics.median(values)
        arms[arm] = {
            "seconds_median": median,
            "seconds": values,
            "seconds_mean": statistics.mean(values),
            "seconds_deviation": statistics.stdev(values) if len(values) > 1 else None,
            "seconds_range": [min(values), max(values)],
            "images_per_second": args.batch_size / median,
        } | memory.get(arm, {})
    for figures in arms.values() if "plain" in arms else ():
        pairs = {"time": "seconds_median", "memory": "peak_memory_bytes", "system_memory": "system_peak_bytes"}
        for name, key in pairs.items():
            if figures.get(key) is not None:
                figures[f"{name}_ratio"] = figures[key] / arms["plain"][key]
    return arms


def print_table(results: dict[str, Any]) -> None:
    def show(value: float | None, pattern: str = "{:.3f}", unit: float = 1) -> str:
        return "-" if value is None else pattern.format(value / unit)

    hardware = results["hardware"]
    where = hardware["gpu"] or f"{hardware['cpu']} ({hardware['cpu_capability']}), {hardware['cores']} cores"
    print(f"{where}, {hardware['threads']} threads, load {hardware['load_average']}")
    print(", ".join(f"{name} {number}" for name, number in results["versions"].items()))
    print(f"FLOP ratio of GradAug to plain: {results['flop_ratio']:.3f}\n")
    titles = ["s (median)", "min", "max", "images/s", "x plain", "peak MiB", "x plain", "system MiB", "x plain"]
    print("arm".ljust(9) + "".join(f"{title:>12}" for title in titles))
    for arm, figures in results["arms"].items():
        cells = [show(seconds) for seconds in (figures["seconds_median"], *figures["seconds_range"])]
        cells += [show(figures["images_per_second"], "{:.1f}"), show(figures.get("time_ratio"))]
        cells += [show(figures.get("peak_memory_bytes"), "{:.0f}", 2**20), show(figures.get("memory_ratio"))]
        cells += [show(figures.get("system_peak_bytes"), "{:.0f}", 2**20), show(figures.get("system_memory_ratio"))]
        print(f"{arm:9}" + "".join(f"{cell:>12}" for cell in cells))
    if "gradaug" in results["arms"]:
        print()
        for name, bar in results["bars"].items():
            print(f"GradAug's {name}: {show(results['arms']['gradaug'].get(name))}, bar {bar:.3f}")


def measure(argv: Sequence[str], memory: bool = True) -> dict[str, Any]:
    """All results of one setting. `argv` is as on the command line."""
    (args,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses(list(argv))
    description = describe_run("step", argv, args.device)
    # Memory first, while this process has no tensors on the GPU.
    peak_of = (
        functools.partial(measure_memory, args) if args.on_cuda else functools.partial(measure_memory_apart, argv)
    )
    peaks = {}
    if args.memory and memory:
        with tqdm(args.arms, unit=" arms") as progress:
            for arm in progress:
                progress.set_description(f"memory, {arm}")
                peaks[arm] = peak_of(arm)
    seconds, passes = time_steps(args)
    ratio = flop_ratio(args.model, args.image_size, args.width_divisor, args.subnetwork_batch_fraction)
    return {
        **description,
        "settings": {name: value for name, value in asdict(args).items() if name not in ("memory_of", "output")},
        "passes": passes,
        "flop_ratio": ratio,
        "bars": {"time_ratio": TIME_BAR * ratio, "memory_ratio": MEMORY_BAR},
        "arms": summarize(args, seconds, peaks),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = list(sys.argv[1:] if argv is None else argv)
    (args,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses(argv)
    if args.memory_of is not None:
        memory = measure_memory(args, args.memory_of)
        print(json.dumps(memory))
        return memory
    results = measure(argv)
    print_table(results)
    write_json(results, args.output)
    return results


if __name__ == "__main__":
    main()
