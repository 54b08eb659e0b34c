# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Pixels of evaluation, training and attacks are those of the image processor, whichever of transformers' it is."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from hf_gradaug.data import get_eval_transform, get_image_size, get_train_transform, make_image_processor
from hf_gradaug.data.image_processors import ProcessorCrop, get_pixel_map, process_image


PROCESSORS = sorted(
    {
        name
        for config in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
        for name in dict(IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type, {})).values()
    }
)
# Their defaults, and other settings, where a processor has them.
SETTINGS = {
    "defaults": {},
    "resample": {"resample": 3, "do_center_crop": False, "size": {"height": 48, "width": 40}},
    "crop": {"crop_pct": 0.6, "do_center_crop": True, "crop_size": {"height": 40, "width": 40}, "size": {"shortest_edge": 50}},
    "warp": {"crop_pct": 0.9, "size": {"shortest_edge": 400}},
    "larger crop": {"do_center_crop": True, "crop_size": {"height": 60, "width": 52}, "size": {"height": 40, "width": 40}},
    "pad": {"do_pad": True, "pad_size": {"height": 56, "width": 60}, "size": {"height": 40, "width": 44}},
    "edges": {"size": {"shortest_edge": 40, "longest_edge": 60}},
    "numbers": {
        "size": {"height": 40, "width": 40},
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    },
    "bare": {"size": {"height": 40, "width": 40}, "do_rescale": False, "do_normalize": False, "do_flip_channel_order": False},
}  # fmt: skip
# Whose images are none, or of no one size with the settings above that don't name both sides.
REFUSED = ("ImageGPT", "Siglip2", "TextNet")


def make_processor(name, settings):
    """A processor with those of the settings that it has."""
    if name.startswith("TimmWrapper"):
        return transformers.TimmWrapperImageProcessor(
            {"input_size": [3, 40, 40], "crop_pct": settings.get("crop_pct", 0.875), "interpolation": "bicubic"}
        )
    cls = getattr(transformers, name)
    known = (
        cls.valid_kwargs.__annotations__
        | transformers.processing_utils.ImagesKwargs.__annotations__
        | {"clusters": list}
    )
    if name.startswith("ImageGPT"):
        settings = {"clusters": np.zeros((2, 3)).tolist(), **settings}
    if name.startswith("Donut"):  # 2560 x 1920 by default
        settings = {"size": {"height": 80, "width": 60}, **settings}
    return cls(**{key: value for key, value in settings.items() if key in known})


def photo(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_image_processors_or_it_is_refused(name, settings):
    processor = make_processor(name, SETTINGS[settings])
    images = [photo(90, 70), photo(50, 77), photo(33, 33)]
    try:
        theirs = [processor(image, return_tensors="pt")["pixel_values"][0].float() for image in images]
    except Exception as error:  # it refuses the settings itself, or gives no images
        with pytest.raises((type(error), ValueError)):
            get_eval_transform(processor)
        return
    if theirs[0].ndim != 3 or len({pixels.shape for pixels in theirs}) > 1:
        assert name.startswith(REFUSED) or settings != "defaults"
        with pytest.raises(ValueError, match="cuts images into patches|must have one size"):
            get_eval_transform(processor)
        return
    transform = get_eval_transform(processor)
    for image, expected in zip(images, theirs, strict=True):
        assert transform(image).equal(expected)
    assert get_image_size(processor) == theirs[0].shape[1:]

    # In training, the crop is another, but a colour is the same.
    colours = [(20, 90, 240), (255, 1, 130)]
    train_transform = get_train_transform(processor)
    for colour in colours:
        image = Image.new("RGB", get_image_size(processor)[::-1], colour)
        pixels, middle = train_transform(image), [side // 2 for side in get_image_size(processor)]
        expected = process_image(processor, image)[:, middle[0], middle[1]]
        assert pixels.shape == theirs[0].shape
        torch.testing.assert_close(pixels, expected[:, None, None].expand_as(pixels), rtol=1e-4, atol=1e-4)

    # What an attack or a corruption gets, and the model then. Some resize to fractions of a level, or beyond white.
    crop = ProcessorCrop(processor)
    black, white = (crop.pixel_map(torch.full((3, 1, 1), level)) for level in (0.0, 1.0))
    level = float(crop.pixel_map.weight.abs().max()) / 255
    for image, expected in zip(images, theirs, strict=True):
        pixels = torch.from_numpy(np.array(crop(image))).permute(2, 0, 1) / 255
        expected = expected.clamp(torch.minimum(black, white), torch.maximum(black, white))
        torch.testing.assert_close(crop.pixel_map(pixels), expected, rtol=0, atol=0.51 * level)


@pytest.mark.parametrize("size", [32, 384, 500])
def test_a_new_models_images_keep_their_proportions(size):
    """A square in the middle of a wide image stays one, and fills half of the crop, which is half of the image."""
    image = Image.new("RGB", (1600, 800))
    image.paste("white", (700, 300, 900, 500))
    pixels = get_eval_transform(make_image_processor(size, crop_pct=0.5))(image)[0]
    light = pixels > pixels.mean()
    assert pixels.shape == (size, size) and get_image_size(make_image_processor(size)) == (size, size)
    assert all(abs(int(light.any(side).sum()) - size // 2) <= 2 for side in (0, 1))


def test_a_step_that_is_not_linear_is_refused():
    class Gamma(transformers.ViTImageProcessorPil):
        def rescale(self, image, *args, **kwargs):
            return super().rescale(image, *args, **kwargs) ** 2

    with pytest.raises(ValueError, match=r"Gamma must change the channels of pixels linearly.*\(200, 30, 110\)"):
        get_pixel_map(Gamma(size={"height": 8, "width": 8}))


def test_a_step_that_loses_colours_is_refused_for_attacks_alone():
    class Grey(transformers.ViTImageProcessorPil):
        def rescale(self, image, *args, **kwargs):
            return super().rescale(image, *args, **kwargs).mean(0, keepdims=True).repeat(3, axis=0)

    processor = Grey(size={"height": 8, "width": 8})
    assert get_train_transform(processor)(photo(20, 20)).shape == (3, 8, 8)
    with pytest.raises(ValueError, match="Grey must keep colours apart"):
        ProcessorCrop(processor)
