# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Robustness results: kept in a file while they are measured, summarized, and shown as a table."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..messages import last_part
from ..reporting.machine import describe_machine, describe_versions
from .settings import Condition, RobustnessSettings


# Of errors that add up to 0, rounding may leave more than that, but never as much as one image of a data set.
_LEAST_SUM = 1e-12


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], baseline_errors: Mapping[str, Sequence[float]] | None = None
) -> float | None:
    """
    The mean corruption error (Hendrycks and Dietterich 2019, arXiv 1903.12261).

    With a baseline, this is the mCE: the errors of each corruption, summed over its severities, are divided by the
    baseline's, and the ratios are averaged. Published figures use AlexNet as baseline. Without a baseline, this is the
    unnormalized mCE: the mean of the errors. The two can't be compared. For the relative mCE, subtract each model's
    error on clean images from its errors first.

    Args:
        errors (`Mapping[str, Sequence[float]]`):
            By corruption, the fraction of misclassified images at each severity.
        baseline_errors (`Mapping[str, Sequence[float]]`, *optional*):
            The same for the baseline.

    Returns:
        `float`, *optional*: The error, where the baseline's is 1. `None` if the baseline's sum for a corruption is not
        above 0.
    """
    sums = {name: sum(values) for name, values in errors.items()}
    if baseline_errors is None:
        return sum(sums.values()) / sum(map(len, errors.values()))
    baseline_sums = {name: sum(baseline_errors[name]) for name in sums}
    if min(baseline_sums.values()) < _LEAST_SUM:
        return None
    return sum(sums[name] / baseline_sums[name] for name in sums) / len(sums)


