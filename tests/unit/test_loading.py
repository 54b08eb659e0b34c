# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""A classifier is loaded whole, in float32 and without code of others, or not at all."""

import json
import re

import pytest
import torch
from helpers import images
from helpers.tiny import largest_difference, state_of, tiny_model
from transformers import AutoConfig, AutoModelForImageClassification, BertConfig

from hf_gradaug import WideResNetConfig, WideResNetForImageClassification, load_classifier


def test_float32_and_eval_mode(tmp_path):
    model = tiny_model("resnet-basic").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path)
    assert loaded.dtype == torch.float32 and not loaded.training
    assert largest_difference(state_of(loaded), state_of(model.float())) == 0


@pytest.mark.parametrize("names", [["cat", "dog"], ["ant", "bee"]])
def test_scripts_train_checkpoints_in_half_precision_in_float32(tmp_path, names):
    model = tiny_model("resnet-basic", id2label={0: "cat", 1: "dog"}).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    images.load_script("run_image_classification")
    from common import load_pretrained

    config = AutoConfig.from_pretrained(tmp_path)
    loaded = load_pretrained(
        AutoModelForImageClassification, str(tmp_path), config, "photos", names, ignore_mismatched_sizes=True
    )
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert list(loaded.config.id2label.values()) == names
    assert largest_difference(state_of(loaded.base_model), state_of(model.base_model.float())) == 0


def test_own_networks_need_no_remote_code(tmp_path):
    model = WideResNetForImageClassification(WideResNetConfig(depths=[1, 1, 1], hidden_sizes=[8, 8, 8]))
    model.save_pretrained(tmp_path)
    assert type(load_classifier(str(tmp_path))) is WideResNetForImageClassification


def test_what_is_no_whole_classifier_is_an_error(tmp_path):
    tiny_model("convnext").convnext.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"headless' has no weights for \['classifier.bias', 'classifier.weight'\]"):
        load_classifier(tmp_path / "headless")
    BertConfig().save_pretrained(tmp_path / "bert")
    for name in ("bert", "none"):
        with pytest.raises(ValueError, match=f"'{re.escape(str(tmp_path / name))}' is not an image classifier: "):
            load_classifier(tmp_path / name)


def test_no_code_beside_the_weights_runs_unless_asked_for(tmp_path, monkeypatch):
    folder, ran = tmp_path / "model", tmp_path / "ran"
    tiny_model("convnext").save_pretrained(folder)
    (folder / "own.py").write_text(
        f"import os\nos.mkdir({str(ran)!r})\n"
        "from transformers import ConvNextConfig, ConvNextForImageClassification\n"
        "class Config(ConvNextConfig):\n    model_type = 'own'\n"
        "class Model(ConvNextForImageClassification):\n    config_class = Config\n"
    )
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto_map}))
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("was asked"))
    with pytest.raises(ValueError, match="is not an image classifier: .*(?s:.*)trust_remote_code"):
        load_classifier(folder)
    assert not ran.exists()
    assert type(load_classifier(folder, trust_remote_code=True)).__name__ == "Model" and ran.exists()
