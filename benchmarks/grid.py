# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The cells of a study, their flags, and the lines of results that are theirs."""

import functools
import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .study import REFERENCES, Study, as_list


# Of every cell. The model is measured once, after the last step.
FLAGS = {"do_train": True, "do_eval": True, "eval_strategy": "no", "save_strategy": "no", "report_to": "none"}
FLAGS |= {"disable_tqdm": True, "log_level": "error"}
# A teacher adds a forward, a third of a training step.
TEACHER_FORWARD = 1 / 3


@dataclass(frozen=True)
class Cell:
    """One run. Candidates of an arm are counted from 0; an arm with one setting has candidate 0 alone."""

    dataset: str
    arm: str
    candidate: int
    seed: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Cell":
        return cls(*(record[item.name] for item in fields(cls)))

    @property
    def folder(self) -> str:
        words = f"{self.dataset}/{self.arm}/{self.candidate}/{self.seed}"
        return "".join(letter if letter.isalnum() or letter in "/.-" else "_" for letter in words)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """
    The lines of a file of results. What a stop cut off at its end is left out.

    Raises:
        `ValueError`: If another line is broken.
    """
    lines = Path(path).read_text("utf-8").splitlines(keepends=True) if Path(path).exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"Line {number} of {path} is broken: {error}") from error
    return records


def as_argv(flags: Mapping[str, Any]) -> list[str]:
    """The flags as words of a command."""
    argv = []
    for name, value in flags.items():
        values = value if isinstance(value, list) else [value]
        argv += [f"--{name}", *map(str, values)] if value is not None else []
    return argv


@functools.cache  # each cell is asked for many times
def find_data_hash(train_dir: str | None) -> str | None:
    """The hash of the data that examples/prepare_data.py wrote, or `None` for other data."""
    about = None if train_dir is None else Path(train_dir).parent / "data.json"
    return json.loads(about.read_text("utf-8"))["sha256"] if about is not None and about.exists() else None


@functools.cache
def find_checkpoint_hash(model_name_or_path: str | None) -> str | None:
    """The hash of all files of the folder that is fine-tuned, or `None` for a model of the Hub, or none."""
    if model_name_or_path is None or not Path(model_name_or_path).is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(model_name_or_path).iterdir() if path.is_file()):
        digest.update(hashlib.sha256(path.name.encode() + b"\0" + path.read_bytes()).digest())
    return digest.hexdigest()


# Of an origin, the hashes of files, each with the flag that names these. What is not at hand has none.
HASHES = {"data": ("train_dir", find_data_hash), "checkpoint": ("model_name_or_path", find_checkpoint_hash)}


def as_key(origin: Mapping[str, Any]) -> str:
    """Equal for lines and cells of the same origin, see [`Grid.origin`]."""
    return json.dumps({name: origin.get(name) for name in ("flags", "teacher_flags", *HASHES)}, sort_keys=True)


