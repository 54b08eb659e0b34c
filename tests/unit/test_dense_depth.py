# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Detectors and segmenters with sub-networks that drop residual blocks of the backbone."""

import dataclasses

import pytest
import torch
from helpers.dense import dense_batch, dense_class, dense_config, dense_model, dense_trainer
from helpers.tiny import parameters_of
from transformers import Dinov2Config

from hf_gradaug import GradAug, GradAugSettings, export_subnetwork, make_slimmable
from hf_gradaug.slimmable.depth import depths_of
from hf_gradaug.slimmable.registry import FAMILIES as REGISTERED


DEPTHS = [1, 3, 2, 1]
KEPT = ((0,), (0, 2), (0,), (0,))
NAMES = ["detr-resnet", "rt_detr", "mask2former-swin", "maskformer-swin"]


def deep_model(name):
    config = dense_config(name)
    config.backbone_config.depths = list(DEPTHS)
    # The original DETR trains all but the first stage. That of transformers looks for other names than its own ResNet
    # has, and freezes it all.
    return dense_model(name, config=config).requires_grad_(True)


def blocks_of(model):
    """For each stage of the backbone, its list of blocks."""
    backbone = {
        "ResNetEncoder": "layers",
        "RTDetrResNetEncoder": "layers",
        "SwinEncoder": "blocks",
        "MaskFormerSwinEncoder": "blocks",
    }
    (encoder,) = [module for module in model.modules() if type(module).__name__ in backbone]
    stages = [getattr(stage, backbone[type(encoder).__name__]) for stage in encoder.children() for stage in stage]
    assert [len(stage) for stage in stages] == DEPTHS
    return stages


def compute(model, name):
    torch.manual_seed(0)  # Mask2Former's loss looks at random points
    outputs = model(**dense_batch(name))
    model.zero_grad()
    outputs.loss.backward()
    return outputs.loss.detach(), {key: item.grad for key, item in model.named_parameters() if item.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_equals_a_model_whose_blocks_are_taken_out(name):
    model = make_slimmable(deep_model(name).train())
    full_loss, _ = compute(model, name)
    found = {}
    for detached in (True, False):
        with model.subnetwork(1.0, kept_blocks=KEPT, detached=detached):
            found[detached] = compute(model, name)
    shallower = deep_model(name).train()
    for stage, kept in zip(blocks_of(shallower), KEPT, strict=True):
        for index in reversed(range(len(stage))):
            if index not in kept:
                del stage[index]
    loss, gradients = compute(shallower, name)
    assert not torch.allclose(loss, full_loss, rtol=1e-4)
    for detached, (found_loss, found_gradients) in found.items():
        torch.testing.assert_close(found_loss, loss)
        # The dropped blocks' are 0 where other processes may wait for them.
        nonzero = {key: gradient for key, gradient in found_gradients.items() if gradient.any()}
        assert len(nonzero) <= len(gradients) < len(parameters_of(model))
        total, expected = (
            sum(item.double().square().sum() for item in each.values()) for each in (nonzero, gradients)
        )
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=0)
        assert detached or len(found_gradients) > len(gradients)


@pytest.mark.parametrize("kind", ["depth", "width_depth"])
def test_a_training_step_with_random_depth(kind, tmp_path):
    name = "detr-resnet"
    settings = {"subnetwork_targets": "labels", "subnetwork_kind": kind, "min_survival": 0.01}
    settings |= {"min_width": 0.9} if kind == "depth" else {}  # the default: a width without effect is an error
    trainer = dense_trainer(tmp_path, name, deep_model(name), **settings)
    assert trainer.gradaug.subnetwork(1.0, KEPT).skeleton.config.backbone_config.depths == [1, 2, 1, 1]
    _, gradients = compute(deep_model(name).train(), name)
    before = parameters_of(trainer.model)
    trainer.train()
    after = parameters_of(trainer.model)
    reached = {key for key, gradient in gradients.items() if gradient.any()}
    assert any("stages.1.layers.2" in key for key in reached)
    assert not {key for key in reached if torch.equal(after[key], before[key])}
    (log,) = [row for row in trainer.state.log_history if "loss_full" in row]
    assert log["subnetwork_depth"] < 1 and (log["subnetwork_width"] < 1) == (kind == "width_depth")
    trainer.save_model()
    assert dense_class(name).from_pretrained(tmp_path).config.backbone_config.depths == DEPTHS


def test_backbones_without_blocks_to_drop(monkeypatch):
    settings = GradAugSettings(subnetwork_targets="labels", subnetwork_kind="depth")
    with pytest.raises(
        ValueError, match=r"for this detr, but is 'depth'. There is no block to drop: its stages have \[1, 1, 1, 1\]"
    ):
        GradAug(dense_model("detr-resnet"), settings)
    monkeypatch.setitem(REGISTERED, "resnet", dataclasses.replace(REGISTERED["resnet"], depth=None))
    with pytest.raises(TypeError, match="which blocks of model type 'resnet' can be dropped"):
        GradAug(deep_model("detr-resnet"), settings)


def test_exported_detector_is_the_subnetwork(tmp_path):
    model = deep_model("detr-resnet").eval()
    exported = export_subnetwork(model, 0.6, kept_blocks=KEPT)
    exported.save_pretrained(tmp_path)
    loaded = dense_class("detr-resnet").from_pretrained(tmp_path)
    assert loaded.config.backbone_config.depths == [1, 2, 1, 1]
    with torch.no_grad(), make_slimmable(model).subnetwork(0.6, kept_blocks=KEPT):
        expected = model(**dense_batch("detr-resnet")).logits
    with torch.no_grad():
        torch.testing.assert_close(loaded(**dense_batch("detr-resnet")).logits, expected, rtol=1e-5, atol=1e-5)


def test_backbone_without_stages_is_refused():
    config = dense_config("detr-resnet")
    config.backbone_config = Dinov2Config(num_hidden_layers=3)
    with pytest.raises(TypeError, match="which blocks of model type 'detr' can be dropped"):
        depths_of(config)
