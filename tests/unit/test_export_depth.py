# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""An exported sub-network with fewer blocks is a standard model of its own, and computes what the sub-network does."""

import json
import logging

import pytest
import torch
from helpers import images
from helpers.families import family_model
from helpers.tiny import TinyImages, largest_difference, state_of, tiny_config, tiny_images, tiny_model
from huggingface_hub import ModelCard
from test_depth import WITH_DEPTH, deep_config, kept_blocks, stages_of
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification, ConvNextImageProcessor

from hf_gradaug import (
    create_subnetwork_card,
    evaluate_widths,
    export_subnetwork,
    leading_blocks,
    load_classifier,
    make_slimmable,
    recalibrate_batchnorm,
    subnetwork_state_dict,
)


def logits(model):
    with torch.no_grad():
        return model(pixel_values=tiny_images()).logits


@pytest.mark.parametrize("family", WITH_DEPTH)
def test_equals_the_subnetwork(family, tmp_path):
    model = family_model(family, config=deep_config(family)).eval()
    before = state_of(model)
    # Swin's windows are shifted in blocks of odd index, so that each block has to stay even or odd.
    for width, last_stage in ((1.0, (0, 3)), (0.6, (0, 1))):
        blocks = kept_blocks(model, last_stage)
        exported = export_subnetwork(model, width, kept_blocks=blocks)
        exported.save_pretrained(tmp_path / str(width))
        with make_slimmable(model).subnetwork(width, kept_blocks=blocks):
            expected = logits(model)
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / str(width))
        assert stages_of(loaded.config) == stages_of(exported.config) == [len(kept) for kept in blocks]
        assert largest_difference(state_of(loaded), state_of(exported)) == 0
        for network in (exported, loaded):  # whose memory is laid out otherwise
            torch.testing.assert_close(logits(network), expected, rtol=1e-5, atol=1e-6)
    assert stages_of(model.config)[-1] == 4
    exported.zero_grad()
    with torch.no_grad():
        for tensor in exported.state_dict().values():
            tensor.zero_()
    assert largest_difference(state_of(model), before) == 0  # no memory is shared


def test_state_dict_has_the_kept_blocks():
    model = tiny_model("resnet-basic", depths=[3, 1, 2])
    config, state = subnetwork_state_dict(model, 1.0, kept_blocks=[[0, 2], [0], [0]])
    assert config.depths == [2, 1, 1] and model.config.depths == [3, 1, 2]
    weight = "resnet.encoder.stages.0.layers.{}.layer.0.convolution.weight"
    assert torch.equal(state[weight.format(1)], model.get_parameter(weight.format(2)))
    assert not any("layers.2." in name or "stages.2.layers.1" in name for name in state)


def test_a_block_that_would_compute_something_else_is_refused():
    model = family_model("swin", config=deep_config("swin"))
    with pytest.raises(ValueError) as error:
        export_subnetwork(model, 1.0, kept_blocks=kept_blocks(model, (0, 2)))
    assert "but is ((0, 1), (0, 2)): 'swin.encoder.layers.1.blocks.2', whose `shift_size` is 0, would be" in str(
        error.value
    )
    # Rates of drop path are of no moment to a model that is loaded: they are those of its config.
    model = family_model("convnext", config=deep_config("convnext", drop_path_rate=0.5)).eval()
    exported = export_subnetwork(model, 1.0, kept_blocks=kept_blocks(model, (0, 2)))
    assert [block.drop_path.drop_prob for block in exported.convnext.encoder.stages[2].layers[1:]] == [0.5]


def test_calibration(caplog):
    model, blocks = tiny_model("resnet-basic").eval(), [[0], [0], [0]]
    data = DataLoader(TinyImages(24), 8)
    with caplog.at_level(logging.WARNING, "hf_gradaug"):
        exported = export_subnetwork(model, 1.0, calibration_data=data, kept_blocks=blocks)
        export_subnetwork(model, 1.0, kept_blocks=leading_blocks(model.config))
    assert not caplog.records
    kept = export_subnetwork(model, 1.0, kept_blocks=blocks)
    assert "width multiplier 1.0 and residual blocks [[0], [0], [0]] uses the full network's BatchNorm" in caplog.text
    assert largest_difference(state_of(exported), state_of(kept)) > 0.1
    (row,) = evaluate_widths(model, [1.0], data, data, kept_blocks=((0,), (0,), (0,)))
    assert row["kept_blocks"] == blocks and row["channels"] == {"depths": [1, 1, 1]}
    assert row["parameters"] == exported.num_parameters() and row["accuracy_recalibrated"] is not None
    recalibrate_batchnorm(kept, data)
    assert largest_difference(state_of(exported), state_of(kept)) == 0


