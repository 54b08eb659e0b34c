# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Converts the authors' ResNet checkpoints to standard ones, and back."""

import os
import re
from itertools import pairwise

import torch
from torchvision.models import ResNet50_Weights
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

from ..data.image_processors import make_image_processor


_DEPTHS = {"ResNet-50": (3, 4, 6, 3), "ResNet-101": (3, 4, 23, 3), "ResNet-152": (3, 8, 36, 3)}
# What else makes a network one of theirs: in all of it they agree with the config's defaults.
_SETTINGS = (
    *("layer_type", "downsample_in_bottleneck", "downsample_in_first_stage", "hidden_act"),
    *("num_channels", "embedding_size", "hidden_sizes"),
)

# Names of modules: ours, theirs.
_AROUND_BLOCKS = {
    "resnet.embedder.embedder.convolution": "features.0.0",
    "resnet.embedder.embedder.normalization": "features.0.1",
    "classifier.1": "classifier.0",
}
_IN_BLOCK = {
    "layer.0.convolution": "body.0",
    "layer.0.normalization": "body.1",
    "layer.1.convolution": "body.3",
    "layer.1.normalization": "body.4",
    "layer.2.convolution": "body.6",
    "layer.2.normalization": "body.7",
    "shortcut.convolution": "shortcut.0",
    "shortcut.normalization": "shortcut.1",
}


def convert_authors_checkpoint(
    path: str | os.PathLike,
) -> tuple[ResNetForImageClassification, ConvNextImageProcessor]:
    """
    Converts a checkpoint of a ResNet-50, 101 or 152 of the authors' code to a model of transformers and its image
    processor.

    The weights are read from the key `"state_dict"`, from the key `"model"`, or from the whole content of the file. They must
    have the authors' layout, with or without the prefix `module.`. No code in the file is run. The BatchNorm layers have the full
    network's running statistics.

    The image processor follows the authors' evaluation. It resizes the shorter side to 256 pixels (bilinear), crops
    the central 224 x 224, and normalizes by ImageNet's mean and standard deviation. If the centre lies between two
    pixels, the crop may begin one pixel before torchvision's `CenterCrop`.

    Args:
        path (`str` or `os.PathLike`):
            A `.pth.tar` or `.pth` file.

    Returns:
        `tuple[ResNetForImageClassification, ConvNextImageProcessor]`: The model, in float32 and in eval mode, and its
        image processor. With 1,000 classes, it has ImageNet's class names.

    Raises:
        `ValueError`: If the file can't be read as tensors, or the tensors don't fit such a network.
    """
    state = _read_state_dict(path)
    head = state.get("classifier.0.weight")
    model = _build_skeleton(_find_depths(state, path), 1000 if head is None else head.shape[:1].numel())
    names = _get_their_names(model)
    expected = {names[name]: tensor for name, tensor in model.state_dict().items()}
    # State dicts from before PyTorch counted batches are taken, as PyTorch does.
    counts = {name: torch.tensor(0) for name in expected if name.endswith(".num_batches_tracked")}
    state = {**counts, **state}
    _check_tensors(state, expected, f"'{path}'")
    model.to_empty(device="cpu").load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
    return model.eval(), make_image_processor(224, crop_pct=224 / 256)


def to_authors_state_dict(model: ResNetForImageClassification) -> dict[str, torch.Tensor]:
    """
    The weights of a ResNet-50, 101 or 152 as the authors' script loads them.

    The names have the prefix `module.`, because the script wraps its network in `nn.DataParallel`. Its test mode reads
    them under `"model"`, and builds a head for 1,000 classes:

    ```python
    torch.save({"model": to_authors_state_dict(model)}, "resnet50.pth.tar")
    ```

    Args:
        model ([`~transformers.ResNetForImageClassification`]):
            A bottleneck ResNet of the standard widths, with the stride in the 3x3 convolutions.

    Returns:
        `dict[str, torch.Tensor]`: The tensors of `model.state_dict()`, not copied, by the authors' names.

    Raises:
        `TypeError`: If the model is of another class.
        `ValueError`: If a setting of its config, a name or a shape doesn't fit the authors' layout.
    """
    if not isinstance(model, ResNetForImageClassification):
        raise TypeError(f"`model` must be a ResNetForImageClassification, but is a {type(model).__name__}.")
    standard = ResNetConfig()
    for name in _SETTINGS:
        value, wanted = getattr(model.config, name), getattr(standard, name)
        if value != wanted:
            raise ValueError(f"`model.config.{name}` must be {wanted!r}, as in the authors' layout, but is {value!r}.")
    depths = tuple(model.config.depths)
    if depths not in _DEPTHS.values():
        raise ValueError(f"`model.config.depths` must be one of {_DEPTHS}, but is {depths}.")
    skeleton = _build_skeleton(depths, model.config.num_labels)
    state = model.state_dict()
    _check_tensors(state, skeleton.state_dict(), "`model`")
    return {f"module.{theirs}": state[ours] for ours, theirs in _get_their_names(skeleton).items()}


