# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""An exported sub-network is a standard model of its own, and computes what the sub-network does."""

import copy
import logging

import pytest
import torch
from helpers.dense import dense_class, dense_model
from helpers.families import family_model
from helpers.tiny import FAMILIES, largest_difference, state_of, tiny_images, tiny_model
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertModel,
    ConvNextForImageClassification,
    ResNetForImageClassification,
)

from hf_gradaug import (
    GradAug,
    GradAugSettings,
    create_subnetwork_card,
    export_subnetwork,
    make_slimmable,
    narrow_config,
    save_settings,
    subnetwork_state_dict,
)


LABELS = {0: "cat", 1: "dog", 2: "owl"}


def logits(model, images=None):
    with torch.no_grad():
        return model(pixel_values=tiny_images() if images is None else images).logits


def memory(model):
    """The ends of the memory of each tensor."""
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_channels_are_rounded_as_in_the_run(tmp_path, caplog):
    model = tiny_model("resnet-basic")
    batch = {"pixel_values": tiny_images(), "labels": torch.zeros(4, dtype=torch.long)}
    rounded, exact = (narrow_config(model.config, 0.6, divisor).hidden_sizes for divisor in (4, 1))
    assert rounded != exact
    next(GradAug(model, GradAugSettings(width_divisor=4)).passes(batch, step=0))
    for trained in (model, copy.deepcopy(model)):
        assert trained.subnetwork(0.6).skeleton.config.hidden_sizes == rounded
        assert subnetwork_state_dict(trained, 0.6)[0].hidden_sizes == rounded
        assert export_subnetwork(trained, 0.6).config.hidden_sizes == rounded
        assert export_subnetwork(trained, 0.6, width_divisor=1).config.hidden_sizes == exact

    model.save_pretrained(tmp_path)
    save_settings(GradAugSettings(width_divisor=4), tmp_path)
    loaded = ResNetForImageClassification.from_pretrained(tmp_path)
    assert export_subnetwork(loaded, 0.6).config.hidden_sizes == rounded
    save_settings(GradAugSettings(num_subnetworks=0), tmp_path)  # plain training
    assert export_subnetwork(loaded, 0.6).config.hidden_sizes == exact

    loaded.name_or_path = "no/longer/here"
    assert export_subnetwork(loaded, 0.6).config.hidden_sizes == exact
    assert (
        "`width_divisor` is taken to be 1, because the settings of the run that trained 'no/longer/here'"
        in caplog.text
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slimmable", [True, False])
def test_equals_the_subnetwork(family, slimmable, tmp_path):
    model = tiny_model(family, id2label=LABELS).eval()
    plain_class, before = type(model), state_of(model)
    model.train()
    model.register_forward_pre_hook(lambda *args: pytest.fail("the parent ran"))
    hooks, attributes = dict(model._forward_pre_hooks), set(vars(model))
    if slimmable:
        make_slimmable(model)
        attributes = set(vars(model))
    parent_class, random_state = type(model), torch.get_rng_state()
    exported = {
        (width, divisor): export_subnetwork(model, width, width_divisor=divisor)
        for width, divisor in ((0.3, 1), (0.5, 8), (0.9, 1), (1.0, 1))
    }
    # The parent is what it was.
    assert torch.equal(torch.get_rng_state(), random_state)
    assert type(model) is parent_class and set(vars(model)) == attributes
    assert model._forward_pre_hooks == hooks
    assert all(module.training for module in model.modules())
    assert largest_difference(state_of(model), before) == 0

    model._forward_pre_hooks.clear()
    make_slimmable(model.eval())
    assert torch.equal(logits(exported[1.0, 1]), logits(model))
    for (width, divisor), network in exported.items():
        assert type(network) is plain_class and not any(module.training for module in network.modules())
        assert not memory(network) & memory(model)
        assert all(parameter.requires_grad and parameter.is_leaf for parameter in network.parameters())
        assert network.config.id2label == LABELS and network.config.id2label is not model.config.id2label
        expected = narrow_config(model.config, width, divisor)
        assert network.config.hidden_sizes == expected.hidden_sizes
        with model.subnetwork(width, divisor):
            expected = logits(model)
        assert torch.equal(logits(network), expected)
        network.save_pretrained(tmp_path / str(width))
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / str(width))
        assert type(loaded) is plain_class and loaded.config.id2label == LABELS
        assert torch.equal(logits(loaded), expected)


def test_both_go_their_own_ways():
    model = make_slimmable(tiny_model("resnet-basic").eval())
    exported = export_subnetwork(model, 0.9)
    before = {"model": state_of(model), "exported": state_of(exported)}
    exported.train()(pixel_values=tiny_images()).logits.sum().backward()
    torch.optim.SGD(exported.parameters(), lr=1).step()
    exported.config.hidden_sizes[0] = 1
    assert all(parameter.grad is None for parameter in model.parameters())
    assert largest_difference(state_of(model), before["model"]) == 0
    assert largest_difference(state_of(exported), before["exported"]) > 0
    # Of the same width again, it is as if the first had never been.
    again = export_subnetwork(model, 0.9)
    assert largest_difference(state_of(again), before["exported"]) == 0
    assert again.config.hidden_sizes == narrow_config(model.config, 0.9).hidden_sizes


