# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Model cards, training curves, and the machine and versions behind the figures."""

from .figures import new_figure, show_percent, style_axes
from .machine import describe_machine, describe_versions, find_device
from .model_card import ModelCardMixin, is_hub_name
from .training_curves import plot_training_curves


__all__ = [
    "ModelCardMixin",
    "describe_machine",
    "describe_versions",
    "find_device",
    "is_hub_name",
    "new_figure",
    "plot_training_curves",
    "show_percent",
    "style_axes",
]
