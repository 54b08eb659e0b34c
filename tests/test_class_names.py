# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Classes of models and data are compared by name where the names are the same, and by number where they can't be."""

import logging

import pytest

from hf_gradaug.class_names import check_class_names


WNIDS, LONG, SHORT = (
    ["n01440764", "n01443537"],
    ["tench, Tinca tinca", "goldfish, Carassius auratus"],
    ["tench", "goldfish"],
)


@pytest.mark.parametrize("data", [WNIDS, LONG, ["tench", "gold fish"]])
def test_other_names_are_compared_by_number(data, caplog):
    with caplog.at_level(logging.WARNING):
        check_class_names("resnet", SHORT, "imagenet", data)
    (record,) = caplog.records
    number = 1 if data[0] == "tench" else 0
    assert f"class {number} is '{SHORT[number]}' and '{data[number]}'" in record.message


@pytest.mark.parametrize("data", [SHORT, ["0", "1"], ["LABEL_0", "LABEL_1"]])
def test_equal_names_and_mere_numbers_need_no_warning(data, caplog):
    with caplog.at_level(logging.WARNING):
        check_class_names("resnet", SHORT, "imagenet", data)
        check_class_names("resnet", data, "imagenet", SHORT)
    assert not caplog.records


def test_another_order_and_another_number_are_errors():
    with pytest.raises(
        ValueError, match="Class 0 of photos is 'goldfish', which is class 1 of 'resnet': give the data"
    ):
        check_class_names("resnet", SHORT, "photos", ["goldfish", "tench"])
    with pytest.raises(ValueError, match="'resnet' has 2 classes, but photos has 3"):
        check_class_names("resnet", SHORT, "photos", ["a", "b", "c"])
