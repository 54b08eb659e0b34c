# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Runs the GPU measurements in a given time: tests, time and memory of a step, short runs, and cells of a study.

    python -m benchmarks.gpu --minutes 9 --output outputs/gpu
    python -m benchmarks.gpu --minutes 5 --output outputs/gpu --only steps graphs
    python -m benchmarks.gpu --minutes 9 --output outputs/gpu --only study --study digits --jobs 4

The parts run one after the other, each as a process with a time limit. The limit is the part's fraction of the
remaining time. Each part writes a log, whose last line the progress bar shows, and a line in results.jsonl when it
ends. Steps and cells are written as they finish. A table of all results is printed at the end. `--smoke` is a dry run
that needs no GPU.

Parts:

- tests: the unit and trainer tests, and all tests that need a GPU. Files that need a missing package are skipped;
- steps: `benchmarks.step_grid` for ResNet-50 at several batch sizes, dtypes and divisors;
- networks: the same for ConvNeXt-T and WRN-16-4;
- graphs, compile: ResNet-50 with CUDA graphs and with torch.compile;
- host: `benchmarks.host_time`;
- fp16, bf16: two epochs of the example on the embedded digits;
- study: `benchmarks.accuracy` with several cells at a time. It continues from the results in docs/results. The models
  are kept beside the results, in models/STUDY.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .common import REFRESH, ROOT
from .study import Study


# Of the time, by part.
SHARES = {
    "tests": 5,
    "steps": 6,
    "networks": 2,
    "graphs": 3,
    "host": 1,
    "fp16": 1,
    "bf16": 1,
    "compile": 3,
    "study": 8,
}
GPU_ALONE = ("graphs", "compile", "fp16")
FAST = "bfloat16, channels_last, divisor 32"
STEPS = {
    "steps": [
        *(f"{FAST}, batch {size}" for size in (256, 128, 64)),
        *(f"bfloat16, channels_last, batch {size}" for size in (256, 128, 64)),
        "float32, batch 128",
        "float16, channels_last, divisor 32, batch 128",
    ],
    "networks": [f"{FAST}, batch 128"],
    "graphs": [f"{FAST}, graphs, batch {size}" for size in (256, 128, 64)],
    "compile": [f"{FAST}, compiled, batch 128"],
}
TEST_FOLDERS = ("tests/unit", "tests/trainer")
# Packages that are no part of the installation, by the tests that need them.
NEEDS = {"test_corruptions": ["imagecorruptions"], "test_robustness": ["foolbox"]}
END = 5.0  # seconds between the signal to end and the one that ends


def find_tests() -> tuple[list[str], list[str]]:
    """The test files to run, and the files that are skipped because a package is missing."""
    paths = [
        path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if any(path.is_relative_to(ROOT / folder) for folder in TEST_FOLDERS)
        or "pytest.mark.cuda" in path.read_text("utf-8")
    ]
    able = {path: all(map(importlib.util.find_spec, NEEDS.get(path.stem, ()))) for path in paths}
    return tuple([str(path.relative_to(ROOT)) for path in paths if able[path] is which] for which in (True, False))


def make_command(args: argparse.Namespace, part: str, seconds: float) -> list[str]:
    """Python's arguments for a part with this time limit in seconds."""
    output, smoke = args.output, ["--smoke"] if args.smoke else []
    if part == "tests":
        files, missing = find_tests()
        if missing:
            print(f"Left out, since packages are missing: {' '.join(missing)}", flush=True)
        files = ["tests/unit/test_losses.py"] if args.smoke else files
        workers = ["-n", "0" if args.smoke else str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
        return ["-m", "pytest", "-q", *workers, "-m", "not distributed", "--timeout", "120", *files]
    if part in STEPS:
        models = ["convnext-tiny", "wrn-16-4"] if part == "networks" else ["resnet-50"]
        arms = ["plain", "gradaug", *(["views"] if part in ("steps", "networks") else [])]
        flags = ["--models", *models, "--entries", *STEPS[part], "--arms", *arms, "--overhead_batch_size", "0"]
        flags += ["--repetitions", "8", "--warmup", "4", "--output", f"{output}/{part}.json", *smoke]
        return ["-m", "benchmarks.step_grid", *flags]
    if part == "host":
        flags = ["--device", "cpu" if args.smoke else "cuda", "--output", f"{output}/host.json", *smoke]
        return ["-m", "benchmarks.host_time", *flags]
    if part in ("fp16", "bf16"):
        flags = ["--gradaug", "--do_train", "--do_eval", f"--{part}", "--output_dir", f"{output}/{part}"]
        flags += ["--max_steps", "2", "--use_cpu"] if args.smoke else ["--num_train_epochs", "2"]
        flags += ["--save_strategy", "no", "--report_to", "none"]
        return ["examples/run_image_classification.py", *flags]
    flags = ["--jobs", str(args.jobs), "--minutes", f"{seconds / 60:.3f}", "--results_dir", f"{output}/study"]
    flags += ["--work_dir", f"{output}/models"]  # beside the results, so that they are copied with them
    return ["-m", "benchmarks.accuracy", args.study, *flags, *smoke]


def copy_results(study: Study | None, folder: Path) -> None:
    """Copies existing results of a study and of the searches that it builds on. The study continues from them."""
    folder.mkdir(exist_ok=True)
    while study is not None:
        lines = ROOT / "docs" / "results" / f"{study.name}.jsonl"
        if lines.exists() and not (folder / lines.name).exists():
            shutil.copy(lines, folder)
        study = study.tuned_by


def run(command: Sequence[str], log: Path, seconds: float) -> int | None:
    """
    Runs Python with its output in a file. Returns the exit code, or `None` after the time limit. A progress bar shows
    the time and the last line of the output.
    """
    env, end = {**os.environ, "PYTHONUNBUFFERED": "1"}, time.monotonic() + seconds
    bar = tqdm(desc=f"{log.stem}, {tqdm.format_interval(seconds)} at most", bar_format="{desc}: {elapsed}{postfix}")
    with open(log, "w", encoding="utf-8") as file, bar:
        # In a session of its own, so that its own processes end with it.
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=file, stderr=file, env=env, start_new_session=True
        )
        try:
            while (left := end - time.monotonic()) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(min(left, REFRESH))
                bar.set_postfix_str("".join(read_lines(log)[-1:])[:100])
            return None
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END)


