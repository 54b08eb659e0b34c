# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Deep images keep their greys, and turned ones fit their annotations, wherever an image is read."""

import json
import struct
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from detection.coco import CocoDataset
from helpers import images
from PIL import Image
from transformers import RTDetrImageProcessor

from hf_gradaug.data import DataArguments, decode_image, load_image_data


RAMP = np.linspace(0, 1, 240).reshape(12, 20)
GREYS = (RAMP * 255).round().astype(np.uint8)
DEEP = {
    "16 bits.png": (RAMP * 65535).astype(np.uint16),
    "16 bits.tiff": (RAMP * 65535).astype(np.uint16),
    "16 bits.pgm": (RAMP * 65535).astype(np.uint16),
    "big-endian.tiff": (RAMP * 65535).astype(">u2"),
    "floats.tiff": RAMP.astype(np.float32),
}
REFUSED = {
    "32 bits.tiff": ((RAMP * 2**31).astype(np.int32), "integers of 32 bits, whose range isn't known"),
    "levels.tiff": ((RAMP * 255).astype(np.float32), r"floats in \[0, 1\], but are in \[0.0, 255.0\]"),
    "signed.tiff": ((RAMP - 0.5).astype(np.float32), r"but are in \[-0.5, 0.5\]"),
    "holes.tiff": (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), r"but are in \[nan, nan\]"),
}


def greys(image):
    return torch.from_numpy(np.array(image)[..., 0].astype(int))


@pytest.mark.parametrize("name", DEEP)
def test_deep_pixels_are_scaled_by_their_range(tmp_path, name):
    Image.fromarray(DEEP[name]).save(tmp_path / name)
    image = decode_image({"path": str(tmp_path / name), "bytes": None}, "image 0")
    assert image.mode == "RGB" and (greys(image) - GREYS).abs().max() <= 1
    image = decode_image({"path": None, "bytes": (tmp_path / name).read_bytes()}, "image 0")
    assert (greys(image) - GREYS).abs().max() <= 1


@pytest.mark.parametrize("orientation", [None, 1, 3])
@pytest.mark.parametrize(("bits", "white"), [(12, 1), (16, 0)])
def test_tags_of_a_tiff_file(bits, white, orientation):
    """They state 12 bits, of which Pillow makes 16 without scaling them, and that 0 is white."""
    levels = (RAMP if white else 1 - RAMP) * (2**bits - 1)
    pixels = levels.round().astype("<u2").tobytes()
    if bits == 12:
        first, second = levels.round().astype(int).reshape(-1, 2).T
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
        pixels = packed.astype(np.uint8).tobytes()
    tags = {256: 20, 257: 12, 258: bits, 259: 1, 262: white, 273: 0, 277: 1, 278: 12, 279: len(pixels)}
    if orientation:
        tags[274] = orientation
    tags[273] = 14 + 12 * len(tags)  # where the pixels begin
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    stored = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + pixels
    image = decode_image({"path": None, "bytes": stored}, "image 0")
    expected = GREYS[::-1, ::-1].copy() if orientation == 3 else GREYS
    assert (greys(image) - expected).abs().max() <= 1


@pytest.mark.parametrize("name", REFUSED)
def test_pixels_of_no_known_range_are_an_error_that_names_the_file(tmp_path, name):
    pixels, message = REFUSED[name]
    Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(ValueError, match=rf"Unreadable image: image 0 \(.*{name}\): its pixels .*{message}"):
        decode_image({"path": str(tmp_path / name), "bytes": None}, "image 0")


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"image 0 \(.*empty.png\): its 0 bytes must be an image"):
        decode_image({"path": str(tmp_path / "empty.png"), "bytes": None}, "image 0")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_deep_pixels_in_data_and_streams(tmp_path, kind, streaming):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(DEEP["16 bits.png"]).save(tmp_path / "data" / name / "0.png")
    path = tmp_path / "data"
    if kind == "parquet":
        files = sorted(str(file) for file in path.rglob("*.png"))
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        rows = datasets.Dataset.from_dict({"image": files, "label": [0, 1]}, features=features)
        path = tmp_path / "shards"
        rows.to_parquet(path / "0.parquet")
    args = DataArguments(train_dir=str(path), validation_dir=str(path), test_dir=str(path), streaming=streaming)
    data = load_image_data(args)
    for split in ("train", "validation", "test"):
        example = next(iter(data.get_dataset(split, greys)))
        assert (example["pixel_values"] - GREYS).abs().max() <= 1


