# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
A study: a grid of data sets x arms x seeds, read from YAML, each cell of which is one run of the example script.

    flags: {model_type: resnet, num_train_epochs: 40}   # of examples/run_image_classification.py, for all cells
    datasets:                                           # by name, the flags of each
      solar cells: {train_dir: data/solar-cells/train, validation_dir: ..., test_dir: ...}
    seeds: [1, 2, 3, 4, 5]
    split: test                                         # measured: validation (to choose settings) or test
    arms:                                               # by name, the flags of each, or a list of candidates
      plain: {}
      GradAug: [{gradaug: true}, {gradaug: true, min_width: 0.7}]
      plain, as much compute: {compute_of: GradAug}
      distillation: {teacher_arm: plain, compute_of: GradAug}

Beside flags an arm may have `compute_of`: the name of an arm before it, whose FLOPs its own training shall have; its
epochs are computed from those of both arms' first candidates. And `teacher_arm`: an arm before it, whose model of the
next seed is the `teacher`; the teacher's training counts as the student's compute.

And `tuned`: an arm of the finished study that `tuned_by` names, whose best candidate's settings come before the arm's
own. `baseline` is the arm that others are compared with, by default `plain`; `against` names one more for an arm.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


SPLITS = {"validation": "eval", "test": "predict"}
# A forward is a third of a training step: what a teacher adds to it.
TEACHER_FORWARD = 1 / 3


@dataclass(frozen=True)
class Cell:
    """One run. Candidates of an arm are counted from 0; an arm with one setting has candidate 0 alone."""

    dataset: str
    arm: str
    candidate: int
    seed: int

    @property
    def folder(self) -> str:
        words = f"{self.dataset}/{self.arm}/{self.candidate}/{self.seed}"
        return "".join(letter if letter.isalnum() or letter in "/.-" else "_" for letter in words)


@dataclass
class Study:
    """See the module. [`Study.read`] checks what it reads; a mistake raises a `ValueError` that names the key."""

    path: Path
    datasets: dict[str, dict[str, Any]]
    seeds: list[int]
    arms: dict[str, list[dict[str, Any]]]
    title: str = ""
    flags: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    metric: str = "accuracy"
    baseline: str = "plain"
    tuned_by: "Study | None" = None
    # Where the data sets are numbers, such as shares of labels: the name of the axis on which they lie.
    axis: str | None = None

    @classmethod
    def read(cls, path: str | Path) -> "Study":
        path = Path(path)
        values = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold keys and values, but holds {type(values).__name__}.")
        known = [name for name in cls.__dataclass_fields__ if name != "path"]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"{path} has the unknown keys {unknown}; there are {known}.")
        if missing := [name for name in ("datasets", "seeds") if not values.get(name)]:
            raise ValueError(f"{path} needs the keys {missing}.")
        tuned_by = values.pop("tuned_by", None)
        arms = values.pop("arms", {})
        datasets = {str(name): _with_folder(flags or {}) for name, flags in values.pop("datasets").items()}
        study = cls(
            path=path,
            datasets=datasets,
            arms={name: [dict(item or {}) for item in _as_list(arm)] for name, arm in arms.items()},
            tuned_by=cls.read(path.parent / tuned_by) if tuned_by else None,
            **values,
        )
        study._check()
        return study

    def _check(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is '{self.split}' in {self.path}, but must be one of {[*SPLITS]}.")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {self.seeds} in {self.path}, but no seed may be there twice.")
        if self.split == "test" and any(len(candidates) > 1 for candidates in self.arms.values()):
            raise ValueError(f"split is 'test' in {self.path}, where no arm may have several candidates.")
        if self.tuned_by and len(self.tuned_by.datasets) > 1 and set(self.datasets) - set(self.tuned_by.datasets):
            raise ValueError(
                f"tuned_by is {self.tuned_by.path} in {self.path}, but has other data sets, of which there is not one "
                "alone."
            )
        tuned = list(self.tuned_by.arms) if self.tuned_by else []
        earlier: list[str] = []
        for arm, candidates in self.arms.items():
            for settings in candidates:
                for name, allowed in (
                    ("tuned", tuned),
                    ("compute_of", earlier),
                    ("teacher_arm", earlier),
                    ("against", earlier),
                ):
                    if name in settings and settings[name] not in allowed:
                        raise ValueError(
                            f"{name} of the arm '{arm}' in {self.path} is '{settings[name]}', but must be "
                            f"{'of tuned_by' if allowed is tuned else 'before it'}, one of {allowed}."
                        )
                if "teacher_arm" in settings and len(self.seeds) < 2:
                    raise ValueError(f"{self.path} has an arm with a teacher of another seed, so it needs two seeds.")
            earlier.append(arm)
        if self.baseline not in earlier:
            raise ValueError(f"baseline is '{self.baseline}' in {self.path}, but must be an arm, of {earlier}.")

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def measured(self) -> str:
        """The name of the metric among a run's."""
        return f"{SPLITS[self.split]}_{self.metric}"

    def get_arms(self, dataset: str, records_of_search: Sequence[Mapping[str, Any]] = ()) -> dict[str, list[dict]]:
        """The candidates of each arm on a data set, with the chosen ones of the study that tuned them."""
        if self.tuned_by is None:
            return self.arms
        searched = dataset if dataset in self.tuned_by.datasets else next(iter(self.tuned_by.datasets))
        chosen = choose(self.tuned_by, searched, records_of_search)

        def resolve(settings: Mapping[str, Any]) -> dict[str, Any]:
            own = {name: value for name, value in settings.items() if name != "tuned"}
            return chosen[settings["tuned"]] | own if "tuned" in settings else own

        return {arm: [resolve(settings) for settings in candidates] for arm, candidates in self.arms.items()}


def _as_list(arm: Any) -> list:
    return arm if isinstance(arm, list) else [arm]


def _with_folder(flags: Mapping[str, Any]) -> dict[str, Any]:
    """`folder`, as examples/prepare_data.py makes it, stands for its three splits."""
    flags = dict(flags)
    if folder := flags.pop("folder", None):
        flags = {f"{split}_dir": f"{folder}/{split}" for split in ("train", "validation", "test")} | flags
    return flags


def choose(study: Study, dataset: str, records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """
    By arm, the settings of the candidate with the best mean of the study's metric on a data set; of equals the first.

    Raises:
        `ValueError`: If cells of the study are missing.
    """
    measured = {Cell(*(r[name] for name in Cell.__dataclass_fields__)): r["metrics"] for r in records}
    chosen = {}
    for arm, candidates in study.arms.items():
        means = []
        for candidate in range(len(candidates)):
            cells = [Cell(dataset, arm, candidate, seed) for seed in study.seeds]
            if missing := [cell for cell in cells if cell not in measured]:
                raise ValueError(f"{study.path} has cells that have not run, such as {missing[0]}: run it first.")
            means.append(statistics.mean(measured[cell][study.measured] for cell in cells))
        chosen[arm] = candidates[means.index(max(means))]
    return chosen


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a file of results. A last line that a stop cut off is left out."""
    if not Path(path).exists():
        return []
    lines = Path(path).read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
