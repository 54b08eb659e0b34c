# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""One step on ResNet-50 in float64 equals the authors' step, written out in plain PyTorch in `reference_step.py`."""

import pytest
import torch
from helpers.reference_step import gradaug_step
from helpers.tiny import tiny_images
from transformers import ResNetConfig, ResNetForImageClassification

from hf_gradaug import GradAug, GradAugSettings


@pytest.mark.slow  # a ResNet-50 in float64
def test_equals_the_authors_step():
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(num_labels=10)).double().train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "normalization" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, _ in model.named_parameters():
        tensors[name].requires_grad_()
    images, labels = tiny_images(batch_size=4, size=70).double(), torch.tensor([1, 7, 3, 3])

    logits, losses, widths, sizes = [], [], [], []
    gradaug = GradAug(model, GradAugSettings(num_subnetworks=3, min_width=0.9), seed=5)
    for gradaug_pass in gradaug.passes({"pixel_values": images, "labels": labels}, step=11):
        with gradaug_pass:
            outputs = model(**gradaug_pass.inputs)
            loss = gradaug_pass.loss(outputs)
            loss.backward()
        logits.append(outputs.logits)
        losses.append(loss)
        widths.append(gradaug_pass.width)
        sizes.append(gradaug_pass.size)
    assert widths[0] == 1 and widths[-1] == 0.9 and len(set(widths)) == 4
    assert len(set(sizes)) > 1

    expected_losses, expected_logits = gradaug_step(tensors, images, labels, widths[1:], sizes[1:])
    for mine, theirs in zip(losses + logits, expected_losses + expected_logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, tensors[name].grad, rtol=1e-9, atol=1e-9, msg=name)
    for name, buffer in model.named_buffers():
        if "num_batches_tracked" in name:
            assert buffer == 1
        else:
            torch.testing.assert_close(buffer, tensors[name], rtol=1e-9, atol=1e-9, msg=name)
