# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Masks, padding and lists of labels: scaled and shared out together with the images."""

import pytest
import torch
from helpers.dense import dense_model
from helpers.tiny import TinyImages, largest_difference, parameters_of, tiny_images, tiny_model, tiny_trainer
from test_passes import run
from torch.nn import functional as F

from hf_gradaug import GradAug, GradAugSettings
from hf_gradaug.dense.inputs import resize_like_images, select_rows


LABELS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(("old", "new"), [((7, 9), (4, 5)), ((32, 24), (18, 14)), ((5, 5), (1, 3)), ((8, 8), (8, 5))])
def test_masks_follow_the_images(old, new):
    # Bilinear and nearest agree where the image is a step: all pixels but those that the step runs through.
    ramp = torch.arange(old[0] * old[1], dtype=torch.float64).view(1, 1, *old)
    places = F.interpolate(ramp, size=new, mode="bilinear", align_corners=True)[0, 0]
    (resized,) = resize_like_images([ramp[0]], old, new)
    assert resized.shape == (1, *new)
    rows, columns = resized[0] // old[1], resized[0] % old[1]
    assert ((places - resized[0]).abs() <= 0.5 * old[1] + 0.5 + 1e-9).all()  # half a pixel each way at the most
    assert rows[0].unique().tolist() == [0] and columns[:, 0].unique().tolist() == [0]
    if new[0] > 1:
        assert rows[-1].unique().tolist() == [old[0] - 1]


def test_what_is_resized_and_what_is_not():
    target = {
        "class_labels": torch.tensor([1, 2]),
        "boxes": torch.rand(2, 4),
        "masks": torch.rand(2, 12, 8) > 0.5,
        "size": torch.tensor([12, 8]),
    }
    inputs = {"pixel_mask": torch.ones(2, 12, 8, dtype=torch.long), "labels": [target, target], "other": "text"}
    inputs |= {"coarse": torch.rand(2, 6, 4), "mask_labels": (torch.zeros(0, 12, 8),), "per_class": torch.rand(12, 8)}
    found = resize_like_images(inputs, (12, 8), (9, 6))
    assert found["pixel_mask"].shape == (2, 9, 6) and found["pixel_mask"].dtype == torch.long
    assert found["labels"][1]["masks"].shape == (2, 9, 6) and found["labels"][1]["masks"].dtype == torch.bool
    for name in ("class_labels", "boxes", "size"):
        assert found["labels"][0][name] is target[name]
    assert found["mask_labels"][0].shape == (0, 9, 6)
    assert all(found[name] is inputs[name] for name in ("coarse", "per_class", "other"))
    assert inputs["labels"][0]["masks"].shape == (2, 12, 8)  # the full network's are left alone


def test_masks_of_padded_images_are_padded():
    """DETR's collator pads images alone. Its loss pads masks to the largest, which have the size of the padded images."""
    model = dense_model("detr-resnet")
    sizes, size = ((64, 64), (64, 48)), (64, 64)
    labels = [
        {"masks": torch.ones(1, *each), "boxes": torch.rand(1, 4), "class_labels": torch.ones(1)} for each in sizes
    ]
    batch = {"pixel_values": torch.rand(2, 3, *size), "pixel_mask": torch.ones(2, *size), "labels": labels}
    for fraction in (1.0, 0.5):
        settings = GradAugSettings(
            scales=[0.5], num_subnetworks=2, subnetwork_targets="labels", subnetwork_batch_fraction=fraction
        )
        full, *others = GradAug(model, settings).passes(batch, step=0)
        assert full.inputs["labels"][1]["masks"].shape == (1, 64, 48) and len(others) == 2
        for each in others:
            rows = range(2) if each.rows is None else each.rows.tolist()
            for row, found in zip(rows, each.inputs["labels"], strict=True):
                assert found["masks"].shape == (1, 32, 32) and found["boxes"] is labels[row]["boxes"]
                assert found["masks"].sum() == (32 * 32, 32 * 24)[row]


def test_rows_of_tensors_and_lists():
    rows = torch.tensor([2, 0])
    assert select_rows(torch.arange(3), rows, 3).tolist() == [2, 0]
    assert select_rows(["a", "b", "c"], rows, 3) == ["c", "a"]
    assert select_rows(("a", "b", "c"), rows, 3) == ("c", "a")
    labels = {"color": torch.arange(3), "names": ["a", "b", "c"], "rate": 0.5}  # of several tasks
    found = select_rows(labels, rows, 3)
    assert found["color"].tolist() == [2, 0] and found["names"] == ["c", "a"] and found["rate"] == 0.5
    for other in (torch.arange(2), ["a", "b"], "abc", torch.tensor(3.0)):
        assert select_rows(other, rows, 3) is other


