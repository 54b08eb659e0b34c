# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""WideResNet and PyramidNet: the published sizes, the authors' sub-networks, and models like those of transformers."""

import re
import sys

import pytest
import torch
from helpers.families import family_config, family_model
from helpers.images import make_image
from helpers.tiny import NUM_LABELS, largest_difference, parameters_of, tiny_images, tiny_trainer
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, Trainer, TrainingArguments, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hf_gradaug import (
    PyramidNetConfig,
    PyramidNetForImageClassification,
    WideResNetConfig,
    WideResNetForImageClassification,
    create_subnetwork_card,
    export_subnetwork,
    make_slimmable,
    narrow_config,
)
from hf_gradaug.data import make_image_processor


FAMILIES = ["wide_resnet", "pyramidnet"]
LABELS = torch.tensor([0, 1, 2, 0])


def new_model(family):
    return AutoModelForImageClassification.from_config(family_config(family))


def count_parameters(config, model_class):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


def test_parameter_counts_are_the_published_ones():
    assert count_parameters(WideResNetConfig(num_labels=100), WideResNetForImageClassification) == 36_536_884
    assert count_parameters(WideResNetConfig(num_labels=10), WideResNetForImageClassification) == 36_479_194
    assert count_parameters(PyramidNetConfig(num_labels=100), PyramidNetForImageClassification) == 26_844_952
    assert count_parameters(PyramidNetConfig(num_labels=10), PyramidNetForImageClassification) == 26_752_702


@pytest.mark.parametrize("width", [0.8, 0.83, 0.9, 0.97])
def test_sub_networks_have_the_authors_channel_counts(width):
    # Theirs: every count by itself, rounded half up. (Below 5 channels they round up more, which no count here is.)
    def authors(count):
        return int(count * width + 0.5)

    config = narrow_config(WideResNetConfig(), width)
    assert (config.embedding_size, config.hidden_sizes) == (authors(16), [authors(160), authors(320), authors(640)])

    planes, size = [], 16
    for _ in range(66):
        size += 240 / 66
        planes.append(round(size))
    config = narrow_config(PyramidNetConfig(), width)
    assert config.embedding_size == authors(16)
    assert config.layer_sizes == [(authors(count), authors(4 * count)) for count in planes]
    with torch.device("meta"):
        model = PyramidNetForImageClassification(config).pyramidnet
    layers = [layer for stage in model.stages for layer in stage]
    assert [tuple(layer.convolution3.weight.shape[1::-1]) for layer in layers] == config.layer_sizes


def test_counts_at_the_paper_width():
    config = narrow_config(WideResNetConfig(), 0.8)
    assert (config.embedding_size, config.hidden_sizes) == (13, [128, 256, 512])
    config = narrow_config(PyramidNetConfig(), 0.8)
    assert config.layer_sizes[:3] == [(16, 64), (18, 74), (22, 86)] and config.layer_sizes[-1] == (205, 819)


def normalize(images, weights, name):
    return F.batch_norm(images, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)


def wide_resnet_layer(images, weights, name, stride):
    out = F.relu(normalize(images, weights, f"{name}.normalization1"))
    shortcut = images
    if f"{name}.shortcut.weight" in weights:
        shortcut = F.conv2d(out, weights[f"{name}.shortcut.weight"], stride=stride)
    out = F.conv2d(out, weights[f"{name}.convolution1.weight"], stride=stride, padding=1)
    out = F.relu(normalize(out, weights, f"{name}.normalization2"))
    return shortcut + F.conv2d(out, weights[f"{name}.convolution2.weight"], padding=1)


def pyramidnet_layer(images, weights, name, stride):
    out = normalize(images, weights, f"{name}.normalization1")
    out = F.conv2d(out, weights[f"{name}.convolution1.weight"])
    out = F.relu(normalize(out, weights, f"{name}.normalization2"))
    out = F.conv2d(out, weights[f"{name}.convolution2.weight"], stride=stride, padding=1)
    out = F.relu(normalize(out, weights, f"{name}.normalization3"))
    out = F.conv2d(out, weights[f"{name}.convolution3.weight"])
    out = normalize(out, weights, f"{name}.normalization4")
    shortcut = F.avg_pool2d(images, 2, ceil_mode=True) if stride == 2 else images
    zeros = shortcut.new_zeros(len(out), out.shape[1] - shortcut.shape[1], *out.shape[2:])
    return out + torch.cat([shortcut, zeros], dim=1)


