# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Draws depend on seed and step alone, and are as distributed as they should be."""

import pytest
import torch

from hf_gradaug.sampling import (
    draw_blocks,
    draw_widths,
    example_seed,
    seeded,
    step_generator,
    survival_probabilities,
)


def draws(seed, step, index=0):
    return torch.rand(4, generator=step_generator(seed, step, index)).tolist()


def test_draws_are_a_function_of_seed_and_step():
    state = torch.get_rng_state()
    seen = {(seed, step, index): draws(seed, step, index) for seed in (0, 1) for step in (0, 1, 2) for index in (0, 1)}
    assert len({tuple(values) for values in seen.values()}) == len(seen)
    assert all(draws(*key) == values for key, values in seen.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_sandwich_rule_widest_first():
    for step in range(50):
        widths = draw_widths(4, 0.6, step_generator(7, step))
        assert len(widths) == 4
        assert widths[-1] == 0.6
        assert widths == sorted(widths, reverse=True)
        assert all(0.6 <= width <= 1 for width in widths)
    assert draw_widths(1, 0.9, step_generator(0, 0)) == [0.9]
    assert draw_widths(0, 0.9, step_generator(0, 0)) == []


def test_widths_are_uniform():
    drawn = torch.tensor([draw_widths(2, 0.9, step_generator(0, step))[0] for step in range(2000)])
    assert drawn.mean().item() == pytest.approx(0.95, abs=0.002)
    assert drawn.std().item() == pytest.approx(0.1 / 12**0.5, abs=0.002)


def test_example_seeds_differ_by_each_number():
    seeds = {
        example_seed(*place) for place in [(0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0, 0), (42, 3, 7)]
    }
    assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)
    assert example_seed(42, 3, 7) == example_seed(42, 3, 7) != step_generator(42, 3, 7).initial_seed()


def test_draws_inside_are_seeded_and_leave_no_trace():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(7):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(inside, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    torch.manual_seed(0)
    with pytest.raises(KeyError), seeded(7):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.rand(3), expected)


def test_widths_from_choices():
    choices = [0.8, 0.9, 1.0]
    drawn = [draw_widths(3, 0.5, step_generator(0, step), choices) for step in range(200)]
    assert all(widths == sorted(widths, reverse=True) and widths[-1] == 0.5 for widths in drawn)
    others = [width for widths in drawn for width in widths[:-1]]
    assert {choice: others.count(choice) for choice in choices} == pytest.approx(
        dict.fromkeys(choices, 400 / 3), rel=0.2
    )


def test_survival_falls_linearly():
    assert survival_probabilities(5, 0.5) == pytest.approx([1, 0.875, 0.75, 0.625, 0.5])
    assert survival_probabilities(3, 1.0) == [1, 1, 1]
    assert survival_probabilities(1, 0.5) == [1]


def test_blocks_survive_as_often_as_they_should():
    depths = [2, 3, 4]
    drawn = [draw_blocks(depths, 0.2, step_generator(0, step)) for step in range(3000)]
    assert all(len(kept) == 3 and list(blocks) == sorted(blocks) for kept in drawn for blocks in kept)
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    survives = {place: torch.tensor([float(place[1] in kept[place[0]]) for kept in drawn]) for place in places}
    for (stage, block), probability in zip(places, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], strict=True):
        expected = 1 if block == 0 else probability  # the first of a stage is kept always
        assert survives[stage, block].mean().item() == pytest.approx(expected, abs=0.03), (stage, block)
    # Each by itself: whether the last two are kept has nothing to do with one another.
    assert abs(torch.corrcoef(torch.stack([survives[2, 2], survives[2, 3]]))[0, 1]) < 0.06