def test_labels_instead_of_soft_targets():
    settings = GradAugSettings(subnetwork_targets="labels", subnetwork_loss_weight=0.5, subnetwork_batch_fraction=0.5)
    gradaug = GradAug(tiny_model().double(), settings)
    inputs = {"pixel_values": tiny_images().double(), "labels": LABELS}
    (full, full_loss, outputs), *subnetworks = run(gradaug, inputs)
    assert torch.equal(full_loss, F.cross_entropy(outputs.logits, LABELS))
    assert len(subnetworks) == 3
    for index, (gradaug_pass, loss, outputs) in enumerate(subnetworks):
        labels = LABELS[[index % 4, (2 + index) % 4]]
        assert torch.equal(gradaug_pass.inputs["labels"], labels)
        assert torch.equal(loss, 0.5 * F.cross_entropy(outputs.logits, labels))
    # The draws are those of soft targets.
    soft = GradAug(tiny_model().double(), GradAugSettings(subnetwork_batch_fraction=0.5))
    for (ours, _, _), (theirs, _, _) in zip(subnetworks, run(soft, inputs)[1:], strict=True):
        assert ours.width == theirs.width
        assert torch.equal(ours.inputs["pixel_values"], theirs.inputs["pixel_values"])


def test_labels_that_are_probabilities_or_several():
    inputs = {"pixel_values": tiny_images(), "labels": F.one_hot(LABELS, 3) * 0.7 + 0.1}
    settings = GradAugSettings(subnetwork_targets="labels", scales=[1.0], subnetwork_batch_fraction=0.5)
    expected = {
        "single_label_classification": lambda logits, labels: F.cross_entropy(logits, labels),
        "multi_label_classification": lambda logits, labels: F.binary_cross_entropy_with_logits(logits, labels),
    }
    for problem_type, loss_of in expected.items():
        gradaug = GradAug(tiny_model(problem_type=problem_type), settings)
        for gradaug_pass, loss, outputs in run(gradaug, inputs):
            rows = slice(None) if gradaug_pass.rows is None else gradaug_pass.rows
            assert torch.allclose(loss, loss_of(outputs.logits, inputs["labels"][rows]))


def test_soft_targets_need_a_classifier():
    for changes in ({"problem_type": "regression"}, {"num_labels": 1}):
        with pytest.raises(ValueError, match=r"`config.problem_type` is .*`subnetwork_targets` to 'labels'"):
            GradAug(tiny_model(**changes))
    with pytest.raises(ValueError, match="`subnetwork_targets` must be 'soft', 'labels' or 'queries', but is 'hard'"):
        GradAugSettings(subnetwork_targets="hard")


@pytest.mark.slow
def test_the_trainer_computes_the_loss_of_subnetworks_as_the_full_networks(tmp_path):
    # At width and scale 1, without BatchNorm, sub-networks with the full network's loss multiply its gradient by 3.
    same = {"num_subnetworks": 2, "min_width": 1.0, "scales": [1.0], "max_steps": 2, "gradient_accumulation_steps": 2}
    same |= {"subnetwork_targets": "labels", "per_device_train_batch_size": 4, "label_smoothing_factor": 0.1}
    same["max_grad_norm"] = 0

    def train(**args):
        loss = args.pop("compute_loss_func", None)
        trainer = tiny_trainer(tmp_path, trainer_kwargs={"compute_loss_func": loss}, **{**same, **args})
        trainer.train()
        return parameters_of(trainer.model)

    def loss_func(outputs, labels, num_items_in_batch):
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    for args in ({}, {"compute_loss_func": loss_func}):
        plain = train(num_subnetworks=0, learning_rate=0.03, **args)
        assert largest_difference(plain, parameters_of(tiny_model())) > 1e-3
        assert largest_difference(train(learning_rate=0.01, **args), plain) < 1e-5


def test_a_fraction_of_the_batch_has_that_fraction_of_the_items(tmp_path):
    seen = []

    def loss_func(outputs, labels, num_items_in_batch):
        seen.append((len(labels), float(num_items_in_batch)))
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    args = {"subnetwork_targets": "labels", "subnetwork_batch_fraction": 0.5, "num_subnetworks": 1, "max_steps": 1}
    tiny_trainer(
        tmp_path, trainer_kwargs={"compute_loss_func": loss_func, "train_dataset": TinyImages(8)}, **args
    ).train()
    assert seen == [(8, 8.0), (4, 4.0)]


class Maps(TinyImages):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "labels": torch.full((32, 32), int(self.labels[index]))}


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_smaller_label_maps_have_fewer_items(tmp_path, fraction):
    """So a sub-network's loss is the mean over its own pixels, as the full network's is."""
    seen = []

    def loss_func(outputs, labels, num_items_in_batch):
        seen.append((labels.numel(), float(num_items_in_batch)))
        logits = outputs.logits[:, :, None, None].expand(-1, -1, *labels.shape[1:])
        return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch

    args = {"subnetwork_targets": "labels", "subnetwork_batch_fraction": fraction, "num_subnetworks": 1}
    kwargs = {"compute_loss_func": loss_func, "train_dataset": Maps(8)}
    tiny_trainer(tmp_path, trainer_kwargs=kwargs, scales=[0.5], max_steps=1, **args).train()
    pixels = int(fraction * 8) * 16 * 16
    assert seen == [(8 * 32 * 32, 8 * 32 * 32), (pixels, pixels)]
