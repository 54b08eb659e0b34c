# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Accuracy against width, its table and picture, and the script that exports and measures."""

import json

import numpy as np
import pytest
import torch
from helpers import images
from helpers.families import family_model
from helpers.tiny import TinyImages, largest_difference, state_of, tiny_images, tiny_model
from huggingface_hub import ModelCard, create_repo, upload_folder
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForImageClassification, ConvNextImageProcessor, pipeline

from hf_gradaug import (
    GradAugSettings,
    evaluate_widths,
    export_subnetwork,
    export_widths,
    format_widths,
    make_slimmable,
    narrow_config,
    plot_widths,
)
from hf_gradaug.data import get_eval_transform
from hf_gradaug.settings import save_settings


def loader(length=30, batch_size=8):
    return DataLoader(TinyImages(length), batch_size)


def count_correct(network, data):
    with torch.no_grad():
        hits = [network(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"] for batch in data]
    return int(torch.cat(hits).sum())


@pytest.fixture
def model():
    """A network whose sub-networks differ in what they get right."""
    model = tiny_model("resnet-basic").eval()
    with torch.no_grad():
        # At random every output is one and the same class: its bias is as large as what the images change.
        head = model.classifier[1]
        head.weight.normal_(generator=torch.Generator().manual_seed(1))
        features = torch.cat([model.resnet(batch["pixel_values"]).pooler_output.flatten(1) for batch in loader()])
        head.bias.copy_(-(head.weight @ features.mean(0)))
    return model


def test_rows_are_the_subnetworks_accuracies(model):
    before, data, calibration = state_of(model), loader(), loader(24)
    widths = [0.5, 0.9, 1.0]
    rows = evaluate_widths(model, widths, data, calibration)
    assert largest_difference(state_of(model), before) == 0 and not model.training
    assert [row["width"] for row in rows] == widths
    for row in rows:
        recalibrated = export_subnetwork(model, row["width"], calibration_data=calibration)
        assert row["accuracy_recalibrated"] == count_correct(recalibrated, data) / 30
        assert row["parameters"] == sum(parameter.numel() for parameter in recalibrated.parameters())
        narrow = narrow_config(model.config, row["width"])
        expected = {"embedding_size": narrow.embedding_size, "hidden_sizes": narrow.hidden_sizes}
        assert row["channels"] == (expected if row["width"] < 1 else {})
    make_slimmable(model)
    for row in rows:
        with model.subnetwork(row["width"]):
            assert row["accuracy"] == count_correct(model, data) / 30
    assert len({row[key] for row in rows for key in ("accuracy", "accuracy_recalibrated")}) > 2
    assert json.loads(json.dumps(rows)) == rows


def test_what_is_measured_is_what_is_exported(model):
    class OtherImagesEachTime:
        readings = 0

        def __iter__(self):
            self.readings += 1
            generator = torch.Generator().manual_seed(self.readings)
            return iter([{"pixel_values": torch.randn(8, 3, 32, 32, generator=generator) * self.readings}])

    data, calibration = loader(), OtherImagesEachTime()
    exported = list(export_widths(model, [0.5, 0.9, 1.0], data, calibration))
    assert calibration.readings == 3
    for network, row in exported:
        assert row["accuracy_recalibrated"] == count_correct(network, data) / 30
        assert network.config.hidden_sizes == narrow_config(model.config, row["width"]).hidden_sizes
    networks, rows = zip(*export_widths(model, [0.5, 1.0], data))
    assert [count_correct(network, data) / 30 for network in networks] == [row["accuracy"] for row in rows]


def test_a_plain_models_hooks_are_named_once(model, caplog):
    model.resnet.encoder.register_forward_hook(lambda *args: None)
    before = type(model)
    assert len(evaluate_widths(model, (0.5, 0.75, 1.0), loader())) == 3
    (message,) = (message for message in caplog.messages if "forward hooks" in message)
    assert "['resnet.encoder']" in message and type(model) is before


def test_widths_may_be_an_array(model):
    rows = evaluate_widths(model, np.linspace(0.5, 1, 2, dtype=np.float32), loader())
    assert json.loads(json.dumps(rows)) == rows == evaluate_widths(model, [0.5, 1.0], loader())


def test_without_calibration(model):
    assert [row["accuracy_recalibrated"] for row in evaluate_widths(model, [0.5, 1.0], loader())] == [None, None]
    convnext = tiny_model("convnext").eval()
    assert evaluate_widths(convnext, [0.5], loader(), loader())[0]["accuracy_recalibrated"] is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"widths": []}, ValueError, r"`widths` must be a list of one or more finite numbers, but is \[\]"),
        ({"widths": [0.5, 1.5]}, ValueError, r"`widths` must be a width multiplier in \(0, 1\], but is 1.5"),
        (
            {"widths": torch.tensor(0.5)},
            ValueError,
            "`widths` must be a list of one or more finite numbers, but is tensor",
        ),
        ({"eval_data": []}, ValueError, "`eval_data` must have one batch or more"),
        (
            {"eval_data": iter([])},
            TypeError,
            "`eval_data` must be a `DataLoader` or a list, .* but is a list_iterator",
        ),
        ({"calibration_data": iter([])}, TypeError, "`calibration_data` must be a `DataLoader` or a list"),
        ({"calibration_data": []}, ValueError, "`calibration_data` must have one batch or more"),
        ({"eval_data": [{"labels": torch.zeros(4)}]}, ValueError, "`eval_data` must be a dict with pixel_values"),
        ({"eval_data": [{"pixel_values": tiny_images()}]}, ValueError, r"`labels` .* integers \(4,\), but are None"),
        (
            {"eval_data": [{"pixel_values": tiny_images(), "labels": torch.zeros(4, 3)}]},
            ValueError,
            r"`labels` .* must be integers \(4,\), but are torch.float32 \(4, 3\)",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        evaluate_widths(tiny_model("resnet-basic"), **{"widths": [0.5], "eval_data": loader(), **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"widths": []}, ValueError, "`widths` must be"),
        ({"widths": [0.5, 1.5]}, ValueError, "`widths` must be"),
        ({"eval_data": iter([])}, TypeError, "`eval_data` must be"),
        ({"calibration_data": iter([])}, TypeError, "`calibration_data` must be"),
        ({"width_divisor": 0}, ValueError, "`width_divisor` must be"),
        ({"kept_blocks": [[0], [0], [7]]}, ValueError, "`kept_blocks` must list"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "`model` must have a `config`"),
    ],
)
def test_bad_arguments_raise_before_a_width_is_asked_for(arguments, error, message):
    arguments = {"model": tiny_model("resnet-basic"), "widths": [0.5], "eval_data": loader(), **arguments}
    with pytest.raises(error, match=message):
        export_widths(**arguments)


