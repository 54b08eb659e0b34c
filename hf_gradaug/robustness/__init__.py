# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Robustness of classifiers: accuracy under FGSM attacks and under the corruptions of ImageNet-C."""

from .evaluate import corrupt_image, evaluate_robustness
from .pixel_classifier import PixelClassifier
from .plot import plot_robustness
from .results import RobustnessResults, mean_corruption_error
from .settings import CORRUPTIONS, SEVERITIES, Condition, RobustnessSettings


__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "Condition",
    "PixelClassifier",
    "RobustnessResults",
    "RobustnessSettings",
    "corrupt_image",
    "evaluate_robustness",
    "mean_corruption_error",
    "plot_robustness",
]
