# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The image processors of the scripts for detection and segmentation: whole images, relative boxes, the right pixels."""

import json

import pytest
import torch
from detection import coco
from detection.coco import CocoDataset
from detection.common import DenseModelArguments, build_model, get_normalization, load_processor
from helpers import images
from helpers.dense import NUM_LABELS, dense_config, dense_model
from helpers.tiny import tiny_model
from PIL import Image
from transformers import (
    ConvNextImageProcessor,
    DetrImageProcessor,
    EfficientNetImageProcessor,
    Mask2FormerImageProcessor,
    MaskFormerImageProcessor,
    MobileViTImageProcessor,
    ResNetConfig,
    RTDetrImageProcessor,
    TableTransformerConfig,
)


@pytest.fixture(scope="module")
def tasks():
    return {name: images.load_script(f"run_{name}").TASK for name in ("object_detection", "instance_segmentation")}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("detr-resnet", "DetrImageProcessor"),
        ("conditional_detr", "ConditionalDetrImageProcessor"),
        ("rt_detr", "RTDetrImageProcessor"),
        ("d_fine", "RTDetrImageProcessor"),
        ("maskformer", "MaskFormerImageProcessor"),
    ],
)
def test_a_config_brings_the_image_processor_of_its_family(tasks, tmp_path, name, expected):
    dense_config(name).save_pretrained(tmp_path)
    task = tasks["instance_segmentation" if name == "maskformer" else "object_detection"]
    processor = load_processor(task, DenseModelArguments(config_name=str(tmp_path)), 64)
    assert type(processor).__name__ == expected
    assert processor(images=Image.new("RGB", (40, 30)), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)
    if name == "detr-resnet":  # classes and, as the last, "no object"
        outputs = dense_model(name).eval()(pixel_values=torch.zeros(2, 3, 64, 64))
        for found in coco.predict_objects(processor, outputs, [torch.tensor([30, 40])] * 2):
            assert len(found["labels"]) == 6 and max(found["labels"]) < NUM_LABELS


def test_a_family_that_shares_an_image_processor_gets_that_one(tasks, tmp_path):
    # Its last class is "no object", which a detector of another family may predict as if it were one.
    TableTransformerConfig(backbone_config=ResNetConfig(), use_timm_backbone=False, backbone=None).save_pretrained(
        tmp_path
    )
    args = DenseModelArguments(config_name=str(tmp_path))
    assert type(load_processor(tasks["object_detection"], args, 64)).__name__ == "DetrImageProcessor"


def test_a_config_in_half_precision_gives_a_model_in_float32(tasks, tmp_path):
    dense_model("deformable_detr").bfloat16().save_pretrained(tmp_path)
    args = DenseModelArguments(config_name=str(tmp_path))
    model = build_model(tasks["object_detection"], args, "the pictures", ["cat", "dog"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.fixture
def half(tmp_path):
    """A picture of 40 x 30 pixels whose left half is an object."""
    picture = Image.new("RGB", (40, 30))
    picture.paste("white", (0, 0, 20, 30))
    picture.save(tmp_path / "half.png")
    polygon = [[0, 0, 20, 0, 20, 30, 0, 30]]
    contents = {
        "images": [{"id": 1, "file_name": "half.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": polygon}],
        "categories": [{"id": 1, "name": "half"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(contents))
    return str(tmp_path), str(tmp_path / "annotations.json")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pad_size": {"height": 96, "width": 128}},
        {"do_resize": False, "do_pad": True},
        {"do_convert_annotations": False},
    ],
)
@pytest.mark.parametrize(
    "processor_class",
    [MaskFormerImageProcessor, Mask2FormerImageProcessor, DetrImageProcessor, RTDetrImageProcessor],
)
def test_objects_fill_their_part_of_the_square_whatever_a_pretrained_processor_does(
    tasks, half, processor_class, settings
):
    with_masks = "Mask" in processor_class.__name__
    task = tasks["instance_segmentation" if with_masks else "object_detection"]
    processor_class(**settings).save_pretrained(half[0])
    processor = load_processor(task, DenseModelArguments(model_name_or_path=half[0]), 64)
    assert type(processor) is processor_class
    example = CocoDataset(*half, processor, with_masks)[0]
    assert example["pixel_values"].shape == (3, 64, 64)
    if with_masks:
        assert example["pixel_mask"].all()
        assert example["mask_labels"][0].equal(torch.cat([torch.ones(64, 32), torch.zeros(64, 32)], dim=1))
    else:
        assert example["labels"]["boxes"].tolist() == [[0.25, 0.5, 0.5, 1]]


@pytest.mark.parametrize("name", ["object_detection", "instance_segmentation"])
@pytest.mark.parametrize("settings", [{}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}])
def test_a_backbone_sees_pixels_as_in_its_training(tasks, name, settings, tmp_path):
    own = ConvNextImageProcessor(size={"shortest_edge": 64}, **settings)
    own.save_pretrained(tmp_path)
    processor = load_processor(tasks[name], DenseModelArguments(backbone=str(tmp_path)), 64)
    picture = Image.new("RGB", (64, 64), (200, 30, 110))
    pixels, expected = (each(images=picture, return_tensors="pt")["pixel_values"] for each in (processor, own))
    assert torch.allclose(pixels, expected, atol=1e-4)


def test_pixels_of_the_range_minus_one_to_one_are_kept(tmp_path):
    settings = {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False, "include_top": False}
    EfficientNetImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False, **settings).save_pretrained(
        tmp_path
    )
    found = get_normalization(str(tmp_path))
    assert found == {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def test_a_backbone_whose_processor_reorders_channels_is_an_error(tmp_path):
    MobileViTImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="`backbone` must be .* each channel by itself, but is .* whose MobileViT"):
        get_normalization(str(tmp_path))


def test_a_backbone_without_an_image_processor_is_told(tasks, tmp_path, caplog):
    tiny_model("resnet-basic").save_pretrained(tmp_path)
    assert get_normalization(str(tmp_path)) == {}
    (message,) = caplog.messages
    assert message.startswith("The backbone '") and "has no image processor" in message