class RobustnessResults:
    """
    Accuracies of models by condition. Made by [`evaluate_robustness`].

    Args:
        settings ([`RobustnessSettings`]):
            The conditions.
        fingerprints (`Mapping[str, str]`):
            By model, a hash that identifies its weights, its preprocessing and the order of its classes.
        description (`Mapping[str, Any]`):
            Identifies the images and everything else that accuracies depend on, except model and condition.
        baseline (`str`, *optional*):
            The model whose errors divide all errors.
        path (`str` or `os.PathLike`, *optional*):
            A JSON file, written after each condition. Accuracies that it already holds are reused. The results of other
            models stay in the file, but its summary covers only the models of this run.
        device (`str`, *optional*, defaults to `"cpu"`):
            Type of the computing device, which is written to the file.

    Attributes:
        accuracy (`dict[str, dict[str, float]]`):
            By model and [`Condition.key`], the share of correctly classified images.

    Raises:
        `ValueError`: If the file is corrupt, or holds results of other images or of other weights of a model.
    """

    def __init__(
        self,
        settings: RobustnessSettings,
        fingerprints: Mapping[str, str],
        description: Mapping[str, Any],
        baseline: str | None = None,
        path: str | os.PathLike | None = None,
        device: str = "cpu",
    ):
        self.device = device
        self.settings = settings
        self.fingerprints = dict(fingerprints)
        self.description = dict(description)
        self.baseline = baseline
        self.path = None if path is None else Path(path)
        self.accuracy: dict[str, dict[str, float]] = {name: {} for name in fingerprints}
        self._others: dict[str, Any] = {}  # models of the file that this run is not about
        if self.path is not None and self.path.exists():
            self._take_over()

    def _take_over(self) -> None:
        try:
            stored = json.loads(self.path.read_text("utf-8"))
            settings, models = dict(stored["settings"]), dict(stored["models"])
            accuracy = {name: model["accuracy"] for name, model in models.items()}
            fingerprints = {name: model["fingerprint"] for name, model in models.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{self.path}' holds no robustness results: {type(error).__name__}: {error}") from error
        advice = "Name another folder, or remove the file."
        for key, value in self.description.items():
            if settings.get(key) != value:
                raise ValueError(
                    f"'{self.path}' holds results with {key} {settings.get(key)!r}, not {value!r}. {advice}"
                )
        for name, fingerprint in fingerprints.items():
            if name not in self.fingerprints:
                self._others[name] = models[name]
                continue
            if fingerprint != self.fingerprints[name]:
                raise ValueError(
                    f"'{self.path}' holds results of other weights, preprocessing or classes of '{name}'. {advice}"
                )
            self.accuracy[name].update(accuracy[name])

    def add(self, condition: Condition, accuracies: Mapping[str, float]) -> None:
        """
        Adds the accuracies under a condition, and writes the file.

        Args:
            condition ([`Condition`]): The condition.
            accuracies (`Mapping[str, float]`): By model.
        """
        for name, accuracy in accuracies.items():
            self.accuracy[name][condition.key] = accuracy
        self.save()

    def save(self) -> None:
        """Writes the file atomically."""
        if self.path is None:
            return
        models = {
            name: {"fingerprint": self.fingerprints[name], "accuracy": accuracy}
            for name, accuracy in self.accuracy.items()
        }
        packages = ["foolbox"]
        if self.settings.corruptions:
            packages.append("imagecorruptions-imaug")
        content = {
            "settings": self.description,
            "versions": describe_versions(*packages),
            "hardware": describe_machine(self.device),
            "conditions": asdict(self.settings),
            "baseline": self.baseline,
            "summary": self.summarize(),
            "models": {**self._others, **models},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".unfinished")
        unfinished.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        os.replace(unfinished, self.path)

    @property
    def labels(self) -> dict[str, str]:
        """Short names of the models: the last part of each path, if these differ."""
        last_parts = [last_part(name) for name in self.accuracy]
        return dict(zip(self.accuracy, last_parts if len(set(last_parts)) == len(last_parts) else self.accuracy))

    @property
    def is_complete(self) -> bool:
        """Whether every model was measured under every condition."""
        keys = {condition.key for condition in self.settings.conditions}
        return all(keys <= accuracy.keys() for accuracy in self.accuracy.values())

    def _errors(self, name: str, best: float = 1.0) -> dict[str, list[float]]:
        """Differences between the best accuracy and the accuracies under the corruptions."""
        return {
            corruption: [
                best - self.accuracy[name][Condition(corruption=corruption, severity=severity).key]
                for severity in self.settings.severities
            ]
            for corruption in self.settings.corruptions
        }

    def summarize(self) -> dict[str, dict[str, float | None]]:
        """
        Summarizes the accuracies.

        Returns:
            `dict[str, dict[str, float | None]]`: By model, `clean_accuracy`. With corruptions there is also
            `unnormalized_mce`. With a baseline there are `mce` and `relative_mce`, ratios to the baseline (see
            [`mean_corruption_error`]). Empty until every model is measured under every condition.
        """
        if not self.is_complete:
            return {}
        summary: dict[str, dict[str, float | None]] = {}
        clean = {name: accuracy[Condition().key] for name, accuracy in self.accuracy.items()}
        for name in self.accuracy:
            summary[name] = {"clean_accuracy": clean[name]}
            if not self.settings.corruptions:
                continue
            summary[name]["unnormalized_mce"] = mean_corruption_error(self._errors(name))
            if self.baseline is not None:
                summary[name]["mce"] = mean_corruption_error(self._errors(name), self._errors(self.baseline))
                summary[name]["relative_mce"] = mean_corruption_error(
                    self._errors(name, clean[name]), self._errors(self.baseline, clean[self.baseline])
                )
        return summary

    def format_table(self) -> str:
        """The results as text in percent: a column per model, a row per epsilon or corruption."""
        summary = self.summarize()
        rows = [("accuracy, %", [*self.labels.values()])]
        conditions = [Condition(), *(Condition(epsilon=epsilon) for epsilon in self.settings.epsilons)]
        for condition in conditions:
            label = "clean" if condition.epsilon is None else f"FGSM, {condition.epsilon:g}/255"
            rows.append((label, [_percent(accuracy[condition.key]) for accuracy in self.accuracy.values()]))
        errors = {name: self._errors(name) for name in self.accuracy}
        for corruption in self.settings.corruptions:
            means = [1 - sum(errors[name][corruption]) / len(self.settings.severities) for name in self.accuracy]
            rows.append((corruption.replace("_", " "), [_percent(mean) for mean in means]))
        titles = {
            "unnormalized_mce": "unnormalized mCE, %",
            "mce": f"mCE, % of {self.labels.get(self.baseline)}",
            "relative_mce": f"relative mCE, % of {self.labels.get(self.baseline)}",
        }
        for key, title in titles.items():
            if all(key in row for row in summary.values()):
                rows.append((title, [_percent(row[key]) for row in summary.values()]))
        align = ["left"] + ["right"] * len(self.labels)
        return tabulate(
            [[title, *cells] for title, cells in rows], tablefmt="plain", disable_numparse=True, colalign=align
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
