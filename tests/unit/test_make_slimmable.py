# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What a slimmable model shows of its sub-networks, and which models can't be slimmable."""

import copy
import functools
import io
import logging
import pickle
import re
import types

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from helpers.families import FAMILIES, family_model, image_size
from helpers.tiny import largest_difference, randomize, tiny_config, tiny_images, tiny_model, tiny_trainer
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import prune
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

from hf_gradaug import export_subnetwork, make_slimmable


def state(model):
    return model.__dict__["_subnetworks"]


@pytest.mark.slow
def test_skeletons_are_cached_bounded_and_without_weights():
    model = make_slimmable(tiny_model("resnet-bottleneck"))
    assert model.subnetwork(0.9).skeleton is model.subnetwork(0.9).skeleton
    # Another width with the same channel counts is the same sub-network.
    assert model.subnetwork(0.9).skeleton is model.subnetwork(0.9001).skeleton
    for divisor in range(1, 10):
        for width in range(10, 100):
            model.subnetwork(width / 100, width_divisor=divisor)
    assert len(state(model).cache) <= state(model).cache_size
    with model.subnetwork(0.9) as skeleton:
        model(pixel_values=tiny_images())
        assert not any(parameter.is_meta for parameter in skeleton.parameters())
    for subnetwork in state(model).cache.values():
        assert all(tensor.is_meta for tensor in [*subnetwork.skeleton.parameters(), *subnetwork.skeleton.buffers()])


def test_a_changed_config_is_another_skeleton():
    model = make_slimmable(tiny_model())
    with model.subnetwork(0.9) as before:
        assert model(pixel_values=tiny_images()).hidden_states is None
    model.config.output_hidden_states = True
    with model.subnetwork(0.9) as after:
        assert model(pixel_values=tiny_images()).hidden_states is not None
    assert before is not after


def test_a_save_changes_no_skeleton(tmp_path):
    model = make_slimmable(tiny_model())
    before = model.subnetwork(0.9).skeleton
    model.save_pretrained(tmp_path)  # which writes into the config
    assert model.config.architectures is not None
    assert model.subnetwork(0.9).skeleton is before


def test_skeletons_show_nowhere(tmp_path):
    plain, model = tiny_model("resnet-basic").eval(), make_slimmable(tiny_model("resnet-basic").eval())
    images = tiny_images()
    with model.subnetwork(0.5):
        narrow = model(pixel_values=images).logits
    logits = model(pixel_values=images).logits

    assert [*model.state_dict()] == [*plain.state_dict()]
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert len([*model.parameters()]) == len([*plain.parameters()])

    copied = copy.deepcopy(model)
    assert torch.equal(copied(pixel_values=images).logits, logits)
    assert not state(copied).cache
    assert all(mine is not theirs for mine, theirs in zip(model.parameters(), copied.parameters()))
    with copied.subnetwork(0.5):
        assert torch.equal(copied(pixel_values=images).logits, narrow)

    pickled = pickle.dumps(model)
    assert b"hf_gradaug" not in pickled
    assert type(pickle.loads(pickled)) is type(plain)
    assert torch.equal(pickle.loads(pickled)(pixel_values=images).logits, logits)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert type(torch.load(buffer, weights_only=False)) is type(plain)

    plain.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "slimmable")
    names = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert sorted(path.name for path in (tmp_path / "slimmable").iterdir()) == names
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "slimmable" / name).read_bytes(), name
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "slimmable")
    assert torch.equal(loaded.eval()(pixel_values=images).logits, logits)


def test_copies_of_a_model_that_is_compiled_in_place_are_their_own():
    model = make_slimmable(tiny_model("resnet-basic").eval())
    images = tiny_images()
    logits = model(pixel_values=images).logits
    model.compile(backend="eager")
    assert torch.equal(model(pixel_values=images).logits, logits)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.classifier[1].bias.data.add_(1)  # as an average of weights differs from the model
        assert torch.allclose(copied(pixel_values=images).logits, logits + 1)
    assert torch.equal(model(pixel_values=images).logits, logits)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    model = tiny_model()
    torch.set_rng_state(before)
    make_slimmable(model).subnetwork(0.37)
    assert torch.equal(torch.get_rng_state(), before)


