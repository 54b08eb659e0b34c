# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What training leaves behind works in an interpreter that doesn't have this package."""

import subprocess
import sys

import pytest
import torch
from helpers.tiny import tiny_images, tiny_model, tiny_trainer

from hf_gradaug import export_subnetwork


LOADER = """
import sys
sys.modules["hf_gradaug"] = None  # an import of it raises ImportError
import torch
from transformers import AutoModelForImageClassification

for folder in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(pixel_values=torch.load(folder + "/images.pt")).logits
    assert torch.equal(logits, torch.load(folder + "/logits.pt")), f"the logits of {folder} differ"
    print(type(model).__name__)
"""


@pytest.mark.slow
def test_saved_and_exported_models_load_without_this_package(tmp_path, subprocess_env):
    saved = {}
    for family in ("resnet-basic", "convnextv2"):
        trainer = tiny_trainer(tmp_path / family, tiny_model(family))
        trainer.train()
        trainer.save_model()
        saved[family] = trainer.model
    # Narrower, and with fewer blocks.
    blocks = {"kept_blocks": [[0], [0], [0]], "calibration_data": trainer.get_eval_dataloader()}
    saved["exported"] = export_subnetwork(saved["resnet-basic"], 0.5, **blocks)
    assert saved["exported"].config.depths == [1, 1, 1]
    saved["exported"].save_pretrained(tmp_path / "exported")
    for name, model in saved.items():
        torch.save(tiny_images(), tmp_path / name / "images.pt")
        with torch.no_grad():
            torch.save(model.eval()(pixel_values=tiny_images()).logits, tmp_path / name / "logits.pt")

    done = subprocess.run(
        [sys.executable, "-c", LOADER, *(str(tmp_path / name) for name in saved)],
        env={**subprocess_env, "PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{name}ForImageClassification" for name in ("ResNet", "ConvNextV2", "ResNet")]
