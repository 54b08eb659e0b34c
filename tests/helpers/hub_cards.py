# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What the Hub demands of a model card's metadata, as far as its documentation and its answers tell."""

import re
from typing import Any

import yaml


NAME_ON_THE_HUB = r"(?!.*(\.\.|--))[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?"
TASKS = {"image-classification", "image-segmentation", "object-detection"}
LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-sa-4.0", "other"}


class CardError(ValueError):
    """What is wrong with a card."""


def parse_card(text: str) -> dict[str, Any]:
    """The metadata of a card; without any, an empty dict."""
    if not text.startswith("---\n"):
        return {}
    try:
        metadata = yaml.safe_load(text.split("---\n")[1])
    except yaml.YAMLError as error:
        raise CardError(str(error)) from error
    if not isinstance(metadata, dict):
        raise CardError("The metadata must be a mapping.")
    return metadata


def check_model_card(text: str) -> None:
    """Raises a `CardError` for metadata that a repository with a model may not have."""
    metadata = parse_card(text)
    for key in ("datasets", "base_model"):
        values = metadata.get(key) or []
        for number, value in enumerate([values] if isinstance(values, str) else values):
            if not isinstance(value, str) or not re.fullmatch(NAME_ON_THE_HUB, value):
                raise CardError(f'"{key}[{number}]" with value "{value}" is not valid.')
    for key, known in (("pipeline_tag", TASKS), ("license", LICENCES)):
        if metadata.get(key) not in {None, *known}:
            raise CardError(f'"{key}" must be one of {sorted(known)}.')
    for key in ("tags", "metrics"):
        if not all(isinstance(value, str) for value in metadata.get(key) or []):
            raise CardError(f'"{key}" must be an array of strings.')
    if "model-index" in metadata:
        _check_model_index(metadata["model-index"])


def _check_model_index(index: Any) -> None:
    if not isinstance(index, list) or not index:
        raise CardError('"model-index" must be an array with an entry.')
    for entry in index:
        if not isinstance(entry.get("name"), str) or not isinstance(entry.get("results"), list):
            raise CardError('"model-index" needs a name and an array of results.')
        for result in entry["results"]:
            names = [result.get("task", {}).get("type")]
            names += [result.get("dataset", {}).get(key) for key in ("type", "name")]
            names += [metric.get("type") for metric in result.get("metrics", [])]
            if not all(isinstance(name, str) and name for name in names):
                raise CardError(
                    '"model-index" needs the type of task, data set and metric, and the name of the data set.'
                )
            values = [metric.get("value") for metric in result.get("metrics", [])]
            if not values or not all(isinstance(value, (int, float, str)) for value in values):
                raise CardError('"model-index" needs metrics with values.')
