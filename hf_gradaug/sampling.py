# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Random draws for an optimizer step, and for an example's augmentation.

Each draw is a function of the seed and the step, or of the seed, the epoch and the example. So each process and each
micro-batch of a step draws the same. A resumed run draws what the uninterrupted run draws, with any number of
data-loading workers. No state is saved.
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
    Seed for the random parts of one example in one epoch, or of one batch.

    Args:
        *numbers (`int`):
            Numbers that identify it, each 0 or more: the run's seed, the epoch, the example's index.

    Returns:
        `int`: In [0, 2^63). It is independent of the seeds of other numbers, and of [`step_generator`].
    """
    # The length too: SeedSequence pads with zeros.
    return _to_seed(np.random.SeedSequence(numbers, spawn_key=(len(numbers),)))


def _to_seed(sequence: np.random.SeedSequence) -> int:
    (mixed,) = sequence.generate_state(1, np.uint64)
    return int(mixed >> np.uint64(1))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """
    Seeds PyTorch's global CPU generator inside the block, and restores its state afterwards.

    This serves code that takes no generator, such as torchvision's transforms.

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
    Probability that a sub-network keeps each residual block. It falls linearly from 1 to `min_survival`.

    This follows the authors' code. Stochastic depth (Huang et al. 2016, arXiv 1603.09382) starts one step below 1
    instead.

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

    Each block is kept independently, with its probability of survival. The first block of a stage is always kept,
    because it may change size and channels. There is no counterpart of the sandwich rule, as in the authors' code.

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