def reference_logits(family, weights, images):
    """The network in train mode, written out from the papers; it takes the names of the weights alone from ours."""
    if family == "wide_resnet":
        layer, out = wide_resnet_layer, F.conv2d(images, weights["wide_resnet.embedder.weight"], padding=1)
    else:
        layer, out = pyramidnet_layer, F.conv2d(images, weights["pyramidnet.embedder.0.weight"], padding=1)
        out = normalize(out, weights, "pyramidnet.embedder.1")
    for stage, depth in enumerate([2, 1, 1]):
        for i in range(depth):
            out = layer(out, weights, f"{family}.stages.{stage}.{i}", stride=2 if stage > 0 and i == 0 else 1)
    out = F.relu(normalize(out, weights, f"{family}.normalization")).mean((2, 3))
    return out @ weights["classifier.weight"].T + weights["classifier.bias"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, 28, 25])
def test_one_step_is_that_of_plain_pytorch(family, size):
    model, images = family_model(family).double().train(), tiny_images(size=size).double()
    weights = {name: parameter.requires_grad_() for name, parameter in parameters_of(model).items()}
    outputs = model(pixel_values=images, labels=LABELS)
    logits = reference_logits(family, weights, images)
    torch.testing.assert_close(outputs.logits, logits, rtol=0, atol=1e-10)
    loss = F.cross_entropy(logits, LABELS)
    torch.testing.assert_close(outputs.loss, loss, rtol=0, atol=1e-10)
    for parameters, value in ((list(model.parameters()), outputs.loss), (list(weights.values()), loss)):
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
        value.backward()
        optimizer.step()
    assert largest_difference(parameters_of(model), weights) < 1e-10