def _new_head(model):
    model.classifier[1] = nn.Linear(model.config.hidden_sizes[-1], 7)


def _added_layer(model):
    model.resnet.extra = nn.Linear(2, 2)


def _new_stem(model):
    model.resnet.embedder.embedder.convolution = nn.Conv2d(3, model.config.embedding_size, 3, bias=False)


def _new_activation(model):
    model.resnet.encoder.stages[0].layers[0].activation = nn.GELU()


def _new_stride(model):
    model.resnet.embedder.embedder.convolution.stride = (1, 1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_new_stride, "resnet.embedder.embedder.convolution"),
        (_new_head, "classifier.1.weight"),
        (_added_layer, "resnet.extra.weight"),
        (_new_stem, "resnet.embedder.embedder.convolution.weight"),
        (_new_activation, "resnet.encoder.stages.0.layers.0.activation"),
    ],
)
def test_a_changed_model_is_found_out_and_build_makes_it_work(change, name):
    def build(config):
        model = ResNetForImageClassification(config)
        change(model)
        return model

    model = randomize(build(tiny_config("resnet-basic")).eval())
    with pytest.raises(ValueError, match="`make_slimmable` or the trainer `build=...`") as error:
        make_slimmable(model)
    assert repr(name) in str(error.value)
    assert not hasattr(model, "subnetwork")

    make_slimmable(model, build=build)
    images = tiny_images()
    full = model(pixel_values=images).logits
    with model.subnetwork(1.0):
        assert torch.equal(model(pixel_values=images).logits, full)
    with model.subnetwork(0.5):
        narrow = model(pixel_values=images).logits
    assert narrow.shape == full.shape
    assert not torch.equal(narrow, full)
    with copy.deepcopy(model).subnetwork(0.5) as skeleton:
        assert skeleton.config.hidden_sizes == [4, 8, 12]


def _hook(model):
    model.classifier[1].register_forward_hook(lambda module, args, output: output * 0)


def _pre_hook(model):
    model.classifier[1].register_forward_pre_hook(lambda module, args: args[0] * 0)


def _patch(model):
    model.classifier[1].forward = types.MethodType(lambda self, inputs: inputs[:, :3] * 0, model.classifier[1])


@pytest.mark.parametrize("change", [_hook, _pre_hook, _patch])
def test_hooks_and_patches_of_inner_modules_are_told(change, caplog):
    def build(config):
        model = ResNetForImageClassification(config)
        change(model)
        return model

    images = tiny_images()
    model = randomize(build(tiny_config("resnet-basic")).eval())
    with caplog.at_level(logging.WARNING, "hf_gradaug"):
        make_slimmable(model)
    (warning,) = caplog.messages
    assert "without the forward hooks and patched `forward` of ['classifier.1']. If they" in warning
    full = model(pixel_values=images).logits
    with model.subnetwork(1.0):
        assert not torch.equal(model(pixel_values=images).logits, full)

    caplog.clear()
    model = randomize(build(tiny_config("resnet-basic")).eval())
    make_slimmable(model, build=build)
    assert not caplog.messages
    with model.subnetwork(1.0):
        assert torch.equal(model(pixel_values=images).logits, full)


def _backward_hook(model):
    model.classifier[1].register_full_backward_hook(lambda module, inputs, outputs: None)


def _backward_pre_hook(model):
    model.classifier[1].register_full_backward_pre_hook(lambda module, outputs: None)


def _attribute(model):
    model.logit_scale = 0.0


def _tensor(model):
    model.class_weights = torch.ones(3)


def _list(model):
    model.class_weights = [1.0, 2.0, 3.0]


