# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Configs of sub-networks: channel counts, own families, and errors that say what to do."""

import pytest
from helpers.tiny import FAMILIES, tiny_config
from transformers import BertConfig, ConvNextConfig, PreTrainedConfig, ResNetConfig

from hf_gradaug import narrow_config, register_narrowing, supported_model_types
from hf_gradaug.slimmable.registry import FAMILIES as REGISTERED
from hf_gradaug.slimmable.registry import narrow_channels


@pytest.mark.parametrize("width", [0.5, 0.75, 0.8, 0.9, 0.93, 0.97, 0.999])
def test_resnet50_has_the_authors_channel_counts(width):
    # Theirs: outer channels round half up, inner ones and the stem are a quarter of that, rounded down.
    config = narrow_config(ResNetConfig(), width)
    outer = [int(full * width + 0.5) for full in (256, 512, 1024, 2048)]
    assert config.hidden_sizes == outer
    assert config.embedding_size == int(outer[0] * 0.25)


def test_resnet50_at_the_paper_width():
    config = narrow_config(ResNetConfig(), 0.9)
    assert (config.embedding_size, config.hidden_sizes) == (57, [230, 461, 922, 1843])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("divisor", [1, 8, 16])
def test_equal_counts_stay_equal_and_different_ones_different(family, divisor):
    full = tiny_config(family)
    before = full.to_dict()
    for width in (0.05, 0.3, 0.5, 0.9, 0.99):
        narrow = narrow_config(full, width, divisor)
        assert all(n <= f for n, f in zip(narrow.hidden_sizes, full.hidden_sizes))
        assert len(set(narrow.hidden_sizes)) == len(set(full.hidden_sizes))
        if full.model_type == "resnet":
            stem_is_first_stage = full.embedding_size == full.hidden_sizes[0]
            assert (narrow.embedding_size == narrow.hidden_sizes[0]) == stem_is_first_stage
            assert narrow.embedding_size >= 1
    assert full.to_dict() == before


def test_full_width_is_the_config_itself_whatever_the_divisor():
    config = ConvNextConfig(hidden_sizes=[10, 21, 43, 85])
    assert narrow_config(config, 1.0, 8).to_dict() == config.to_dict()


def test_channels_are_multiples_of_the_divisor():
    assert narrow_channels([96, 192, 384, 768], 0.9, divisor=8) == [88, 176, 344, 688]
    assert narrow_channels([64, 64, 128], 0.9, divisor=16) == [64, 64, 112]
    # 12 would round to 8 as 10 does, and becomes the full count instead.
    assert narrow_channels([10, 12, 64], 0.5, divisor=8) == [8, 12, 32]
    assert narrow_channels([4, 400], 0.01, minimum=4) == [4, 5]


def test_channels_are_multiples_of_what_the_family_narrows_by():
    assert narrow_channels([768], 0.9, multiple=64) == [704]
    assert narrow_channels([32, 64, 160, 256], 0.3, multiple=32) == [32, 64, 96, 128]
    # Of both: 24 and 16 have 48 in common.
    assert narrow_channels([480, 240], 0.7, divisor=16, multiple=24) == [336, 192]
    # One for each; a count that isn't a multiple of its own stays, and equal ones have all in common.
    assert narrow_channels([32, 64, 100], 0.8, multiple=[1, 16, 16]) == [26, 48, 100]
    assert narrow_channels([32, 32], 0.8, multiple=[1, 16]) == [32, 32]
    assert narrow_channels([48, 64, 64], 0.8, multiple=[16, 1, 1]) == [32, 51, 51]


@pytest.mark.parametrize("width", [0.0, -0.1, 1.0001, float("nan")])
def test_width_outside_its_range(width):
    with pytest.raises(ValueError, match=r"`width`.*\(0, 1\].*but is"):
        narrow_config(ResNetConfig(), width)


def test_divisor_below_one():
    with pytest.raises(ValueError, match="`width_divisor` must be a whole number, 1 or more, but is 0"):
        narrow_config(ResNetConfig(), 0.9, 0)


def test_unknown_family_lists_the_known_and_shows_how_to_register():
    with pytest.raises(TypeError) as error:
        narrow_config(BertConfig(), 0.9)
    shown = [repr(name) for name in supported_model_types()[:10]]
    count = f"({len(supported_model_types())} in all), all for images; docs/models.md has the list"
    for text in ("'bert'", *shown, count, '@hf_gradaug.register_narrowing("bert")'):
        assert text in str(error.value)
    assert repr(supported_model_types()[10]) not in str(error.value)
    assert {"resnet", "convnext", "convnextv2"} <= set(supported_model_types())


def test_register_narrowing(monkeypatch):
    monkeypatch.setitem(REGISTERED, "mine", None)  # removed again after the test

    @register_narrowing("mine")
    def _(config, narrow):
        config.hidden_sizes = narrow(config.hidden_sizes)

    class MyConfig(PreTrainedConfig):
        model_type = "mine"

    config = MyConfig()
    config.hidden_sizes = [10, 20]
    assert narrow_config(config, 0.5).hidden_sizes == [5, 10]
    assert config.hidden_sizes == [10, 20]
