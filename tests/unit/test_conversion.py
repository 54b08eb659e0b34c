# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The authors' checkpoints: equal logits, a bit-identical round trip, and errors that leave nothing behind."""

import os
import pickle
import re

import numpy as np
import pytest
import torch
from helpers import images
from helpers.tiny import tiny_images, tiny_model
from PIL import Image
from torch import nn
from torchvision import transforms
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    pipeline,
)

from hf_gradaug import convert_authors_checkpoint, make_slimmable, to_authors_state_dict
from hf_gradaug.data import get_eval_transform, get_image_size


DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def conv_and_norm(channels_in, channels_out, kernel_size, stride=1):
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size, stride, kernel_size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out)]


class Block(nn.Module):
    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        inner = channels_out // 4
        self.body = nn.Sequential(
            *(*conv_and_norm(channels_in, inner, 1), nn.ReLU()),
            *(*conv_and_norm(inner, inner, 3, stride), nn.ReLU()),
            *conv_and_norm(inner, channels_out, 1),
        )
        self.shortcut = None
        if channels_in != channels_out or stride > 1:
            self.shortcut = nn.Sequential(*conv_and_norm(channels_in, channels_out, 1, stride))

    def forward(self, x):
        return torch.relu(self.body(x) + (x if self.shortcut is None else self.shortcut(x)))


class PlainResNet(nn.Module):
    """The full network in plain PyTorch, with the authors' names."""

    def __init__(self, depths, num_labels=1000):
        super().__init__()
        layers, channels_in = [nn.Sequential(*conv_and_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))], 64
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Block(channels_in, 256 * 2**stage, stride))
                channels_in = 256 * 2**stage
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Sequential(nn.Linear(channels_in, num_labels))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def random_network(depth, num_labels=1000):
    """A trained network's stand-in: random running statistics, and activations that neither vanish nor explode."""
    generator = torch.Generator().manual_seed(depth)
    with torch.device("meta"):
        network = PlainResNet(DEPTHS[depth], num_labels)
    for name, tensor in network.to_empty(device="cpu").state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("num_batches_tracked"):
            tensor.random_(1, 1000, generator=generator)
        elif name.endswith(("running_var", "weight")):
            tensor.uniform_(0.3, 0.9, generator=generator)
        else:
            tensor.normal_(0, 0.1, generator=generator)
    return network.eval()


def prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


@torch.no_grad()
def logits_of(network, batch):
    output = network(batch)
    return getattr(output, "logits", output)


