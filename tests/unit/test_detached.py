# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Sub-networks on detached copies of the weights, whose gradients are added to the parameters' in place."""

import pytest
import torch
from helpers.tiny import FAMILIES, largest_difference, parameters_of, randomize, tiny_images, tiny_model

from hf_gradaug import make_slimmable


def gradients(model, detached, steps=1):
    for _ in range(steps):
        for width in (0.75, 1.0):
            with model.subnetwork(width, detached=detached):
                loss = model(pixel_values=tiny_images().to(model.dtype)).logits.square().sum()
                loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_views(family, memory_format):
    def make():
        model = make_slimmable(tiny_model(family).double().train().to(memory_format=memory_format))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("stages.0" not in name)
        return model

    views, copies = make(), make()
    expected = gradients(views, detached=False, steps=2)
    found = gradients(copies, detached=True, steps=2)
    frozen = {name for name, gradient in expected.items() if gradient is None}
    assert frozen == {name for name, gradient in found.items() if gradient is None} != set()
    kept = expected.keys() - frozen
    assert largest_difference({n: found[n] for n in kept}, {n: expected[n] for n in kept}) < 1e-12
    assert largest_difference(parameters_of(copies), parameters_of(views)) == 0


def test_gradients_are_there_as_soon_as_backward_ends():
    model = make_slimmable(tiny_model())
    with model.subnetwork(0.5, detached=True):
        loss = model(pixel_values=tiny_images()).logits.sum()
    assert all(parameter.grad is None for parameter in model.parameters())
    loss.backward()
    weight = model.classifier.weight
    assert weight.grad.shape == weight.shape
    narrow = model.subnetwork(0.5).__enter__().classifier.in_features
    assert weight.grad[:, :narrow].abs().min() > 0 and weight.grad[:, narrow:].abs().max() == 0


def test_weights_are_dense_and_of_the_moment():
    model = make_slimmable(tiny_model("resnet-basic").to(memory_format=torch.channels_last))
    with model.subnetwork(0.5, detached=True) as skeleton:
        before = model(pixel_values=tiny_images()).logits
        weights = [weight for _, weight in skeleton.named_parameters() if weight.ndim == 4]
        assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        randomize(model, seed=1)
        after = model(pixel_values=tiny_images()).logits
    assert (before - after).abs().min() > 0
    with model.subnetwork(0.5):
        assert torch.equal(model(pixel_values=tiny_images()).logits, after)


def test_gradient_checkpointing(swin):
    plain, checkpointed = (make_slimmable(swin().double().train()) for _ in range(2))
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    assert largest_difference(gradients(plain, detached=False), gradients(checkpointed, detached=True)) < 1e-10


def test_no_gradient_is_no_graph():
    model = make_slimmable(tiny_model())
    with torch.no_grad(), model.subnetwork(0.5, detached=True):
        assert not model(pixel_values=tiny_images()).logits.requires_grad
