# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Exports, recalibrates and measures sub-networks, and converts the authors' checkpoints."""

from .. import models  # noqa: F401  registers them with the Auto classes, for `load_classifier`
from .calibration import recalibrate_batchnorm
from .conversion import convert_authors_checkpoint, to_authors_state_dict
from .loading import load_classifier
from .subnetworks import create_subnetwork_card, export_subnetwork
from .width_curve import evaluate_widths, export_widths, format_widths, plot_widths


__all__ = [
    "convert_authors_checkpoint",
    "create_subnetwork_card",
    "evaluate_widths",
    "export_subnetwork",
    "export_widths",
    "format_widths",
    "load_classifier",
    "plot_widths",
    "recalibrate_batchnorm",
    "to_authors_state_dict",
]
