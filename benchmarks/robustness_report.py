# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The table and the picture of the robustness of a study's models, from the results of robustness.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .study_report import Mean, Row, format_table, plot_points


def name_figures(keys: list[str]) -> dict[str, str]:
    """What is shown of the figures of a model, by their keys: accuracies, so that higher is better everywhere."""
    attacks = {key: f"FGSM, {float(key.removeprefix('fgsm/')):g}/255" for key in keys if key.startswith("fgsm/")}
    names = {"clean": "clean", **attacks, "corrupted": "under corruptions"}
    return {key: name for key, name in names.items() if key in keys}


def get_rows(summary: Mapping[str, Mapping[str, Any]], arms: Sequence[str], baseline: str) -> dict[str, list[Row]]:
    """By the name of a figure, a row an arm."""
    tables: dict[str, list[Row]] = {}
    for key, name in name_figures([*summary[baseline]]).items():
        tables[name] = []
        for arm in arms:
            values = summary[arm][key]["by_seed"]
            difference = None if arm == baseline else Mean.of(summary[f"{arm} - {baseline}"][key]["by_seed"])
            has_gradaug = arm.startswith("GradAug")  # the results have no settings, only names
            tables[name].append(Row(arm, None, arm == baseline, has_gradaug, len(values), Mean.of(values), difference))
    return tables


def make_table(tables: Mapping[str, list[Row]]) -> str:
    lines = []
    for rows in zip(*tables.values()):
        shown = [f" ({row.difference.show('+')})" if row.difference else "" for row in rows]
        lines.append([rows[0].arm, *(f"{100 * row.result.mean:.2f}{more}" for row, more in zip(rows, shown))])
    return format_table(["arm", *tables], lines)


def write_report(results: Mapping[str, Any], path: str | Path) -> str:
    """Writes NAME.md and NAME.png beside NAME.json; returns the text."""
    tables = get_rows(results["summary"], [*results["accuracy"]], results["baseline"])
    text = f"**{results['dataset']}**: accuracy, %, on the {results['split']} images\n\n{make_table(tables)}\n"
    Path(path).with_suffix(".md").write_text(text, "utf-8")
    plot_points(tables, f"{results['split']} accuracy, %", Path(path).with_suffix(".png"))
    return text
