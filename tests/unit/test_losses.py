# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The losses, against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from hf_gradaug import soft_label_cross_entropy, soft_target_loss, soft_targets


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_target_loss_is_the_definition(logits, temperature):
    full, sub = logits
    q = torch.exp(full / temperature) / torch.exp(full / temperature).sum(1, keepdim=True)
    p = torch.exp(sub / temperature) / torch.exp(sub / temperature).sum(1, keepdim=True)
    expected = (q * (q.log() - p.log())).sum() / 5 * temperature**2
    targets = soft_targets(full, temperature)
    torch.testing.assert_close(soft_target_loss(sub, targets, temperature), expected, rtol=1e-12, atol=0)
    assert soft_target_loss(full, targets, temperature).abs() < 1e-12


def test_no_gradient_reaches_the_soft_targets(logits):
    full, sub = (tensor.requires_grad_() for tensor in logits)
    targets = soft_targets(full)
    soft_target_loss(sub, targets).backward()
    assert not targets.requires_grad
    assert full.grad is None
    # The gradient of the KL divergence is p - q, over the batch size.
    torch.testing.assert_close(sub.grad, (sub.softmax(1) - targets).detach() / 5)


def test_soft_label_cross_entropy(logits):
    labels = torch.tensor([0, 3, 6, 2, 2])
    one_hot = F.one_hot(labels, 7).float()
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(logits[0], labels, label_smoothing=smoothing)
        torch.testing.assert_close(soft_label_cross_entropy(logits[0], one_hot, smoothing), expected)
    mixed = 0.3 * one_hot + 0.7 * one_hot.flip(0)
    expected = 0.3 * F.cross_entropy(logits[0], labels) + 0.7 * F.cross_entropy(logits[0], labels.flip(0))
    torch.testing.assert_close(soft_label_cross_entropy(logits[0], mixed), expected, check_dtype=False)
    with pytest.raises(ValueError, match=r"`labels` must have the shape of the logits, \(5, 7\), but have \(5, 3\)"):
        soft_label_cross_entropy(logits[0], one_hot[:, :3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_under_autocast(logits, dtype):
    full, sub = (tensor.to(dtype) for tensor in logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = soft_target_loss(sub, soft_targets(full))
        hard = soft_label_cross_entropy(sub, torch.full((5, 7), 1 / 7))
    assert loss.dtype == hard.dtype == torch.float32
    torch.testing.assert_close(loss, soft_target_loss(sub.float(), soft_targets(full.float())))
