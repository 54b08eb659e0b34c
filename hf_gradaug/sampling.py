# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Draws of an optimizer step, and of an example's augmentation.

They are functions of the seed and of the step, or of the epoch and the example, and of nothing else. So each rank and each
micro-batch of a step draws the same, a resumed run draws what the uninterrupted one would have, with any number of
data-loading workers, and there is no state to save.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch


def step_generator(seed: int, step: int, index: int = 0) -> torch.Generator:
    """
    A fresh CPU generator for one stream of draws in one optimizer step.

    Args:
        seed (`int`):
            The run's seed, 0 or more.
        step (`int`):
            Index of the optimizer step, 0 or more.
        index (`int`, *optional*, defaults to `0`):
            Which stream of the step: 0 for the sub-networks, i for the transformation of sub-network i.

    Returns:
        `torch.Generator`: Independent of every other `(seed, step, index)` and of PyTorch's global generator.
    """
    # Neighbouring seeds must not give related streams: SeedSequence mixes the three numbers.
    return torch.Generator().manual_seed(_to_seed(np.random.SeedSequence((seed, step, index))))


def example_seed(*numbers: int) -> int:
    """
    Seed of what is random about one example in one epoch, or about one batch.

    Args:
        *numbers (`int`):
            What identifies it, each 0 or more: the run's seed, the epoch, the example's place in the data.

    Returns:
        `int`: In [0, 2^63), unrelated to that of any other numbers and to the draws of [`step_generator`].
    """
    # The length too: SeedSequence pads with zeros.
    return _to_seed(np.random.SeedSequence(numbers, spawn_key=(len(numbers),)))


def _to_seed(sequence: np.random.SeedSequence) -> int:
    (mixed,) = sequence.generate_state(1, np.uint64)
    return int(mixed >> np.uint64(1))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """
    Inside, what draws from PyTorch's global CPU generator draws from a generator with this seed. Outside, it goes on as if
    nothing had been drawn.

    It is for code that takes no generator, such as torchvision's transforms.

    Args:
        seed (`int`):
            In [0, 2^63).
    """
    state = torch.get_rng_state()
    # `torch.manual_seed` would look for the generators of all devices, 80 times as long.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def draw_widths(
    num_subnetworks: int, min_width: float, generator: torch.Generator, choices: Sequence[float] | None = None
) -> list[float]:
    """
    Width multipliers of a step's sub-networks by the sandwich rule (paper, section 3).

    Args:
        num_subnetworks (`int`):
            How many, 0 or more.
        min_width (`float`):
            The smallest width multiplier, in (0, 1]. One sub-network always has it.
        generator (`torch.Generator`):
            Source of the others, uniform in [`min_width`, 1].
        choices (`Sequence[float]`, *optional*):
            Width multipliers to draw the others from, instead of the interval.

    Returns:
        `list[float]`: `num_subnetworks` width multipliers, widest first.
    """
    if num_subnetworks == 0:
        return []
    if choices is None:
        drawn = torch.rand(num_subnetworks - 1, generator=generator, dtype=torch.float64)
        others = (min_width + (1 - min_width) * drawn).tolist()
    else:
        drawn = torch.randint(len(choices), (num_subnetworks - 1,), generator=generator)
        others = [choices[index] for index in drawn.tolist()]
    return sorted(others, reverse=True) + [min_width]


def survival_probabilities(num_blocks: int, min_survival: float) -> list[float]:
    """
    How likely a sub-network keeps each residual block: from 1 for the first falling linearly to `min_survival` for the last.

    So it is in the authors' code. Stochastic depth (Huang et al. 2016, arXiv 1603.09382) takes a first step down before the
    first block.

    Args:
        num_blocks (`int`):
            Residual blocks of the full network, over all stages.
        min_survival (`float`):
            The last block's probability, in (0, 1].

    Returns:
        `list[float]`: One for each block.
    """
    steps = max(num_blocks - 1, 1)
    return [1 - (1 - min_survival) * block / steps for block in range(num_blocks)]


def draw_blocks(depths: Sequence[int], min_survival: float, generator: torch.Generator) -> tuple[tuple[int, ...], ...]:
    """
    The residual blocks that a sub-network keeps.

    Each is kept with its probability of survival, by itself. The first block of a stage, which may change size and channels,
    is kept always. There is no counterpart of the sandwich rule, as there is none in the authors' code.

    Args:
        depths (`Sequence[int]`):
            Numbers of residual blocks of the full network, by stage.
        min_survival (`float`):
            See [`survival_probabilities`].
        generator (`torch.Generator`):
            Source of the draws.

    Returns:
        `tuple[tuple[int, ...], ...]`: For each stage, the indices of the blocks that are kept, ascending.
    """
    probabilities = survival_probabilities(sum(depths), min_survival)
    drawn = torch.rand(sum(depths), generator=generator, dtype=torch.float64).tolist()
    survives = iter([value < probability for value, probability in zip(drawn, probabilities)])
    return tuple(tuple(block for block in range(depth) if next(survives) or block == 0) for depth in depths)
