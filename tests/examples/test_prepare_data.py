# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Fixed, stratified splits of real images, as examples/prepare_data.py writes them."""

import json
import sys
from collections import Counter
from pathlib import Path

import datasets
import elpv_dataset
import numpy as np
import pytest
from helpers import images
from PIL import Image

from hf_gradaug.data import DataArguments, load_digits_dataset, load_image_data


SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def script():
    return images.load_script("prepare_data")


@pytest.fixture
def prepare(script, tmp_path):
    """Runs the script into tmp_path / "out"."""
    return lambda *args: script.main([*map(str, args), "--output_dir", str(tmp_path / "out")])


def read(out, tmp_path):
    """The splits as the example script loads them, their images decoded."""
    folders = {f"{split}_dir": str(out / split) for split in SPLITS}
    data = load_image_data(DataArguments(**folders), cache_dir=str(tmp_path / "cache"))
    assert data.name == json.loads((out / "data.json").read_text())["name"]  # which the model card has
    splits = {split: rows.cast_column("image", datasets.Image()) for split, rows in data.splits.items()}
    return data.class_names, {split: list(rows) for split, rows in splits.items()}


def pixels(rows):
    return [np.asarray(row["image"]).tobytes() for row in rows]


def make_cells(folder, per_stratum=5):
    """The first cells of each grade and type, as a labels.csv beside a link to the package's images."""
    data = Path(elpv_dataset.__file__).parent / "data"
    folder.mkdir()
    (folder / "images").symlink_to(data / "images")
    strata = {}
    for line in (data / "labels.csv").read_text().splitlines():
        strata.setdefault(tuple(line.split()[1:]), []).append(line)
    (folder / "labels.csv").write_text("\n".join(line for lines in strata.values() for line in lines[:per_stratum]))
    return folder / "labels.csv"


def make_clip_art(root):
    """Nine kinds of 5 to 13 pictures, and a larger one that doesn't count, of one colour each on a transparent ground."""
    for kind, count in [*((f"kind{number}", 5 + number) for number in range(9)), ("unsorted", 20)]:
        (root / kind / "more").mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGBA", (30, 20), (0, 255, 0, 0))  # green, but transparent
            picture.paste((20 * number, 10 * int(kind[-1]) if kind != "unsorted" else 255, 0, 255), (0, 0, 15, 20))
            picture.save(root / kind / "more" / f"{number:02d}.png")
    return root


def test_digits_are_tested_on_images_that_no_earlier_run_was_evaluated_on(prepare, tmp_path, capsys):
    facts = prepare("digits")
    assert "encode validation: 100%" in capsys.readouterr().err
    names, splits = read(tmp_path / "out", tmp_path)
    assert names == [str(digit) for digit in range(10)]
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1079, "validation": 359, "test": 359}
    old = {split: Counter(pixels(rows)) for split, rows in load_digits_dataset().items()}
    new = {split: Counter(pixels(rows)) for split, rows in splits.items()}
    assert not new["test"] & old["validation"]
    assert sum(new.values(), Counter()) == sum(old.values(), Counter())  # each image once
    for split, rows in splits.items():
        counts = Counter(names[row["label"]] for row in rows)
        assert facts["splits"][split] == {"images": len(rows), "by_class": {name: counts[name] for name in names}}
        assert max(counts.values()) - min(counts.values()) <= (6 if split == "train" else 2)
    assert json.loads((tmp_path / "out" / "data.json").read_text()) == facts


