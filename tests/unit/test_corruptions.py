# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The corruptions of ImageNet-C, their error, and the picture of it."""

import numpy as np
import pytest
import torch

from hf_gradaug import RobustnessResults, RobustnessSettings, corrupt_image, mean_corruption_error, plot_robustness
from hf_gradaug.robustness import CORRUPTIONS


@pytest.mark.slow
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_is_a_function_of_image_severity_and_seed(corruption):
    image = np.random.default_rng(0).integers(0, 256, (36, 32, 3), dtype=np.uint8)
    original = image.copy()
    np.random.seed(5)
    before = np.random.get_state()
    first = corrupt_image(image, corruption, 2, seed=7)
    np.testing.assert_equal(np.random.get_state(), before)  # the generator of others
    np.random.seed(6)
    torch.rand(1)
    assert np.array_equal(first, corrupt_image(image, corruption, 2, seed=7))
    assert np.array_equal(image, original)
    assert first.shape == image.shape and first.dtype == np.uint8
    assert not np.array_equal(first, image)
    assert not np.array_equal(first, corrupt_image(image, corruption, 5, seed=7))
    deterministic = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert np.array_equal(first, corrupt_image(image, corruption, 2, seed=8)) == (corruption in deterministic)


def test_corrupt_image_names_what_is_wrong():
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    for changes, message in (
        (
            {"corruption": "rain"},
            "`corruptions` must each be one of gaussian_noise, .*jpeg_compression, but one is 'rain'",
        ),
        ({"severity": 6}, r"`severities` must each be one of \[1, 2, 3, 4, 5\], but one is 6"),
        ({"image": image[:31]}, r"`image` must be .* 32 x 32 pixels or more, but is uint8 of shape \(31, 32, 3\)"),
        ({"image": image / 255}, "`image` must be uint8 .*, but is float64 of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            corrupt_image(**{"image": image, "corruption": "fog", "severity": 1, "seed": 0, **changes})


def test_mean_corruption_error():
    errors = {"fog": [0.1, 0.3], "snow": [0.2, 0.6]}
    assert mean_corruption_error(errors) == pytest.approx(0.3)
    assert mean_corruption_error(errors, {"fog": [0.2, 0.2], "snow": [0.4, 1.2]}) == pytest.approx((1 + 0.5) / 2)
    assert mean_corruption_error(errors, errors) == 1
    for nothing in ([0.0, 0.0], [0.1 + 0.2, -0.3], [0.1, -0.2]):  # the second sum is not 0, for rounding
        assert mean_corruption_error(errors, {"fog": nothing, "snow": [0.4, 0.4]}) is None


def test_summary():
    settings = RobustnessSettings(epsilons=[], corruptions=["fog", "snow"], severities=[1, 2])
    results = RobustnessResults(settings, {"a": "", "b": ""}, {}, baseline="b")
    a, b = [0.9, 0.8, 0.7, 0.6, 0.5], [0.8, 0.7, 0.5, 0.4, 0.2]  # clean, fog, snow
    for condition, *accuracies in zip(settings.conditions, a, b):
        assert results.summarize() == {}
        results.add(condition, dict(zip("ab", accuracies)))
    figures = results.summarize()["a"]
    assert figures.pop("clean_accuracy") == 0.9
    assert figures.pop("unnormalized_mce") == pytest.approx((0.2 + 0.3 + 0.4 + 0.5) / 4)
    assert figures.pop("mce") == pytest.approx(((0.2 + 0.3) / (0.3 + 0.5) + (0.4 + 0.5) / (0.6 + 0.8)) / 2)
    assert figures.pop("relative_mce") == pytest.approx(((0.1 + 0.2) / (0.1 + 0.3) + (0.3 + 0.4) / (0.4 + 0.6)) / 2)
    assert not figures


def test_picture(tmp_path):
    settings = RobustnessSettings(epsilons=[0, 8], corruptions=["fog"], severities=[1, 3])
    keys = [condition.key for condition in settings.conditions]
    runs = [dict.fromkeys(keys, share) for share in (0.5, 0.7)]
    plot_robustness({"one": runs[0], "several": runs}, settings, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="`settings` must have epsilons or corruptions"):
        plot_robustness({"one": runs[0]}, RobustnessSettings(epsilons=[], corruptions=[]), tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
