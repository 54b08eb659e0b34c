# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
A study is a grid of data sets x arms x seeds, read from YAML. Each cell is one run of the example script.

    flags: {model_type: resnet, num_train_epochs: 40}   # of examples/run_image_classification.py, for all cells
    datasets:                                           # by name, the flags of each
      solar cells: {folder: data/solar-cells}           # train_dir, validation_dir and test_dir in one
    seeds: [1, 2, 3, 4, 5]
    split: test                                         # measured: validation (to choose settings) or test
    arms:                                               # by name, the flags of each, or a list of candidates
      plain: {}
      GradAug: [{gradaug: true}, {gradaug: true, min_width: 0.7}]
      plain, as much compute: {compute_of: GradAug}
      distillation: {teacher_arm: plain, compute_of: GradAug}

Beside flags an arm may have these keys, each naming an arm before it:

- `compute_of`: the arm whose FLOPs this arm's run has. Its epochs, or steps, are the baseline's times the ratio of
  both arms' measured FLOPs.
- `together`, with `compute_of`: a list of arms that share these FLOPs. This arm's epochs, or steps, are multiplied by
  the ratio of the FLOPs of `compute_of` to the sum of theirs.
- `teacher_arm`: the baseline. Its model of the same seed, and so of the same training images, is the `teacher`. The
  teacher's run counts as the student's compute.
- `against`: an arm, or a list of arms, to compare with beside the baseline.

Further keys of a study:

- `base`: another study, whose data sets and flags this one takes over. Data sets given here replace all of them. Flags
  given here are added, or replace those of the same name.
- `tuned_by`: a search. An arm's key `tuned` names an arm of it, whose best candidate's settings come before the arm's
  own.
- `enough`, of a search whose candidates get dearer: it chooses the first candidate that the next one beats by less
  than `enough`, instead of the best.
- `baseline`: the arm that others are compared with, by default `plain`.
- `axis`: the name of the numbers in the data sets' names, for a plot with curves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml


SPLITS = {"validation": "eval", "test": "predict"}
# Keys of an arm that name another arm of the study. They are not flags.
REFERENCES = ("compute_of", "together", "teacher_arm", "against")