class ScaledResNet(ResNetForImageClassification):
    class_weights = None

    def __init__(self, config):
        super().__init__(config)
        self.logit_scale = 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_backward_hook, "without the backward hooks of ['classifier.1']. If they"),
        (_backward_pre_hook, "without the backward hooks of ['classifier.1']. If they"),
        (
            _attribute,
            "don't have the model's values of ['logit_scale (0.0 in the model, 1.0 in a sub-network)']. If they",
        ),
        (_tensor, "['class_weights (a tensor in the model, None in a sub-network)']. If they"),
        (_list, "['class_weights ([1.0, 2.0, 3.0] in the model, None in a sub-network)']. If they"),
    ],
)
def test_backward_hooks_and_attributes_are_told(change, words, caplog):
    def build(config):
        model = ScaledResNet(config)
        change(model)
        return model

    make_slimmable(build(tiny_config("resnet-basic")).eval())
    (warning,) = caplog.messages
    assert words in warning
    caplog.clear()
    make_slimmable(build(tiny_config("resnet-basic")).eval(), build=build)
    assert not caplog.messages


def test_tags_of_the_model_card_are_not_told(caplog):
    model = tiny_model("resnet-basic")
    model.add_model_tags("vision")
    make_slimmable(model)
    assert not caplog.messages


def test_at_most_ten_hooks_are_told(caplog):
    model = tiny_model("resnet-basic")
    for module in model.modules():
        module.register_forward_hook(lambda *args: None)
    make_slimmable(model)
    (warning,) = caplog.messages
    assert re.search(r"patched `forward` of \['resnet', ('[\w.]+', ){9}\.\.\.\] \(\d\d in all\)\.", warning)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_hook_of_a_library_is_told(family, caplog):
    """transformers records hidden states and attentions with hooks, and Accelerate moves tensors in a `forward`."""
    model = family_model(family).eval()
    size = image_size(family)
    model(pixel_values=torch.zeros(1, 3, size, size), output_hidden_states=True)
    model.enable_input_require_grads()
    for module in list(model.modules())[1:]:
        add_hook_to_module(module, AlignDevicesHook())
    caplog.clear()
    make_slimmable(model)
    assert not caplog.messages


def test_a_forward_of_the_model_itself(tmp_path):
    """Sub-networks would silently be the full network, after a run in mixed precision too."""
    model = tiny_model()
    tiny_trainer(tmp_path, model, Trainer, TrainingArguments, bf16=True, max_steps=1).train()
    with pytest.raises(ValueError, match="`model` must have the `forward` of its class, but has a patched one"):
        make_slimmable(model)
    exported = export_subnetwork(model, 0.5)
    del model.forward
    with make_slimmable(model.eval()).subnetwork(0.5), torch.no_grad():
        expected = model(tiny_images()).logits
    assert torch.equal(exported(tiny_images()).logits, expected)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (nn.utils.weight_norm, "WeightNorm"),
        (nn.utils.spectral_norm, "SpectralNorm"),
        (lambda layer: prune.random_unstructured(layer, "weight", 0.5), "RandomUnstructured"),
    ],
)
def test_older_hooks_that_compute_weights(change, kind):
    def build(config, change=change):
        model = ResNetForImageClassification(config)
        change(model.classifier[1])
        return model

    model = build(tiny_config("resnet-basic"))
    with pytest.raises(
        ValueError, match=rf"`model` must .* hooks of \['{kind}'\] compute those of \['classifier.1'\]"
    ):
        make_slimmable(model, build=build)
    assert not hasattr(model, "subnetwork")
    build = functools.partial(build, change=nn.utils.parametrizations.weight_norm)  # as the error says
    model = make_slimmable(build(tiny_config("resnet-basic")), build=build)
    for _ in range(2):
        with model.subnetwork(0.5, detached=True) as skeleton:
            model(pixel_values=tiny_images()).logits.sum().backward()
        copy.deepcopy(skeleton)


def test_spectral_norm_has_sub_networks_of_full_width_alone(tmp_path):
    """Its vectors are of the whole weight: a slice of them gave weights of several times the norm."""

    def build(config):
        model = ResNetForImageClassification(config)
        nn.utils.parametrizations.spectral_norm(model.classifier[1])
        return model

    model = build(tiny_config("resnet-basic"))
    images = tiny_images()
    with make_slimmable(model.eval(), build=build).subnetwork(1.0), torch.no_grad():
        found = model(pixel_values=images).logits
    assert torch.equal(found, model(pixel_values=images).logits)
    message = r"no `spectral_norm` .* it computes those weights: \['classifier.1.parametrizations.weight.0'\]"
    with pytest.raises(ValueError, match=message):
        model.subnetwork(0.5)
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, model)


