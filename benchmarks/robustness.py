# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Robustness of the example's models on the embedded digits, plain and with GradAug, over several seeds.

Each model is trained by `examples/run_image_classification.py` with its defaults for the digits, and all are measured
by `examples/evaluate_robustness.py` on the held-out images.

Command:

    python -m benchmarks.robustness --seeds 1 2 3 4 5 --eval_flags "--epsilons 0 1 2 4 8 16 32" \
        --output docs/results/robustness-digits.json --plot docs/robustness.png

Or of the models that a study (see accuracy.py) has trained on its first data set, with a table and a plot of the
arms beside the output (see robustness_report.py):

    python -m benchmarks.robustness --study benchmarks/studies/digits.yaml --eval_flags "--epsilons 4 8 16" \
        --output docs/results/digits-robustness.json
"""

import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from hf_gradaug import RobustnessSettings, mean_corruption_error, plot_robustness

from .common import describe_run, run_example, temporary_folder, write_json
from .grid import Cell, as_argv
from .robustness_report import write_report
from .study import Study


ARMS = {"plain": [], "GradAug": ["--gradaug"]}
# Flags of a study that say which images are measured, beside their folder.
IMAGE_FLAGS = (
    *("dataset_name", "dataset_config_name", "validation_split_name", "test_split_name", "max_eval_samples"),
    *("image_column_name", "label_column_name", "num_labels", "classes_by_number", "skip_bad_images"),
)


@dataclass
class RobustnessBenchmarkArguments:
    """What is trained and measured."""

    seeds: list[int] | None = field(
        default=None, metadata={"help": "Seeds of the runs. Defaults to the study's, or to 1 to 5."}
    )
    study: str | None = field(
        default=None,
        metadata={"help": "YAML file of a study. Its saved models are measured on its images; nothing is trained."},
    )
    work_dir: str = field(default="outputs/accuracy", metadata={"help": "Folder of the study's models."})
    arms: list[str] | None = field(
        default=None,
        metadata={
            "help": "Arms to measure. The others are compared with the first. Defaults to the baseline and all other arms."
        },
    )
    train_flags: str = field(
        default="", metadata={"help": "Further flags of run_image_classification.py for every run, in one string."}
    )
    eval_flags: str = field(default="", metadata={"help": "Further flags of evaluate_robustness.py, in one string."})
    smoke: bool = field(default=False, metadata={"help": "Run the smallest settings as a quick check."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    plot: str | None = field(
        default=None, metadata={"help": "PNG file for the plot. The plot of a study is written beside the output."}
    )

    def __post_init__(self):
        if self.smoke:
            if not self.study:
                self.seeds, self.train_flags = [1], "--max_steps 1 --max_train_samples 32 --max_eval_samples 16"
            self.eval_flags = "--max_samples 16 --epsilons 8 --corruptions fog --severities 2"
        self.read_study = Study.read(self.study) if self.study else None
        first, known = (self.read_study.baseline, self.read_study.arms) if self.study else ("plain", ARMS)
        self.arms = self.arms or [first, *(arm for arm in known if arm != first)]
        if not set(self.arms) <= set(known):
            raise ValueError(f"`arms` must be of {', '.join(known)}, but is {', '.join(self.arms)}.")
        self.baseline = self.arms[0]
        if self.study and self.output is None:
            raise ValueError("`output` must be given with `study`, for the table and the plot, but is None.")
        if self.study and (self.train_flags or self.plot):
            raise ValueError(
                "`train_flags` and `plot` must not be given with `study`, but one is. The models of a study are trained already, "
                "and its plot is written beside the output."
            )
        seeds = self.read_study.seeds if self.study else [1, 2, 3, 4, 5]
        self.seeds = self.seeds or seeds
        if self.study and not {*self.seeds} <= {*seeds}:
            raise ValueError(f"`seeds` must be of the study's, {seeds}, but is {self.seeds}.")


def get_figures(
    accuracy: Mapping[str, float], baseline: Mapping[str, float], settings: RobustnessSettings
) -> dict[str, float | None]:
    """What is averaged over the seeds. The baseline is the plain model of the same seed."""

    def errors(accuracy: Mapping[str, float]) -> dict[str, list[float]]:
        return {
            name: [1 - accuracy[f"{name}/{severity}"] for severity in settings.severities]
            for name in settings.corruptions
        }

    attacked = {key: value for key, value in accuracy.items() if key == "clean" or key.startswith("fgsm/")}
    if not settings.corruptions:
        return attacked
    own = errors(accuracy)
    unnormalized = mean_corruption_error(own)
    return {
        **attacked,
        **{name: 1 - statistics.mean(values) for name, values in own.items()},
        "corrupted": 1 - unnormalized,
        "unnormalized_mce": unnormalized,
        "mce": mean_corruption_error(own, errors(baseline)),
    }


def describe(values: Sequence[float | None]) -> dict[str, Any]:
    if None in values:  # a ratio without a meaning
        return {"mean": None, "deviation": None, "by_seed": None}
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": deviation, "by_seed": list(values)}


def summarize(figures: Mapping[str, Sequence[Mapping[str, float | None]]], baseline: str) -> dict[str, dict[str, Any]]:
    """Means and deviations over the seeds, and what they are of, of each arm and of its difference to the baseline."""
    others = [arm for arm in figures if arm != baseline]
    summary: dict[str, dict[str, Any]] = {arm: {} for arm in [*figures, *(f"{arm} - {baseline}" for arm in others)]}
    for key in figures[baseline][0]:
        for arm, runs in figures.items():
            summary[arm][key] = describe([run[key] for run in runs])
        for arm in others:
            pairs = [(run[key], plain[key]) for run, plain in zip(figures[arm], figures[baseline])]
            differences = [None if None in pair else pair[0] - pair[1] for pair in pairs]
            summary[f"{arm} - {baseline}"][key] = describe(differences)
    return summary


def train(args: RobustnessBenchmarkArguments, folder: str) -> tuple[dict[tuple[str, int], str], list]:
    """The models by arm and seed, and the scripts that train them, with their flags."""
    models = {(arm, seed): f"{folder}/{arm}-{seed}" for seed in args.seeds for arm in args.arms}
    runs = []
    for (arm, seed), path in models.items():
        flags = [*ARMS[arm], "--do_train", "--do_eval", "--seed", str(seed), "--output_dir", path]
        # Without the flag, bars are off from the second run on, because the log level stays.
        flags += ["--disable_tqdm", "False", "--log_level", "error", *args.train_flags.split()]
        runs.append(("run_image_classification", flags))
    return models, runs


def find_models(study: Study, args: RobustnessBenchmarkArguments) -> tuple[dict[tuple[str, int], str], list[str]]:
    """The models of a study's first data set by arm and seed, and the flags that name its images."""
    dataset, flags = next(iter(study.datasets.items()))
    folder = Path(args.work_dir) / study.name
    models = {(arm, seed): folder / Cell(dataset, arm, 0, seed).folder for seed in args.seeds for arm in args.arms}
    if missing := [str(path) for path in models.values() if not (path / "model.safetensors").exists()]:
        raise ValueError(
            f"The models of `study` must be in `work_dir`, but {len(missing)} are missing, such as {missing[0]}. They are not "
            f"shipped: python -m benchmarks.accuracy {study.path} trains them."
        )
    flags, own = {**study.flags, **flags}, f"{study.split}_dir"
    if flags.get("train_dir") and not flags.get(own):
        raise ValueError(
            f"`{own}` must be given in {study.path}, but is not. Images held out of `train_dir` can't be measured here."
        )
    images = {name: value for name, value in flags.items() if name in (own, *IMAGE_FLAGS)}
    return {key: str(path) for key, path in models.items()}, as_argv({**images, "split": study.split})


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = list(sys.argv[1:] if argv is None else argv)
    (args,) = HfArgumentParser(RobustnessBenchmarkArguments).parse_args_into_dataclasses(argv)
    results = describe_run("robustness", argv, "cuda" if torch.cuda.is_available() else "cpu", "foolbox")
    results["versions"]["imagecorruptions-imaug"] = version("imagecorruptions-imaug")
    with temporary_folder() as folder:
        if args.study is None:
            (models, runs), images = train(args, folder), []
        else:
            (models, images), runs = find_models(args.read_study, args), []
        flags = as_argv({"models": [*models.values()], "output_dir": f"{folder}/robustness"})
        flags += [*images, *args.eval_flags.split()]
        runs.append(("evaluate_robustness", flags))
        for name, flags in runs:
            measured = run_example(name, flags)
        results["commands"] = [
            shlex.join(["python", f"examples/{name}.py", *flags]).replace(folder, "out") for name, flags in runs
        ]
    settings = measured.settings
    accuracy = {arm: [measured.accuracy[models[arm, seed]] for seed in args.seeds] for arm in args.arms}
    figures = {
        arm: [get_figures(run, plain, settings) for run, plain in zip(accuracy[arm], accuracy[args.baseline])]
        for arm in args.arms
    }
    results |= {
        "images": measured.description,
        "conditions": asdict(settings),
        "seeds": args.seeds,
        "baseline": args.baseline,
        "summary": summarize(figures, args.baseline),
        "accuracy": accuracy,
    }
    if args.study is not None:
        results |= {"dataset": next(iter(args.read_study.datasets)), "split": args.read_study.split}
    write_json(results, args.output)
    if args.study is not None:
        print(write_report(results, args.output))
        return results
    if args.plot is not None:
        plot_robustness(accuracy, settings, args.plot)
    print(f"{'':24}" + "".join(f"{arm:>20}" for arm in results["summary"]))
    for key in figures[args.baseline][0]:
        cells = [summary[key] for summary in results["summary"].values()]
        shown = [
            "-" if cell["mean"] is None else f"{cell['mean']:.4f} ± {cell['deviation'] or 0:.4f}" for cell in cells
        ]
        print(f"{key:24}" + "".join(f"{cell:>20}" for cell in shown))
    return results


if __name__ == "__main__":
    main()
