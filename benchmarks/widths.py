# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Accuracy against width on the embedded digits: sub-networks of a network trained plainly, with GradAug, and with
GradAug down to half the width.

Each run is `examples/run_image_classification.py` with its defaults for the digits, then
`examples/export_subnetworks.py` on its result. The held-out images are the same in all runs.

Command:

    python -m benchmarks.widths --seeds 42 43 44 --output docs/results/widths-digits.json --plot docs/widths.png
"""

import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_gradaug import format_widths, plot_widths

from .common import describe_run, run_example, temporary_folder, write_json


# Flags of the training, and what the picture calls it.
ARMS = {
    "plain": ([], "plain"),
    "gradaug": (["--gradaug"], "GradAug, widths 0.9 to 1"),
    "gradaug-0.5": (["--gradaug", "--min_width", "0.5"], "GradAug, widths 0.5 to 1"),
}
_AVERAGED = ("accuracy", "accuracy_recalibrated")


@dataclass
class WidthsArguments:
    """Options of the benchmark."""

    arms: list[str] = field(default_factory=lambda: [*ARMS], metadata={"help": "Arms to train: " + ", ".join(ARMS)})
    seeds: list[int] = field(default_factory=lambda: [42, 43, 44], metadata={"help": "Seeds of each arm."})
    widths: list[float] = field(
        default_factory=lambda: [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], metadata={"help": "Width multipliers below 1."}
    )
    epochs: float = field(default=10, metadata={"help": "Epochs of each run."})
    smoke: bool = field(default=False, metadata={"help": "Run the smallest settings as a quick check."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    plot: str | None = field(default=None, metadata={"help": "File for the plot. Its extension sets the format."})

    def __post_init__(self):
        if self.smoke:
            self.arms, self.seeds, self.widths, self.epochs = ["gradaug"], [42], [0.5], 0.01
        if unknown := set(self.arms) - set(ARMS):
            raise ValueError(f"`arms` must be of {[*ARMS]}, but has {sorted(unknown)}.")


def run(args: WidthsArguments, arm: str, seed: int) -> dict[str, Any]:
    """What the export of one trained network reports."""
    with temporary_folder() as folder:
        train = [*ARMS[arm][0], "--do_train", "--output_dir", folder, "--num_train_epochs", str(args.epochs)]
        train += ["--disable_tqdm", "False", "--log_level", "error", "--eval_strategy", "no", "--use_cpu"]
        export = [folder, "--widths", *map(str, args.widths), "--output_dir", folder, "--device", "cpu"]
        for script, flags in (("run_image_classification", train), ("export_subnetworks", export)):
            print(f"{arm}, seed {seed}: {script}", file=sys.stderr, flush=True)
            run_example(script, [*flags, "--seed", str(seed)])
        report = json.loads(Path(folder, "widths.json").read_text())
    return {"arm": arm, "seed": seed, **report, "model": arm}


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an arm: means and deviations of the accuracies, and medians of the latencies, over its seeds."""
    summary = []
    for rows in zip(*(run["rows"] for run in runs)):
        row = dict(rows[0])
        for key in _AVERAGED:
            values = [other[key] for other in rows]
            row[key] = statistics.mean(values)
            row[f"{key}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
        for key in ("latency_1", "latency_batch"):
            row[key] = statistics.median(other[key] for other in rows)
        summary.append(row)
    return summary


def main(argv: list[str] | None = None) -> dict[str, Any]:
    argv = list(sys.argv[1:] if argv is None else argv)
    (args,) = HfArgumentParser(WidthsArguments).parse_args_into_dataclasses(argv)
    description = describe_run("widths", argv, "cpu")
    runs = []
    for seed in args.seeds:
        for arm in args.arms:
            runs.append(run(args, arm, seed))
            print(f"{arm}, seed {seed}\n{format_widths(runs[-1]['rows'])}\n", flush=True)
    by_arm = {arm: [run for run in runs if run["arm"] == arm] for arm in args.arms}
    summary = {arm: summarize(mine) for arm, mine in by_arm.items()}
    for arm, rows in summary.items():
        print(f"{arm}, mean of {len(args.seeds)} seeds\n{format_widths(rows)}\n")
    results = {**description, "summary": summary, "runs": runs}
    write_json(results, args.output)
    if args.plot is not None:
        plot_widths({ARMS[arm][1]: [run["rows"] for run in mine] for arm, mine in by_arm.items()}, args.plot)
    return results


if __name__ == "__main__":
    main()
