# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Robustness of the example's models on the embedded digits, plain and with GradAug, over several seeds.

Each model is trained by `examples/run_image_classification.py` with its defaults for the digits, and all are measured by
`examples/evaluate_robustness.py` on the held-out images.

Command:

    python benchmarks/robustness.py --seeds 1 2 3 --output benchmarks/results/robustness-digits.json --plot docs/robustness.png
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import foolbox
import torch
from common import describe_run, write_json
from transformers import HfArgumentParser

from hf_gradaug import RobustnessSettings, mean_corruption_error, plot_robustness


ROOT = Path(__file__).resolve().parents[1]
ARMS = {"plain": [], "gradaug": ["--gradaug"]}
LABELS = {"plain": "plain", "gradaug": "GradAug"}


@dataclass
class RobustnessBenchmarkArguments:
    """What is trained and measured."""

    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "Seeds of the trainings."})
    train_flags: str = field(default="", metadata={"help": "More flags for every training, in one string."})
    eval_flags: str = field(default="", metadata={"help": "More flags for the measurement, such as '--epsilons 1'."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    plot: str | None = field(default=None, metadata={"help": "PNG file for the picture."})


def run_example(name: str, flags: Sequence[str], folder: str) -> str:
    """Runs an example script, in a folder of its own, and returns its command."""
    command = [str(ROOT / "examples" / name), *flags]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [sys.executable, *command], check=True, cwd=folder, env={**os.environ, "PYTHONPATH": path}, stdout=sys.stderr
    )
    return " ".join(["python", f"examples/{name}", *flags])


def get_figures(
    accuracy: dict[str, float], baseline: dict[str, float], settings: RobustnessSettings
) -> dict[str, float]:
    """What is averaged over the seeds. The baseline is the plain model of the same seed."""

    def errors(accuracy: dict[str, float]) -> dict[str, list[float]]:
        return {
            name: [1 - accuracy[f"{name}/{severity}"] for severity in settings.severities]
            for name in settings.corruptions
        }

    return {
        **{key: value for key, value in accuracy.items() if key == "clean" or key.startswith("fgsm/")},
        **{name: 1 - statistics.mean(values) for name, values in errors(accuracy).items()},
        "mean_corruption_error": mean_corruption_error(errors(accuracy)),
        "mce": mean_corruption_error(errors(accuracy), errors(baseline)),
    }


def describe(values: Sequence[float | None]) -> dict[str, float | None]:
    if None in values:  # a ratio without a meaning
        return {"mean": None, "deviation": None}
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = list(sys.argv[1:] if argv is None else argv)
    (args,) = HfArgumentParser(RobustnessBenchmarkArguments).parse_args_into_dataclasses(argv)
    results = describe_run("robustness.py", argv, "cuda" if torch.cuda.is_available() else "cpu", foolbox)
    commands = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for arm, flags in ARMS.items():
                flags = [*flags, "--do_train", "--do_eval", "--seed", str(seed), "--output_dir", f"{arm}-{seed}"]
                flags += ["--disable_tqdm", "True", "--log_level", "error", *args.train_flags.split()]
                commands.append(run_example("run_image_classification.py", flags, folder))
        models = [f"{arm}-{seed}" for arm in ARMS for seed in args.seeds]
        flags = ["--models", *models, "--output_dir", "robustness", *args.eval_flags.split()]
        commands.append(run_example("evaluate_robustness.py", flags, folder))
        measured = json.loads(Path(folder, "robustness", "robustness.json").read_text())
    settings = RobustnessSettings(**measured["conditions"])
    accuracies = {name: model["accuracy"] for name, model in measured["models"].items()}
    figures = {
        arm: [get_figures(accuracies[f"{arm}-{seed}"], accuracies[f"plain-{seed}"], settings) for seed in args.seeds]
        for arm in ARMS
    }
    results["commands"] = commands
    results["versions"] |= measured["versions"]
    results["settings"] = {**measured["settings"], **measured["conditions"]}
    results["summary"] = {arm: {} for arm in [*ARMS, "gradaug - plain"]}
    for key in figures["plain"][0]:
        for arm in ARMS:
            results["summary"][arm][key] = describe([run[key] for run in figures[arm]])
        pairs = [(run[key], plain[key]) for run, plain in zip(figures["gradaug"], figures["plain"])]
        differences = [None if None in pair else pair[0] - pair[1] for pair in pairs]
        results["summary"]["gradaug - plain"][key] = {**describe(differences), "by_seed": differences}
    results["accuracy"] = accuracies
    write_json(results, args.output)
    if args.plot is not None:
        runs = {LABELS[arm]: [accuracies[f"{arm}-{seed}"] for seed in args.seeds] for arm in ARMS}
        plot_robustness(runs, settings, args.plot)
    for key in figures["plain"][0]:
        cells = [results["summary"][arm][key] for arm in results["summary"]]
        shown = [
            "-" if cell["mean"] is None else f"{cell['mean']:.4f} ± {cell['deviation'] or 0:.4f}" for cell in cells
        ]
        print(f"{key:24}" + "".join(f"{cell:>20}" for cell in shown))
    return results


if __name__ == "__main__":
    main()