def test_solar_cells_have_the_same_splits_in_both_forms(script, tmp_path, capsys):
    labels = make_cells(tmp_path / "cells")
    read_splits = {}
    for name in ("solar-cells", "solar-cells-binary"):
        args = [name, "--image_size", "16", "--source", str(labels), "--output_dir"]
        facts = script.main([*args, str(tmp_path / name)])
        assert script.main([*args, str(tmp_path / "again")])["sha256"] == facts["sha256"]
        for split in SPLITS:
            assert len({(tmp_path / out / split / "data.parquet").read_bytes() for out in (name, "again")}) == 1
        (tmp_path / "again").rename(tmp_path / f"again-{name}")
        read_splits[name] = read(tmp_path / name, tmp_path)
        assert "NC" in facts["licence"]
        shown = capsys.readouterr().err
        # A bar may show its end twice: once when it comes to it and once when it closes.
        assert shown.count("encode:   0%") == 2 and shown.count("encode: 100%") >= 2
    names, grades = read_splits["solar-cells"]
    assert names == ["functional", "maybe_defective", "likely_defective", "defective"]
    two_names, two = read_splits["solar-cells-binary"]
    assert two_names == ["functional", "defective"]
    seen = []
    for split, of_each in (("train", 6), ("validation", 2), ("test", 2)):
        assert Counter(row["label"] for row in grades[split]) == dict.fromkeys(range(4), of_each)
        assert {row["image"].size for row in grades[split]} == {(16, 16)}
        assert {row["image"].mode for row in grades[split]} == {"L"}
        assert pixels(grades[split]) == pixels(two[split])
        assert [min(row["label"], 1) for row in grades[split]] == [row["label"] for row in two[split]]
        seen += pixels(grades[split])
    assert len(set(seen)) == len(seen) == 40


def test_folds_have_other_test_images(script, tmp_path):
    labels = make_cells(tmp_path / "cells")
    tested, validated = [], []
    for fold in range(5):
        out = tmp_path / f"fold-{fold}"
        args = ["solar-cells", "--image_size", "16", "--source", str(labels), "--fold", str(fold)]
        assert script.main([*args, "--output_dir", str(out)])["request"]["fold"] == fold
        _, splits = read(out, tmp_path)
        assert Counter(row["label"] for row in splits["test"]) == dict.fromkeys(range(4), 2)
        assert len({*sum(map(pixels, splits.values()), [])}) == 40
        tested.append({*pixels(splits["test"])})
        validated.append({*pixels(splits["validation"])})
    assert len(set.union(*tested)) == 40
    assert validated[0] == tested[1]
    about = json.loads((tmp_path / "fold-0" / "data.json").read_text())
    args[-1] = "0"
    assert script.main([*args, "--output_dir", str(tmp_path / "fold-0")]) == about
    with pytest.raises(ValueError, match="`fold` must be from 0 to 4, but is 5"):
        script.main(["digits", "--fold", "5", "--output_dir", str(tmp_path / "none")])
    with pytest.raises(ValueError, match="each split of fold 4"):
        script.main(["digits", "--fold", "4", "--output_dir", str(tmp_path / "none")])


def test_solar_cells_are_those_of_the_package(prepare, tmp_path):
    prepare("solar-cells", "--source", make_cells(tmp_path / "cells", 3))
    first = np.asarray(Image.open(Path(elpv_dataset.__file__).parent / "data" / "images" / "cell0001.png"))
    _, splits = read(tmp_path / "out", tmp_path)
    labels = [row["label"] for rows in splits.values() for row in rows if np.array_equal(row["image"], first)]
    assert labels == [3]


def test_solar_cells_without_their_package_say_what_to_install(prepare, monkeypatch):
    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", None)
    with pytest.raises(ImportError, match="pip install elpv-dataset"):
        prepare("solar-cells")


def test_clip_art_takes_the_eight_largest_kinds_on_white(prepare, tmp_path):
    facts = prepare("clip-art", "--source", make_clip_art(tmp_path / "png"), "--image_size", "12")
    names, splits = read(tmp_path / "out", tmp_path)
    assert names == [f"kind{number}" for number in range(1, 9)]
    rows = [row for split in SPLITS for row in splits[split]]
    assert len(rows) == len(set(pixels(rows))) == sum(range(6, 14))
    assert facts["left_out"] == {"unreadable": 0, "in_several_classes": 0, "duplicates": 0}
    for row in rows:
        picture = np.asarray(row["image"])
        assert picture.shape == (12, 12, 3)
        assert (picture[0] == 255).all() and (picture[:, 9] == 255).all()  # padding, and what was transparent
        assert abs(int(picture[6, 2, 1]) - 10 * int(names[row["label"]][-1])) <= 5  # the kind's own colour


