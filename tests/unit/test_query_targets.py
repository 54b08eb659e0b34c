# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Soft targets for queries: the losses written out, zero where networks agree, and models that have no such targets."""

import pytest
import torch
import torch.nn.functional as F
from helpers.dense import dense_batch, dense_config, dense_model, dense_trainer
from helpers.tiny import parameters_of, tiny_model
from torchvision.ops import generalized_box_iou
from transformers import DeformableDetrForObjectDetection
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import HungarianMatcher

from hf_gradaug import GradAug, GradAugSettings
from hf_gradaug.dense.queries import QueryTargets, query_loss, query_targets


SOFTMAX = ["detr-convnext", "maskformer", "mask2former"]
SIGMOID = ["conditional_detr", "deformable_detr"]
# Weights of classes, of boxes or masks twice, and of "no object", as the models' papers have them.
WEIGHTS = {
    "detr-convnext": (1, 5, 2, 0.1),
    "conditional_detr": (1, 5, 2, None),
    "deformable_detr": (1, 5, 2, None),
    "maskformer": (1, 20, 1, 0.1),
    "mask2former": (2, 5, 5, 0.1),
}


def settings_of(**changes) -> GradAugSettings:
    return GradAugSettings(**{"subnetwork_targets": "queries", "num_subnetworks": 1, "min_width": 0.5, **changes})


def predictions(outputs) -> tuple[torch.Tensor, torch.Tensor]:
    names = ("logits", "pred_boxes") if "pred_boxes" in outputs else ("class_queries_logits", "masks_queries_logits")
    return tuple(outputs[name] for name in names)


def bernoulli_kl(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    yes, no = F.logsigmoid(targets) - F.logsigmoid(logits), F.logsigmoid(-targets) - F.logsigmoid(-logits)
    return targets.sigmoid() * yes + (1 - targets.sigmoid()) * no


def written_out(name: str, student, teacher, temperature: float) -> torch.Tensor:
    """The loss, query by query."""
    weights, (logits, places), (targets, target_places) = WEIGHTS[name], student, teacher
    if name in SOFTMAX:
        q, p = (targets / temperature).softmax(-1), (logits / temperature).softmax(-1)
        objects = q[..., :-1].sum(-1)
    else:
        q, p = targets / temperature, logits / temperature
        objects = q.sigmoid().amax(-1)
    if places.ndim == 4:
        target_places = F.interpolate(target_places, places.shape[-2:], mode="bilinear")
    classes = first = second = total = 0.0
    for image in range(len(logits)):
        for query in range(logits.shape[1]):
            sure, ours, theirs = objects[image, query], places[image, query], target_places[image, query]
            if name in SOFTMAX:
                weight = sure + WEIGHTS[name][3] * (1 - sure)
                kl = (q[image, query] * (q[image, query] / p[image, query]).log()).sum()
                classes, total = classes + weight * kl, total + weight
            else:
                classes = classes + bernoulli_kl(p[image, query], q[image, query]).sum()
            if ours.ndim == 1:
                corners, their_corners = (center_to_corners_format(box)[None] for box in (ours, theirs))
                distances = (ours - theirs).abs().sum(), 1 - generalized_box_iou(corners, their_corners)[0, 0]
            else:
                mask, their_mask = ours.sigmoid(), theirs.sigmoid()
                size = mask.square().sum() + their_mask.square().sum()
                distances = bernoulli_kl(ours, theirs).mean(), 1 - (2 * (mask * their_mask).sum() + 1) / (size + 1)
            first, second = first + sure * distances[0], second + sure * distances[1]
    count = objects.sum().clamp(min=1)
    classes = temperature**2 * classes / (total if name in SOFTMAX else count)
    return weights[0] * classes + weights[1] * first / count + weights[2] * second / count


@pytest.mark.parametrize("name", SOFTMAX + SIGMOID)
def test_a_step_written_out(name):
    settings = settings_of(
        scales=[0.5], subnetwork_batch_fraction=0.5, temperature=2.0, subnetwork_loss_weight=0.3, num_subnetworks=2
    )
    gradaug = GradAug(dense_model(name).train(), settings)
    batch = dense_batch(name)
    teacher = None
    for gradaug_pass in gradaug.passes(batch, step=0):
        with gradaug_pass:
            torch.manual_seed(0)  # Mask2Former's own loss looks at random points
            outputs = gradaug.model(**gradaug_pass.inputs)
            outputs = {key: item.double() for key, item in outputs.items() if isinstance(item, torch.Tensor)}
            loss = gradaug_pass.loss(outputs)
        if gradaug_pass.is_full:
            assert torch.equal(loss, outputs["loss"])
            teacher = [tensor.detach() for tensor in predictions(outputs)]
            continue
        assert "loss" not in outputs and not {"labels", "mask_labels", "class_labels"} & gradaug_pass.inputs.keys()
        rows = [tensor[gradaug_pass.rows] for tensor in teacher]
        expected = 0.3 * written_out(name, predictions(outputs), rows, 2.0)
        assert loss.requires_grad and expected > 1e-4
        assert torch.allclose(loss, expected, rtol=1e-7)
    assert not any(
        isinstance(value, (torch.Tensor, QueryTargets)) for value in vars(gradaug).values()
    )  # nothing is left


@pytest.mark.parametrize("name", SOFTMAX + SIGMOID)
def test_a_subnetwork_that_agrees_has_nothing_to_learn(name):
    """Width and scale 1 with all layers in eval mode, where normalization doesn't depend on the batch."""
    gradient = {}
    for width in (1.0, 0.5):
        gradaug = GradAug(dense_model(name).train(), settings_of(min_width=width, scales=[1.0]))
        for layer in gradaug.model.children():
            layer.eval()
        for gradaug_pass in gradaug.passes(dense_batch(name), step=0):
            with gradaug_pass:
                loss = gradaug_pass.loss(gradaug.model(**gradaug_pass.inputs))
                if not gradaug_pass.is_full:
                    loss.backward()
        parameters = [item for item in gradaug.model.parameters() if item.grad is not None]
        gradient[width] = max(item.grad.abs().max().item() for item in parameters)
        assert (loss.item() < 1e-5) == (width == 1.0)
    assert gradient[1.0] < 1e-5 and gradient[0.5] > 1e-3


def test_hard_targets_of_matched_queries_give_the_models_own_loss():
    model, batch = dense_model("detr-convnext").train(), dense_batch("detr-convnext")
    outputs = model(**batch)
    logits, boxes = predictions(outputs)
    classes, places = torch.full(logits.shape[:2], logits.shape[-1] - 1), torch.rand_like(boxes)
    config = model.config
    matched = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)(outputs, batch["labels"])
    for image, (queries, objects) in enumerate(matched):
        classes[image, queries] = batch["labels"][image]["class_labels"][objects]
        places[image, queries] = batch["labels"][image]["boxes"][objects]
    targets = QueryTargets(F.one_hot(classes, logits.shape[-1]).float(), places)
    assert torch.allclose(query_loss(model, outputs, targets), outputs.loss, rtol=1e-5)


