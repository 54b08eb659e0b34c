# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Odd uses of sub-networks: whatever happens between and inside of passes, detached ones compute what views do."""

import copy
import gc
import weakref

import pytest
import torch
from helpers.families import family_model
from helpers.tiny import largest_difference, randomize, tiny_config, tiny_images, tiny_model
from torch import nn
from transformers import ResNetForImageClassification

from hf_gradaug import make_slimmable


WIDTHS = (0.5, 0.75, 1.0)


def pair(family="resnet-basic"):
    """The same model twice, for views and for detached passes."""
    return [make_slimmable(tiny_model(family).double().train()) for _ in range(2)]


def loss_of(model, seed=0):
    images = tiny_images(seed=seed).to(next(model.parameters()).dtype)
    return model(pixel_values=images).logits.square().sum()


def step(model, detached, widths=WIDTHS, seed=0):
    for width in widths:
        with model.subnetwork(width, detached=detached):
            loss_of(model, seed).backward()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def both(change, family="resnet-basic"):
    """Gradients after steps before and after a change of the model."""
    models, found = pair(family), []
    for model, detached in zip(models, (False, True)):
        step(model, detached)
        change(model)
        step(model, detached, seed=1)
        found.append(gradients(model))
    assert largest_difference(*found) < 1e-10
    return models, found[1]


def _to_float(model):
    model.float().double()
    model.zero_grad()


def _replace_data(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data * 0.9 + 0.01  # as an average of weights swaps them


def _assign(model):
    model.load_state_dict({name: tensor * 0.9 for name, tensor in model.state_dict().items()}, assign=True)


def _replace_a_parameter(model):
    model.classifier[1].weight = nn.Parameter(model.classifier[1].weight.detach() * 2)


def _replace_a_module(model):
    head = model.classifier[1]
    model.classifier[1] = copy.deepcopy(head)
    model.classifier[1].weight.data.mul_(2)


def _freeze(model):
    model.resnet.embedder.requires_grad_(False)


def _zero_in_place(model):
    for parameter in model.parameters():
        parameter.grad.zero_()


def _other_memory_format(model):
    model.to(memory_format=torch.channels_last)


def _gradients_of_other_strides(model):
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.grad = parameter.grad.contiguous(memory_format=torch.channels_last)


def _part_in_eval_mode(model):
    model.resnet.encoder.stages[0].eval()


@pytest.mark.parametrize(
    "change",
    [
        _to_float, _replace_data, _assign, _replace_a_parameter, _replace_a_module, _freeze, _zero_in_place,
        _other_memory_format, _gradients_of_other_strides, _part_in_eval_mode,
    ],
)  # fmt: skip
def test_follows_the_model(change):
    both(change)


def test_layers_that_thaw():
    models = pair()
    for model, detached in zip(models, (False, True)):
        _freeze(model)
        step(model, detached)
        assert all(parameter.grad is None for parameter in model.resnet.embedder.parameters())
        model.requires_grad_(True)
        step(model, detached)
    assert largest_difference(*map(gradients, models)) < 1e-10


def test_two_models_in_turns():
    views, first = pair()
    other = make_slimmable(randomize(tiny_model("resnet-basic"), seed=5).double().train())
    for width in WIDTHS:
        step(views, False, [width])
        step(first, True, [width])
        step(other, True, [width])
    assert largest_difference(gradients(views), gradients(first)) < 1e-10


def test_two_forwards_a_joint_backward_and_nested_blocks():
    def run(model, detached):
        with model.subnetwork(0.5, detached=detached):
            first = loss_of(model)
            second = loss_of(model, seed=1)
            with model.subnetwork(0.75, detached=detached):
                inner = loss_of(model)
                with model.subnetwork(0.5, detached=detached):
                    same = loss_of(model, seed=2)
            last = loss_of(model, seed=3)
        (first + second * inner + same + last).backward()  # outside of the blocks
        return gradients(model)

    assert largest_difference(*(run(model, detached) for model, detached in zip(pair(), (False, True)))) < 1e-7


def test_an_error_in_a_pass():
    models = pair()
    for model, detached in zip(models, (False, True)):
        with pytest.raises(ZeroDivisionError), model.subnetwork(0.5, detached=detached):
            loss_of(model)
            1 / 0  # noqa: B018
        with pytest.raises(ValueError), model.subnetwork(0.5, detached=detached):
            model(pixel_values=torch.zeros(1, 2, 8, 8).double())
        step(model, detached)
        for width in WIDTHS:
            assert all(tensor.is_meta for tensor in model.subnetwork(width).skeleton.state_dict().values())
    assert largest_difference(*map(gradients, models)) < 1e-10


def test_a_weight_that_changes_before_the_backward_is_an_error():
    _, model = pair()
    with model.subnetwork(1.0, detached=True):
        loss = loss_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_by_autograd_grad_in_the_default_mode():
    model, _ = pair()
    with model.subnetwork(0.5):
        loss = loss_of(model)
    found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    loss.backward()
    assert all(torch.equal(gradient, parameter.grad) for gradient, parameter in zip(found, model.parameters()))


def test_the_gradient_of_the_images_adds_nothing_to_the_weights():
    _, model = pair()
    images = tiny_images().double().requires_grad_()
    with model.subnetwork(0.5, detached=True):
        (found,) = torch.autograd.grad(model(pixel_values=images).logits.sum(), images)
    assert found.abs().sum() > 0 and not gradients(model)


def test_tied_parameters():
    def tie(model):
        layers = model.convnext.encoder.stages[1].layers
        layers[1].pwconv1.weight = layers[0].pwconv1.weight
        return make_slimmable(model)

    models = [tie(tiny_model("convnext").double().train()) for _ in range(2)]
    for model, detached in zip(models, (False, True)):
        step(model, detached)
    assert len(list(models[0].parameters())) < len(list(tiny_model("convnext").parameters()))
    assert largest_difference(*map(gradients, models)) < 1e-10


@pytest.mark.parametrize("family", ["resnet-basic", "convnext"])
@pytest.mark.parametrize("cache_enabled", [True, False])
def test_autocast(family, cache_enabled):
    """Weights are cast once, as autocast does it: the gradients are those of independent narrower models to the bit."""
    models = [make_slimmable(tiny_model(family).train()) for _ in range(2)]
    for model, detached in zip(models, (False, True)):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache_enabled):
            for width in (0.5, 0.75):
                with model.subnetwork(width, detached=detached) as skeleton:
                    loss_of(model).backward()
                    dtypes = {p.dtype for name, p in skeleton.named_parameters() if "conv" in name and p.ndim == 4}
                    assert dtypes == ({torch.bfloat16} if detached and cache_enabled else {torch.float32})
    left, right = map(gradients, models)
    assert all(gradient.dtype == torch.float32 for gradient in right.values())
    assert largest_difference(left, right) == 0


