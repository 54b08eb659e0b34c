# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Classes of models and data are compared by name where the names are the same, and by number where they can't be."""

import logging
import re

import pytest
from transformers import PreTrainedConfig

from hf_gradaug.data import check_class_names, get_class_names


# Of ImageNet's: in the folders, and by the Hub's and torchvision's lists.
WNIDS = ["n01440764", "n01443537", "n02012849", "n03126707"]
LONG = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane"]
SHORT = ["tench", "goldfish", "crane bird", "crane"]


@pytest.mark.parametrize(
    ("classes", "data", "number"),
    [
        (SHORT, WNIDS, 0),
        (SHORT, LONG, 0),
        (LONG, SHORT, 0),
        (SHORT, ["tench", "gold fish", "crane bird", "crane"], 1),
        (
            SHORT,
            ["tench", "goldfish", "crane", "crane2"],
            2,
        ),  # of one list, the name of a bird; of the other, a machine
        (LONG, ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane2"], 3),
    ],
)
def test_other_names_are_compared_by_number(classes, data, number, caplog):
    with caplog.at_level(logging.WARNING):
        check_class_names("resnet", classes, "imagenet", data)
    (record,) = caplog.records
    assert f"class {number} is '{classes[number]}' and '{data[number]}'" in record.message


@pytest.mark.parametrize("data", [SHORT, ["0", "1", "2", "3"], ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]])
def test_equal_names_and_mere_numbers_need_no_warning(data, caplog):
    with caplog.at_level(logging.WARNING):
        check_class_names("resnet", SHORT, "imagenet", data)
        check_class_names("resnet", data, "imagenet", SHORT)
    assert not caplog.records


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            ["goldfish", "tench", "crane bird", "crane"],
            "Class 0 of photos is 'goldfish', which is class 1 of 'resnet'",
        ),
        # By the alphabet, in which one class has another name.
        (["crane", "crane (bird)", "goldfish", "tench"], "Class 0 of photos is 'crane', which is class 3 of 'resnet'"),
        (["a", "b", "c"], "'resnet' has 4 classes, but photos has 3"),
    ],
)
def test_another_order_and_another_number_are_errors(data, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_class_names("resnet", SHORT, "photos", data)


def test_names_are_in_the_order_of_their_numbers():
    config = PreTrainedConfig(id2label={2: "owl", 0: "cat", 1: "dog"})
    assert get_class_names(config) == ["cat", "dog", "owl"]