def test_table():
    rows = [
        {"width": 0.5, "parameters": 1234, "channels": {}, "accuracy": 0.5, "accuracy_recalibrated": None},
        {
            "width": 1.0,
            "parameters": 98765,
            "channels": {},
            "accuracy": 0.98765,
            "accuracy_recalibrated": 1.0,
            "flops": 2.5e9,
        },
    ]
    assert format_widths(rows).splitlines() == [
        "|   width |   parameters |   MFLOPs |   top-1 |   top-1, recalibrated |",
        "|--------:|-------------:|---------:|--------:|----------------------:|",
        "|     0.5 |        1,234 |        - |  50.00% |                     - |",
        "|       1 |       98,765 |  2,500.0 |  98.77% |               100.00% |",
    ]
    assert format_widths(rows[:1]).splitlines()[0] == "|   width |   parameters |   top-1 |"


def test_picture(tmp_path):
    curve = [{"width": width, "accuracy": width / 2, "accuracy_recalibrated": width} for width in (0.5, 0.9, 1.0)]
    other = [{**row, "accuracy": 0.1, "accuracy_recalibrated": None} for row in curve]
    for name, curves in (("one", {"a": curve}), ("two", {"a": [curve, curve], "b": [other]})):
        plot_widths(curves, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    for nothing in ({}, {"a": []}):
        with pytest.raises(ValueError, match="`curves` must have rows for each model"):
            plot_widths(nothing, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.fixture(scope="module")
def script():
    return images.load_script("export_subnetworks")


@pytest.fixture
def flags(model, tmp_path):
    """Arguments of the script: a model and three images a class to calibrate on, and to evaluate on."""
    model.config.id2label = dict(enumerate(images.CLASSES))
    model.config.label2id = {name: label for label, name in enumerate(images.CLASSES)}
    model.save_pretrained(tmp_path / "parent")
    processor = ConvNextImageProcessor(
        size={"shortest_edge": 20}, crop_pct=1.0, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(tmp_path / "parent")
    data = str(images.make_folder(tmp_path / "images", images_per_class=3))
    common = f"--train_dir {data} --validation_dir {data} --repetitions 2 --batch_size 4 --device cpu".split()
    return [str(tmp_path / "parent"), "--output_dir", str(tmp_path / "out"), *common]


def test_script(script, flags, tmp_path, capsys):
    rows = script.main([*flags, "--widths", "0.9", "0.5", "1.0"])
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "width-0.5", "width-0.9", "widths.json", "widths.md", "widths.png",
    }  # fmt: skip
    report = json.loads((out / "widths.json").read_text())
    assert report["rows"] == rows and [row["width"] for row in rows] == [0.5, 0.9, 1.0]
    assert (report["evaluation_images"], report["calibration_images"]) == (9, 8)  # in whole batches of 4
    printed, progress = capsys.readouterr()
    assert (out / "widths.md").read_text() == format_widths(rows) + "\n" == printed
    of_widths = [f"width {width}{what}" for width in (0.5, 0.9, 1) for what in ("", ", calibration", ", recalibrated")]
    assert [
        what for what in (*of_widths, "latency, 1 image", "latency, 4 images") if f"{what}: 100%" not in progress
    ] == []
    assert min(row[key] for row in rows for key in ("latency_1", "latency_batch")) > 0

    for row in rows:
        folder = tmp_path / "parent" if row["width"] == 1 else out / f"width-{row['width']}"
        network = AutoModelForImageClassification.from_pretrained(folder).eval()
        with FlopCounterMode(display=False) as counter:
            network(pixel_values=torch.zeros(1, 3, 20, 20))
        assert counter.get_total_flops() == row["flops"]
        if row["width"] < 1:
            # What is saved is what was measured, with the parent's preprocessing.
            processor = AutoImageProcessor.from_pretrained(folder)
            transform = get_eval_transform(processor)
            grey = [(images.make_image(label, number), label) for label in range(3) for number in range(3)]
            batch = {"pixel_values": torch.stack([transform(image) for image, _ in grey])}
            batch["labels"] = torch.tensor([label for _, label in grey])
            assert count_correct(network, [batch]) / 9 == row["accuracy_recalibrated"]
            classify = pipeline("image-classification", model=network, image_processor=processor, device="cpu")
            assert classify(images.make_image(1, 0))[0]["label"] in images.CLASSES
            card = ModelCard.load(folder / "README.md")
            assert card.data.pipeline_tag == "image-classification" and card.data.base_model is None
            assert card.data.tags == ["sub-network"] and card.data.datasets is None
            assert f"| {row['parameters']:,} |" in card.content and "on 8 images" in card.content
            assert f"| {rows[-1]['accuracy']:.2%} | {row['accuracy_recalibrated']:.2%} |" in card.content


def test_flops_of_attention_are_counted(script):
    images, flops = torch.zeros(2, 3, 32, 32), []
    for implementation in ("eager", "sdpa"):
        model = family_model("vit").eval()
        model.set_attn_implementation(implementation)
        flops.append(script.count_flops(model, images))
    assert flops[0] == flops[1]


def test_script_of_a_model_on_the_hub(script, flags, tmp_path, hub):
    name, parent = "someone/resnet", tmp_path / "parent"
    save_settings(GradAugSettings(), parent)
    create_repo(name)
    upload_folder(repo_id=name, folder_path=parent)
    script.main([name, *flags[1:], "--widths", "0.5"])
    card = ModelCard.load(tmp_path / "out" / "width-0.5" / "README.md")
    assert card.data.base_model == name and card.data.tags == ["sub-network", "gradaug"]
    assert f"A sub-network of [{name}](https://huggingface.co/{name})" in card.content


@pytest.mark.parametrize(("extra", "width_divisor"), [([], 4), (["--width_divisor", "1"], 1)])
def test_script_rounds_channels_as_the_run_did(script, flags, tmp_path, extra, width_divisor):
    save_settings(GradAugSettings(width_divisor=4), tmp_path / "parent")
    script.main([*flags, "--widths", "0.6", "--calibration_samples", "0", *extra])
    exported = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "width-0.6")
    parent = AutoModelForImageClassification.from_pretrained(tmp_path / "parent")
    assert exported.config.hidden_sizes == narrow_config(parent.config, 0.6, width_divisor).hidden_sizes
    assert json.loads((tmp_path / "out" / "widths.json").read_text())["width_divisor"] == width_divisor


def test_script_asks_for_the_divisor_that_it_cant_read(script, flags, tmp_path, hub, monkeypatch):
    create_repo("someone/resnet")
    upload_folder(repo_id="someone/resnet", folder_path=tmp_path / "parent")
    AutoModelForImageClassification.from_pretrained("someone/resnet")
    AutoImageProcessor.from_pretrained("someone/resnet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    flags = ["someone/resnet", *flags[1:], "--widths", "0.6", "--calibration_samples", "0"]
    with pytest.raises(SystemExit, match="`width_divisor` must be given, .* gradaug_config.json of 'someone/resnet'"):
        script.main(flags)
    assert not (tmp_path / "out").exists()
    script.main([*flags, "--width_divisor", "4"])
    assert json.loads((tmp_path / "out" / "widths.json").read_text())["width_divisor"] == 4


def test_script_counts_the_images_that_it_reads(script, flags, tmp_path, caplog):
    for name in ("cat/0.png", "dog/2.png"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    script.main([*flags, "--widths", "0.5", "--skip_bad_images", "--batch_size", "2"])
    report = json.loads((tmp_path / "out" / "widths.json").read_text())
    assert (report["evaluation_images"], report["calibration_images"]) == (7, 6)  # in whole batches of 2
    assert "on 6 images" in (tmp_path / "out" / "width-0.5" / "README.md").read_text()
    skipped = [message for message in caplog.messages if "of calibration" in message and "It is skipped" in message]
    assert len(skipped) == 2 and all(str(tmp_path / "images") in message for message in skipped)


def test_script_without_calibration(script, flags, tmp_path):
    (row, _) = script.main([*flags, "--widths", "0.5", "--calibration_samples", "0"])
    assert row["accuracy_recalibrated"] is None
    exported = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "width-0.5")
    parent = AutoModelForImageClassification.from_pretrained(tmp_path / "parent")
    assert largest_difference(state_of(exported), state_of(export_subnetwork(parent, 0.5))) == 0
    assert "They were not recomputed" in (tmp_path / "out" / "width-0.5" / "README.md").read_text()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--widths", "0.5", "2"], r"`widths` must be a width multiplier in \(0, 1\], but is 2.0"),
        (["--calibration_samples", "1"], "`calibration_samples` must be 2 or more, which BatchNorm needs"),
        (["--batch_size", "1"], "`batch_size` must be 2 or more, but is 1"),
        (["--repetitions", "0"], "`repetitions` must be 1 or more, but is 0"),
        (["--streaming"], "`streaming` must be off, .* but is on"),
        (["--horizontal_flip", "false"], "`horizontal_flip` must be left out in a script that doesn't train"),
        (["--train_dir", "{two}", "--validation_dir", "{two}"], "has 3 classes, but two has 2"),
    ],
)  # fmt: skip
def test_errors_of_the_script_leave_nothing_behind(script, flags, tmp_path, extra, message):
    two = str(images.make_folder(tmp_path / "two", classes=("cat", "dog")))
    with pytest.raises(ValueError, match=message):
        script.main([*flags, *(flag.format(two=two) for flag in extra)])
    assert not (tmp_path / "out").exists()
