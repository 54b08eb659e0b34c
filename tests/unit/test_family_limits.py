# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What single families can't do, other sizes of images, and dimensions that divide into parts."""

import contextlib
import logging

import pytest
import torch
from helpers.families import FAMILIES, family_config, family_model, image_size, model_class
from helpers.tiny import tiny_images, tiny_trainer
from torch import nn
from transformers import (
    BitConfig,
    EfficientNetConfig,
    HieraConfig,
    MobileNetV2Config,
    PreTrainedConfig,
    PreTrainedModel,
    RegNetConfig,
    SwinConfig,
    ViTConfig,
)

from hf_gradaug import GradAug, GradAugSettings, make_slimmable, narrow_config, register_narrowing
from hf_gradaug.slimmable.image_size import can_take
from hf_gradaug.slimmable.registry import FAMILIES as REGISTERED
from hf_gradaug.slimmable.selection import select


# The table in docs/models.md: Swin's last feature map must not be smaller than a window, and LeViT's positions are fixed.
ONE_SIZE = {"swin", "swin-positions", "levit"}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_image_sizes(family):
    model = make_slimmable(family_model(family).double().eval())
    size = {"hiera": 16, "levit": 96}.get(family, 24)  # Hiera takes multiples of its stride and its windows
    skeleton = model.subnetwork(1.0).skeleton
    takes_it = family not in ONE_SIZE
    assert can_take(skeleton, (image_size(family),) * 2)
    assert can_take(skeleton, (size, size)) == takes_it
    assert can_take(skeleton, (image_size(family),) * 2)  # it has left nothing behind
    images = tiny_images(2, size=size).double()
    if not takes_it:
        gradaug = GradAug(model.train(), GradAugSettings(scales=[size / image_size(family)], min_width=0.5))
        inputs = {"pixel_values": tiny_images(2, size=image_size(family)).double(), "labels": torch.tensor([0, 1])}
        with pytest.raises(ValueError, match=rf"Images of {size} x {size} pixels.*`scales=\[1\]`"):
            next(gradaug.passes(inputs, 0))
        return
    with torch.no_grad():
        narrow = model_class(family)(narrow_config(model.config, 0.6)).double().eval()
        with model.subnetwork(0.6):
            logits = model(pixel_values=images).logits
            full_size = model(pixel_values=tiny_images(2, size=image_size(family)).double()).logits
        activation = model.subnetwork(0.6)
        with activation as skeleton:
            activation.subnetwork.bind(model)
            narrow.load_state_dict(skeleton.state_dict())
        interpolate = {"interpolate_pos_encoding": True} if family in ("vit", "deit", "hiera") else {}
        torch.testing.assert_close(logits, narrow(pixel_values=images, **interpolate).logits)
        expected = narrow(pixel_values=tiny_images(2, size=image_size(family)).double()).logits
        torch.testing.assert_close(full_size, expected)


def test_transformer_trains_with_scales(tmp_path):
    losses = tiny_trainer(tmp_path, family_model("vit"), scales=[0.75], min_width=0.5).train()
    assert losses.training_loss > 0


def test_what_a_forward_writes_does_not_outlive_it():
    # Swin makes its windows and shifts fit the images.
    swin = make_slimmable(family_model("swin").eval())
    with torch.no_grad(), swin.subnetwork(0.5):
        expected = swin(pixel_values=tiny_images()).logits
        with pytest.raises(RuntimeError):
            swin(pixel_values=tiny_images(size=24))
        assert torch.equal(swin(pixel_values=tiny_images()).logits, expected)
    # LeViT keeps its biases in eval mode.
    levit = make_slimmable(family_model("levit").eval())
    images = tiny_images(size=image_size("levit"))
    with torch.no_grad(), levit.subnetwork(0.5):
        before = levit(pixel_values=images).logits
        attention = levit.levit.encoder.stages[0].layers[0].module
        attention.attention_biases.normal_(generator=torch.Generator().manual_seed(1))
        assert not torch.equal(levit(pixel_values=images).logits, before)


@pytest.mark.parametrize(
    ("config", "width", "divisor", "message"),
    [
        (HieraConfig(), 0.5, 1, r"hiera narrows by whole heads, in all stages alike \(\[1, 2, 4, 8\]\)"),
        (
            SwinConfig(num_heads=[2, 3], depths=[1, 1]),
            0.5,
            1,
            r"swin narrows by whole heads, in all stages alike \(\[2, 3\]\)",
        ),
        (ViTConfig(num_attention_heads=1), 0.5, 1, "vit narrows by whole heads.*its 768 channels can't be divided"),
        (BitConfig(hidden_sizes=[64, 40], depths=[1, 1]), 0.5, 1, r"multiples of 32 .* but are 1 and \[64, 40\]"),
        (BitConfig(width_factor=2), 0.5, 1, "`width_factor` and .* must be 1 and .* but are 2 and"),
        (BitConfig(num_groups=2, hidden_sizes=[32, 32], depths=[1, 1]), 0.5, 1, r"whole groups \(2 of 2\)"),
        (MobileNetV2Config(), 0.05, 1, "`width` must be larger for mobilenet_v2, but is 0.05"),
        (MobileNetV2Config(), 0.9, 16, "`width_divisor` must divide 8,.*mobilenet_v2.*but is 16"),
        (EfficientNetConfig(), 0.9, 3, "`width_divisor` must divide 8,.*efficientnet.*but is 3"),
    ],
)
def test_what_a_family_cannot_do(config, width, divisor, message):
    before = config.to_dict()
    with pytest.raises(ValueError, match=message):
        narrow_config(config, width, divisor)
    assert config.to_dict() == before


