# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Accuracy of arms on data sets over seeds: a study (see study.py) is run cell by cell, and its table and picture written.

    python examples/prepare_data.py digits --output_dir data/digits
    python benchmarks/accuracy.py benchmarks/studies/digits.yaml --jobs 2

Each cell is one run of `examples/run_image_classification.py`, on a GPU if there is one, and one line of
docs/results/STUDY.jsonl with its command. The same command after a stop runs what is missing; a cell whose settings have
changed is run again. Models and logs are kept in outputs/accuracy/STUDY.
"""

import datetime
import json
import os
import shlex
import statistics
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from cell import get_context, train
from study import TEACHER_FORWARD, Cell, Study, read_records
from study_report import write_report
from transformers import HfArgumentParser

from hf_gradaug.machine import describe_machine, describe_versions


ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLAGS = {"do_train": True, "do_eval": True, "eval_strategy": "no", "save_strategy": "no", "report_to": "none"}
FLAGS |= {"disable_tqdm": True, "log_level": "error"}


@dataclass
class AccuracyArguments:
    """Options of the runner."""

    study: str = field(metadata={"help": "The study's YAML file."})
    jobs: int = field(default=1, metadata={"help": "Cells at a time, which share the cores."})
    max_cells: int | None = field(default=None, metadata={"help": "Stop after so many cells; the rest another time."})
    results_dir: str = field(
        default=str(ROOT / "docs" / "results"), metadata={"help": "Folder of the results, tables and pictures."}
    )
    work_dir: str = field(
        default=str(ROOT / "outputs" / "accuracy"), metadata={"help": "Folder of the models and logs."}
    )


def as_argv(flags: dict[str, Any]) -> list[str]:
    argv = []
    for name, value in flags.items():
        values = value if isinstance(value, list) else [value]
        argv += [f"--{name}", *map(str, values)] if value is not None else []
    return argv


def as_key(flags: Mapping[str, Any]) -> str:
    return json.dumps(flags, sort_keys=True)


class Runner:
    """Runs the cells of a study that have no line of results, or one of other settings."""

    def __init__(self, args: AccuracyArguments):
        self.args = args
        self.study = Study.read(args.study)
        self.results = Path(args.results_dir) / f"{self.study.name}.jsonl"
        self.models = Path(args.work_dir) / self.study.name
        search = self.study.tuned_by
        searched = read_records(Path(args.results_dir) / f"{search.name}.jsonl") if search else []
        self.arms = {dataset: self.study.get_arms(dataset, searched) for dataset in self.study.datasets}
        self.records = {Cell(*(line[name] for name in Cell.__dataclass_fields__)): line for line in self._read()}
        # Of other studies: a cell with the same flags is not run twice.
        others = [path for path in self.results.parent.glob("*.jsonl") if path != self.results]
        self.same = {as_key(line["flags"]): line for path in sorted(others) for line in read_records(path)}
        self.machine = {"hardware": describe_machine(DEVICE), "versions": describe_versions("accelerate", "datasets")}
        self.processes = get_context()
        self.lock = threading.Lock()
        self.failed: list[Cell] = []
        self.left = args.max_cells

    def _read(self) -> list[dict[str, Any]]:
        lines = read_records(self.results)
        if lines:  # without a last line that a stop cut off, so that the next one begins a line
            self.results.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        return lines

    def settings(self, cell: Cell) -> dict[str, Any]:
        return self.arms[cell.dataset][cell.arm][cell.candidate]

    def teacher(self, cell: Cell) -> Cell | None:
        """The cell whose model teaches this one: of the same seed, and so of the same training images."""
        arm = self.settings(cell).get("teacher_arm")
        return arm and replace(cell, arm=arm, candidate=0)

    def level(self, dataset: str, arm: str) -> int:
        """0 for arms that build on no other, and one more than those that they build on for the rest."""
        settings = [item for candidate in self.arms[dataset][arm] for item in candidate.items()]
        others = [value for name, value in settings if name in ("compute_of", "teacher_arm")]
        return 1 + max((self.level(dataset, other) for other in others), default=-1)

    def flags(self, cell: Cell) -> dict[str, Any]:
        """All flags of the cell's command but its folder. Arms that it builds on have run."""
        settings = dict(self.settings(cell))
        target, has_teacher = settings.pop("compute_of", None), settings.pop("teacher_arm", None)
        settings.pop("against", None)
        flags = {**FLAGS, **self.study.flags, **self.study.datasets[cell.dataset], **settings, "seed": cell.seed}
        flags["do_predict"] = self.study.split == "test"
        if target is not None:
            flops = [
                statistics.mean(self.records[Cell(cell.dataset, arm, 0, seed)]["flops"] for seed in self.study.seeds)
                for arm in (target, self.study.baseline)
            ]
            times = flops[0] / flops[1]
            if has_teacher:
                times = (times - 1) / (1 + TEACHER_FORWARD)
            if "max_steps" in flags:
                flags["max_steps"] = max(1, round(flags["max_steps"] * times))
            else:
                flags["num_train_epochs"] = round(flags["num_train_epochs"] * times, 2)
        if has_teacher:
            flags["teacher"] = os.path.relpath(self.models / self.teacher(cell).folder)
        return flags

    def run(self) -> None:
        cells = [
            Cell(dataset, arm, candidate, seed)
            for dataset in self.study.datasets
            for seed in self.study.seeds
            for arm, candidates in self.arms[dataset].items()
            for candidate in range(len(candidates))
        ]
        levels = {cell: self.level(cell.dataset, cell.arm) for cell in cells}
        for level in range(max(levels.values()) + 1):
            missing = [
                cell
                for cell in cells
                if levels[cell] == level
                and (cell not in self.records or self.records[cell]["flags"] != self.flags(cell))
            ]
            # A teacher whose line is there, but whose model is not, as in a new clone, is trained again.
            teachers = {teacher for cell in missing if (teacher := self.teacher(cell))}
            gone = [cell for cell in teachers if not (self.models / cell.folder / "model.safetensors").exists()]
            self._run(gone, reuse=False)
            self._run(missing)
            if self.failed or self.left == 0:
                return

    def _run(self, cells: Sequence[Cell], reuse: bool = True) -> None:
        if self.left is not None:
            cells = cells[: self.left]
            self.left -= len(cells)
        with ThreadPoolExecutor(self.args.jobs) as pool:
            list(pool.map(lambda cell: self._run_cell(cell, reuse), cells))

    def _run_cell(self, cell: Cell, reuse: bool) -> None:
        flags = self.flags(cell)
        same = self.same.get(as_key(flags)) if reuse else None
        record = same or self._train(cell, flags)
        where = f"{cell.dataset}, {cell.arm}, candidate {cell.candidate}, seed {cell.seed}"
        if record is None:
            self.failed.append(cell)
            print(f"{where}: failed, see {self.models / cell.folder / 'log.txt'}", file=sys.stderr, flush=True)
            return
        with self.lock:
            self._write({**record, **asdict(cell)}, cell)
        words = "from another study" if same else f"in {record['seconds']:.0f} s"
        print(f"{where}: {record['metrics'][self.study.measured]:.2%} {words}", flush=True)

    def _train(self, cell: Cell, flags: Mapping[str, Any]) -> dict[str, Any] | None:
        folder = self.models / cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        argv = as_argv({**flags, "output_dir": os.path.relpath(folder)})
        threads = max(1, (os.cpu_count() or 1) // self.args.jobs)
        process = self.processes.Process(target=train, args=(argv, str(folder / "log.txt"), threads))
        process.start()
        process.join()
        if process.exitcode != 0:
            return None
        metrics = json.loads((folder / "all_results.json").read_text())
        return {
            **asdict(cell),
            "flags": flags,
            "command": shlex.join(["python", "examples/run_image_classification.py", *argv]),
            "metrics": metrics,
            "seconds": metrics["train_runtime"],
            "flops": json.loads((folder / "trainer_state.json").read_text())["total_flos"],
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            **self.machine,
            "threads": threads,
        }

    def _write(self, record: dict[str, Any], cell: Cell) -> None:
        if cell in self.records:  # of other settings
            lines = [line for other, line in self.records.items() if other != cell]
            self.results.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        self.records[cell] = record
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with open(self.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = HfArgumentParser(AccuracyArguments).parse_args_into_dataclasses(argv)
    runner = Runner(args)
    runner.run()
    print(write_report(runner.study, list(runner.records.values()), args.results_dir))
    if runner.failed:
        sys.exit(f"{len(runner.failed)} cells failed; the same command runs them again.")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv[1:2] = ["--study", sys.argv[1]]  # the one argument that needs no name
    main()
