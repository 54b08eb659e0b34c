# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Measures whether streaming JPEG shards keeps the model busy, compared with training from tensors in memory.

Photo-like JPEG images (500 x 375 pixels) are made from a seed and stored as Parquet and WebDataset shards.
`GradAugTrainer` then trains each model, by default without sub-networks. Plain training takes the most images per
second, so it is the harder test. The arms take turns:

- memory: training from tensors in memory, without workers;
- parquet and tar: training from the shards with each number of workers, by the example script's data pipeline;
- loader: that pipeline's data loader alone, without a model;
- raw: only decoding and augmenting images in memory. It uses one process per worker, each with one thread.

Workers start in the first steps of a run, so these steps don't count. `waiting` is the fraction of the time that the
training loop waits for a batch. The stages of the pipeline (reading, decoding, augmenting, collating) are also timed
one by one in one process.

`resnet-50` is slow enough that decoding isn't the bottleneck. `tiny`, a ConvNeXt of one layer, is fast enough that it
is.

Command:

    python -m benchmarks.streaming --output outputs/streaming.json --plot outputs/streaming.png
"""

import contextlib
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from tqdm import tqdm
from transformers import HfArgumentParser, TrainerCallback

from hf_gradaug import GradAugConfig, GradAugTrainer
from hf_gradaug.data import ImageCollator, ImageData, decode_image, get_train_transform
from hf_gradaug.messages import check_counts
from hf_gradaug.reporting.figures import COLORS, new_figure, style_axes
from hf_gradaug.sampling import seeded

from .common import describe_run, write_json
from .jpeg_shards import KINDS, NUM_LABELS, load_shards, make_shards


MODELS = {
    "resnet-50": lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=NUM_LABELS)),
    "tiny": lambda: transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(num_labels=NUM_LABELS, patch_size=32, num_stages=1, hidden_sizes=[16], depths=[1])
    ),
}
MODEL_BAR = 0.95  # of the throughput from memory, where decoding isn't the limit
DECODING_BAR = 0.90  # of the raw decoding speed, where it is


@dataclass
class BenchmarkArguments:
    """Options of the benchmark."""

    models: list[str] = field(
        default_factory=lambda: [*MODELS], metadata={"help": "Networks to train: " + ", ".join(MODELS)}
    )
    workers: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Numbers of data-loading workers."})
    batch_size: int = field(default=16, metadata={"help": "Images in a batch; the tiny model takes 4 times as many."})
    image_size: int = field(default=224, metadata={"help": "Height and width of the batch in pixels."})
    num_images: int = field(default=512, metadata={"help": "Images in the shards. Training repeats them."})
    num_shards: int = field(default=4, metadata={"help": "Shards of each kind."})
    num_subnetworks: int = field(default=0, metadata={"help": "Sub-networks per optimizer step; 0 is plain training."})
    steps: int = field(default=8, metadata={"help": "Measured steps; the tiny model takes twice as many."})
    warmup: int = field(default=4, metadata={"help": "Unmeasured first steps. Give more than the workers read ahead."})
    repetitions: int = field(default=3, metadata={"help": "Runs of each arm."})
    smoke: bool = field(default=False, metadata={"help": "Run the smallest settings as a quick check."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    plot: str | None = field(default=None, metadata={"help": "File for the plot. Its extension sets the format."})

    def __post_init__(self):
        if self.smoke:
            self.models, self.workers, self.batch_size, self.image_size = ["tiny"], [1], 2, 32
            self.num_images, self.num_shards, self.steps, self.warmup, self.repetitions = 12, 2, 2, 1, 1
        check_counts(self, "batch_size", "image_size", "num_images", "num_shards", "steps", "warmup", "repetitions")
        if unknown := set(self.models) - set(MODELS):
            raise ValueError(f"`models` must be of {[*MODELS]}, but has {sorted(unknown)}.")
        if not self.workers or min(self.workers) < 1 or max(self.workers) > self.num_shards:
            raise ValueError(f"`workers` must be in 1..num_shards ({self.num_shards}), but is {self.workers}.")

    def steps_of(self, model: str) -> tuple[int, int]:
        """The number of measured steps, and the batch size."""
        return (2 * self.steps, 4 * self.batch_size) if model == "tiny" else (self.steps, self.batch_size)


class InMemory(Dataset):
    """Repeats one batch of tensors in memory."""

    def __init__(self, batch_size: int, image_size: int, length: int):
        images = torch.randn(batch_size, 3, image_size, image_size)
        self.examples = [{"pixel_values": image, "labels": n % NUM_LABELS} for n, image in enumerate(images)]
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index % len(self.examples)]


class TimedTrainer(GradAugTrainer):
    """Adds up the time that the training loop waits for batches."""

    waited = 0.0

    def get_batch_samples(self, *args, **kwargs):
        start = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self.waited += time.perf_counter() - start
        return samples


class StopWatch(TrainerCallback):
    """Times the steps after the warm-up."""

    def __init__(self, warmup: int):
        self.warmup = warmup

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == self.warmup:
            self.start, self.trainer.waited = time.perf_counter(), 0.0
        self.seconds = time.perf_counter() - self.start if state.global_step > self.warmup else 0.0
        self.waited = self.trainer.waited


def train(args: BenchmarkArguments, model: str, dataset: Any, workers: int) -> dict[str, float]:
    """Images per second, and the fraction of the time that the training loop waited for a batch."""
    (steps, batch_size), watch, threads = args.steps_of(model), StopWatch(args.warmup), torch.get_num_threads()
    if model == "tiny":
        # It has nothing to share out, and a second thread would wait for a core that the workers have.
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as output:
        config = GradAugConfig(
            output_dir=output, max_steps=args.warmup + steps, per_device_train_batch_size=batch_size,
            dataloader_num_workers=workers, num_subnetworks=args.num_subnetworks, optim="sgd", learning_rate=1e-3,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=False, remove_unused_columns=False,
            seed=0,
        )  # fmt: skip
        trainer = TimedTrainer(MODELS[model](), config, ImageCollator(NUM_LABELS), dataset, callbacks=[watch])
        watch.trainer = trainer
        with contextlib.redirect_stdout(sys.stderr):  # stdout has the table alone
            trainer.train()
    torch.set_num_threads(threads)
    return {"images_per_second": steps * batch_size / watch.seconds, "waiting": watch.waited / watch.seconds}


def measure_loader(args: BenchmarkArguments, stream: Any, workers: int) -> dict[str, float]:
    """Images per second of the data loader alone."""
    steps, batch_size = args.steps_of("tiny")
    loader = StatefulDataLoader(stream, batch_size, num_workers=workers, collate_fn=ImageCollator(NUM_LABELS))
    batches = iter(loader)
    for _ in range(args.warmup):
        next(batches)
    start = time.perf_counter()
    for _ in tqdm(range(steps), f"loader, {workers} workers", unit=" batches"):
        next(batches)
    return {"images_per_second": steps * batch_size / (time.perf_counter() - start)}


def _decode(rows: list[dict], transform: Any, barrier: Any, done: Any, batches: int, batch_size: int) -> None:
    torch.set_num_threads(1)
    rows = itertools.cycle(rows)
    barrier.wait()
    for _ in range(batches):
        # In batches, because memory that is used again at once would be faster than any consumer can have it.
        [transform(decode_image(row["image"], "image")) for row in itertools.islice(rows, batch_size)]
        done.release()


def measure_raw(args: BenchmarkArguments, rows: list[dict], transform: Any, workers: int) -> dict[str, float]:
    """Images per second of decoding and augmenting alone, in several processes."""
    context, (steps, batch_size) = multiprocessing.get_context("fork"), args.steps_of("tiny")
    barrier, done, batches = context.Barrier(workers + 1), context.Semaphore(0), max(1, steps // workers)
    work = (rows, transform, barrier, done, batches, batch_size)
    processes = [context.Process(target=_decode, args=work) for _ in range(workers)]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    for _ in tqdm(range(workers * batches), f"raw, {workers} workers", unit=" batches"):
        done.acquire()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return {"images_per_second": workers * batches * batch_size / seconds}


def measure_parts(args: BenchmarkArguments, data: ImageData, transform: Any) -> dict[str, float]:
    """Milliseconds per image for each stage of the pipeline, timed one by one in this process with one thread."""
    clock = time.perf_counter
    count = min(args.num_images, 4 * args.batch_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = [clock()]
    rows = list(itertools.islice(data.splits["train"].iter(batch_size=1), count))
    times.append(clock())
    images = [decode_image(row[data.image_column][0], "image") for row in rows]
    times.append(clock())
    examples = []
    for number, image in enumerate(images):
        with seeded(number):
            examples.append({"pixel_values": transform(image), "labels": 0, "mix": None})
    times.append(clock())
    for start in range(0, count, args.batch_size):
        ImageCollator(NUM_LABELS)(examples[start : start + args.batch_size])
    times.append(clock())
    torch.set_num_threads(threads)
    names = ("reading", "decoding", "augmenting", "collating")
    return {name: 1000 * (end - start) / count for name, start, end in zip(names, times, times[1:])}


def measure(args: BenchmarkArguments, folder: Path) -> dict[str, Any]:
    """Runs all arms in turns, `repetitions` times. Returns the runs by arm, and the times of the stages by kind."""
    data = {kind: load_shards(folder / kind, args.num_images) for kind in KINDS}
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": args.image_size}, resample=2)
    transform = get_train_transform(processor)
    streams = {
        kind: data[kind].get_dataset("train", transform, mix=True, seed=0, buffer_size=args.num_images // 4 + 1)
        for kind in KINDS
    }
    rows = [{"image": row[data["tar"].image_column]} for row in itertools.islice(data["tar"].splits["train"], 64)]
    arms = {}
    for model in args.models:
        steps, batch_size = args.steps_of(model)
        memory = InMemory(batch_size, args.image_size, batch_size * (args.warmup + steps))
        arms[f"{model}, memory"] = lambda model=model, memory=memory: train(args, model, memory, 0)
        for kind, workers in itertools.product(KINDS, args.workers):
            name, stream = f"{model}, {kind}, {workers} workers", streams[kind]
            arms[name] = lambda model=model, stream=stream, workers=workers: train(args, model, stream, workers)
    for workers in args.workers:
        for kind in KINDS:
            stream = streams[kind]
            arms[f"loader, {kind}, {workers} workers"] = lambda s=stream, w=workers: measure_loader(args, s, w)
        arms[f"raw, {workers} workers"] = lambda workers=workers: measure_raw(args, rows, transform, workers)
    runs: dict[str, list] = {name: [] for name in arms}
    parts: dict[str, list] = {kind: [] for kind in KINDS}
    for repetition in range(args.repetitions):
        for name, arm in arms.items():
            runs[name].append(arm())
            print(f"{repetition + 1}/{args.repetitions} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
        for kind in KINDS:
            parts[kind].append(measure_parts(args, data[kind], transform))
    return {"runs": runs, "parts": parts}


def summarize(args: BenchmarkArguments, measured: dict[str, Any]) -> dict[str, Any]:
    """Medians. Training from shards also gets its ratio to training from memory and to raw decoding."""
    arms: dict[str, Any] = {}
    for name, runs in measured["runs"].items():
        rates = [run["images_per_second"] for run in runs]
        arms[name] = {"images_per_second": statistics.median(rates), "range": [min(rates), max(rates)], "runs": runs}
        if "waiting" in runs[0]:
            arms[name]["waiting"] = statistics.median(run["waiting"] for run in runs)
    for model, kind, workers in itertools.product(args.models, KINDS, args.workers):
        arm = arms[f"{model}, {kind}, {workers} workers"]
        for what, other in (("memory", f"{model}, memory"), ("raw", f"raw, {workers} workers")):
            arm[f"of_{what}"] = arm["images_per_second"] / arms[other]["images_per_second"]
    parts = {
        kind: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for kind, runs in measured["parts"].items()
    }
    return {"arms": arms, "milliseconds_per_image": parts}


def print_table(results: dict[str, Any]) -> None:
    print(f"{'arm':32}{'images/s':>10}{'min':>10}{'max':>10}{'waiting':>10}{'of memory':>11}{'of raw':>10}")
    for name, arm in results["arms"].items():
        shares = [f"{arm[key]:.1%}" if key in arm else "-" for key in ("waiting", "of_memory", "of_raw")]
        rates = "".join(f"{rate:10.1f}" for rate in (arm["images_per_second"], *arm["range"]))
        print(f"{name:32}{rates}{shares[0]:>10}{shares[1]:>11}{shares[2]:>10}")
    for kind, parts in results["milliseconds_per_image"].items():
        print(f"{kind}, ms an image: " + ", ".join(f"{name} {value:.2f}" for name, value in parts.items()))


GROUPS = {
    "resnet-50": "training ResNet-50",
    "tiny": "training a model of one layer",
    "loader": "loading alone",
    "raw": "decoding and augmenting alone",
}


def plot(results: dict[str, Any], path: str) -> None:
    """Plots images per second, with a panel and scale for each group of arms, and the time of each stage per image."""
    arms, parts = results["arms"], results["milliseconds_per_image"]
    groups = {group: {n: a for n, a in arms.items() if n.split(", ")[0] == group} for group in GROUPS}
    groups = {group: mine for group, mine in groups.items() if mine}
    figure = new_figure(8, 0.24 * len(arms) + 0.7 * len(groups) + 2)
    heights = [len(mine) + 0.5 for mine in groups.values()]
    *panels, below = figure.subplots(len(groups) + 1, 1, height_ratios=[*heights, len(parts) + 1.5])
    for axes, (group, mine) in zip(panels, groups.items()):
        style_axes(axes, grid="x")
        names = [name.split(", ", 1)[1].replace("1 workers", "1 worker") for name in mine]
        rates = [arm["images_per_second"] for arm in mine.values()]
        colors = [COLORS[0] if name == "memory" else COLORS[1] for name in names]
        axes.bar_label(axes.barh(names, rates, color=colors), fmt=" %.1f", fontsize=9)
        axes.set_xlim(0, 1.15 * max(rates))
        axes.invert_yaxis()
        axes.set_title(f"{GROUPS[group]}: images per second", loc="left", fontsize=11, fontweight="bold")
    style_axes(below, grid="x")
    left = np.zeros(len(parts))
    for part, color in zip(next(iter(parts.values())), COLORS[2:]):
        widths = np.array([values[part] for values in parts.values()])
        below.barh(list(parts), widths, left=left, label=part, color=color)
        left += widths
    below.invert_yaxis()
    below.set_title("one image in one process: milliseconds", loc="left", fontsize=11, fontweight="bold")
    below.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=4, frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = list(sys.argv[1:] if argv is None else argv)
    (args,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    description = describe_run("streaming", argv, device, "torchvision", "datasets")
    with tempfile.TemporaryDirectory() as folder:
        size = make_shards(Path(folder), args.num_images, args.num_shards)
        measured = measure(args, Path(folder))
    results = {
        **description,
        "settings": {name: value for name, value in asdict(args).items() if name not in ("output", "plot")},
        "bytes_per_image": size,
        "bars": {"of_memory": MODEL_BAR, "of_raw": DECODING_BAR},
        **summarize(args, measured),
    }
    print_table(results)
    write_json(results, args.output)
    if args.plot is not None:
        plot(results, args.plot)
    return results


if __name__ == "__main__":
    main()
