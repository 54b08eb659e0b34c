# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Accuracy of the example on the embedded digits, plain and with GradAug, over several seeds.

Each run is one of `examples/run_image_classification.py` with its defaults for the digits. The seed draws the initial
weights, the order and augmentation of the images, and the sub-networks; the held-out images are the same in all.

Command:

    python benchmarks/digits.py --seeds 0 1 2 3 4 --output benchmarks/results/digits.json

The cheaper ways to have sub-networks, against plain training with the same compute, on 200 of the training images:

    python benchmarks/digits.py --arms plain plain-1.56 plain-2.68 gradaug third every-3 --max_train_samples 200 --epochs 50 \
        --jobs 2 --output benchmarks/results/digits-compute.json
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import describe_run, write_json
from transformers import HfArgumentParser


EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "run_image_classification.py"
# Flags of each arm, and how many times the epochs it trains. By FLOPs, a step of GradAug is 2.68 plain ones on the average of
# its draws (of sizes, 0.64, and of widths, 0.87, for each of three sub-networks), and 1.56 with a third of them.
ARMS = {
    "plain": ([], 1),
    "plain-1.56": ([], 1.56),
    "plain-2.68": ([], 2.68),
    "gradaug": (["--gradaug"], 1),
    "third": (["--gradaug", "--subnetwork_batch_fraction", str(1 / 3)], 1),
    "every-3": (["--gradaug", "--subnetwork_every", "3"], 1),
}


@dataclass
class DigitsArguments:
    """Options of the benchmark."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4], metadata={"help": "Seeds of each arm."})
    arms: list[str] = field(
        default_factory=lambda: ["plain", "gradaug"], metadata={"help": "What to train: " + ", ".join(ARMS)}
    )
    epochs: float = field(default=10, metadata={"help": "Epochs of an arm that trains them once."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Training images; all, if not given."})
    jobs: int = field(default=1, metadata={"help": "Runs at a time, which share the cores."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})

    def __post_init__(self):
        if unknown := set(self.arms) - set(ARMS):
            raise ValueError(f"`arms` must be of {[*ARMS]}, but has {sorted(unknown)}.")


def run(args: DigitsArguments, arm: str, seed: int) -> dict:
    """The metrics of one training run."""
    flags, times = ARMS[arm]
    with tempfile.TemporaryDirectory() as folder:
        flags = [*flags, "--do_train", "--do_eval", "--seed", str(seed), "--output_dir", folder]
        flags += ["--num_train_epochs", str(args.epochs * times)]
        if args.max_train_samples is not None:
            flags += ["--max_train_samples", str(args.max_train_samples)]
        command = [sys.executable, str(EXAMPLE), *flags, "--disable_tqdm", "True", "--log_level", "error"]
        env = dict(os.environ)
        if args.jobs > 1:
            env["OMP_NUM_THREADS"] = str(max(1, os.cpu_count() // args.jobs))
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        metrics = json.loads(Path(folder, "all_results.json").read_text())
        # Without progress bars, the Trainer's printer takes it out of the metrics.
        flops = json.loads(Path(folder, "trainer_state.json").read_text())["total_flos"]
    return {"arm": arm, "seed": seed, **metrics, "total_flos": flops}


def main() -> None:
    (args,) = HfArgumentParser(DigitsArguments).parse_args_into_dataclasses()
    description = describe_run("digits.py", sys.argv[1:], "cuda" if torch.cuda.is_available() else "cpu")
    runs = []
    with ThreadPoolExecutor(args.jobs) as pool:
        cells = [(arm, seed) for seed in args.seeds for arm in args.arms]
        for result in pool.map(lambda cell: run(args, *cell), cells):
            runs.append(result)
            accuracy, seconds = result["eval_accuracy"], result["train_runtime"]
            print(f"{result['arm']:10} seed {result['seed']}: {accuracy:.2%} in {seconds:.0f} s", flush=True)
    summary = {}
    for arm in args.arms:
        mine = [run for run in runs if run["arm"] == arm]
        for name in ("eval_accuracy", "eval_loss", "train_runtime", "total_flos"):
            values = [run[name] for run in mine]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            summary.setdefault(arm, {})[name] = {"mean": statistics.mean(values), "deviation": deviation}
        accuracy = summary[arm]["eval_accuracy"]
        print(f"{arm:10} {accuracy['mean']:.2%}, deviation {accuracy['deviation'] or 0:.2%}, {len(mine)} seeds")
    if args.output is not None:
        results = {
            **description,
            "summary": summary,
            "runs": runs,
        }
        write_json(results, args.output)


if __name__ == "__main__":
    main()