def _read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    if not os.path.isfile(path):
        raise ValueError(f"`path` must be a file: a checkpoint of the authors' code, but is '{path}'.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, for a file that is damaged, of another kind, or holds other objects
        # PyTorch wraps its reason in advice on how to load the file nonetheless.
        reason = str(error.__context__ or error).splitlines() or [type(error).__name__]
        raise ValueError(
            f"'{path}' can't be read as a file of `torch.save` that holds tensors, numbers and their containers only; "
            f"no code in it was run. ({reason[0]})"
        ) from error
    state = content
    if isinstance(content, dict):
        state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    if not isinstance(state, dict):
        raise ValueError(f"'{path}' holds a {type(state).__name__}, but it must hold a state dict.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"'{path}' holds no state dict, neither under 'state_dict' or 'model' nor by itself: {name!r} is a "
                f"{type(value).__name__}."
            )
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _find_depths(state: dict[str, torch.Tensor], path: str | os.PathLike) -> tuple[int, ...]:
    parts = [match.groups() for name in state if (match := re.match(r"features\.(\d+)\.(body|shortcut)\.", name))]
    if not parts:  # another architecture: the error names what the smallest network lacks
        return _DEPTHS["ResNet-50"]
    blocks = [int(number) for number, _ in parts]
    firsts = sorted({int(number) for number, part in parts if part == "shortcut"})  # each stage begins with a shortcut
    depths = tuple(after - first for first, after in pairwise([*firsts, max(blocks) + 1]))
    if depths not in _DEPTHS.values():
        raise ValueError(f"'{path}' has stages of {depths} blocks, but they must be one of {_DEPTHS}.")
    return depths


def _build_skeleton(depths: tuple[int, ...], num_labels: int) -> ResNetForImageClassification:
    """A model on the meta device, with ImageNet's labels if there are as many."""
    categories = ResNet50_Weights.DEFAULT.meta["categories"]
    labels = {"num_labels": num_labels}
    if num_labels == len(categories):
        labels = {"id2label": dict(enumerate(categories)), "label2id": {name: i for i, name in enumerate(categories)}}
    with torch.device("meta"):
        return ResNetForImageClassification(ResNetConfig(depths=list(depths), **labels))


def _get_their_names(model: ResNetForImageClassification) -> dict[str, str]:
    """Names of the model's tensors to the authors', who count blocks from 1 over all stages."""
    modules = dict(_AROUND_BLOCKS)
    blocks = [(stage, layer) for stage, depth in enumerate(model.config.depths) for layer in range(depth)]
    for number, (stage, layer) in enumerate(blocks, start=1):
        for ours, theirs in _IN_BLOCK.items():
            modules[f"resnet.encoder.stages.{stage}.layers.{layer}.{ours}"] = f"features.{number}.{theirs}"
    parts = [name.rpartition(".") for name in model.state_dict()]
    return {f"{module}.{tensor}": f"{modules[module]}.{tensor}" for module, _, tensor in parts}


def _check_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str) -> None:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if missing or unexpected:
        raise ValueError(
            f"{what} does not have the architecture of the authors' ResNet-50, 101 or 152: {len(missing)} tensors are "
            f"missing {missing[:3]}, {len(unexpected)} are unexpected {unexpected[:3]}."
        )
    wrong = [
        f"'{name}' is {tuple(found[name].shape)} and must be {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if found[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{what} has {len(wrong)} tensors of other shapes: {', '.join(wrong[:3])}.")