def test_widths_of_published_sizes():
    assert narrow_config(ViTConfig(), 0.9).num_attention_heads == 11
    swin = narrow_config(SwinConfig(), 0.7)
    assert (swin.embed_dim, swin.num_heads, swin.hidden_size) == (64, [2, 4, 8, 16], 512)
    regnet = narrow_config(RegNetConfig(), 0.9)  # 2, 3, 8 and 17 groups of 64
    assert (regnet.embedding_size, regnet.hidden_sizes) == (29, [128, 192, 448, 960])
    bit = narrow_config(BitConfig(), 0.9)  # inner layers are multiples of 8, in groups as large as before
    assert (bit.num_groups, bit.embedding_size, bit.hidden_sizes) == (28, 56, [224, 448, 896, 1792])


@pytest.mark.parametrize(("min_width", "warns"), [(0.9, True), (0.7, False), (1.0, False)])
def test_width_that_rounds_to_the_full_network_is_told(min_width, warns, caplog):
    config = family_config("swin")  # four heads in its first stage
    with caplog.at_level(logging.WARNING, "hf_gradaug"):
        GradAug(model_class("swin")(config), GradAugSettings(scales=[1.0], min_width=min_width))
    assert any("rounds to the full network" in message for message in caplog.messages) == warns


@pytest.mark.parametrize("family, follows", [("resnet-basic", False), ("resnet-basic", True), ("mobilenet_v2", True)])
def test_a_model_that_rounds_or_ignores_its_widths_is_told(family, follows, caplog):
    own = family_config(family)

    def build(config):
        return model_class(family)(config if follows else own)

    # MobileNetV2 rounds to multiples of 8 in its layers.
    settings = GradAugSettings(scales=[1.0], min_width=0.999 if family == "mobilenet_v2" else 0.5)
    with caplog.at_level(logging.WARNING, "hf_gradaug"):
        GradAug(build(own), settings, build=build)
    warns = not follows or family == "mobilenet_v2"
    assert any("rounds to the full network" in message for message in caplog.messages) == warns


class _Config(PreTrainedConfig):
    model_type = "mine"


def _configs(full: int, narrow: int) -> list[_Config]:
    configs = [_Config(), _Config()]
    for config, size in zip(configs, (full, narrow)):
        config.size = size
    return configs


def test_parts_of_a_users_own_family(monkeypatch):
    monkeypatch.setitem(REGISTERED, "mine", None)  # removed again after the test

    @register_narrowing(
        "mine", parts={r"(\d+)\.fusion\.weight": {0: 2, 1: lambda config, i: [config.size, config.size, i]}}
    )
    def _(config, narrow):
        (config.size,) = narrow([config.size])

    configs = _configs(3, 2)
    selection = select("model.1.fusion.weight", (6, 7), (4, 5), *configs)
    tensor = torch.arange(42.0).view(6, 7)
    rows, columns = [0, 1, 3, 4], [0, 1, 3, 4, 6]
    assert torch.equal(selection.take(tensor), tensor[rows][:, columns])
    added = torch.zeros(6, 7)
    selection.add_to(added, torch.ones(4, 5))
    assert added.sum() == 20 and torch.equal(added[rows][:, columns], torch.ones(4, 5))

    # Other names, whole parts, and full width are leading entries and stay views.
    for name, narrow_shape in (
        ("model.1.confusion.weight", (4, 5)),
        ("1.fusion.bias", (4, 5)),
        ("1.fusion.weight", (6, 7)),
    ):
        same = _configs(3, 3) if narrow_shape == (6, 7) else configs
        view = select(name, (6, 7), narrow_shape, *same).take(tensor)
        assert view.shape == narrow_shape and view.data_ptr() == tensor.data_ptr(), name

    with pytest.raises(ValueError, match=r"`parts` of '1.fusion.weight' must .* 1, of length 8, but is \[3, 3, 1\]"):
        select("1.fusion.weight", (6, 8), (4, 5), *configs)
    with pytest.raises(ValueError, match="`parts` of '1.fusion.weight' must .* 0, of length 5, but is 2"):
        select("1.fusion.weight", (5, 7), (4, 5), *configs)
    with pytest.raises(ValueError, match=r"dimension 1 has parts \[3, 3, 1\] in .* and \[4, 4, 1\] in"):
        select("1.fusion.weight", (6, 7), (4, 9), *_configs(3, 4))


class _Layers(PreTrainedModel):
    config_class = _Config

    def __init__(self, config):
        super().__init__(config)
        size, heads = config.size, config.heads
        self.grouped = nn.Conv2d(size, size, 1, groups=heads)
        self.attention = nn.MultiheadAttention(size, heads)
        self.qkv = nn.Linear(size, 3 * size)
        self.post_init()