@pytest.mark.parametrize("name", ["detr-convnext", "conditional_detr", "maskformer"])
def test_extreme_predictions_in_half_precision_stay_finite(name):
    model = dense_model(name)
    shape = (2, 3, 4) if name in SOFTMAX else (2, 3, 3)
    logits = torch.zeros(shape).index_fill(-1, torch.tensor([0]), 200.0).requires_grad_()
    places = torch.zeros(2, 3, 4) if name != "maskformer" else torch.full((2, 3, 4, 4), -200.0)
    names = ("class_queries_logits", "masks_queries_logits") if name == "maskformer" else ("logits", "pred_boxes")
    outputs = {key: item.bfloat16() for key, item in zip(names, (logits, places.requires_grad_()), strict=True)}
    loss = query_loss(model, outputs, query_targets(model, {key: -value for key, value in outputs.items()}))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(tensor).all() for tensor in (loss, logits.grad, places.grad))


@pytest.mark.parametrize("name", ["detr-convnext", "deformable_detr", "mask2former"])
def test_a_training_step_moves_every_parameter(name, tmp_path):
    trainer = dense_trainer(tmp_path, name, subnetwork_targets="queries", num_subnetworks=2)
    plain = dense_model(name).train()
    torch.manual_seed(0)
    plain(**dense_batch(name)).loss.backward()
    reached = {key for key, item in plain.named_parameters() if item.grad is not None and item.grad.count_nonzero()}
    before = parameters_of(trainer.model)
    trainer.train()
    after = parameters_of(trainer.model)
    assert len(reached) > 0.9 * len(before) and not {key for key in reached if torch.equal(before[key], after[key])}
    (log,) = [row for row in trainer.state.log_history if "loss_full" in row]
    assert 0 < log["loss_subnetworks"] < float("inf")


def test_the_plain_baseline_scales_its_loss_as_gradaug_does(tmp_path):
    for count in (0, 1):
        trainer = dense_trainer(tmp_path, "detr-convnext", subnetwork_targets="queries", num_subnetworks=count)
        assert trainer.model_accepts_loss_kwargs is False


def test_what_has_no_targets_for_queries():
    learned = r"`subnetwork_targets` must be 'labels' unless the model's queries are learned"
    for model in (dense_model("rt_detr"), dense_model("d_fine"), tiny_model()):
        with pytest.raises(ValueError, match=rf"{learned}.*this is a {type(model).__name__}, not one of.*to 'labels'"):
            GradAug(model, settings_of())
    config = dense_config("deformable_detr")
    config.two_stage = True
    with pytest.raises(ValueError, match=rf"{learned}.*`config.two_stage` is True"):
        GradAug(DeformableDetrForObjectDetection(config), settings_of())
    gradaug = GradAug(dense_model("detr-convnext"), settings_of(rotations=[0, 90]))
    with pytest.raises(ValueError, match=r"`rotations` must be None.*\[0, 90\]"):
        next(gradaug.passes(dense_batch("detr-convnext"), step=0))
