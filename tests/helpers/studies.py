# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Lines of results of a study that has not run."""

import json
from dataclasses import asdict

from benchmarks.grid import Cell, Grid
from benchmarks.study import Study


def fill(path, tmp_path, accuracies, split="predict", flops=None):
    """Lines of results of a study, by arm and candidate a list of accuracies by seed; arms in their order."""
    study = Study.read(path)
    grid = Grid(study, tmp_path / "results")
    for (arm, candidate), values in accuracies.items():
        for dataset in study.datasets:
            for seed, accuracy in zip(study.seeds, values):
                cell = Cell(dataset, arm, candidate, seed)
                metrics = {f"{split}_accuracy": accuracy, f"{split}_macro_f1": accuracy / 2}
                cost = {"seconds": 2.0, "flops": (flops or {}).get(arm, 1.0)}
                grid.lines[cell] = {**asdict(cell), **grid.origin(cell), "metrics": metrics, **cost}
    grid.results.parent.mkdir(exist_ok=True)
    grid.results.write_text("".join(json.dumps(item) + "\n" for item in grid.lines.values()))
    return grid