def read_lines(log: Path) -> list[str]:
    """The lines of a log that aren't blank, with one for each state of a progress bar."""
    return [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def get_rows(args: argparse.Namespace, part: str, log: Path) -> Iterator[str]:
    """The rows of the table for a part, as far as it has results."""
    if part in STEPS:
        for name, entry in read_json(args.output / f"{part}.json").get("entries", {}).items():
            if "error" in entry:
                yield f"{name}: {entry['error']}"
                continue
            arms, times = entry["arms"], []
            for arm, figures in arms.items():
                memory = f", memory {figures['memory_ratio']:.2f} x" if "memory_ratio" in figures else ""
                times.append(
                    f"{arm} {1000 * figures['seconds_median']:.1f} ms ({figures['time_ratio']:.2f} x{memory})"
                )
            yield f"{name}: FLOPs {entry['flop_ratio']:.2f} x, {', '.join(times)}"
    elif part == "host":
        for of_process in read_json(args.output / "host.json").get("processes", []):
            for name, measured in of_process.items():
                ratios = [f"{mode} {figures['ratio']:.2f} x" for mode, figures in measured["passes"].items()]
                yield f"{name}: {', '.join(ratios)}"
    elif part in ("fp16", "bf16"):
        results = read_json(args.output / part / "all_results.json")
        yield ", ".join(f"{name} {results[name]:.4g}" for name in ("train_loss", "eval_accuracy") if name in results)
    else:
        lines = [line for line in read_lines(log) if "%|" not in line]  # without progress bars
        yield from lines[-1:] if part == "tests" else lines


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="Time limit of all parts together, in minutes.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for the results and logs.")
    parser.add_argument("--only", nargs="+", choices=[*SHARES], help="Run only these parts.")
    parser.add_argument(
        "--study", help="Study for the part study: the name of a file in benchmarks/studies, or a path."
    )
    parser.add_argument("--jobs", type=int, default=4, help="Number of the study's cells that run at a time.")
    parser.add_argument("--smoke", action="store_true", help="A dry run with the smallest settings, without a GPU.")
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        parser.error(f"`minutes` must be above 0, but is {args.minutes}.")
    if args.only and "study" in args.only and args.study is None:
        parser.error("`study` must be given, because `only` names it.")
    if args.study is not None and not args.study.endswith(".yaml"):
        args.study = f"benchmarks/studies/{args.study}.yaml"
    args.output = args.output.absolute()
    parts = [part for part in SHARES if part != "study" or args.study] if args.only is None else args.only
    args.parts = [part for part in SHARES if part in parts and not (args.smoke and part in GPU_ALONE)]
    return args


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    end = time.monotonic()
    args = parse(argv)
    end += 60 * args.minutes - 2 * END
    args.output.mkdir(parents=True, exist_ok=True)
    records, shares = [], {part: SHARES[part] for part in args.parts}
    for part in args.parts:
        start = time.monotonic()
        seconds = max(0.0, end - start) * shares[part] / sum(shares.values())
        del shares[part]
        if part == "study":
            copy_results(Study.read(args.study), args.output / "study")
        command, log = make_command(args, part, max(1.0, seconds - END)), args.output / f"{part}.log"
        print(f"{part}, {seconds:.0f} s: python {shlex.join(command)}", flush=True)
        code = run(command, log, seconds)
        record = {
            "part": part,
            "command": shlex.join(["python", *command]),
            "seconds": round(time.monotonic() - start, 1),
            "seconds_allowed": round(seconds, 1),
            "code": code,
            "rows": [*get_rows(args, part, log)],
        }
        records.append(record)
        with open(args.output / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    for record in records:
        state = {0: "done", None: "the time was up"}.get(record["code"], f"exit code {record['code']}")
        print(f"\n{record['part']}: {state} after {record['seconds']} s")
        print("\n".join(f"    {row}" for row in record["rows"]))
    return records


if __name__ == "__main__":
    if any(record["code"] for record in main()):
        sys.exit("Some parts failed: see their logs.")