def test_duplicates_and_unreadable_pictures_are_left_out_and_counted(prepare, tmp_path, caplog):
    root = images.make_folder(tmp_path / "pictures", images_per_class=6)
    same = images.make_image(0, 1).convert("RGBA")
    same.info["note"] = "other bytes, same pixels"
    same.save(root / "cat" / "copy.png", compress_level=0)
    images.make_image(1, 2).save(root / "owl" / "a dog.png")
    (root / "owl" / "broken.png").write_bytes((root / "owl" / "0.png").read_bytes()[:60])
    facts = prepare("folder", "--source", root)
    # The picture of a dog that is among the owls too is neither's: both are gone.
    assert facts["left_out"] == {"unreadable": 1, "in_several_classes": 2, "duplicates": 1}
    assert "broken.png can't be read" in caplog.text
    names, splits = read(tmp_path / "out", tmp_path)
    greys = sorted(row["image"].getpixel((0, 0))[0] for rows in splits.values() for row in rows)
    assert names == list(images.CLASSES) and facts["name"] == "pictures"
    assert greys == sorted({80 * label + number for label in range(3) for number in range(6)} - {82})


def test_a_folder_of_photos_is_scaled_by_the_shorter_side(prepare, tmp_path):
    root = images.make_folder(tmp_path / "photos")
    for number, size in enumerate([(60, 40), (40, 60), (8, 6)]):
        Image.new("RGB", size, (number, 200, 0)).save(root / "cat" / f"other{number}.png")
    prepare("folder", "--source", root, "--image_size", "20")
    _, splits = read(tmp_path / "out", tmp_path)
    sizes = Counter(row["image"].size for rows in splits.values() for row in rows)
    assert sizes == {(20, 20): 12, (30, 20): 1, (20, 30): 1, (8, 6): 1}


def test_hidden_folders_are_no_classes_and_their_images_no_duplicates(prepare, tmp_path):
    root = images.make_folder(tmp_path / "photos", images_per_class=5)
    for hidden in (".ipynb_checkpoints", "__MACOSX/cat", "cat/.thumbnails"):
        (root / hidden).mkdir(parents=True)
        images.make_image(0, 1).save(root / hidden / "1.png")
        images.make_image(2, 40).save(root / hidden / "2.png")
    images.make_image(2, 50).save(root / "owl" / "._1.png")
    about = prepare("folder", "--source", root)
    assert about["classes"] == list(images.CLASSES) and not any(about["left_out"].values())
    assert sum(split["images"] for split in about["splits"].values()) == 15


def test_links_in_class_folders_are_followed(prepare, tmp_path):
    root, more = images.make_folder(tmp_path / "photos", images_per_class=5), tmp_path / "more"
    more.mkdir()
    images.make_image(0, 40).save(more / "0.png")
    (root / "cat" / "more").symlink_to(more)
    (root / "dog" / "up").symlink_to(root)
    about = prepare("folder", "--source", root)
    assert not any(about["left_out"].values())
    assert sum(split["images"] for split in about["splits"].values()) == 16


def test_the_output_is_written_once_and_whole(script, prepare, tmp_path, monkeypatch):
    root = images.make_folder(tmp_path / "photos")
    monkeypatch.setattr(script.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare("folder", "--source", root)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]  # nothing is left of a run that was stopped
    monkeypatch.undo()

    (tmp_path / "out").mkdir()
    facts = prepare("folder", "--source", root)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert prepare("folder", "--source", root) == facts
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == written
    with pytest.raises(
        ValueError,
        match="must be of this request, .*'image_size': 8.*, but .* holds the result of .*'image_size': None",
    ):
        prepare("folder", "--source", root, "--image_size", "8")
    (tmp_path / "out" / "test" / "data.parquet").unlink()
    with pytest.raises(
        ValueError, match="`output_dir` must be empty or a complete result of this script, but is '.*out'"
    ):
        prepare("folder", "--source", root)


def test_errors_name_what_is_wrong(prepare, tmp_path):
    with pytest.raises(ValueError, match="`image_size` must be 1 or more, but is 0"):
        prepare("digits", "--image_size", "0")
    with pytest.raises(ValueError, match="`source` must be a folder of class folders, but is not given"):
        prepare("folder")
    with pytest.raises(ValueError, match="`source` must be a folder, but is '.*none'"):
        prepare("clip-art", "--source", tmp_path / "none")
    with pytest.raises(ValueError, match="'cat'.*too few images"):
        prepare("folder", "--source", images.make_folder(tmp_path / "few", images_per_class=2))
    assert not (tmp_path / "out").exists()