class Grid:
    """
    A study and its results.

    A line is a cell's if it was made with the cell's flags, which may have changed since. Searches that a study builds
    on must have run whole.

    Args:
        study ([`Study`]):
            What is to be run.
        results_dir (`str` or `Path`):
            The folder of the lines of this study and of the studies it builds on.
        work_dir (`str` or `Path`, *optional*):
            The folder of the models.

    Raises:
        `ValueError`: If a study that settings are taken from has not run whole.
    """

    def __init__(self, study: Study, results_dir: str | Path, work_dir: str | Path = "outputs/accuracy"):
        self.study = study
        self.results = Path(results_dir) / f"{study.name}.jsonl"
        self.models = Path(work_dir) / study.name
        search = Grid(study.tuned_by, results_dir, work_dir) if study.tuned_by else None
        self.arms = {dataset: self._resolve(dataset, search) for dataset in study.datasets}
        self.lines = {Cell.of(line): line for line in read_records(self.results)}

    @property
    def cells(self) -> list[Cell]:
        return [
            Cell(dataset, arm, candidate, seed)
            for dataset in self.study.datasets
            for seed in self.study.seeds
            for arm, candidates in self.arms[dataset].items()
            for candidate in range(len(candidates))
        ]

    def _resolve(self, dataset: str, search: "Grid | None") -> dict[str, list[dict[str, Any]]]:
        """The arms on a data set, with the settings that a search chose for `tuned`."""
        chosen: dict[str, dict[str, Any]] = {}
        if search is not None:
            chosen = search.choose(dataset if dataset in search.arms else next(iter(search.arms)))

        def resolve(settings: Mapping[str, Any]) -> dict[str, Any]:
            own = {name: value for name, value in settings.items() if name != "tuned"}
            return chosen[settings["tuned"]] | own if "tuned" in settings else own

        return {arm: [resolve(settings) for settings in candidates] for arm, candidates in self.study.arms.items()}

    def choose(self, dataset: str) -> dict[str, dict[str, Any]]:
        """
        By arm, the settings of the candidate with the best mean on a data set; the first of equal ones. With `enough`,
        of the first that the next one is ahead of by less, or of the last.
        """
        chosen = {}
        for arm, candidates in self.arms[dataset].items():
            means = []
            for candidate in range(len(candidates)):
                records = [self.record(Cell(dataset, arm, candidate, seed)) for seed in self.study.seeds]
                if None in records:
                    raise ValueError(
                        f"{self.study.path} has cells that have not run with their settings, of the arm '{arm}' on "
                        f"'{dataset}': run it first."
                    )
                means.append(statistics.mean(record["metrics"][self.study.measured] for record in records))
            best = means.index(max(means))
            if self.study.enough is not None:
                gains = [later - mean for mean, later in zip(means, means[1:])]
                best = next((i for i, gain in enumerate(gains) if gain < self.study.enough), len(gains))
            chosen[arm] = candidates[best]
        return chosen

    def settings(self, cell: Cell) -> dict[str, Any]:
        return self.arms[cell.dataset][cell.arm][cell.candidate]

    def teacher(self, cell: Cell) -> Cell | None:
        """The cell whose model teaches this one."""
        arm = self.settings(cell).get("teacher_arm")
        return arm and replace(cell, arm=arm, candidate=0)

    def bases(self, dataset: str, arm: str) -> list[str]:
        """The arms that an arm builds on."""
        others = []
        for settings in self.arms[dataset][arm]:
            others += [settings[name] for name in ("compute_of", "teacher_arm") if name in settings]
            others += as_list(settings.get("together", self.study.baseline)) if "compute_of" in settings else []
        return others

    def level(self, dataset: str, arm: str) -> int:
        """Order of an arm: 0 if it builds on no other arm, else one more than the arms it builds on."""
        return 1 + max((self.level(dataset, other) for other in self.bases(dataset, arm)), default=-1)

    def with_bases(self, dataset: str, arms: Iterable[str]) -> set[str]:
        """Arms, with all that they build on."""
        return {*arms}.union(*(self.with_bases(dataset, self.bases(dataset, arm)) for arm in arms))

    def origin(self, cell: Cell) -> dict[str, Any] | None:
        """
        What a line must have to be the cell's: its flags, those of its teacher, and the hashes of its data and of the
        checkpoint that it starts from. `None` as long as an arm that it builds on has not run.
        """
        flags, teacher = self.flags(cell), self.teacher(cell)
        if flags is None or (teacher is not None and self.record(teacher) is None):
            return None
        teacher_flags = None if teacher is None else self.flags(teacher)
        hashes = {name: find(flags.get(flag)) for name, (flag, find) in HASHES.items()}
        return {"flags": flags, "teacher_flags": teacher_flags, **hashes}

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's line of results, if there is one of its origin. Files that are not at hand may be any."""
        line, origin = self.lines.get(cell), self.origin(cell)
        if line is None or origin is None:
            return None
        known = {name: value for name, value in origin.items() if name not in HASHES or value is not None}
        return line if all(line.get(name) == value for name, value in known.items()) else None

    def flops(self, dataset: str, arm: str, candidate: int = 0) -> float | None:
        """Mean FLOPs of a candidate's runs, with its teachers'; `None` if not all seeds have run."""
        records = [self.record(Cell(dataset, arm, candidate, seed)) for seed in self.study.seeds]
        if None in records:
            return None
        teacher = self.arms[dataset][arm][candidate].get("teacher_arm")
        own = statistics.mean(record["flops"] for record in records)
        return own + (self.flops(dataset, teacher) if teacher else 0)

    def flags(self, cell: Cell) -> dict[str, Any] | None:
        """All flags of the cell's command but its folder; `None` as long as an arm that it builds on has not run."""
        settings, teacher = self.settings(cell), self.teacher(cell)
        own = {name: value for name, value in settings.items() if name not in REFERENCES}
        flags = {**FLAGS, **self.study.flags, **self.study.datasets[cell.dataset], **own, "seed": cell.seed}
        flags["do_predict"] = self.study.split == "test"
        target = settings.get("compute_of")
        if target is not None:
            together = as_list(settings.get("together", self.study.baseline))
            wanted, *had = (self.flops(cell.dataset, arm) for arm in (target, *together))
            if wanted is None or None in had:
                return None
            times = wanted / sum(had)
            if teacher:
                times = (times - 1) / (1 + TEACHER_FORWARD)
            if times <= 0:
                raise ValueError(
                    f"`compute_of` of the arm '{cell.arm}' in {self.study.path} must take more FLOPs than the teacher's run, "
                    f"but is '{target}', which doesn't."
                )
            if "max_steps" in flags:
                flags["max_steps"] = max(1, round(flags["max_steps"] * times))
            else:
                flags["num_train_epochs"] = round(flags["num_train_epochs"] * times, 2)
        if teacher:
            flags["teacher"] = str(self.models / teacher.folder)
        return flags