_THIRDS = {0: 3}
_SPLIT = {r"(?:qkv|attention)\.(?:in_proj_)?(?:weight|bias)": _THIRDS}


@pytest.mark.parametrize(
    "whole_heads, parts, words",
    [
        (True, _SPLIT, None),
        (True, {}, "'attention.in_proj_weight' must keep its queries, keys and values apart .* with {0: 3}"),
        (False, _SPLIT, r"'grouped.weight' must keep its groups apart .* `narrow\(counts, multiple=4\)`"),
        (
            False,
            {**_SPLIT, r"grouped\.(?:weight|bias)": {0: 4}},
            "'attention.in_proj_weight' must keep its heads apart",
        ),
        (
            True,
            {r"in_proj_(?:weight|bias)": _THIRDS, r"qkv\.weight": _THIRDS},
            "'qkv.weight' and 'qkv.bias' must divide",
        ),
    ],
)
def test_layers_of_a_users_own_that_would_mix_channels(whole_heads, parts, words, monkeypatch):
    monkeypatch.setitem(REGISTERED, "mine", None)

    @register_narrowing("mine", parts=parts)
    def _(config, narrow):
        size, (config.size,) = config.size, narrow([config.size], multiple=4)
        if whole_heads:
            config.heads = config.heads * config.size // size

    config = _Config()
    config.size, config.heads = 16, 4
    model = make_slimmable(_Layers(config))
    with contextlib.nullcontext() if words is None else pytest.raises(ValueError, match=words):
        model.subnetwork(0.5)


@pytest.mark.parametrize("pattern, warns", [(r"qkv\.(?:weight|bias)", False), (r"qkvs\.(?:weight|bias)", True)])
def test_a_pattern_that_matches_nothing_is_told(pattern, warns, monkeypatch, caplog):
    monkeypatch.setitem(REGISTERED, "mine", None)

    @register_narrowing("mine", parts={pattern: _THIRDS})
    def _(config, narrow):
        pass

    config = _Config()
    config.size, config.heads = 16, 4
    with caplog.at_level(logging.WARNING, "hf_gradaug"):
        make_slimmable(_Layers(config))
    assert any("`parts` of 'mine' have no effect" in message for message in caplog.messages) == warns


def test_a_classifier_of_a_users_own_on_dinov2():
    """It sees the patches, and not the class token beside their mean, as the classifier of transformers does."""
    config = family_config("dinov2")
    narrow, size = narrow_config(config, 0.5), config.hidden_size
    assert narrow.hidden_size == size // 2
    weight = torch.arange(2 * size)[None]
    for name, length, entries in (
        ("classifier.weight", 2 * size, [*range(size // 2), *range(size, size + size // 2)]),
        ("classifier.weight", size, [*range(size // 2)]),
        ("classifier.classifier.weight", size, [*range(size // 2)]),
    ):
        selection = select(name, (1, length), (1, length // 2), config, narrow)
        assert selection.take(weight[:, :length]).tolist() == [entries]


@pytest.mark.parametrize("field", ["backbone_config", "encoder_config", "outer_config"])
def test_parts_of_an_encoder_in_a_users_own_model(field):
    """Patch merging concatenates four neighbours, wherever the encoder's config is."""

    def config(width):
        encoder = narrow_config(family_config("swin"), width)
        if field == "outer_config":
            encoder = PreTrainedConfig(backbone_config=encoder)
        return PreTrainedConfig(**{field: encoder})

    name = "model.encoder.layers.0.downsample.reduction.weight"
    columns = select(name, (32, 64), (16, 32), config(1.0), config(0.5)).take(torch.arange(64.0).expand(32, 64))
    assert columns[0].tolist() == [start + i for start in (0, 16, 32, 48) for i in range(8)]


def test_patch_merging_uses_each_neighbours_leading_channels():
    # Of four neighbours, the full network's layer adds 1, 10, 100 and 1000 times their first channels.
    model = make_slimmable(family_model("swin").eval())
    merging = model.swin.encoder.layers[0].downsample
    channels = merging.reduction.in_features // 4
    with torch.no_grad():
        merging.norm.weight.fill_(0)
        merging.norm.bias.copy_(
            torch.arange(4.0).repeat_interleave(channels) + 1
        )  # its output: the neighbour's number
        merging.reduction.weight.zero_()
        for neighbour in range(4):
            merging.reduction.weight[:, neighbour * channels] = 10.0**neighbour
    activation = model.subnetwork(0.5)
    with activation as skeleton, torch.no_grad():
        activation.subnetwork.bind(model)
        narrow = skeleton.swin.encoder.layers[0].downsample
        assert narrow.reduction.in_features == 2 * channels
        merged = narrow(torch.randn(1, 64, channels // 2, generator=torch.Generator().manual_seed(0)), (8, 8))
    torch.testing.assert_close(merged, torch.full_like(merged, 1 + 20 + 300 + 4000))
    assert isinstance(narrow.reduction, nn.Linear)
