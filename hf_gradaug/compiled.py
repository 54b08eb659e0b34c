# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Sub-networks that `torch.compile` compiles too: the option `width_choices`."""

import torch

from .settings import GradAugSettings


def raise_recompile_limit(settings: GradAugSettings) -> None:
    """Raises the limits of `torch._dynamo`, which hold for the whole process, to a graph per width and image size."""
    # Dynamo gives up after 8 graphs of the same code. 8 more are left for other code.
    dynamo = torch._dynamo.config
    graphs = len({*settings.width_choices, settings.min_width}) * len(settings.scales) + 8
    dynamo.recompile_limit = max(dynamo.recompile_limit, graphs)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * graphs)
