# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
The authors' step on ResNet-50, in plain PyTorch: functions of a dictionary of weights, without this package.

Names of weights are those of `ResNetForImageClassification`. A sub-network slices each weight to its counts of channels and
normalizes with the batch's statistics; the full network also updates the running statistics.
"""

import torch
import torch.nn.functional as F


DEPTHS = (3, 4, 6, 3)


def _counts(width):
    """Outer and inner channels of each stage, and of the stem: rounded half up, and a quarter of that rounded down."""
    outer = [int(full * width + 0.5) for full in (256, 512, 1024, 2048)]
    return outer, [int(count * 0.25) for count in outer], int(outer[0] * 0.25)


def resnet50(tensors, images, width):
    outer, inner, stem = _counts(width)

    def layer(x, name, channels_in, channels_out, stride=1):
        kernel = tensors[f"{name}.convolution.weight"][:channels_out, :channels_in]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        norm = f"{name}.normalization"
        running = (tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"]) if width == 1 else (None, None)
        weight, bias = tensors[f"{norm}.weight"][:channels_out], tensors[f"{norm}.bias"][:channels_out]
        return F.batch_norm(x, *running, weight, bias, training=True, momentum=0.1, eps=1e-5)

    x = F.relu(layer(images, "resnet.embedder.embedder", 3, stem, stride=2))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    before = stem
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            name = f"resnet.encoder.stages.{stage}.layers.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            y = F.relu(layer(x, f"{name}.layer.0", before, inner[stage]))
            y = F.relu(layer(y, f"{name}.layer.1", inner[stage], inner[stage], stride))
            y = layer(y, f"{name}.layer.2", inner[stage], outer[stage])
            if block == 0:
                x = layer(x, f"{name}.shortcut", before, outer[stage], stride)
            x = F.relu(x + y)
            before = outer[stage]
    features = x.mean((2, 3))
    return F.linear(features, tensors["classifier.1.weight"][:, :before], tensors["classifier.1.bias"])


def gradaug_step(tensors, images, labels, widths, sizes):
    """Losses and logits of each pass. Gradients add up in the tensors, whose running statistics change in place."""
    logits = resnet50(tensors, images, 1.0)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    targets = torch.softmax(logits.detach(), dim=1)
    all_losses, all_logits = [loss], [logits]
    for width, size in zip(widths, sizes):
        smaller = F.interpolate(images, size=size, mode="bilinear", align_corners=True)
        logits = resnet50(tensors, smaller, width)
        loss = (targets * (targets.log() - torch.log_softmax(logits, dim=1))).sum(1).mean()
        loss.backward()
        all_losses.append(loss)
        all_logits.append(logits)
    return all_losses, all_logits