@pytest.mark.parametrize("family", ["swin", "dinov2", "hgnet_v2"])
def test_parts_under_autocast(family):
    models = [make_slimmable(family_model(family).train()) for _ in range(2)]
    size = models[0].config.image_size if hasattr(models[0].config, "image_size") else 64
    for model, detached in zip(models, (False, True)):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16), model.subnetwork(0.6, detached=detached):
            model(pixel_values=tiny_images(size=size)).logits.square().sum().backward()
    left, right = map(gradients, models)
    scale = max(tensor.abs().max() for tensor in left.values())
    assert largest_difference(left, right) <= 1e-2 * scale


def test_a_model_is_freed_at_once():
    _, model = pair()
    step(model, True)
    step(model, False)
    references = [weakref.ref(model), *(weakref.ref(parameter) for parameter in model.parameters())]
    gc.disable()
    try:
        del model
        assert not any(reference() is not None for reference in references)
    finally:
        gc.enable()


def test_a_model_that_moves_leaves_no_view_behind():
    _, model = pair()
    step(model, True)
    storages = [weakref.ref(parameter.untyped_storage()) for parameter in model.parameters()]
    model.float()
    model.zero_grad()
    assert not any(storage() is not None for storage in storages)


class NormalizingResNet(ResNetForImageClassification):
    """Has a tensor that is neither a parameter nor a buffer."""

    def __init__(self, config):
        super().__init__(config)
        self.resnet.mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
        self.num_calls = torch.zeros(())

    def forward(self, pixel_values, labels=None):
        self.num_calls += 1
        return super().forward(pixel_values - self.resnet.mean.to(pixel_values), labels)


class KeepsFeatures(ResNetForImageClassification):
    """Keeps what a user wants to look at later."""

    def __init__(self, config):
        super().__init__(config)
        self.logits = None

    def forward(self, pixel_values, labels=None):
        outputs = super().forward(pixel_values, labels)
        self.logits, self.features = outputs.logits, [outputs.logits]
        return outputs


@pytest.mark.parametrize("kept_blocks", [None, ((0,), (0,), (0,))])
def test_what_a_forward_keeps_is_freed_with_the_pass(kept_blocks):
    model = make_slimmable(KeepsFeatures(tiny_config("resnet-basic")))
    full = model(tiny_images()).logits
    for _ in range(2):
        with model.subnetwork(1.0, 1, kept_blocks) as skeleton:
            assert not hasattr(skeleton, "features")
            logits = model(tiny_images()).logits
            assert torch.equal(skeleton.logits, logits)
        assert skeleton.logits is None and not hasattr(skeleton, "features")
        copy.deepcopy(skeleton)  # as the checks of an image size do
    assert model.logits is full


@pytest.mark.parametrize("kept_blocks", [None, ((0,), (0,), (0,))])
def test_tensors_that_are_attributes_are_the_models_of_the_moment(kept_blocks):
    plain, model = (
        randomize(kind(tiny_config("resnet-basic"))) for kind in (ResNetForImageClassification, NormalizingResNet)
    )
    for each in (plain, model):
        make_slimmable(each.eval())
    for mean in (model.resnet.mean, torch.ones(3, 1, 1)):
        model.resnet.mean = mean
        with torch.no_grad(), plain.subnetwork(0.5, 1, kept_blocks), model.subnetwork(0.5, 1, kept_blocks):
            expected = plain(tiny_images() - mean).logits
            assert torch.equal(model(tiny_images()).logits, expected)
    assert model.num_calls == 0  # the sub-networks count their own calls
