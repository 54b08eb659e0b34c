"""What training leaves behind works in an interpreter that doesn't have this package."""

import subprocess
import sys

import torch
from tiny import tiny_images, tiny_model, tiny_trainer


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


def test_saved_weights_load_without_this_package(tmp_path, subprocess_env):
    for family, name in (("resnet-basic", "ResNet"), ("convnextv2", "ConvNextV2")):
        trainer = tiny_trainer(tmp_path / family, tiny_model(family))
        trainer.train()
        trainer.save_model()
        torch.save(tiny_images(), tmp_path / family / "images.pt")
        with torch.no_grad():
            torch.save(trainer.model.eval()(pixel_values=tiny_images()).logits, tmp_path / family / "logits.pt")
        done = subprocess.run(
            [sys.executable, "-c", LOADER, str(tmp_path / family)],
            env={**subprocess_env, "PYTHONPATH": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{name}ForImageClassification"
