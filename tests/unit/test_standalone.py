# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What training leaves behind works in an interpreter that doesn't have this package."""

import subprocess
import sys

import torch
from helpers.tiny import tiny_images, tiny_model, tiny_trainer

from hf_gradaug import export_subnetwork


LOADER = """
import sys
sys.modules["hf_gradaug"] = None  # an import of it raises ImportError
import torch
from transformers import AutoModelForImageClassification

folder = sys.argv[1]
model = AutoModelForImageClassification.from_pretrained(folder).eval()
with torch.no_grad():
    logits = model(pixel_values=torch.load(folder + "/images.pt")).logits
assert torch.equal(logits, torch.load(folder + "/logits.pt")), "the logits differ"
print(type(model).__name__)
"""


def class_elsewhere(folder, model, env):
    """The class that a saved model has where this package is absent, and where it computes the same logits."""
    torch.save(tiny_images(), folder / "images.pt")
    with torch.no_grad():
        torch.save(model.eval()(pixel_values=tiny_images()).logits, folder / "logits.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(folder)],
        env={**env, "PYTHONPATH": ""},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_saved_weights_load_without_this_package(tmp_path, subprocess_env):
    for family, name in (("resnet-basic", "ResNet"), ("convnextv2", "ConvNextV2")):
        trainer = tiny_trainer(tmp_path / family, tiny_model(family))
        trainer.train()
        trainer.save_model()
        assert class_elsewhere(tmp_path / family, trainer.model, subprocess_env) == f"{name}ForImageClassification"


def test_exported_subnetwork_loads_without_this_package(tmp_path, subprocess_env):
    trainer = tiny_trainer(tmp_path / "parent", tiny_model("resnet-basic"))
    trainer.train()
    # Narrower, and with fewer blocks.
    blocks = {"kept_blocks": [[0], [0], [0]], "calibration_data": trainer.get_eval_dataloader()}
    exported = export_subnetwork(trainer.model, 0.5, **blocks)
    assert exported.config.depths == [1, 1, 1]
    exported.save_pretrained(tmp_path / "exported")
    assert class_elsewhere(tmp_path / "exported", exported, subprocess_env) == "ResNetForImageClassification"
