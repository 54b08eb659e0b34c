# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Training with sub-networks that drop residual blocks."""

import re

import pytest
import torch
from helpers import images
from helpers.families import family_model
from helpers.tiny import TinyImages, largest_difference, parameters_of, state_of, tiny_images, tiny_model, tiny_trainer
from transformers import AutoModelForImageClassification, ViTConfig

from hf_gradaug import GradAug, GradAugSettings


KINDS = ["depth", "width_depth"]
WIDTHS = {"width": {"min_width": 0.5}, "depth": {}, "width_depth": {"min_width": 0.5}}
LABELS = torch.tensor([0, 1, 2, 0])
DEPTHS = [3, 2, 2]
EXACT = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


def deep_model(family="convnext", **changes):
    return tiny_model(family, depths=DEPTHS, **changes)


def settings(kind, **changes):
    draws = {} if kind == "width" else {"min_survival": 0.2}
    return GradAugSettings(**{"subnetwork_kind": kind, **WIDTHS[kind], **draws, **changes})


def batch(part=slice(None)):
    return {"pixel_values": tiny_images().double()[part], "labels": LABELS[part]}


def skeleton_of(gradaug_pass):
    """A model of the config that the pass ran."""
    model = gradaug_pass.gradaug.model
    return model.subnetwork(gradaug_pass.width, kept_blocks=gradaug_pass.kept_blocks).skeleton


def recorded(trainer):
    """Has the trainer write down its passes."""
    passes, original = [], trainer.gradaug.passes

    def record(inputs, step):
        for gradaug_pass in original(inputs, step):
            passes.append(gradaug_pass)
            yield gradaug_pass

    trainer.gradaug.passes = record
    return passes


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_a_step(kind):
    def draws(step, part=slice(None), seed=0):
        gradaug = GradAug(deep_model().double(), settings(kind), seed=seed)
        passes = []
        for gradaug_pass in gradaug.passes(batch(part), step):
            with gradaug_pass:
                gradaug_pass.loss(gradaug.model(**gradaug_pass.inputs))
            passes.append(gradaug_pass)
        return passes

    full, *subnetworks = draws(0)
    assert full.kept_blocks is None and full.depth == 1
    widths = [p.width for p in subnetworks]
    assert widths == [1.0] * 3 if kind == "depth" else widths[-1] == 0.5 < min(widths[:-1])
    for p in subnetworks:
        depths = skeleton_of(p).config.depths
        assert [len(stage) for stage in p.kept_blocks] == depths
        assert p.depth == sum(depths) / 7

    def drawn(*args, **kwargs):
        return [(p.width, p.kept_blocks) for p in draws(*args, **kwargs)]

    assert drawn(5, slice(0, 2)) == drawn(5, slice(2, 4))  # micro-batches and processes
    assert len({str(drawn(5)), str(drawn(6)), str(drawn(5, seed=1))}) == 3


def test_widths_are_those_that_width_alone_draws():
    alone, both = (GradAug(deep_model(), settings(kind)) for kind in ("width", "width_depth"))
    for step in range(5):
        expected, found = (gradaug._draw_subnetworks(3, step) for gradaug in (alone, both))
        assert [width for width, _ in found] == [width for width, _ in expected]
        assert all(kept_blocks is None for _, kept_blocks in expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["resnet-bottleneck", "convnext"])
def test_detached_is_views(family, kind):
    def gradients(detached):
        model = tiny_model(family, depths=DEPTHS[-2:] if family == "resnet-bottleneck" else DEPTHS).double()
        gradaug = GradAug(model, settings(kind))
        gradaug.detached = detached
        total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
        reached = []
        for gradaug_pass in gradaug.passes(batch(), step=1):
            model.zero_grad()
            with gradaug_pass:
                gradaug_pass.loss(model(**gradaug_pass.inputs)).backward()
            found = {
                name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
            }
            for name, gradient in found.items():
                total[name] += gradient
            reached.append(len(found) == len(total))
        return total, reached

    copies, some = gradients(detached=True)
    views, every = gradients(detached=False)
    assert largest_difference(copies, views) < 1e-12
    # What hooks on the parameters wait for: a gradient of each, in each pass.
    assert all(every) and not all(some)


def test_dropped_blocks_have_a_gradient_of_zero_whatever_their_weights():
    model = deep_model("resnet-basic").to(memory_format=torch.channels_last)
    gradaug = GradAug(model, settings("depth"))
    gradaug.detached = False
    gradaug_passes = gradaug.passes({"pixel_values": tiny_images(), "labels": LABELS}, 0)
    with next(gradaug_passes) as full:
        full.loss(model(**full.inputs))
    subnetwork = next(gradaug_passes)
    blocks = [(stage, block) for stage, depth in enumerate(DEPTHS) for block in range(depth)]
    dropped = [f".{s}.layers.{block}." for s, block in blocks if block not in subnetwork.kept_blocks[s]]
    is_dropped = {name: any(block in name for block in dropped) for name, _ in model.named_parameters()}
    assert any(is_dropped.values())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_dropped[name]:
                parameter.fill_(float("nan"))
    with subnetwork:
        loss = subnetwork.loss(model(**subnetwork.inputs))
        loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad.abs().max() == 0) == is_dropped[name], name


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_moves_and_logs(tmp_path, kind):
    model = deep_model("resnet-basic")
    before = parameters_of(model)
    trainer = tiny_trainer(tmp_path, model, subnetwork_kind=kind, **WIDTHS[kind], max_steps=4, logging_steps=2)
    passes = recorded(trainer)
    trainer.train()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    lines = [line for line in trainer.state.log_history if "loss_full" in line]
    for line, step in zip(lines, (passes[:8], passes[8:]), strict=True):
        subnetworks = [p for p in step if not p.is_full]
        assert line["subnetwork_depth"] == pytest.approx(sum(p.depth for p in subnetworks) / 6)
        assert line["subnetwork_width"] == pytest.approx(sum(p.width for p in subnetworks) / 6)
        assert 3 / 7 <= line["subnetwork_depth"] < 1

    plain = tiny_trainer(tmp_path, num_subnetworks=0, max_steps=4)
    plain.train()
    numbers = [sum(x.numel() for x in skeleton_of(p).parameters()) * p.size[0] ** 2 for p in passes]
    ratio = trainer.state.total_flos / model.num_parameters() / (plain.state.total_flos / plain.model.num_parameters())
    assert ratio == pytest.approx(sum(numbers) / (4 * model.num_parameters() * 32**2))