def test_a_model_changed_after_make_slimmable():
    model = make_slimmable(tiny_model("resnet-basic"))
    known = model.subnetwork(1.0)
    model.classifier[1] = nn.Linear(model.config.hidden_sizes[-1], 1)
    with pytest.raises(ValueError, match=r"'classifier.1.weight' has shape \(1, 24\).*Change the model first"), known:
        model(pixel_values=tiny_images())
    with pytest.raises(ValueError, match=r"'classifier.1.weight' is \(1, 24\) in the model, but \(3, 12\)"):
        model.subnetwork(0.5)


@pytest.mark.parametrize(
    "change, words",
    [
        (nn.SyncBatchNorm.convert_sync_batchnorm, r"normalization' is SyncBatchNorm in the model, but BatchNorm2d in"),
        (
            lambda model: setattr(model.resnet, "pooler", nn.Identity()),
            r"'resnet.pooler' is Identity in the model, but Ada",
        ),
        (lambda model: model.classifier.append(nn.Tanh()), r"'classifier.2' is Tanh in the model, but absent in"),
    ],
)
def test_a_module_replaced_after_make_slimmable(change, words):
    model = make_slimmable(tiny_model("resnet-basic"))
    known = model.subnetwork(0.5)
    change(model)
    for subnetwork in (known, model.subnetwork(0.75)):
        with pytest.raises(ValueError, match=words), subnetwork:
            model(pixel_values=tiny_images())


class WithWeightsForImageClassification(ResNetForImageClassification):
    def __init__(self, config, class_weights):
        super().__init__(config)


def test_a_class_with_further_arguments():
    model = WithWeightsForImageClassification(tiny_config("resnet-basic"), torch.ones(3))
    with pytest.raises(TypeError, match=r"but WithWeights.* doesn't: .*'class_weights' Give .* `build=...`"):
        make_slimmable(model)
    make_slimmable(model, build=lambda config: WithWeightsForImageClassification(config, torch.ones(3)))


def test_models_that_cannot_be_slimmable():
    with pytest.raises(TypeError, match="`model` must have a `config` of transformers.*Linear"):
        make_slimmable(nn.Linear(2, 2))
    bert = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    )
    with pytest.raises(
        TypeError,
        match=r"(?s)'bert'.*Supported: \['beit', .* in all\), all for images; docs/models.md.*register_narrowing",
    ):
        make_slimmable(bert)
    model = tiny_model()
    with pytest.raises(ValueError, match="`build` must return a model on the meta device"):
        make_slimmable(model, build=lambda config: model)
    make_slimmable(model)
    with pytest.raises(ValueError, match="`build` must be the function that made the model slimmable"):
        make_slimmable(model, build=type(model))


def test_compiles():
    model = make_slimmable(tiny_model("resnet-basic").eval())
    compiled = torch.compile(model, backend="eager")
    images = tiny_images()
    for width in (1.0, 0.5, 0.7, 0.9):
        with model.subnetwork(width):
            expected = model(pixel_values=images).logits
            assert torch.equal(compiled(pixel_values=images).logits, expected)
    assert torch.equal(compiled(pixel_values=images).logits, model(pixel_values=images).logits)


@pytest.mark.slow
def test_compiles_subnetworks_of_a_bounded_set():
    counter = CompileCounter()
    model = make_slimmable(tiny_model("resnet-basic").train())
    compiled = torch.compile(model, backend=counter)

    def run_all(forward):
        for width in (1.0, 0.5, 0.75):
            for size in (32, 24):
                model.zero_grad()
                with model.subnetwork(width, detached=True, compiled=True):
                    forward(pixel_values=tiny_images(size=size)).logits.sum().backward()
                yield {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = list(run_all(model))
    graphs = []
    for _ in range(2):
        for found, gradients in zip(run_all(compiled), expected, strict=True):
            assert largest_difference(found, gradients) < 1e-5
        graphs.append(counter.frame_count)
    assert graphs[0] >= 3 and graphs[1] == graphs[0]  # compilation ends