def hollow_state(depths=DEPTHS[50], num_labels=2):
    """Tensors of the right shapes, each of another value that repeats, so that their file is small."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in PlainResNet(depths, num_labels).state_dict().items()}
    return {name: torch.tensor(float(value)).expand(shape) for value, (name, shape) in enumerate(shapes.items())}


@pytest.fixture(scope="module")
def script():
    return images.load_script("convert_authors_checkpoint")


@pytest.fixture
def save(tmp_path):
    def save(content):
        torch.save(content, tmp_path / "file.pth.tar")
        return tmp_path / "file.pth.tar"

    return save


@pytest.mark.slow
@pytest.mark.parametrize("depth", [50, 101, 152])
def test_logits_equal_those_of_the_authors_layout(depth, save):
    network = random_network(depth, num_labels=10)
    model, _ = convert_authors_checkpoint(save({"model": prefixed(network.state_dict())}))
    assert model.config.depths == list(DEPTHS[depth]) and not model.training and model.dtype == torch.float32
    batch = tiny_images(2, size=64)
    expected = logits_of(network, batch)
    assert expected.std() > 0.1 and expected[0].sub(expected[1]).abs().max() > 0.1
    torch.testing.assert_close(logits_of(model, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_there_and_back(script, tmp_path, save):
    network = random_network(50)
    # What the authors' training saves.
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9)
    scores = {"epoch": 119, "best_acc1": 78.5, "best_acc5": 94.2, "optimizer": optimizer.state_dict()}
    file = save({"state_dict": prefixed(network.state_dict()), **scores})
    folder, back = tmp_path / "a" / "b", tmp_path / "c"
    card = images.ROOT / "model_cards" / "authors_resnet50.md"
    script.main([str(file), str(folder), "--model_card", str(card)])
    files = {path.name for path in folder.iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert (folder / "README.md").read_bytes() == card.read_bytes()

    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model) is ResNetForImageClassification
    labels = model.config.id2label
    assert len(labels) == len(model.config.label2id) == 1000
    assert [labels[0], labels[281], labels[999]] == ["tench", "tabby", "toilet tissue"]
    photo = images.make_image(1, 0).resize((500, 375))
    classify = pipeline("image-classification", str(folder), device="cpu")
    logits = logits_of(network, classify.image_processor(photo, return_tensors="pt")["pixel_values"])
    best = classify(photo, top_k=1)[0]
    assert best["label"] == labels[int(logits.argmax())]
    assert best["score"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)

    script.main(["--to_authors", str(folder), str(back)])
    wrapped = nn.DataParallel(PlainResNet(DEPTHS[50]))  # as in their test mode
    wrapped.load_state_dict(torch.load(back, weights_only=True)["model"], strict=True)
    state = wrapped.module.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_forms_of_a_file(save, key, prefix):
    state = hollow_state(num_labels=5)
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    content = prefixed(kept) if prefix else kept
    model, _ = convert_authors_checkpoint(save({key: content, "epoch": 3} if key else content))
    assert model.config.id2label == {i: f"LABEL_{i}" for i in range(5)}
    back = to_authors_state_dict(make_slimmable(model))
    assert back.keys() == prefixed(state).keys()
    assert all(tensor.equal(back[f"module.{name}"]) for name, tensor in kept.items())
    assert all(back[f"module.{name}"] == 0 for name in state.keys() - kept.keys())


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (100, 90), (500, 334)])
def test_preprocessing_is_the_authors(save, tmp_path, size):
    convert_authors_checkpoint(save(hollow_state()))[1].save_pretrained(tmp_path)
    image_processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    normalize = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize]
    expected = transforms.Compose(steps)(photo)
    assert get_image_size(image_processor) == (224, 224)
    processed = image_processor(photo, return_tensors="pt")["pixel_values"][0]
    assert get_eval_transform(image_processor)(photo).equal(processed)
    if size == (500, 334):
        # Resized to 383 x 256, whose middle falls between two pixels: the image processor's crop begins one earlier.
        processed, expected = processed[..., 1:], expected[..., :-1]
    assert (processed - expected).abs().max() < 1.01 / 255 / 0.224  # one of 256 levels, where rounding differs


def drop(state, *parts):
    return {name: tensor for name, tensor in state.items() if not name.startswith(parts)}


FAULTS = {
    "list": ([torch.zeros(2)], "holds a list, but it must hold a state dict"),
    "numbers": ({"epoch": 3, "state_dict": 4}, "holds no state dict, neither under .*: 'epoch' is a int"),
    "no names": ({0: torch.zeros(2)}, "holds no state dict, .*: 0 is a Tensor"),
    "torchvision's names": (
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)},
        r"267 tensors are missing \['features.0.0.weight', .*2 are unexpected \['conv1.weight', 'bn1.weight'\]",
    ),
    "no head": (
        drop(hollow_state(), "classifier"),
        r"2 tensors are missing \['classifier.0.weight', .*0 are unexpected",
    ),
    "no 3x3": (drop(hollow_state(), "features.5.body.3"), r"1 tensors are missing \['features.5.body.3.weight'\]"),
    "more": ({**hollow_state(), "ema": torch.zeros(1)}, r"0 tensors are missing \[\], 1 are unexpected \['ema'\]"),
    "one prefix": ({**hollow_state(), "module.ema": torch.zeros(1)}, r"1 are unexpected \['module.ema'\]"),
    "depths": (hollow_state((2, 2, 2, 2)), r"has stages of \(2, 2, 2, 2\) blocks, .*'ResNet-50': \(3, 4, 6, 3\)"),
    "no shortcut": (drop(hollow_state(), "features.4.shortcut"), r"has stages of \(7, 6, 3\) blocks"),
    "widths": (
        {**hollow_state(), "features.0.0.weight": torch.zeros(58, 3, 7, 7)},
        r"1 tensors of other shapes: 'features.0.0.weight' is \(58, 3, 7, 7\) and must be \(64, 3, 7, 7\)",
    ),
    "scalar head": ({**hollow_state(), "classifier.0.weight": torch.zeros(())}, r"'classifier.0.weight' is \(\) and"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_file_is_an_error_that_says_what_was_found(script, save, tmp_path, fault):
    content, message = FAULTS[fault]
    file = save(content)
    with pytest.raises(ValueError, match=message) as caught:
        script.main([str(file), str(tmp_path / "new" / "out")])
    assert str(file) in str(caught.value)
    assert os.listdir(tmp_path) == [file.name]


def test_what_is_no_file_of_torch_is_an_error(tmp_path, save):
    with pytest.raises(ValueError, match="`path` must be a file.*, but is '"):
        convert_authors_checkpoint(tmp_path)
    file = save(hollow_state())
    for content in (b"", b"no checkpoint", b"\x89PNG\r\n", file.read_bytes()[:-1000]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="can't be read as a file of `torch.save`"):
            convert_authors_checkpoint(file)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "before torch 1.6", "pickle"])
def test_no_code_of_a_file_runs(script, tmp_path, kind):
    file, ran = tmp_path / "file.pth", tmp_path / "ran"
    content = {"epoch": Payload(ran), "state_dict": hollow_state()}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=r"no code in it was run. \(.*mkdir"):
        script.main([str(file), str(tmp_path / "out")])
    assert os.listdir(tmp_path) == [file.name]
    # The payload is a real one.
    if kind == "pickle":
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert ran.exists()


def test_out_is_written_whole_or_not_at_all(script, tmp_path, save, monkeypatch):
    file, out = save(hollow_state()), tmp_path / "out"

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.ConvNextImageProcessor.save_pretrained", fail)
        with pytest.raises(OSError, match="disk full"):
            script.main([str(file), str(out)])
    assert os.listdir(tmp_path) == [file.name]

    out.mkdir()  # an empty folder is as good as none
    script.main([str(file), str(out)])
    before = sorted(path.stat().st_mtime_ns for path in out.iterdir())
    for taken in (out, file):
        for args in ([str(file)], ["--to_authors", str(out)]):
            with pytest.raises(ValueError, match=f"`OUT` must not exist, .* but is '{re.escape(str(taken))}'"):
                script.main([*args, str(taken)])
    for words, reason in ((["--to_authors"], "must not be given with `--to_authors`"), ([], "must be a file")):
        with pytest.raises(ValueError, match=f"`--model_card` {reason}, but is 'nowhere.md'"):
            script.main([str(file), str(tmp_path / "new"), "--model_card", "nowhere.md", *words])
    assert sorted(path.stat().st_mtime_ns for path in out.iterdir()) == before
    assert torch.load(file, weights_only=True).keys() == hollow_state().keys()

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", fail)
        with pytest.raises(OSError, match="disk full"):
            script.main(["--to_authors", str(out), str(tmp_path / "back")])
    assert sorted(os.listdir(tmp_path)) == [file.name, "out"]


def on_meta(**settings):
    with torch.device("meta"):
        return ResNetForImageClassification(ResNetConfig(**settings))


@pytest.mark.parametrize(
    "setting, value",
    [
        ("layer_type", "basic"),
        ("downsample_in_bottleneck", True),
        ("downsample_in_first_stage", True),
        ("hidden_act", "gelu"),
        ("num_channels", 1),
        ("embedding_size", 32),
        ("hidden_sizes", [64, 128, 256, 512]),
        ("depths", [2, 2, 2, 2]),
    ],
)
def test_a_model_that_the_authors_code_cannot_build_is_an_error(setting, value):
    with pytest.raises(ValueError, match=re.escape(f"`model.config.{setting}` must be ")):
        to_authors_state_dict(on_meta(**{setting: value}))


def test_another_or_incomplete_model_is_an_error(script, tmp_path):
    with pytest.raises(TypeError, match="`model` must be a ResNetForImageClassification, but is a ConvNextForImage"):
        to_authors_state_dict(tiny_model("convnext"))
    model = on_meta()
    model.classifier[1] = nn.Linear(2048, 3, device="meta")
    with pytest.raises(ValueError, match=r"2 tensors of other shapes: 'classifier.1.weight' is \(3, 2048\)"):
        to_authors_state_dict(model)
    model.classifier = nn.Linear(2048, 2, device="meta")
    with pytest.raises(ValueError, match=r"missing \['classifier.1.weight', 'classifier.1.bias'\], 2 are unexpected"):
        to_authors_state_dict(model)
    ResNetModel(tiny_model("resnet-bottleneck").config).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"has no weights for \['classifier.1.bias', 'classifier.1.weight'\]"):
        script.main(["--to_authors", str(tmp_path / "headless"), str(tmp_path / "out")])
    assert os.listdir(tmp_path) == ["headless"]