def test_leading_blocks():
    config = tiny_config("resnet-basic", depths=[3, 1, 4])
    assert leading_blocks(config) == ((0, 1, 2), (0,), (0, 1, 2, 3))
    assert leading_blocks(config, [2, 1, 3]) == ((0, 1), (0,), (0, 1, 2))
    assert leading_blocks(config, 3) == ((0,), (0,), (0,))
    assert leading_blocks(config, [6]) == ((0, 1, 2), (0,), (0, 1))
    assert leading_blocks(config, 8) == leading_blocks(config)
    vit = deep_config("vit")
    assert leading_blocks(vit, 2) == leading_blocks(vit, [2]) == ((0, 1),)
    for wrong in (2, 9, [2, 1], [2, 2, 1], [0, 1, 1], []):
        with pytest.raises(ValueError) as error:
            leading_blocks(config, wrong)
        assert f"from 1 to [3, 1, 4], or one number for the whole model, from 3 to 8, but is {wrong}." in str(
            error.value
        )
    with pytest.raises(TypeError, match="register_depth"):
        leading_blocks(family_model("pyramidnet").config, [1, 1, 1])


def test_card_names_the_blocks():
    parent, blocks = tiny_model("resnet-basic", depths=[3, 1, 2]), [[0, 2], [0], [0]]
    exported = export_subnetwork(parent, 0.5, kept_blocks=blocks)
    lines = create_subnetwork_card(exported, parent, 0.5, 100, kept_blocks=blocks).content.splitlines()
    assert "# ResNetForImageClassification at width 0.5, with 4 of 6 residual blocks" in lines
    assert (
        "| residual blocks of stage 1 | all | 0, 2 |" in lines and "| residual blocks of stage 3 | all | 0 |" in lines
    )
    assert "| `depths` | [3, 1, 2] | [2, 1, 1] |" in lines and "| `hidden_sizes` | [8, 16, 24] | [4, 8, 12] |" in lines
    assert "BatchNorm's running statistics were recomputed for this width and depth, on 100 images." in lines


@pytest.fixture
def flags(tmp_path):
    model = tiny_model("resnet-basic", depths=[2, 1, 2], id2label=dict(enumerate(images.CLASSES)))
    model.save_pretrained(tmp_path / "parent")
    ConvNextImageProcessor(size={"shortest_edge": 20}, crop_pct=1.0).save_pretrained(tmp_path / "parent")
    data = str(images.make_folder(tmp_path / "images", images_per_class=2))
    common = f"--train_dir {data} --validation_dir {data} --repetitions 1 --batch_size 4 --device cpu".split()
    return [str(tmp_path / "parent"), "--output_dir", str(tmp_path / "out"), *common]


def test_script(flags, tmp_path):
    rows = images.load_script("export_subnetworks").main(
        [*flags, "--widths", "1", "0.5", "--depths", "2,1,1", "3", "2,1,2"]
    )
    out = tmp_path / "out"
    assert [(row["width"], [len(kept) for kept in row["kept_blocks"]]) for row in rows] == [
        (0.5, [2, 1, 1]), (1.0, [2, 1, 1]), (0.5, [1, 1, 1]), (1.0, [1, 1, 1]), (0.5, [2, 1, 2]), (1.0, [2, 1, 2]),
    ]  # fmt: skip
    folders = [
        f"width-{row['width']:g}-blocks-{'-'.join(str(len(kept)) for kept in row['kept_blocks'])}" for row in rows
    ]
    # The last is the full network, which is there already.
    assert {path.name for path in out.iterdir()} == {*folders[:-1], "widths.json", "widths.md", "widths.png"}
    assert json.loads((out / "widths.json").read_text())["rows"] == rows
    assert " 2, 1, 1 |" in (out / "widths.md").read_text()
    for row, folder in zip(rows[:-1], folders):
        network = AutoModelForImageClassification.from_pretrained(out / folder)
        assert network.num_parameters() == row["parameters"]
        card = ModelCard.load(out / folder / "README.md")
        assert f"with {sum(network.config.depths)} of 5 residual blocks" in card.content
    assert len({row["flops"] for row in rows}) == len(rows)


def test_script_names_a_models_hooks_once(flags, caplog, monkeypatch):
    script = images.load_script("export_subnetworks")

    def load(name):
        model = load_classifier(name)
        model.resnet.encoder.register_forward_hook(lambda *args: None)
        return model

    monkeypatch.setattr(script, "load_classifier", load)
    script.main([*flags, "--widths", "0.5", "--depths", "1,1,1", "2,1,1", "--calibration_samples", "0"])
    (message,) = (message for message in caplog.messages if "forward hooks" in message)
    assert "['resnet.encoder']" in message


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ("2,x", "`depths` must be numbers with commas .*, but one is '2,x'"),
        ("9,1,1", r"from 1 to \[2, 1, 2\].*\[9, 1, 1\]"),
    ],
)
def test_depths_that_do_not_fit_leave_nothing_behind(flags, tmp_path, depths, message):
    with pytest.raises(ValueError, match=message):
        images.load_script("export_subnetworks").main([*flags, "--widths", "1", "--depths", "1,1,1", depths])
    assert not (tmp_path / "out").exists()
