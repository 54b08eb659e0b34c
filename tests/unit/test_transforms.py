# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Random scales and rotations of a batch."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import tiny_images

from hf_gradaug import Compose, GradAugSettings, RandomRotation, RandomScale
from hf_gradaug.sampling import step_generator
from hf_gradaug.transforms import random_transform, scaled_size


def sizes(transform, images, n=40):
    return {tuple(transform(images, step_generator(0, step)).shape[-2:]) for step in range(n)}


def test_the_default_scales_are_the_papers_sizes():
    for scale, side in zip((1, 6 / 7, 5 / 7, 4 / 7), (224, 192, 160, 128)):
        assert scaled_size((224, 224), scale) == (side, side)
    assert scaled_size((32, 48), 0.5) == (16, 24)
    assert scaled_size((3, 5), 0.01) == (1, 1)


def test_random_scale():
    images = tiny_images(size=21)
    transform = RandomScale([1, 5 / 7, 3 / 7])
    assert sizes(transform, images) == {(21, 21), (15, 15), (9, 9)}
    expected = F.interpolate(images, size=(9, 9), mode="bilinear", align_corners=True)
    assert torch.equal(RandomScale([3 / 7])(images, step_generator(0, 0)), expected)
    assert RandomScale([1.0])(images, step_generator(0, 0)) is images
    # Corners are aligned: they keep their values.
    assert torch.equal(expected[..., 0, 0], images[..., 0, 0])
    assert torch.equal(expected[..., -1, -1], images[..., -1, -1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_integers_are_scaled_and_rounded(dtype):
    """Models that normalize pixels themselves get uint8. On GPUs, PyTorch doesn't resize it."""
    images = (50 * tiny_images() + 128).clamp(0, 255).to(dtype)
    scaled = RandomScale([3 / 4])(images, step_generator(0, 0))
    expected = RandomScale([3 / 4])(images.float(), step_generator(0, 0))
    assert scaled.dtype == dtype and torch.equal(scaled.float(), expected.round())


def test_rotations_by_multiples_of_90_move_pixels():
    images = tiny_images()[..., :20]
    seen = {}
    for step in range(40):
        rotated = RandomRotation([0, 90, 180, 270])(images, step_generator(0, step))
        seen[tuple(rotated.flatten().tolist())] = rotated
    assert len(seen) == 4
    for rotated in seen.values():
        assert torch.equal(rotated.flatten().sort().values, images.flatten().sort().values)
    quarter = RandomRotation([90])(images, step_generator(0, 0))
    assert torch.equal(quarter[..., -1, 0], images[..., 0, 0])  # counter-clockwise: top left comes to bottom left
    assert torch.equal(RandomRotation([-90])(quarter, step_generator(0, 0)), images)


def test_other_rotations_agree_in_direction_and_keep_the_size():
    images = F.interpolate(tiny_images(size=4), scale_factor=8, mode="bilinear")
    near = RandomRotation([89.5])(images, step_generator(0, 0))
    assert near.shape == images.shape
    inner = (..., slice(10, 22), slice(10, 22))
    exact = RandomRotation([90])(images, step_generator(0, 0))
    opposite = RandomRotation([-90])(images, step_generator(0, 0))
    assert (near[inner] - exact[inner]).abs().mean() < 0.2 * (near[inner] - opposite[inner]).abs().mean()


def test_composition_and_own_callables():
    images = tiny_images()
    transform = Compose([RandomScale([0.5]), lambda images, generator: images + 1, RandomRotation([180])])
    expected = torch.rot90(RandomScale([0.5])(images, step_generator(0, 0)) + 1, 2, (-2, -1))
    assert torch.equal(transform(images, step_generator(0, 0)), expected)
    both = random_transform(scales=[1, 0.5], rotations=[0, 90])
    assert sizes(both, images) == {(32, 32), (16, 16)}
    assert random_transform([1.0])(images, step_generator(0, 0)) is images


@pytest.mark.parametrize("make", [RandomScale, lambda scales: GradAugSettings(scales=scales)])
@pytest.mark.parametrize("scales", [[], [0.0], [1.2], [0.5, -1], 0.5, None, ["a"], [math.nan]])
def test_scales_that_cannot_be(make, scales):
    wanted = f"`scales` must be a list of one or more numbers in (0, 1], but is {scales!r}."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        make(scales)


@pytest.mark.parametrize(
    ("name", "make"),
    [("angles", RandomRotation), ("rotations", lambda rotations: GradAugSettings(rotations=rotations))],
)
@pytest.mark.parametrize("angles", [[], ["a"], [math.nan], [90, math.inf], 90])
def test_angles_that_cannot_be(name, make, angles):
    wanted = f"`{name}` must be a list of one or more angles in degrees, but is {angles!r}."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        make(angles)
