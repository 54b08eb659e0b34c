# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""`--sync_batchnorm` in one process, where it must be BatchNorm. PyTorch has no more of it on CPUs."""

import contextlib

import pytest
import torch
from helpers import images
from helpers.tiny import parameters_of, state_of, tiny_images, tiny_model
from torch.nn import BatchNorm2d, SyncBatchNorm
from transformers import AutoModelForImageClassification

from hf_gradaug import make_slimmable


CPU = torch.device("cpu")
FAMILIES = ["resnet-basic", "resnet-bottleneck"]


@pytest.fixture(scope="module")
def script():
    return images.load_script("run_image_classification")


@pytest.fixture
def synchronized(script):
    def make(family):
        model, build = script.synchronize_batchnorm(tiny_model(family), CPU)
        return make_slimmable(model, build=build)

    return make


def count(model, kind):
    return sum(type(module) is kind for module in model.modules())


@pytest.mark.parametrize("width", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_process_equals_batchnorm(synchronized, family, width):
    plain, model = make_slimmable(tiny_model(family)), synchronized(family)
    layers = count(plain, BatchNorm2d)
    inputs = {"pixel_values": tiny_images(4), "labels": torch.tensor([0, 1, 2, 0])}
    for training in (True, False):
        outputs = []
        for each, kind in ((plain, BatchNorm2d), (model, SyncBatchNorm)):
            each.train(training)
            with each.subnetwork(width) if width < 1 else contextlib.nullcontext(each) as network:
                assert count(network, kind) == layers > 0
                outputs.append(each(**inputs))
            outputs[-1].loss.backward()
        assert torch.equal(outputs[0].logits, outputs[1].logits)
        assert outputs[0].loss == outputs[1].loss
    for (name, expected), parameter in zip(plain.named_parameters(), model.parameters()):
        assert expected.grad.abs().max() > 0, name
        assert torch.equal(expected.grad, parameter.grad), name
    # The running statistics too, which a sub-network leaves alone.
    for name, expected in state_of(plain).items():
        assert torch.equal(expected, model.state_dict()[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoints_stay_plain(synchronized, family, tmp_path):
    model = synchronized(family).eval()
    assert [*state_of(model)] == [*state_of(tiny_model(family))]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(loaded).__name__ == type(model).__name__
    assert count(loaded, SyncBatchNorm) == 0 < count(loaded, BatchNorm2d)
    assert torch.equal(loaded(tiny_images(2)).logits, model(tiny_images(2)).logits)


def test_the_script_trains_the_same_weights(script, tmp_path, monkeypatch):
    folder = images.make_folder(tmp_path / "images")
    converted = []
    synchronize = script.synchronize_batchnorm
    monkeypatch.setattr(
        script, "synchronize_batchnorm", lambda *args: converted.append(synchronize(*args)) or converted[-1]
    )
    weights = []
    for name, flags in (("plain", []), ("sync", ["--sync_batchnorm"])):
        script.main([
            "--gradaug", "--do_train", "--max_steps", "2", "--per_device_train_batch_size", "4", "--image_size", "20",
            "--train_dir", str(folder), "--validation_dir", str(folder), "--model_type", "resnet", "--crop_pct", "1.0",
            "--config_overrides", "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic",
            "--use_cpu", "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true",
            "--output_dir", str(tmp_path / name), *flags,
        ])  # fmt: skip
        weights.append(parameters_of(AutoModelForImageClassification.from_pretrained(tmp_path / name)))
    assert len(converted) == 1 and count(converted[0][0], SyncBatchNorm) > 0
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_it_cannot_do_it_says(script, tmp_path):
    with pytest.raises(
        ValueError, match="`sync_batchnorm` must be off without BatchNorm, but is on, and a model of type 'convnext'"
    ):
        script.synchronize_batchnorm(tiny_model("convnext"), CPU)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="`sync_batchnorm` must be off on CPUs, .* but is on"):
            script.synchronize_batchnorm(tiny_model("resnet-basic"), CPU)
    finally:
        torch.distributed.destroy_process_group()
