# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""BatchNorm's statistics are recomputed, and nothing else changes."""

import pytest
import torch
from helpers.tiny import largest_difference, parameters_of, state_of, tiny_images, tiny_model
from torch import nn

from hf_gradaug import export_subnetwork, make_slimmable, recalibrate_batchnorm


def batches(*lengths):
    """Batches whose images differ in mean and scale from batch to batch."""
    return [
        {"pixel_values": (1 + seed) * tiny_images(length, seed=seed) + 3 * seed} for seed, length in enumerate(lengths)
    ]


def first_batchnorm(model):
    return next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def inputs_of_first_batchnorm(model, data):
    """(channels, positions) for each batch, in float64."""
    seen = []
    hook = first_batchnorm(model).register_forward_pre_hook(lambda module, args: seen.append(args[0].double()))
    with torch.no_grad():
        for batch in data:
            model(**batch)
    hook.remove()
    return [features.transpose(0, 1).flatten(1) for features in seen]


@pytest.mark.parametrize("lengths", [(4, 4, 4), (6, 4, 2)])
def test_statistics_of_the_first_layer(lengths):
    model, data = tiny_model("resnet-basic").eval(), batches(*lengths)
    features = inputs_of_first_batchnorm(model, data)
    assert recalibrate_batchnorm(model, data) == 12
    layer, every = first_batchnorm(model), torch.cat(features, dim=1)
    # The mean over all images, whatever the batches.
    torch.testing.assert_close(layer.running_mean.double(), every.mean(1), rtol=1e-5, atol=1e-6)
    # The mean of the variances within the batches, which leaves out that between their means.
    variances = [length / 12 * batch.var(1, unbiased=True) for length, batch in zip(lengths, features)]
    torch.testing.assert_close(layer.running_var.double(), sum(variances), rtol=1e-5, atol=1e-6)
    assert (sum(variances) < every.var(1)).all()
    assert layer.num_batches_tracked == 3


def test_one_batch_gives_the_outputs_of_train_mode():
    images = tiny_images(64)
    model = make_slimmable(tiny_model("resnet-basic").double().train())
    calibrated = export_subnetwork(model, 0.5, calibration_data=[{"pixel_values": images}])
    kept = export_subnetwork(model, 0.5)
    with torch.no_grad(), model.subnetwork(0.5):
        expected = model(pixel_values=images.double()).logits

    def error(network):
        with torch.no_grad():
            difference = network(pixel_values=images.double()).logits - expected
        return (difference.norm() / (expected - expected.mean(0)).norm()).item()

    # Running variances are unbiased and those of train mode are not: the last layers see 64 x 4 positions.
    assert error(calibrated) < 0.01
    assert error(kept) > 0.1


def test_nothing_else_changes():
    model = tiny_model("resnet-basic").train()
    model.resnet.embedder.eval()
    first_batchnorm(model).momentum = 0.3
    settings = [(module.training, getattr(module, "momentum", None)) for module in model.modules()]
    parameters, modes, gradients = parameters_of(model), {}, []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, args: modes.update({module: module.training}))
    model.register_forward_hook(lambda module, args, output: gradients.append(output.logits.requires_grad))
    recalibrate_batchnorm(model, batches(4, 4))
    assert largest_difference(parameters_of(model), parameters) == 0
    assert [(module.training, getattr(module, "momentum", None)) for module in model.modules()] == settings
    # Dropout and drop path would be off, as are all modules but BatchNorm.
    assert modes and all(training == isinstance(module, nn.BatchNorm2d) for module, training in modes.items())
    assert gradients == [False, False]


def no_more_after_one():
    yield batches(4)[0]
    raise OSError("no more")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "`calibration_data` must have one batch or more"),
        (
            [*batches(4), *batches(1)],
            ValueError,
            "`calibration_data` must have two or more images in each batch.*drop_last",
        ),
        ([{"images": tiny_images()}], ValueError, r"`calibration_data` .* one is the keys \['images'\]"),
        ([tiny_images()], ValueError, "`calibration_data` must be a dict with pixel_values .* one is a Tensor"),
        ([{"pixel_values": tiny_images()[0]}], ValueError, r"one is pixel_values of shape \(3, 32, 32\)"),
        (no_more_after_one(), OSError, "no more"),
    ],
)
def test_a_failure_leaves_the_model_as_it_was(data, error, message):
    model = tiny_model("resnet-basic").train()
    before, momentum = state_of(model), first_batchnorm(model).momentum
    with pytest.raises(error, match=message):
        recalibrate_batchnorm(model, data)
    assert largest_difference(state_of(model), before) == 0
    assert all(module.training for module in model.modules())
    assert first_batchnorm(model).momentum == momentum


def test_without_batchnorm_the_data_is_not_read():
    def data():
        raise AssertionError("read")
        yield

    model = tiny_model("convnext")
    before = state_of(model)
    assert recalibrate_batchnorm(model, data()) == 0
    assert largest_difference(state_of(model), before) == 0


def test_batches_come_to_the_models_dtype():
    model = tiny_model("resnet-basic").to(torch.bfloat16)
    assert recalibrate_batchnorm(model, batches(4)) == 4
    assert first_batchnorm(model).running_mean.isfinite().all()