def test_width_alone_logs_no_depth(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "subnetwork_width" in line]
    assert "subnetwork_depth" not in line


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_is_the_larger_batch(tmp_path, kind):
    def train(batch_size, accumulation):
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        trainer = tiny_trainer(tmp_path, deep_model(), subnetwork_kind=kind, **WIDTHS[kind], **sizes, **EXACT)
        trainer.train()
        return parameters_of(trainer.model)

    assert largest_difference(train(8, 1), train(2, 4)) < 1e-7


def test_resumed_run_is_the_uninterrupted_one(tmp_path):
    def trainer():
        args = {"subnetwork_kind": "width_depth", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        return tiny_trainer(tmp_path, deep_model(drop_path_rate=0.3), **args)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert largest_difference(state_of(resumed.model), state_of(whole.model)) == 0
    depths = [line.get("subnetwork_depth") for line in whole.state.log_history]
    assert [line.get("subnetwork_depth") for line in resumed.state.log_history] == depths
    assert len({depth for depth in depths if depth}) > 1


def test_evaluation_runs_all_blocks_and_scales_none(tmp_path):
    trainer = tiny_trainer(tmp_path, deep_model("resnet-basic"), subnetwork_kind="depth")
    trainer.train()
    trainer.save_model()
    predictions = torch.tensor(trainer.predict(TinyImages(12)).predictions)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert plain.config.depths == DEPTHS
    with torch.no_grad():
        torch.testing.assert_close(predictions, plain(pixel_values=TinyImages(12).images).logits)
    # What it was trained to be: the full network's pass scales none either.
    trainer.model.train()
    full = next(iter(trainer.gradaug.passes({"pixel_values": TinyImages(4).images, "labels": LABELS}, 0)))
    with full, torch.no_grad():
        trained = trainer.model(**full.inputs).logits
        torch.testing.assert_close(plain.train()(pixel_values=TinyImages(4).images).logits, trained)


def test_transformers_train(tmp_path):
    model = family_model("vit")
    before = parameters_of(model)
    tiny_trainer(tmp_path, model, subnetwork_kind="depth", scales=[1.0], max_steps=2, weight_decay=0.0).train()
    for name, parameter in model.named_parameters():
        # The softmax of the attention doesn't see the bias of the keys.
        assert name.endswith("k_proj.bias") or not torch.equal(parameter, before[name]), name


def test_error_names_the_blocks(tmp_path):
    trainer = tiny_trainer(tmp_path, deep_model(), subnetwork_kind="depth")
    passes = recorded(trainer)
    make = trainer.gradaug.passes

    def spoilt(inputs, step):
        for gradaug_pass in make(inputs, step):
            if not gradaug_pass.is_full:
                gradaug_pass.loss = lambda *args, loss=gradaug_pass.loss: loss(*args) * float("nan")
            yield gradaug_pass

    trainer.gradaug.passes = spoilt
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert f"sub-network 1 (width multiplier 1, residual blocks {passes[1].kept_blocks}, images" in str(error.value)


def test_what_has_no_random_depth_is_refused(tmp_path):
    with pytest.raises(TypeError, match="'levit'.*`subnetwork_kind`.*'convnext'.*register_depth"):
        tiny_trainer(tmp_path / "out", family_model("levit"), subnetwork_kind="depth")
    with pytest.raises(
        ValueError, match=r"`subnetwork_kind` must be 'width'.*but is 'depth'.*no block to drop.*\[1, 1, 1\]"
    ):
        tiny_trainer(tmp_path / "out", tiny_model(depths=[1, 1, 1]), subnetwork_kind="depth")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("width_choices", [0.9, 1.0], {"subnetwork_kind": "depth"}),
        ("min_width", 0.5, {"subnetwork_kind": "depth"}),
        ("width_divisor", 8, {"subnetwork_kind": "depth"}),
        ("min_survival", 0.8, {}),
        ("temperature", 2.0, {"subnetwork_targets": "labels"}),
    ],
)
def test_settings_without_effect_are_errors(name, value, where):
    with pytest.raises(ValueError, match=rf"`{name}` must not be set if .*, but is {re.escape(str(value))}\."):
        GradAugSettings(**{name: value}, **where)


def test_a_script_needs_no_narrower_config_for_depth_alone():
    config = ViTConfig(num_attention_heads=1, hidden_size=8, num_hidden_layers=2, intermediate_size=8)
    check = images.load_script("run_image_classification").check_has_subnetworks
    check(config, GradAugSettings(subnetwork_kind="depth"))
    with pytest.raises(ValueError, match="no narrower sub-network"):
        check(config, GradAugSettings())


def test_subnetworks_with_random_depth_are_not_compiled():
    gradaug = GradAug(deep_model(), settings("width_depth", width_choices=[0.5, 1.0]))
    assert not gradaug.subnetwork(0.5, [[0], [0], [0]]).compiled
    assert GradAug(deep_model(), settings("width", width_choices=[0.5, 1.0])).subnetwork(0.5).compiled
