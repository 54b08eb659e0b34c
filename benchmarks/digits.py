# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Accuracy of the example on the embedded digits, plain and with GradAug, over several seeds.

Each run is one of `examples/run_image_classification.py` with its defaults for the digits. The seed draws the initial
weights, the order and augmentation of the images, and the sub-networks; the held-out images are the same in all.

Command:

    python benchmarks/digits.py --seeds 0 1 2 3 4 --output benchmarks/results/digits.json
"""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from step import describe_machine
from transformers import HfArgumentParser

import hf_gradaug


EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "run_image_classification.py"
ARMS = {"plain": [], "gradaug": ["--gradaug"]}


@dataclass
class DigitsArguments:
    """Options of the benchmark."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4], metadata={"help": "Seeds of each arm."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def run(arm: str, seed: int) -> dict:
    """The metrics of one training run."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*ARMS[arm], "--do_train", "--do_eval", "--seed", str(seed), "--output_dir", folder]
        command = [sys.executable, str(EXAMPLE), *flags, "--disable_tqdm", "True", "--log_level", "error"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = json.loads(Path(folder, "all_results.json").read_text())
    return {"arm": arm, "seed": seed, **metrics}


def main() -> None:
    (args,) = HfArgumentParser(DigitsArguments).parse_args_into_dataclasses()
    hardware = describe_machine("cuda" if torch.cuda.is_available() else "cpu")
    runs = []
    for seed in args.seeds:
        for arm in ARMS:
            runs.append(run(arm, seed))
            print(
                f"{arm:8} seed {seed}: {runs[-1]['eval_accuracy']:.2%} in {runs[-1]['train_runtime']:.0f} s",
                flush=True,
            )
    summary = {}
    for arm in ARMS:
        mine = [run for run in runs if run["arm"] == arm]
        for name in ("eval_accuracy", "eval_loss", "train_runtime"):
            values = [run[name] for run in mine]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            summary.setdefault(arm, {})[name] = {"mean": statistics.mean(values), "deviation": deviation}
        accuracy = summary[arm]["eval_accuracy"]
        print(f"{arm:8} {accuracy['mean']:.2%}, deviation {accuracy['deviation'] or 0:.2%}, {len(mine)} seeds")
    if args.output is not None:
        results = {
            "command": shlex.join(["python", "benchmarks/digits.py", *sys.argv[1:]]),
            "hardware": hardware,
            "versions": {
                "python": platform.python_version(),
                **{package.__name__: package.__version__ for package in (torch, transformers, hf_gradaug)},
            },
            "summary": summary,
            "runs": runs,
        }
        os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
