# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Every supported family: a sub-network is a standard narrower model, and uses the right part of the full network."""

import re
import subprocess
import sys

import pytest
import torch
from helpers.dense import DENSE_TYPES
from helpers.families import FAMILIES, family_config, family_model, image_size, model_class
from helpers.tiny import TinyImages, largest_difference, parameters_of, tiny_images, tiny_trainer
from torch.nn import functional as F

from hf_gradaug import make_slimmable, narrow_config, subnetwork_state_dict, supported_model_types


LABELS = torch.tensor([0, 1, 2, 0])

# What a classification model has but doesn't use, and so the full network doesn't reach either.
UNUSED = {"dinov2": r"mask_token"}
# What it uses in vain: the class token alone leaves the last layer, and a softmax over one number is 1.
IN_VAIN = {"cvt": r"stages\.1\.layers\.1\..*convolution_projection_query\.", "swiftformer": r"attn\.w_g"}


def _matches(patterns: dict[str, str], family: str, name: str) -> bool:
    pattern = patterns.get(family.split("-")[0])
    return pattern is not None and re.search(pattern, name) is not None


def _images(family: str, batch_size: int = 4) -> torch.Tensor:
    return tiny_images(batch_size, size=image_size(family))


def _parts(family: str, name: str, shapes: dict[str, torch.Size]) -> dict[int, list[int]]:
    """Lengths of the parts of concatenated and fused dimensions, written down from the models' forwards."""
    shape = shapes[name]
    if family.startswith("swin") and name.endswith("downsample.reduction.weight"):
        return {1: [shape[1] // 4] * 4}
    if family in ("swin", "swin-positions") and ".downsample.norm." in name:
        return {0: [shape[0] // 4] * 4}
    if family.startswith("dinov2") and name == "classifier.weight":
        return {1: [shape[1] // 2] * 2}
    if ".mlp.weights_in." in name:  # in transformers 5.17, both halves of SwiGLU are one layer
        return {0: [shape[0] // 2] * 2}
    if family == "mobilevit" and name.endswith("fusion.convolution.weight"):
        return {1: [shape[1] // 2] * 2}
    if family == "hiera" and ".attn.qkv." in name:
        return {0: [shape[0] // 3] * 3}
    if family == "focalnet" and ".projection_in." in name:
        gates = 3 if ".stages.0." in name else 2
        return {0: [(shape[0] - gates) // 2] * 2 + [gates]}
    if family == "hgnet_v2" and name == "embedder.stem3.convolution.weight":
        return {1: [shape[1] // 2] * 2}
    if family == "hgnet_v2" and name.endswith("aggregation.0.convolution.weight"):
        layers = 2 if ".stages.0." in name else 3
        first = ".layers.0.conv1." if ".stages.1." in name else ".layers.0."
        middle = shapes[name.replace(".aggregation.0.", first)][0]
        return {1: [shape[1] - layers * middle] + [middle] * layers}
    return {}


def _expected_index(family: str, name: str, full: dict, narrow: dict) -> tuple[torch.Tensor, ...]:
    """For each dimension, which of the full network's entries a sub-network uses."""
    full_parts, narrow_parts = _parts(family, name, full), _parts(family, name, narrow)
    index = []
    for dim, (length, narrow_length) in enumerate(zip(full[name], narrow[name], strict=True)):
        parts = torch.arange(length).split(full_parts.get(dim, length))
        lengths = narrow_parts.get(dim, [narrow_length])
        index.append(torch.cat([part[:leading] for part, leading in zip(parts, lengths, strict=True)]))
    return torch.meshgrid(*index, indexing="ij") if index else ()


def _independent_model(family: str, model: torch.nn.Module, width: float, divisor: int = 1):
    """A narrower model that knows nothing of the full one, the expected entries copied in; and which those are."""
    narrow = model_class(family)(narrow_config(model.config, width, divisor)).to(next(model.parameters()).dtype)
    full = {name: tensor.shape for name, tensor in model.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in narrow.state_dict().items()}
    index = {name: _expected_index(family, name, full, shapes) for name in shapes}
    narrow.load_state_dict({name: tensor[index[name]] for name, tensor in model.state_dict().items()})
    return narrow.train(model.training), index


def test_all_supported_families_are_here():
    assert {family_config(family).model_type for family in FAMILIES} == set(supported_model_types()) - DENSE_TYPES


@pytest.mark.parametrize("family", FAMILIES)
def test_width_one_is_exact(family):
    for training in (True, False):
        plain, model = family_model(family).train(training), make_slimmable(family_model(family).train(training))
        expected = plain(pixel_values=_images(family), labels=LABELS)
        with model.subnetwork(width=1.0):
            outputs = model(pixel_values=_images(family), labels=LABELS)
        assert torch.equal(outputs.logits, expected.logits)
        assert torch.equal(outputs.loss, expected.loss)
        outputs.loss.backward()
        expected.loss.backward()
        for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert (parameter.grad is None) == (other.grad is None), name
            assert parameter.grad is None or torch.equal(parameter.grad, other.grad), name


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_an_independent_narrower_model(family):
    model = make_slimmable(family_model(family).double())
    images = _images(family).double()
    for width, divisor, training in ((0.3, 1, True), (0.6, 8, True), (0.9, 1, False)):
        narrow, index = _independent_model(family, model.train(training), width, divisor)
        expected = narrow(pixel_values=images, labels=LABELS)
        expected.loss.backward()
        gradients = {}
        for detached in (False, True):
            model.zero_grad()
            with model.subnetwork(width, divisor, detached=detached):
                outputs = model(pixel_values=images, labels=LABELS)
                outputs.loss.backward()
            torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-9, atol=1e-10)
            gradients[detached] = {name: parameter.grad for name, parameter in model.named_parameters()}
        for name, parameter in narrow.named_parameters():
            view, dense = gradients[False][name], gradients[True][name]
            assert (view is None) == (dense is None) == (parameter.grad is None) == _matches(UNUSED, family, name), (
                name
            )
            if view is not None:
                scattered = torch.zeros_like(view).index_put(index[name], parameter.grad)
                torch.testing.assert_close(view, scattered, rtol=1e-7, atol=1e-9, msg=name)
                torch.testing.assert_close(dense, scattered, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_has_the_expected_entries(family):
    model = family_model(family)
    with torch.no_grad():
        for tensor in model.state_dict().values():  # every entry tells its place, and no copy can hide behind another
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    narrow, _ = _independent_model(family, model, 0.6)
    config, state = subnetwork_state_dict(model, 0.6)
    assert config.to_dict() == narrow_config(model.config, 0.6).to_dict()
    assert config.id2label is not model.config.id2label
    assert state.keys() == narrow.state_dict().keys()
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(state[name], tensor), name
        assert state[name].is_contiguous()
        state[name].fill_(-1)
    assert largest_difference(model.state_dict(), before) == 0  # the copies are the caller's own


# Scales that depend on the width, and statistics over all weights or channels, see what lies outside of a sub-network.
SEES_ALL = {"cvt", "swiftformer", "bit", "convnextv2"}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SEES_ALL])
def test_full_network_without_the_rest_is_the_subnetwork(family, monkeypatch):
    # If all that a sub-network doesn't use is 0, the full network computes the same: its further channels stay 0. That
    # holds only if each column that is used meets the channel that it belongs to. It needs no knowledge of the layers.
    def scale(hidden, shape, weight=None, bias=None, eps=0.0):
        return hidden * weight + bias

    def scale_groups(hidden, groups, weight=None, bias=None, eps=0.0):
        return hidden * weight[:, None, None] + bias[:, None, None]

    monkeypatch.setattr(F, "layer_norm", scale)
    monkeypatch.setattr(F, "group_norm", scale_groups)
    for width in (0.4, 0.75):
        model = make_slimmable(family_model(family).double().eval())
        images = _images(family).double()
        with torch.no_grad(), model.subnetwork(width):
            expected = model(pixel_values=images).logits

        places = family_model(family).double()
        for tensor in places.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
        used = subnetwork_state_dict(places, width)[1]
        with torch.no_grad():
            assert not torch.allclose(model(pixel_values=images).logits, expected)
            for name, tensor in model.state_dict().items():
                outside = torch.ones(tensor.numel(), dtype=torch.bool)
                outside[used[name].flatten().long()] = False
                tensor[outside.view(tensor.shape)] = 0
            logits = model(pixel_values=images).logits
        torch.testing.assert_close(logits, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family):
    model = make_slimmable(family_model(family).double().eval())  # in train mode, BatchNorm hides what only shifts it
    outputs = model(pixel_values=_images(family).double(), labels=LABELS)
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == _matches(UNUSED, family, name), name
        assert parameter.grad is None or parameter.grad.any() != _matches(IN_VAIN, family, name), name


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_groups_stay_whole(family):
    model = make_slimmable(family_model(family))
    heads, groups = [], []
    for name, module in model.named_modules():
        heads += [(name, size) for size in ("head_dim", "attention_head_size", "key_dim") if hasattr(module, size)]
        if isinstance(module, torch.nn.GroupNorm) and module.num_groups > 1:
            groups.append((name, "num_channels", "num_groups"))
        if isinstance(module, torch.nn.Conv2d) and 1 < module.groups < module.in_channels:
            groups.append((name, "in_channels", "groups"))

    def channels(network):
        of_heads = [getattr(network.get_submodule(name), size) for name, size in heads]
        of_groups = [(vars(network.get_submodule(name)), count, number) for name, count, number in groups]
        return of_heads + [settings[count] / settings[number] for settings, count, number in of_groups]

    for width in (0.3, 0.75, 0.99):
        for divisor in (1, 8):
            skeleton = model.subnetwork(width, divisor).skeleton
            assert channels(skeleton) == channels(model)
            with torch.no_grad():
                skeleton.eval()(pixel_values=_images(family, 2).to("meta"))


@pytest.mark.parametrize("family", FAMILIES)
def test_training_step_moves_every_parameter(family, tmp_path):
    model = family_model(family)
    before = parameters_of(model)
    # Weight decay moves all that has a gradient, however small.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1)
    data = {"train_dataset": TinyImages(8, size=image_size(family)), "optimizers": (optimizer, None)}
    tiny_trainer(tmp_path, model, trainer_kwargs=data, max_steps=1, scales=[1.0], min_width=0.5).train()
    after = parameters_of(model)
    assert all(tensor.isfinite().all() for tensor in after.values())
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if _matches(UNUSED, family, name)}


LOADER = """
import sys
sys.modules["hf_gradaug"] = None  # an import of it raises ImportError
import torch
from transformers import AutoModelForImageClassification

for folder in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()  # ours carry their code
    images, logits = torch.load(folder + "/expected.pt")
    with torch.no_grad():
        # Where the loaded weights lie in memory decides which kernel multiplies them, and so about the last bits.
        assert torch.allclose(model(pixel_values=images).logits, logits, rtol=1e-5, atol=1e-6), folder
    print(type(model).__name__)
"""


@pytest.mark.slow
def test_checkpoints_load_without_this_package(tmp_path, subprocess_env):
    for family in FAMILIES:
        model = make_slimmable(family_model(family)).train()
        with model.subnetwork(0.6):
            model(pixel_values=_images(family), labels=LABELS).loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()
        model.eval().save_pretrained(tmp_path / family)
        with torch.no_grad():
            torch.save(
                (_images(family), model(pixel_values=_images(family)).logits), tmp_path / family / "expected.pt"
            )
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *(str(tmp_path / family) for family in FAMILIES)],
        env={**subprocess_env, "PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [model_class(family).__name__ for family in FAMILIES]