# In train mode, each of these shifts a whole channel, up to a normalization that takes its mean away again.
WITHOUT_EFFECT = re.compile(r"pyramidnet\.(embedder\.1|stages\.\d\.\d\.normalization[14])\.bias")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_moves_every_parameter_and_the_checkpoint_loads(tmp_path, family):
    torch.manual_seed(0)
    model = new_model(family)
    before = parameters_of(model)
    trainer = tiny_trainer(tmp_path / "out", model, min_width=0.8, max_steps=1)
    trainer.train()
    moved = {name for name, tensor in parameters_of(model).items() if (tensor - before[name]).abs().max() > 1e-7}
    assert before.keys() - moved == {name for name in before if WITHOUT_EFFECT.fullmatch(name)}

    trainer.save_model()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    images = tiny_images()
    assert type(loaded).__name__ == type(model).__name__ and loaded.config.auto_map.keys() == {
        "AutoConfig",
        "AutoModelForImageClassification",
    }
    assert torch.equal(loaded.eval()(images).logits, model.eval()(images).logits)
    body = AutoModel.from_pretrained(tmp_path / "out").eval()(images)
    torch.testing.assert_close(loaded.classifier(body.pooler_output), model(images).logits, rtol=0, atol=1e-6)
    make_image_processor(32, crop_pct=1.0).save_pretrained(tmp_path / "out")
    classify = pipeline("image-classification", model=str(tmp_path / "out"), device="cpu")
    assert len(classify(make_image(1, 0))) == NUM_LABELS
    trainer.create_model_card(tasks="image-classification")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trust_remote_code=True)" in card and "ordinary model of `transformers`" not in card


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_carries_its_code(tmp_path, family, monkeypatch):
    model = make_slimmable(family_model(family).eval())
    model.save_pretrained(tmp_path)
    expected = model(tiny_images()).logits
    monkeypatch.setitem(sys.modules, "hf_gradaug", None)  # importing it fails, as where it is not installed
    auto_map = AutoConfig.from_pretrained(tmp_path).auto_map
    theirs = get_class_from_dynamic_module(auto_map["AutoModelForImageClassification"], tmp_path)
    assert theirs.__module__.startswith("transformers_modules.")
    loaded = theirs.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tiny_images()).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_sub_network_carries_its_code(tmp_path, family):
    parent = family_model(family).eval()
    exported = export_subnetwork(parent, 0.8)
    exported.save_pretrained(tmp_path)
    images = tiny_images()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    with make_slimmable(parent).subnetwork(0.8):
        torch.testing.assert_close(loaded(images).logits, parent(images).logits)
    assert (tmp_path / f"modeling_{family}.py").is_file() and (tmp_path / f"configuration_{family}.py").is_file()
    card = create_subnetwork_card(exported, parent, 0.8)
    assert (
        'AutoModelForImageClassification.from_pretrained("path/to/this/folder", trust_remote_code=True)' in card.text
    )
    assert "auto_map" not in card.text


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_a_classifier_of_transformers(family):
    model, images = family_model(family).double().eval(), tiny_images().double()
    outputs = model(pixel_values=images, labels=LABELS, output_hidden_states=True)
    assert [tuple(state.shape[2:]) for state in outputs.hidden_states] == [(32, 32), (32, 32), (16, 16), (8, 8)]
    assert model(images).keys() == {"logits"}
    loss, logits = model(pixel_values=images, labels=LABELS, return_dict=False)
    assert torch.equal(loss, outputs.loss) and torch.equal(logits, outputs.logits)
    # The stock Trainer accumulates gradients by the number of images, so that the head has to heed it.
    summed = model(pixel_values=images, labels=LABELS, num_items_in_batch=torch.tensor(8)).loss
    torch.testing.assert_close(summed, loss / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_initialization_is_the_papers(family):
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(
        WideResNetConfig(hidden_sizes=[64, 96, 128], depths=[1, 1, 1])
        if family == "wide_resnet"
        else PyramidNetConfig(alpha=90, depths=[1, 1, 1])
    )
    large = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(large) > 3 and len(norms) > 3
    for module in large:
        fan_out = module.out_channels * module.kernel_size[0] ** 2
        assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    for module in norms:
        assert module.weight.eq(1).all() and module.bias.eq(0).all()
    bound = model.classifier.in_features**-0.5
    assert 0.9 * bound < model.classifier.weight.abs().max() <= bound
    assert model.classifier.bias.eq(0).all() == (family == "wide_resnet")


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (WideResNetConfig, {"depths": [1, 2]}, r"one number for each stage, but are \[160, 320, 640\] and \[1, 2\]"),
        (WideResNetConfig, {"depths": [], "hidden_sizes": []}, "one number for each stage"),
        (WideResNetConfig, {"depths": [4, 0, 4]}, r"`depths` must be 1 or more, but is \[4, 0, 4\]"),
        (WideResNetConfig, {"embedding_size": 0}, "`embedding_size` must be 1 or more, but is 0"),
        (PyramidNetConfig, {"alpha": -1}, "`alpha` must be 0 or more, but is -1"),
        (PyramidNetConfig, {"depths": [0]}, r"`depths` must be 1 or more for each stage, but is \[0\]"),
        (PyramidNetConfig, {"num_channels": 0}, "`num_channels` must be 1 or more, but is 0"),
        (PyramidNetConfig, {"depths": [2], "inner_sizes": [4, 5]}, "each of the 2 layers, .* but have 2 and None"),
        (
            PyramidNetConfig,
            {"depths": [2], "inner_sizes": [4, 5], "outer_sizes": [20, 16]},
            r"must not fall .* but are \[4, 5\] and \[20, 16\]",
        ),
    ],
)
def test_a_config_that_makes_no_network_is_refused(config_class, settings, message):
    with pytest.raises(StrictDataclassError, match=message):
        config_class(**settings)


def test_a_loaded_config_follows_another_alpha(tmp_path):
    PyramidNetConfig().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, alpha=48, depths=[2, 2, 2])
    assert config.layer_sizes == PyramidNetConfig(alpha=48, depths=[2, 2, 2]).layer_sizes != []


def test_the_stock_trainer_trains_it(tmp_path):
    trainer = tiny_trainer(tmp_path, new_model("wide_resnet"), cls=Trainer, args_cls=TrainingArguments, max_steps=1)
    assert trainer.train().global_step == 1