def test_prepared_images(tmp_path):
    script = images.load_script("prepare_data")
    for name, pixels in (("a", RAMP), ("b", 1 - RAMP)):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(6):
            shifted = np.roll((pixels * 65535).astype(np.uint16), number)
            Image.fromarray(shifted).save(tmp_path / "source" / name / f"{number}.png")
    script.main(["folder", "--source", str(tmp_path / "source"), "--output_dir", str(tmp_path / "out")])
    rows = datasets.Dataset.from_parquet(str(tmp_path / "out" / "train" / "data.parquet"))
    assert all(sorted(np.unique(np.array(image))) == sorted(np.unique(GREYS)) for image in rows["image"])


# Annotations of turned photos


TURNS = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270,
         7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}  # fmt: skip


def write_photo(folder, orientation, **entry):
    """A dark photo, stored as 40 x 24, with a light object; its box and mask are of the upright photo, or of the stored."""
    stored = np.zeros((24, 40, 3), dtype=np.uint8)
    stored[4:10, 6:18] = 255
    upright = np.array(Image.fromarray(stored).transpose(TURNS[orientation])) if orientation else stored
    exif = Image.Exif()
    exif[0x0112] = orientation or 1
    Image.fromarray(stored).save(folder / "photo.png", exif=exif)
    described = stored if entry.pop("stored", False) else upright
    rows, columns = np.nonzero(described[..., 0])
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    polygon = [left, top, right, top, right, bottom, left, bottom]
    size = {"height": described.shape[0], "width": described.shape[1]} if entry.pop("sized", True) else {}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [left, top, right - left, bottom - top],
                  "area": 72, "iscrowd": 0, "segmentation": [polygon]}  # fmt: skip
    contents = {
        "images": [{"id": 1, "file_name": "photo.png", **size, **entry}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "light"}],
    }
    (folder / "annotations.json").write_text(json.dumps(contents, default=int))
    return str(folder), str(folder / "annotations.json")


def make_dataset(files, **kwargs):
    return CocoDataset(*files, RTDetrImageProcessor(size={"height": 64, "width": 64}), with_targets=True, **kwargs)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("orientation", [None, *TURNS])
def test_boxes_and_masks_lie_on_their_objects(tmp_path, orientation, stored):
    # The size doesn't tell whether a photo that is upside down was turned: it is, as every viewer does.
    dataset = make_dataset(write_photo(tmp_path, orientation, stored=stored and orientation != 3))
    picture, (annotation,) = dataset.read(0)
    left, top, width, height = annotation["bbox"]
    light = np.array(picture)[..., 0] == 255
    assert light[top : top + height, left : left + width].all() and light.sum() == width * height
    masks = make_dataset((dataset.folder, dataset.folder + "/annotations.json"), with_masks=True)[0]["targets"][
        "masks"
    ]
    assert masks[0].numpy().tolist() == light.tolist()


def test_without_a_size_the_photo_is_upright(tmp_path):
    dataset = make_dataset(write_photo(tmp_path, 6, sized=False))
    picture, (annotation,) = dataset.read(0)
    left, top, width, height = annotation["bbox"]
    assert picture.size == (24, 40) and np.array(picture)[top : top + height, left : left + width].min() == 255
    assert dataset._masks([annotation], picture).sum() == 72


def test_another_size_names_the_file(tmp_path):
    for orientation in (None, 6):
        dataset = make_dataset(write_photo(tmp_path, orientation, width=41))
        with pytest.raises(
            ValueError, match=r"photo.png\): its width and height must be 41 x \d\d, as its annotations"
        ):
            dataset[0]


def edit(files, **changes):
    path = Path(files[1])
    contents = json.loads(path.read_text())
    (annotation,) = contents["annotations"]
    annotation.update(changes)
    for name in [name for name, value in changes.items() if value is None]:
        del annotation[name]
    path.write_text(json.dumps(contents))
    return files


def test_missing_areas_boxes_and_wrong_masks(tmp_path):
    files = edit(write_photo(tmp_path, None), area=None)
    assert make_dataset(files)[0]["targets"]["area"].tolist() == [72]
    assert make_dataset(edit(files, bbox=None))[0]["targets"]["boxes"].tolist() == [[6, 4, 18, 10]]
    with pytest.raises(ValueError, match="Annotation 1 must have `bbox` or `segmentation`"):
        make_dataset(edit(files, segmentation=None))[0]
    assert make_dataset(edit(files, bbox=[6, 4, 10, 5]))[0]["targets"]["area"].tolist() == [50]
    with pytest.raises(ValueError, match="mask of annotation 1 must have the size of its image 'photo.png', 24 x 40"):
        make_dataset(edit(files, segmentation={"size": [40, 24], "counts": [960]}))[0]
    with pytest.raises(
        ValueError, match=r"`category_id` of annotation 1 must be one of the categories \[1\], but is 9"
    ):
        make_dataset(edit(files, category_id=9, segmentation=None))[0]
