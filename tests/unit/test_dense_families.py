# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Detectors and segmenters: a sub-network is a standard model on a narrower backbone, and trains the full network."""

import json
import re
import subprocess
import sys

import pytest
import torch
import transformers
from helpers.dense import DENSE_TYPES, MODELS, SIZE, dense_batch, dense_class, dense_config, dense_model, dense_trainer
from helpers.tiny import parameters_of, tiny_model
from transformers import AutoBackbone, DetrConfig

from hf_gradaug import (
    GradAug,
    GradAugSettings,
    make_slimmable,
    narrow_config,
    register_depth,
    supported_model_types,
)
from hf_gradaug.slimmable.dense_families import _feature_channels
from hf_gradaug.slimmable.registry import FAMILIES


def compute(model, name, **changes):
    torch.manual_seed(0)  # Mask2Former's loss looks at random points
    return model(**{**dense_batch(name), **changes})


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def zero(model) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def parts_of(name: str, config, shape: torch.Size) -> dict[int, list[int]]:
    """Lengths of the parts of concatenated dimensions, written down from the models' forwards."""
    backbone = getattr(config, "backbone_config", None)
    if name == "decode_head.psp_bottleneck.convolution.weight":
        return {1: [config.hidden_size] * 3}
    if name == "decode_head.fpn_bottleneck.convolution.weight":
        return {1: [config.hidden_size] * 4}
    if name == "auxiliary_head.conv_cat.convolution.weight":
        return {1: [config.hidden_size, 8]}
    if name == "decode_head.bottleneck.conv.weight":
        return {1: [backbone.hidden_sizes[3], 8, 8]}
    if name == "auxiliary_head.conv_cat.conv.weight":
        return {1: [backbone.hidden_sizes[2], 8]}
    if name.endswith("downsample.reduction.weight"):
        return {1: [shape[1] // 4] * 4}
    if ".downsample.norm." in name:
        return {0: [shape[0] // 4] * 4}
    if name.endswith("embedder.stem3.convolution.weight"):
        return {1: [shape[1] // 2] * 2}
    if match := re.search(r"stages\.(\d)\..*aggregation\.0\.convolution\.weight", name):
        middle, layers = backbone.stage_mid_channels[int(match[1])], backbone.stage_numb_of_layers[int(match[1])]
        return {1: [shape[1] - layers * middle] + [middle] * layers}
    return {}


def indices(name: str, full, narrow, full_shape, narrow_shape) -> tuple[torch.Tensor, ...]:
    """For each dimension, which entries of the full network's tensor a sub-network uses."""
    full_parts, narrow_parts = parts_of(name, full, full_shape), parts_of(name, narrow, narrow_shape)
    index = []
    for dim, (length, narrow_length) in enumerate(zip(full_shape, narrow_shape, strict=True)):
        parts = torch.arange(length).split(full_parts.get(dim, length))
        lengths = narrow_parts.get(dim, [narrow_length])
        index.append(torch.cat([part[:leading] for part, leading in zip(parts, lengths, strict=True)]))
    return torch.meshgrid(*index, indexing="ij") if index else ()


@pytest.mark.parametrize("name", MODELS)
def test_width_one_is_exact(name):
    plain, model = dense_model(name).train(), make_slimmable(dense_model(name).train())
    expected = compute(plain, name)
    with model.subnetwork(1.0):
        outputs = compute(model, name)
    assert torch.equal(outputs.loss, expected.loss)
    expected.loss.backward()
    outputs.loss.backward()
    gradients, expected_gradients = gradients_of(model), gradients_of(plain)
    assert gradients.keys() == expected_gradients.keys()
    assert all(torch.equal(gradients[key], expected_gradients[key]) for key in gradients)


@pytest.mark.parametrize("name", MODELS)
def test_equals_an_independent_model_on_a_narrower_backbone(name):
    model = make_slimmable(dense_model(name).train())
    config = narrow_config(model.config, 0.6)
    independent = dense_class(name)(config).train()
    shapes = {key: tensor.shape for key, tensor in independent.state_dict().items()}
    assert shapes != {key: tensor.shape for key, tensor in model.state_dict().items()}
    index = {
        key: indices(key, model.config, config, tensor.shape, shapes[key])
        for key, tensor in model.state_dict().items()
    }
    independent.load_state_dict({key: tensor[index[key]] for key, tensor in model.state_dict().items()})
    expected = compute(independent, name)
    expected.loss.backward()
    full = compute(model, name)
    full.loss.backward()
    reached = gradients_of(model).keys()
    assert not torch.allclose(full.loss, expected.loss, rtol=1e-4)

    found = {}
    for detached in (False, True):
        zero(model)
        with model.subnetwork(0.6, detached=detached):
            outputs = compute(model, name)
            outputs.loss.backward()
        assert torch.allclose(outputs.loss, expected.loss, rtol=1e-5)
        found[detached] = gradients_of(model)
        assert found[detached].keys() == reached
    for key, gradient in gradients_of(independent).items():
        size = gradient.abs().max().clamp(min=1e-3)
        assert ((found[False][key][index[key]] - gradient).abs() / size).max() < 1e-3, key
        assert ((found[True][key] - found[False][key]).abs() / size).max() < 1e-3, key
        outside = found[True][key].clone()
        outside[index[key]] = 0
        assert outside.count_nonzero() == 0, key


@pytest.mark.parametrize("name", MODELS)
def test_a_step_moves_every_parameter_and_the_checkpoint_is_plain(name, tmp_path):
    trainer = dense_trainer(tmp_path, name, subnetwork_targets="labels", num_subnetworks=2)
    plain = dense_model(name).train()
    compute(plain, name).loss.backward()
    before = parameters_of(trainer.model)
    trainer.train()
    after = parameters_of(trainer.model)
    reached = {key for key, gradient in gradients_of(plain).items() if gradient.count_nonzero() > 0}
    assert len(reached) > 0.9 * len(gradients_of(plain))
    assert not {key for key in reached if torch.equal(before[key], after[key])}
    (log,) = [row for row in trainer.state.log_history if "loss_full" in row]
    assert log["loss_subnetworks"] > 0

    trainer.save_model()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [dense_class(name).__name__]
    loaded = dense_class(name).from_pretrained(tmp_path)
    assert type(loaded) is dense_class(name)
    assert all(torch.equal(parameter, after[key]) for key, parameter in loaded.named_parameters())


@pytest.mark.slow
def test_checkpoints_load_where_the_package_is_absent(tmp_path, subprocess_env):
    for name in MODELS:
        make_slimmable(dense_model(name)).save_pretrained(tmp_path / name)
    code = f"""
import sys
sys.modules["hf_gradaug"] = None
import transformers
for name, class_name in {[(name, dense_class(name).__name__) for name in MODELS]}:
    folder = {str(tmp_path)!r} + "/" + name
    model, info = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), (name, info)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=subprocess_env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["detr-resnet", "mask2former", "segformer"])
def test_inputs_of_subnetworks_have_one_size(name):
    settings = GradAugSettings(subnetwork_targets="labels", scales=[0.5], subnetwork_batch_fraction=0.5)
    gradaug = GradAug(dense_model(name).train(), settings)
    full, *subnetworks = gradaug.passes(dense_batch(name), step=0)
    assert full.size == SIZE and [gradaug_pass.size for gradaug_pass in subnetworks] == [(32, 64)] * 3
    for index, gradaug_pass in enumerate(subnetworks):
        inputs, row = gradaug_pass.inputs, index % 2
        assert inputs["pixel_values"].shape == (1, 3, 32, 64)
        if name == "segformer":
            assert inputs["labels"].shape == (1, 32, 64) and inputs["labels"].dtype == torch.long
            continue
        assert inputs["pixel_mask"].shape == (1, 32, 64)
        if name == "mask2former":
            assert [masks.shape for masks in inputs["mask_labels"]] == [(2, 32, 64)]
            assert torch.equal(inputs["class_labels"][0], dense_batch(name)["class_labels"][row])
        else:
            assert torch.equal(inputs["labels"][0]["boxes"], dense_batch(name)["labels"][row]["boxes"])


def test_soft_targets_and_rotations_are_refused():
    with pytest.raises(ValueError, match="DetrForObjectDetection.*set `subnetwork_targets` to 'labels'"):
        GradAug(dense_model("detr-convnext"))
    settings = {"subnetwork_targets": "labels", "rotations": [0, 90]}
    for name, labels in (("detr-convnext", ["labels"]), ("mask2former", ["mask_labels", "class_labels"])):
        gradaug = GradAug(dense_model(name), GradAugSettings(**settings))
        batch = {key: value for key, value in dense_batch(name).items() if key != "pixel_mask"}
        with pytest.raises(ValueError, match=rf"`rotations` must be None.*{re.escape(str(labels))}.*\[0, 90\]"):
            next(gradaug.passes(batch, step=0))


def test_rotations_are_refused_beside_a_map_of_the_images():
    gradaug = GradAug(tiny_model(), GradAugSettings(rotations=[0, 90]))
    batch = {"pixel_values": torch.zeros(2, 3, 32, 32), "labels": torch.tensor([0, 1])}
    assert next(gradaug.passes(batch, step=0)).is_full
    with pytest.raises(ValueError, match=r"`rotations` must be None.*\['depth'\].*\[0, 90\]"):
        next(gradaug.passes({**batch, "depth": torch.zeros(2, 32, 32)}, step=0))


def test_rotations_are_refused_for_labels_that_are_coarser_maps():
    gradaug = GradAug(tiny_model(), GradAugSettings(rotations=[0, 90], subnetwork_targets="labels"))
    batch = {"pixel_values": torch.zeros(2, 3, 32, 32), "labels": torch.zeros(2, 8, 8, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"`rotations` must be None.*\['labels'\].*\[0, 90\]"):
        next(gradaug.passes(batch, step=0))


def test_sizes_that_do_not_divide():
    gradaug = GradAug(dense_model("rt_detr"), GradAugSettings(subnetwork_targets="labels", scales=[0.8]))
    message = r"51 x 102 pixels, scaled from 64 x 128, don't fit: RTDetr\w+ takes multiples of 32, such as 32 x 96"
    with pytest.raises(ValueError, match=message):
        next(gradaug.passes(dense_batch("rt_detr"), step=0))


@pytest.mark.parametrize("name", ["upernet", "upernet-concatenated", "rt_detr"])
def test_feature_maps_may_be_counted_from_the_end(name):
    config, counted = dense_config(name), dense_config(name)
    backbone = counted.backbone_config
    backbone.out_indices = [index - len(backbone.stage_names) for index in backbone.out_indices]
    models = [make_slimmable(dense_model(name, config=each).train()) for each in (config, counted)]
    for each in models:
        with each.subnetwork(0.6):
            compute(each, name).loss.backward()
    expected, found = map(gradients_of, models)
    assert found.keys() == expected.keys() and all(found[key].equal(expected[key]) for key in found)
    for field in ("encoder_in_channels", "auxiliary_in_channels"):
        narrowed = [getattr(narrow_config(each, 0.6), field, None) for each in (config, counted)]
        assert narrowed[0] == narrowed[1]


@pytest.mark.parametrize("first", [0, -3])
@pytest.mark.parametrize("kind", ["ResNet", "Swin", "Bit", "RTDetrResNet", "PvtV2", "Dinov2", "Beit"])
def test_channels_of_feature_maps_are_those_of_the_backbone(kind, first):
    config = getattr(transformers, f"{kind}Config")()
    config.out_indices = [first, -2, -1]
    with torch.device("meta"):
        assert _feature_channels(config) == list(AutoBackbone.from_config(config).channels)


def test_only_the_backbone_is_narrower():
    full, narrow = dense_config("rt_detr"), narrow_config(dense_config("rt_detr"), 0.5)
    assert narrow.backbone_config.hidden_sizes == [8, 12, 16, 20] and narrow.backbone_config.embedding_size == 4
    assert narrow.encoder_in_channels == [12, 16, 20] and narrow.d_model == full.d_model
    assert full.backbone_config.hidden_sizes == [16, 24, 32, 40]
    assert narrow_config(dense_config("upernet"), 0.5).auxiliary_in_channels == 6
    with pytest.raises(
        TypeError, match="`config.backbone_config` is of model type 'timm_backbone'.*'convnext'.*`ResNetConfig`"
    ):
        narrow_config(DetrConfig(), 0.5)
    config = dense_config("rt_detr")
    config.backbone_config.model_type = "depth_alone"  # without a narrowing, but known
    register_depth("depth_alone", field="depths", blocks="encoder.layer")
    try:
        with pytest.raises(TypeError, match="is of model type 'depth_alone', but must be of one with a narrowing"):
            narrow_config(config, 0.5)
    finally:
        FAMILIES.pop("depth_alone")
    assert set(supported_model_types()) >= DENSE_TYPES
    models = {dense_config(name).model_type for name in MODELS}
    assert models == DENSE_TYPES - {"rt_detr_resnet", "maskformer-swin"} | {"segformer", "beit"}
