# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Runs a study (see study.py) cell by cell and writes its table and plot: accuracy of arms on data sets over seeds.

    python examples/prepare_data.py digits --output_dir data/digits
    python -m benchmarks.accuracy benchmarks/studies/digits-search.yaml --jobs 2
    python -m benchmarks.accuracy benchmarks/studies/digits.yaml --jobs 2

Each cell is one run of `examples/run_image_classification.py`, on a GPU if there is one, and one line of
docs/results/STUDY.jsonl with its command. After a stop, or after the time of `--minutes`, the same command runs the
missing cells. A cell is run again if its settings, teacher or data have changed. Models and logs are kept in
outputs/accuracy/STUDY. Run the command in the repository's root.
"""

import datetime
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import HfArgumentParser

from hf_gradaug.messages import check_counts, shorten
from hf_gradaug.reporting import describe_machine, describe_versions

from .cell import get_context, train
from .common import REFRESH
from .grid import Cell, Grid, as_argv, as_key, read_records
from .study import Study
from .study_report import write_report


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class AccuracyArguments:
    """Options of the runner."""

    jobs: int = field(default=1, metadata={"help": "Number of cells that run at a time."})
    max_cells: int | None = field(
        default=None, metadata={"help": "Stop after this many cells; a later run does the rest."}
    )
    minutes: float | None = field(
        default=None,
        metadata={"help": "Stop after this many minutes; a later run restarts unfinished cells."},
    )
    arms: list[str] | None = field(
        default=None,
        metadata={"help": "Run only these arms and the arms that they depend on; a later run does the rest."},
    )
    results_dir: str = field(
        default="docs/results", metadata={"help": "Folder for the results (.jsonl), tables and plots."}
    )
    work_dir: str = field(default="outputs/accuracy", metadata={"help": "Folder for the models and logs."})
    smoke: bool = field(
        default=False, metadata={"help": "Run two cells of one step in a temporary folder, as a quick check."}
    )

    def __post_init__(self):
        check_counts(self, "jobs", "max_cells")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"`minutes` must be above 0, but is {self.minutes}.")


def describe_commit() -> str:
    """The commit of the code, with `-dirty` if it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line above the progress bar."""
    with tqdm.external_write_mode():
        print(text, file=file, flush=True)


class Runner:
    """Runs the cells of a study that have no line of results, or an outdated one."""

    def __init__(self, study: Study, args: AccuracyArguments):
        self.args = args
        self.grid = Grid(study, args.results_dir, args.work_dir)
        # Of other studies: a cell of the same origin is not run twice.
        others = [path for path in sorted(self.grid.results.parent.glob("*.jsonl")) if path != self.grid.results]
        self.same = {as_key(line): line for path in others for line in read_records(path)}
        self.versions = {"commit": describe_commit(), "versions": describe_versions("accelerate", "datasets")}
        self.processes = get_context()
        self.lock = threading.Lock()
        self.failed: list[Cell] = []
        self.left = args.max_cells
        self.end = math.inf if args.minutes is None else time.monotonic() + 60 * args.minutes
        if unknown := [arm for arm in args.arms or () if arm not in study.arms]:
            raise ValueError(f"`arms` must be of {', '.join(study.arms)}, but has {', '.join(unknown)}.")

    @property
    def seconds_left(self) -> float | None:
        return None if math.isinf(self.end) else max(0.0, self.end - time.monotonic())

    def run(self) -> None:
        """Runs the missing cells. An arm that builds on another arm runs after it."""
        grid = self.grid
        if grid.results.exists() and not grid.results.read_bytes().endswith(b"\n"):
            self._rewrite()  # so that the next line begins one
        levels = {cell: grid.level(cell.dataset, cell.arm) for cell in grid.cells}
        arms = {dataset: grid.with_bases(dataset, self.args.arms or grid.study.arms) for dataset in grid.arms}
        wanted = [cell for cell in grid.cells if cell.arm in arms[cell.dataset]]
        for level in range(max(levels.values()) + 1):
            missing = [cell for cell in wanted if levels[cell] == level and grid.record(cell) is None]
            # A teacher whose line is there, but whose model is not, as in a new clone, is trained again.
            teachers = dict.fromkeys(teacher for cell in missing if (teacher := grid.teacher(cell)))
            gone = [cell for cell in teachers if not (grid.models / cell.folder / "model.safetensors").exists()]
            for cells, reuse in ((gone, False), (missing, True)):
                self._run(cells, reuse)
                if self.failed or self.left == 0 or self.seconds_left == 0:
                    return

    def _run(self, cells: Sequence[Cell], reuse: bool) -> None:
        if self.left is not None:
            cells = cells[: self.left]
            self.left -= len(cells)
        bar = tqdm(total=len(cells), unit=" cells", disable=not cells)
        with ThreadPoolExecutor(self.args.jobs) as pool, bar:
            futures = {pool.submit(self._run_cell, cell, reuse): cell for cell in cells}
            pending = set(futures)
            try:
                while pending:
                    # The pool takes the cells in their order.
                    running = [cell.folder for future, cell in futures.items() if future in pending][: self.args.jobs]
                    bar.set_postfix_str(shorten(running, 2))
                    done, pending = wait(pending, REFRESH, FIRST_COMPLETED)
                    bar.update(sum(future.result() for future in done))
            finally:
                for future in pending:
                    future.cancel()

    def _run_cell(self, cell: Cell, reuse: bool) -> bool:
        """Whether the cell has ended before the time was up."""
        if self.seconds_left == 0:
            return False
        origin = self.grid.origin(cell)
        same = self.same.get(as_key(origin)) if reuse else None
        record = same or self._train(cell, origin)
        where = f"{cell.dataset}, {cell.arm}, candidate {cell.candidate}, seed {cell.seed}"
        if record is None and self.seconds_left == 0:
            say(f"{where}: has not ended in time")
            return False
        if record is None:
            self.failed.append(cell)
            log = self.grid.models / cell.folder / "log.txt"
            say(f"{where}: failed, see {log}", sys.stderr)
            return True
        with self.lock:
            self._write(cell, {**record, **asdict(cell)})
        words = "from another study" if same else f"in {record['seconds']:.0f} s"
        say(f"{where}: {record['metrics'][self.grid.study.measured]:.2%} {words}")
        return True

    def _train(self, cell: Cell, origin: Mapping[str, Any]) -> dict[str, Any] | None:
        folder = self.grid.models / cell.folder
        shutil.rmtree(folder, ignore_errors=True)  # the Trainer would add to the metrics that it finds
        folder.mkdir(parents=True)
        argv = as_argv({**origin["flags"], "output_dir": str(folder)})
        threads = max(1, (os.cpu_count() or 1) // self.args.jobs)
        process = self.processes.Process(target=train, args=(argv, str(folder / "log.txt"), threads), daemon=True)
        process.start()
        process.join(self.seconds_left)
        if process.exitcode is None:
            process.kill()
            process.join()
        if process.exitcode != 0:
            return None
        metrics = json.loads((folder / "all_results.json").read_text())
        return {
            **origin,
            "command": shlex.join(["python", "examples/run_image_classification.py", *argv]),
            "metrics": metrics,
            "seconds": metrics["train_runtime"],
            "flops": json.loads((folder / "trainer_state.json").read_text())["total_flos"],
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "hardware": {**describe_machine(DEVICE), "threads": threads},
            **self.versions,
        }

    def _write(self, cell: Cell, record: dict[str, Any]) -> None:
        is_new = cell not in self.grid.lines
        self.grid.lines[cell] = record
        if not is_new:
            return self._rewrite()
        self.grid.results.parent.mkdir(parents=True, exist_ok=True)
        with open(self.grid.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _rewrite(self) -> None:
        """Rewrites all lines atomically: a stop leaves the old file or the new one."""
        path = self.grid.results
        new = path.with_suffix(".new")
        new.write_text("".join(json.dumps(line) + "\n" for line in self.grid.lines.values()), "utf-8")
        os.replace(new, path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = HfArgumentParser(AccuracyArguments)
    parser.add_argument("study", help="The study's YAML file.")
    args, rest = parser.parse_args_into_dataclasses(argv)
    study = Study.read(rest.study)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            run(study.smallest(), replace(args, smoke=False, results_dir=folder, work_dir=folder))
    else:
        run(study, args)


def run(study: Study, args: AccuracyArguments) -> None:
    """Runs the cells, and writes and prints the table."""
    lock = Path(args.work_dir) / f"{study.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            runner = Runner(study, args)
            runner.run()
            print(write_report(runner.grid))
            missing = sum(runner.grid.record(cell) is None for cell in runner.grid.cells)
    except Timeout:
        sys.exit(f"Another process runs {study.path}.")
    if runner.failed:
        sys.exit(f"{len(runner.failed)} cells failed; the same command runs them again.")
    if missing:
        print(f"{missing} cells are left; the same command goes on.")


if __name__ == "__main__":
    main()