@dataclass
class Study:
    """See the module. [`Study.read`] checks what it reads; a mistake raises a `ValueError` that names the key."""

    path: Path
    datasets: dict[str, dict[str, Any]]
    seeds: list[int]
    arms: dict[str, list[dict[str, Any]]]
    flags: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    baseline: str = "plain"
    enough: float | None = None
    tuned_by: "Study | None" = None
    axis: str | None = None

    @classmethod
    def read(cls, path: str | Path) -> "Study":
        path = Path(path)
        values = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold keys and values, but holds {type(values).__name__}.")
        known = ["base", *(name for name in cls.__dataclass_fields__ if name != "path")]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"{path} has the unknown keys {unknown}; there are {known}.")
        if base := values.pop("base", None):
            parent = cls.read(path.parent / base)
            values = {"datasets": parent.datasets, **values, "flags": parent.flags | values.get("flags", {})}
        if missing := [name for name in ("datasets", "seeds") if not values.get(name)]:
            raise ValueError(f"{path} needs the keys {missing}.")
        tuned_by = values.pop("tuned_by", None)
        arms = values.pop("arms", {})
        datasets = {str(name): _with_folder(flags or {}) for name, flags in values.pop("datasets").items()}
        study = cls(
            path=path,
            datasets=datasets,
            arms={name: [dict(item or {}) for item in as_list(arm)] for name, arm in arms.items()},
            tuned_by=cls.read(path.parent / tuned_by) if tuned_by else None,
            **values,
        )
        study._check()
        return study

    def _check(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"`split` in {self.path} must be one of {[*SPLITS]}, but is '{self.split}'.")
        seeds = self.seeds
        if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds) or len({*seeds}) < len(seeds):
            raise ValueError(f"`seeds` in {self.path} must be a list of whole numbers, each once, but is {seeds}.")
        if self.enough is not None and (self.split != "validation" or not self.enough > 0):
            raise ValueError(
                f"`enough` must be above 0, of a study of the validation split, but is {self.enough} in {self.path}, whose split "
                f"is '{self.split}'."
            )
        if self.axis is not None:
            self.get_places()
        self._check_search()
        tuned = list(self.tuned_by.arms) if self.tuned_by else []
        earlier: list[str] = []
        for arm, candidates in self.arms.items():
            if not candidates or (self.split == "test" and len(candidates) > 1):
                raise ValueError(
                    f"The arm '{arm}' in {self.path} has {len(candidates)} candidates, but must have one, or, where split "
                    "is 'validation', one or more."
                )
            for settings in candidates:
                if "together" in settings and "compute_of" not in settings:
                    raise ValueError(
                        f"`together` must be given with `compute_of`, but the arm '{arm}' in {self.path} has none."
                    )
                named = {"tuned": tuned, "compute_of": earlier, "together": earlier, "against": earlier}
                named["teacher_arm"] = [name for name in earlier if name == self.baseline]
                for name, other in [(key, value) for key in named for value in as_list(settings.get(key, []))]:
                    if other not in named[name]:
                        raise ValueError(
                            f"`{name}` of the arm '{arm}' in {self.path} must be one of {named[name]}, but is '{other}'."
                        )
            earlier.append(arm)
        if self.baseline not in earlier:
            raise ValueError(f"`baseline` in {self.path} must be one of the arms {earlier}, but is '{self.baseline}'.")

    def _check_search(self) -> None:
        search = self.tuned_by
        if search is None:
            return
        if search.split != "validation" or {*search.seeds} & {*self.seeds}:
            raise ValueError(
                f"`tuned_by` in {self.path} must be a study of the validation split, with other seeds than {self.seeds}, but is "
                f"{search.path}, with the split '{search.split}' and the seeds {search.seeds}."
            )
        if len(search.datasets) > 1 and {*self.datasets} - {*search.datasets}:
            raise ValueError(
                f"`tuned_by` in {self.path} must have a single data set, or all of {[*self.datasets]}, but is {search.path}, with "
                f"{[*search.datasets]}."
            )

    def smallest(self) -> "Study":
        """A study to try the code: one step of the baseline and one more arm, on the first data set and seed."""

        def shrink(settings: Mapping[str, Any], search: "Study | None") -> dict[str, Any]:
            # A search may itself take settings from another one.
            found = shrink(search.arms[settings["tuned"]][0], search.tuned_by) if "tuned" in settings else {}
            own = {name: value for name, value in settings.items() if name not in (*REFERENCES, "tuned")}
            return {**found, **own, "max_steps": 1}

        arms = [self.baseline, *(name for name in self.arms if name != self.baseline)][:2]
        return replace(
            self,
            datasets=dict([*self.datasets.items()][:1]),
            seeds=self.seeds[:1],
            arms={name: [shrink(self.arms[name][0], self.tuned_by)] for name in arms},
            tuned_by=None,
        )

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def measured(self) -> str:
        """The name of the accuracy among the metrics of a run."""
        return self.name_metric("accuracy")

    def name_metric(self, metric: str) -> str:
        return f"{SPLITS[self.split]}_{metric}"

    def get_places(self) -> dict[str, float]:
        """Where the data sets lie on the axis: the number that each name begins with."""
        try:
            return {dataset: float(dataset.split()[0]) for dataset in self.datasets}
        except ValueError as error:
            raise ValueError(
                f"`axis` in {self.path} must be left out unless each data set begins with a number, but is '{self.axis}' for "
                f"{[*self.datasets]}."
            ) from error


def as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _with_folder(flags: Mapping[str, Any]) -> dict[str, Any]:
    """`folder`, as examples/prepare_data.py makes it, stands for its three splits."""
    flags = dict(flags)
    if folder := flags.pop("folder", None):
        flags = {f"{split}_dir": f"{folder}/{split}" for split in ("train", "validation", "test")} | flags
    return flags