def test_dtype_and_memory_format():
    model = tiny_model("resnet-basic").to(torch.bfloat16).to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    exported = export_subnetwork(model, 0.9)
    assert exported.dtype == torch.bfloat16
    # As a checkpoint is when it is loaded, whatever the parent was made ready for.
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in exported.parameters())


def test_buffers_that_no_checkpoint_holds_have_the_models_dtype():
    model = family_model("swinv2").to(torch.bfloat16).eval()
    images = tiny_images().to(torch.bfloat16)
    with make_slimmable(model).subnetwork(0.5):
        expected = logits(model, images)
    torch.testing.assert_close(logits(export_subnetwork(model, 0.5), images), expected)


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_that_no_checkpoint_holds_have_the_subnetworks_values(persistent):
    class Weighted(ResNetForImageClassification):
        def __init__(self, config):
            super().__init__(config)
            weights = torch.linspace(0, 1, config.hidden_sizes[-1])[:, None, None]
            self.register_buffer("weights", weights, persistent=persistent)
            self.resnet.pooler.register_forward_pre_hook(lambda module, args: args[0] * self.weights)

    model = make_slimmable(Weighted(tiny_model("resnet-basic").config).eval())
    if not persistent:
        with pytest.raises(
            ValueError, match="`model` must save the buffers .* but 'weights' is not in its checkpoints"
        ):
            export_subnetwork(model, 0.5)
        return
    with model.subnetwork(0.5):
        expected = logits(model)
    assert torch.equal(logits(export_subnetwork(model, 0.5)), expected)


@pytest.mark.parametrize("name", ["deformable_detr", "d_fine"])
def test_tied_weights_stay_tied(name, tmp_path):
    exported = export_subnetwork(dense_model(name), 0.5)
    exported.save_pretrained(tmp_path)
    loaded = dense_class(name).from_pretrained(tmp_path)
    assert exported.num_parameters() == loaded.num_parameters()
    assert [key for key, _ in exported.named_parameters()] == [key for key, _ in loaded.named_parameters()]


def test_inside_of_a_block():
    model = make_slimmable(tiny_model("resnet-basic").eval())
    with model.subnetwork(0.5):
        half = logits(model)
        exported = export_subnetwork(model, 0.5)
        assert torch.equal(logits(model), half)
        assert torch.equal(logits(exported), half)


def test_calibration(caplog):
    model = tiny_model("resnet-basic").eval()
    before = state_of(model)
    with caplog.at_level(logging.WARNING, "hf_gradaug"):
        exported = export_subnetwork(model, 0.9, calibration_data=iter([{"pixel_values": tiny_images()}]))
        export_subnetwork(model, 1.0)
        export_subnetwork(tiny_model("convnext"), 0.9)
    assert not caplog.records
    kept = export_subnetwork(model, 0.9)
    assert "width multiplier 0.9 uses the full network's BatchNorm statistics" in caplog.text
    state, others = state_of(exported), state_of(kept)
    changed = {name for name in state if not torch.equal(state[name], others[name])}
    assert changed == {name for name in state if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert largest_difference(state_of(model), before) == 0
    assert not any(module.training for module in exported.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, r"`width` must be a width multiplier in \(0, 1\], but is 0"),
        ({"width": 1.1}, r"`width` must be a width multiplier in \(0, 1\], but is 1.1"),
        ({"width": 0.5, "width_divisor": 0}, "`width_divisor` must be a whole number, 1 or more, but is 0"),
        # By position, `calibration_data` would be `width_divisor`.
        ({"width": 0.5, "width_divisor": []}, r"`width_divisor` must be a whole number, 1 or more, but is \[\]"),
        ({"width": 0.5, "calibration_data": []}, "`calibration_data` must have one batch or more"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        export_subnetwork(tiny_model("resnet-basic"), **arguments)


def test_models_that_can_not_be_exported():
    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    )
    with pytest.raises(TypeError, match="GradAug has no sub-networks for model type 'bert'. Supported: "):
        export_subnetwork(bert, 0.5)

    def build(config):
        model = ResNetForImageClassification(config)
        model.classifier[1] = nn.Linear(config.hidden_sizes[-1], config.num_labels, bias=False)
        return model

    with pytest.raises(ValueError, match="changed after construction"):
        export_subnetwork(build(tiny_model("resnet-basic").config), 0.5)
    model = make_slimmable(build(tiny_model("resnet-basic").config), build=build)
    with pytest.raises(
        ValueError, match="`model` must be .* but was changed after construction.*(?s:.*)classifier.1.bias"
    ):
        export_subnetwork(model, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model.resnet, "pooler", nn.AdaptiveMaxPool2d((1, 1))), "'resnet.pooler' is AdaptiveMax"),
        (lambda model: setattr(model.resnet.embedder.embedder, "activation", nn.GELU()), "'.*activation' is GELU"),
        (lambda model: model.classifier[1].register_forward_hook(lambda *args: args[2] * 2), "'classifier.1' is .*changed forward"),
        (lambda model: model.classifier.append(nn.Softmax(-1)), "'classifier.2' is Softmax.* by `build`, and absent"),
    ],
)  # fmt: skip
def test_what_a_loaded_model_would_not_compute_is_not_exported(change, message):
    def build(config):
        model = ResNetForImageClassification(config)
        change(model)
        return model

    with pytest.raises(
        ValueError, match=rf"`model` must be what its class and config describe, but .*(?s:.*){message}"
    ):
        export_subnetwork(make_slimmable(build(tiny_model("resnet-basic").config), build=build), 0.5)


