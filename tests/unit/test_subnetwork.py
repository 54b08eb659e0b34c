# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""A sub-network computes what an independently built narrower model does."""

import inspect

import pytest
import torch
from helpers.families import family_model, image_size
from helpers.tiny import FAMILIES, largest_difference, state_of, tiny_images, tiny_model
from torch import nn

from hf_gradaug import make_slimmable, narrow_config


WIDTHS = (0.3, 0.72, 0.9, 0.97)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_stays_what_it_is(family):
    model = tiny_model(family)
    plain_class = type(model)
    signature = inspect.signature(model.forward)
    parameters = dict(model.named_parameters())
    keys = list(model.state_dict())

    assert make_slimmable(model) is model
    assert make_slimmable(model) is model  # idempotent
    assert isinstance(model, plain_class)
    assert type(model).__name__ == plain_class.__name__
    assert str(type(model)) == str(plain_class)
    assert inspect.signature(model.forward) == signature
    assert inspect.signature(type(model).forward) == inspect.signature(plain_class.forward)
    assert list(model.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("divisor", [1, 8])
def test_equals_an_independent_narrower_model(family, training, divisor):
    model = make_slimmable(tiny_model(family).double().train(training))
    images, labels = tiny_images().double(), torch.tensor([0, 1, 2, 0])
    for width in WIDTHS:
        narrow = type(model).__mro__[2](narrow_config(model.config, width, divisor)).double().train(training)
        slices = {
            name: model.state_dict()[name][tuple(slice(length) for length in tensor.shape)].clone()
            for name, tensor in narrow.state_dict().items()
        }
        narrow.load_state_dict(slices)
        expected = narrow(pixel_values=images, labels=labels)
        expected.loss.backward()

        model.zero_grad()
        with model.subnetwork(width=width, width_divisor=divisor):
            outputs = model(pixel_values=images, labels=labels)
        outputs.loss.backward()
        torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-12)
        for (name, parameter), other in zip(model.named_parameters(), narrow.parameters()):
            inside = tuple(slice(length) for length in other.shape)
            torch.testing.assert_close(parameter.grad[inside], other.grad, rtol=0, atol=1e-10, msg=name)
            outside = parameter.grad.clone()
            outside[inside] = 0
            assert not outside.any(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_full_network_updates_running_statistics(family):
    model = make_slimmable(tiny_model(family).train())
    before = state_of(model)
    with model.subnetwork(width=0.9):
        model(pixel_values=tiny_images())
    with model.subnetwork(width=1.0):
        model(pixel_values=tiny_images())
    assert largest_difference(state_of(model), before) == 0
    model(pixel_values=tiny_images())
    has_statistics = any("running_mean" in name for name in before)
    assert (largest_difference(state_of(model), before) > 0) == has_statistics


def test_block_restores_the_full_network():
    model = make_slimmable(tiny_model("resnet-basic").eval())
    images = tiny_images()
    full = model(pixel_values=images).logits
    with pytest.raises(KeyError), model.subnetwork(width=0.5):
        raise KeyError
    assert torch.equal(model(pixel_values=images).logits, full)
    with pytest.raises(AttributeError), model.subnetwork(width=0.5):
        model(pixel_values=None)
    assert torch.equal(model(pixel_values=images).logits, full)


def test_nested_and_entered_again():
    model = make_slimmable(tiny_model("resnet-basic").eval())
    images = tiny_images()

    def run():
        return model(pixel_values=images).logits

    with model.subnetwork(width=0.5):
        half = run()
    with model.subnetwork(width=0.9):
        most = run()
    assert not torch.equal(half, most)

    outer = model.subnetwork(width=0.5)
    with outer:
        assert torch.equal(run(), half)
        with model.subnetwork(width=0.9):
            assert torch.equal(run(), most)
            with outer:
                assert torch.equal(run(), half)
            assert torch.equal(run(), most)
        assert torch.equal(run(), half)
    with outer:
        assert torch.equal(run(), half)
    assert not model.__dict__["_subnetworks"].active


def test_follows_weights_and_modes_of_the_moment():
    model = make_slimmable(tiny_model("resnet-basic").eval())
    images = tiny_images()
    with model.subnetwork(width=0.9), torch.no_grad():
        before = model(pixel_values=images).logits
        model.classifier[1].bias.add_(1)
        torch.testing.assert_close(model(pixel_values=images).logits, before + 1)
    model.train()
    with model.subnetwork(width=0.9), torch.no_grad():
        assert not torch.allclose(model(pixel_values=images).logits, before + 1)
    # A frozen backbone in eval mode below a head in train mode.
    model.resnet.eval().requires_grad_(False)
    with model.subnetwork(width=0.9):
        outputs = model(pixel_values=images)
        torch.testing.assert_close(outputs.logits, before + 1)
        outputs.logits.sum().backward()
    assert model.classifier[1].weight.grad is not None
    assert all(parameter.grad is None for parameter in model.resnet.parameters())


def test_gradient_checkpointing(swin):
    model = make_slimmable(swin().double().train())

    def gradients():
        model.zero_grad()
        with model.subnetwork(width=0.5):
            loss = model(pixel_values=tiny_images().double()).logits.square().sum()
            loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain, calls = gradients(), []
    for use_reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        for module in model.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                inner = module._gradient_checkpointing_func
                module._gradient_checkpointing_func = lambda *args, inner=inner: (calls.append(args), inner(*args))[1]
        calls.clear()
        assert largest_difference(gradients(), plain) < 1e-10
        assert calls  # the sub-network did checkpoint
    model.gradient_checkpointing_disable()
    calls.clear()
    assert largest_difference(gradients(), plain) == 0
    assert not calls


@pytest.mark.parametrize("detached", [False, True])
def test_checkpointed_blocks_behind_frozen_embeddings(detached):
    """Reentrant checkpoints need `enable_input_require_grads` there, which hooks the embeddings."""
    model = make_slimmable(family_model("vit").double().train())
    model.vit.embeddings.requires_grad_(False)

    def count(use_reentrant):
        model.zero_grad()
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        with model.subnetwork(0.5, detached=detached):
            model(pixel_values=tiny_images().double()).logits.square().sum().backward()
        return sum(parameter.grad is not None for parameter in model.parameters())

    expected, without = count(use_reentrant=False), count(use_reentrant=True)
    model.enable_input_require_grads()
    assert count(use_reentrant=True) == expected > without
    model.disable_input_require_grads()
    assert count(use_reentrant=True) == without


@pytest.mark.parametrize(("family", "width"), [("mobilevit", 0.9), ("hgnet_v2", 0.9), ("swin", 0.55)])
def test_parametrized_weights_have_the_parts_of_the_weights(family, width):
    plain = family_model(family)
    plain_class, layers = type(plain), (nn.Linear, nn.Conv2d)

    def build(config):
        model = plain_class(config)
        for module in list(model.modules()):
            if isinstance(module, layers):
                nn.utils.parametrizations.weight_norm(module)
        return model

    parametrized = build(plain.config)
    names = [name for name, module in plain.named_modules() if isinstance(module, layers)]
    with torch.no_grad():
        for name in names:
            weight = plain.get_submodule(name).weight
            parametrized.get_submodule(name).parametrizations.weight.original1.copy_(weight)
    make_slimmable(plain), make_slimmable(parametrized, build=build)
    images = tiny_images(size=image_size(family))
    with plain.subnetwork(width) as expected, parametrized.subnetwork(width) as found:
        plain(pixel_values=images), parametrized(pixel_values=images)
        for name in names:
            weight = expected.get_submodule(name).weight
            originals = found.get_submodule(name).parametrizations.weight._parameters
            assert torch.equal(originals["original1"], weight), name
            assert originals["original0"].numel() == len(weight)