def test_another_drop_path_is_no_other_model_in_eval_mode():
    def build(config):
        model = ConvNextForImageClassification(config)
        for module in model.modules():
            if type(module).__name__ == "ConvNextDropPath":
                module.drop_prob = 0.9
        return model

    config = tiny_model("convnext").config
    config.drop_path_rate = 0.1
    model = make_slimmable(build(config), build=build).eval()
    with model.subnetwork(0.5):
        expected = logits(model)
    assert torch.equal(logits(export_subnetwork(model, 0.5)), expected)


def test_synchronized_batchnorm_is_exported_as_batchnorm():
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    plain = tiny_model("resnet-basic").eval()
    expected = logits(export_subnetwork(plain, 0.5))
    model = convert(tiny_model("resnet-basic"))
    make_slimmable(model, build=lambda config: convert(ResNetForImageClassification(config)))
    exported = export_subnetwork(model, 0.5)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in exported.modules())
    assert torch.equal(logits(exported), expected)


def test_card_names_the_parent(tmp_path):
    parent = tiny_model("resnet-basic")
    exported = export_subnetwork(parent, 0.5)
    base_model = "some-user/some-resnet"
    measured = {"top-1 accuracy": ("90.00%", "89.00%")}
    card = create_subnetwork_card(
        exported, parent, 0.5, 1500, measured, base_model, pipeline_tag="image-classification"
    )
    assert card.data.base_model == "some-user/some-resnet"
    assert card.data.pipeline_tag == "image-classification" and card.data.library_name == "transformers"
    lines = card.content.splitlines()
    assert "# some-user/some-resnet at width 0.5" in lines
    assert "| `hidden_sizes` | [8, 16, 24] | [4, 8, 12] |" in lines
    assert "| `embedding_size` | 8 | 4 |" in lines
    assert f"| parameters | {parent.num_parameters():,} | {exported.num_parameters():,} |" in lines
    assert "| top-1 accuracy | 90.00% | 89.00% |" in lines
    assert sum(line.startswith("|") for line in lines) == 7  # no field but those
    assert "recomputed for this width, on 1,500 images" in card.content
    assert "They were not recomputed" in create_subnetwork_card(exported, parent, 0.5).content

    # A model's own name doesn't tell where its weights are from, and of a folder, where it was is nobody's business.
    parent.name_or_path = base_model
    card = create_subnetwork_card(exported, parent, 0.5)
    assert card.data.base_model is None and "# some-resnet at width 0.5" in card.content.splitlines()
    with pytest.raises(ValueError, match="`base_model` must be a name on the Hub, but is '/home/x/y'"):
        create_subnetwork_card(exported, parent, 0.5, base_model="/home/x/y")
    parent.name_or_path = str(tmp_path)
    card = create_subnetwork_card(exported, parent, 0.5)
    assert card.data.base_model is None
    assert tmp_path.name in card.content and str(tmp_path.parent) not in card.content
    convnext = tiny_model("convnext")
    card = create_subnetwork_card(export_subnetwork(convnext, 0.5), convnext, 0.5)
    assert "has no BatchNorm, or keeps it frozen" in card.content
    assert "ConvNextForImageClassification at width 0.5" in card.content


def test_card_takes_tags_of_the_caller():
    parent = tiny_model("convnext")
    card = create_subnetwork_card(export_subnetwork(parent, 0.5), parent, 0.5, tags=["vision"])
    assert card.data.tags == ["sub-network", "vision"]


def test_card_shows_the_narrower_fields_of_a_backbone(tmp_path):
    parent = dense_model("detr-resnet")
    parent.config.backbone_config._name_or_path = str(tmp_path)
    lines = create_subnetwork_card(export_subnetwork(parent, 0.5), parent, 0.5).content.splitlines()
    assert "| `backbone_config.hidden_sizes` | [8, 12, 16, 20] | [4, 6, 8, 10] |" in lines
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == [
        "backbone_config.embedding_size",
        "backbone_config.hidden_sizes",
    ]
