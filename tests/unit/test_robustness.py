# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Accuracy under attacks and corruptions: the attack, the numbers, going on after a stop, the errors."""

import json
import sys

import numpy as np
import pytest
import torch
from helpers import images
from helpers.tiny import tiny_config, tiny_model
from PIL import Image
from torch.nn import functional as F
from transformers import ConvNextImageProcessor, ResNetForImageClassification

from hf_gradaug import (
    PixelClassifier,
    RobustnessResults,
    RobustnessSettings,
    evaluate_robustness,
    mean_corruption_error,
)
from hf_gradaug.data import DataArguments, get_eval_transform, load_image_data


DIGITS = [str(digit) for digit in range(10)]
FEW = RobustnessSettings(epsilons=[0, 8], corruptions=["gaussian_noise", "glass_blur"], severities=[1, 3])
KEYS = ["clean", "fgsm/0.0", "fgsm/8.0", "gaussian_noise/1", "gaussian_noise/3", "glass_blur/1", "glass_blur/3"]


def make_processor(size=32):
    return ConvNextImageProcessor(size={"shortest_edge": size}, crop_pct=1.0, resample=2)


def save(path, model, classes=None, processor=True):
    if classes is not None:
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: label for label, name in enumerate(classes)}
    model.save_pretrained(path)
    if processor:
        make_processor().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def data():
    return load_image_data(DataArguments(max_eval_samples=48))


@pytest.fixture(scope="module")
def trained(data):
    """A small model that knows most of the digits, for there is nothing to attack in one that knows none."""
    dataset = data.get_dataset("train", get_eval_transform(make_processor()))
    examples = [dataset[index] for index in range(320)]
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    labels = torch.tensor([example["labels"] for example in examples])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNetForImageClassification(tiny_config("resnet-basic", num_labels=10))
        model.config.id2label = dict(enumerate(DIGITS))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(60):
            batch = torch.arange(step * 32, step * 32 + 32) % len(labels)
            F.cross_entropy(model(pixel_values=pixel_values[batch]).logits, labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory):
    """The trained model, and one that knows nothing."""
    path = tmp_path_factory.mktemp("models")
    return save(path / "trained", trained, DIGITS), save(
        path / "random", tiny_model("convnext", num_labels=10), DIGITS
    )


@pytest.fixture
def classifier(trained):
    return PixelClassifier(trained, make_processor())


@pytest.fixture(scope="module")
def script():
    return images.load_script("evaluate_robustness")


def held_out(data):
    """Pixels in [0, 1], and labels."""
    dataset = data.get_dataset("validation", get_eval_transform(ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=1.0, resample=2, do_normalize=False
    )))  # fmt: skip
    examples = [dataset[index] for index in range(len(dataset))]
    labels = torch.tensor([example["labels"] for example in examples])
    return torch.stack([example["pixel_values"] for example in examples]), labels


# The attack


@pytest.mark.parametrize("epsilon", [0, 0.5, 4, 64])
def test_the_attack_is_fgsm_before_normalization(classifier, trained, data, epsilon):
    pixels, labels = held_out(data)
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    attacked = classifier.attack(pixels, labels, epsilon)

    # The same in plain PyTorch.
    processor = make_processor()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (processor.image_mean, processor.image_std))
    leaf = pixels.clone().requires_grad_()
    loss = F.cross_entropy(trained(pixel_values=(leaf - mean) / std).logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    expected = (pixels + epsilon / 255 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        hits = trained(pixel_values=(expected - mean) / std).logits.argmax(-1) == labels
    assert classifier.count_correct((pixels * 255).round().byte(), labels, epsilon) == hits.sum()

    assert (attacked - pixels).abs().max() <= epsilon / 255 + 1e-6
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert attacked.equal(pixels) == (epsilon == 0)
    for name, parameter in trained.named_parameters():
        assert parameter.grad is None and parameter.requires_grad, name
    assert all(tensor.equal(state[name]) for name, tensor in trained.state_dict().items())


def test_a_classifier_that_was_trained_meanwhile_is_in_eval_mode(classifier, trained, data):
    pixels, labels = held_out(data)
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    expected = [classifier.predict(pixels), classifier.attack(pixels, labels, 8)]
    trained.train()
    assert classifier.attack(pixels, labels, 8).equal(expected[1])
    trained.train()
    assert classifier.predict(pixels).equal(expected[0]) and not trained.training
    assert all(tensor.equal(state[name]) for name, tensor in trained.state_dict().items())


def test_a_classifier_that_does_not_normalize(trained, data):
    processor = make_processor()
    processor.do_normalize = False
    pixels, labels = held_out(data)
    classifier = PixelClassifier(trained, processor)
    with torch.no_grad():
        assert classifier.predict(pixels).equal(trained(pixel_values=pixels).logits.argmax(-1))


# The numbers


@pytest.mark.slow
def test_accuracies(classifier, trained, data):
    torch.manual_seed(3)
    np.random.seed(3)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    results = evaluate_robustness({"trained": classifier}, data, FEW)
    assert torch.get_rng_state().equal(torch_state)
    np.testing.assert_equal(np.random.get_state(), numpy_state)

    accuracy = results.accuracy["trained"]
    assert [*accuracy] == KEYS
    pixels, labels = held_out(data)
    dataset = data.get_dataset("validation", get_eval_transform(make_processor()))
    with torch.no_grad():
        hits = trained(torch.stack([example["pixel_values"] for example in dataset])).logits.argmax(-1) == labels
    assert accuracy["clean"] == accuracy["fgsm/0.0"] == int(hits.sum()) / 48 > 0.7
    assert accuracy["fgsm/8.0"] == classifier.count_correct((pixels * 255).round().byte(), labels, 8) / 48
    assert accuracy["fgsm/8.0"] < accuracy["clean"]
    errors = {
        name: [1 - accuracy[f"{name}/{severity}"] for severity in (1, 3)] for name in ("gaussian_noise", "glass_blur")
    }
    assert results.summarize() == {
        "trained": {"clean_accuracy": accuracy["clean"], "unnormalized_mce": mean_corruption_error(errors)}
    }


@pytest.mark.slow
def test_every_model_sees_the_same_images_whatever_the_batches_and_workers(trained, data):
    class Recording(PixelClassifier):
        def count_correct(self, pixel_values, labels, epsilon=None):
            self.seen = getattr(self, "seen", [])
            self.seen.append(pixel_values)
            return super().count_correct(pixel_values, labels, epsilon)

    def look(names, **kwargs):
        classifiers = {name: Recording(trained, make_processor()) for name in names}
        accuracy = evaluate_robustness(classifiers, data, FEW, **kwargs).accuracy
        return accuracy["a"], [torch.cat(classifier.seen) for classifier in classifiers.values()]

    accuracy, (first, second) = look("ab", batch_size=64)
    assert first.shape == (len(KEYS) * 48, 3, 32, 32) and first.dtype == torch.uint8
    assert first.equal(second)
    again, (third,) = look("a", batch_size=7, num_workers=2)
    assert first.equal(third) and accuracy == again
    _, (other,) = look("a", seed=43)
    assert not other.equal(first)


def test_models_of_several_sizes_and_a_baseline(trained, data, classifier):
    small = PixelClassifier(trained, make_processor(24))
    attacks = RobustnessSettings(epsilons=[2], corruptions=["none"])
    results = evaluate_robustness({"32": classifier, "24": small}, data, attacks, baseline="32")
    assert [*results.accuracy["24"]] == [*results.accuracy["32"]] == ["clean", "fgsm/2.0"]
    assert [*results.summarize()["24"]] == ["clean_accuracy"]  # a baseline is for corruptions

    wide = PixelClassifier(trained, make_processor(40))
    results = evaluate_robustness({"32": classifier, "40": wide}, data, FEW, baseline="40")
    assert results.summarize()["40"]["mce"] == 1
    mce = results.summarize()["32"]["mce"]
    ratio = [
        sum(1 - results.accuracy["32"][f"{name}/{severity}"] for severity in (1, 3))
        / sum(1 - results.accuracy["40"][f"{name}/{severity}"] for severity in (1, 3))
        for name in ("gaussian_noise", "glass_blur")
    ]
    assert mce == pytest.approx(sum(ratio) / 2)
    row = next(line for line in results.format_table().splitlines() if line.startswith("mCE, % of 40"))
    assert row.split()[-2:] == [f"{100 * mce:.2f}", "100.00"]


# The file


def test_a_stopped_run_goes_on(classifier, data, tmp_path, monkeypatch):
    path = tmp_path / "out" / "robustness.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # there, but not what computes
    whole = evaluate_robustness({"a": classifier}, data, FEW).accuracy
    with monkeypatch.context() as patch:
        add = RobustnessResults.add

        def stop(self, condition, accuracies):
            if condition.key == "gaussian_noise/3":
                raise KeyboardInterrupt
            add(self, condition, accuracies)

        patch.setattr(RobustnessResults, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate_robustness({"a": classifier}, data, FEW, path=path)
    stored = json.loads(path.read_text())
    assert [*stored["models"]["a"]["accuracy"]] == KEYS[:4] and stored["summary"] == {}

    counted = []
    count = PixelClassifier.count_correct
    monkeypatch.setattr(PixelClassifier, "count_correct", lambda *args: counted.append(1) or count(*args))
    results = evaluate_robustness({"a": classifier}, data, FEW, batch_size=48, path=path)
    assert results.accuracy == whole and len(counted) == len(KEYS) - 4
    stored = json.loads(path.read_text())
    assert stored["summary"] == results.summarize() and "torch" in stored["versions"]
    assert stored["hardware"]["device"] == "cpu" and stored["hardware"]["gpu"] is None
    assert [item.name for item in path.parent.iterdir()] == ["robustness.json"]

    # Another model in the same file: what is there stays, and only the new one is measured.
    more = evaluate_robustness({"b": classifier}, data, FEW, batch_size=48, path=path)
    assert more.accuracy["b"] == whole["a"] and len(counted) == 2 * len(KEYS) - 4
    assert json.loads(path.read_text())["models"].keys() == {"a", "b"}


def test_other_images_in_a_folder_of_the_same_name_are_another_measurement(classifier, tmp_path):
    clean, path = RobustnessSettings(epsilons=[], corruptions=[]), tmp_path / "robustness.json"
    for seed in (0, 1):
        for label in DIGITS:
            folder = tmp_path / str(seed) / "photos" / label
            folder.mkdir(parents=True)
            pixels = np.random.default_rng([seed, int(label)]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "a.png")
    first, second = (load_image_data(DataArguments(validation_dir=str(tmp_path / name / "photos"))) for name in "01")
    evaluate_robustness({"a": classifier}, first, clean, path=path)
    evaluate_robustness({"a": classifier}, first, clean, path=path)
    with pytest.raises(ValueError, match="holds results with images_sha256 '.*', not '.*'. Name another folder"):
        evaluate_robustness({"a": classifier}, second, clean, path=path)


def test_a_missing_image_is_named(tmp_path):
    photos = load_image_data(DataArguments(validation_dir=str(images.make_folder(tmp_path / "photos"))))
    photos.splits["validation"] = photos.splits["validation"].map(lambda row: {"image": None})
    classifier = PixelClassifier(tiny_model(id2label=dict(enumerate(images.CLASSES))), make_processor())
    with pytest.raises(ValueError, match="image 0 of validation: its value must be an image, but is None"):
        evaluate_robustness({"a": classifier}, photos, RobustnessSettings(epsilons=[], corruptions=[]))


def test_classes_that_are_matched_otherwise_are_another_measurement(tmp_path):
    clean, path = RobustnessSettings(epsilons=[], corruptions=[]), tmp_path / "robustness.json"
    photos = load_image_data(DataArguments(validation_dir=str(images.make_folder(tmp_path / "photos"))))
    model = tiny_model(id2label={0: "owl", 1: "dog", 2: "cat"})
    classifier = PixelClassifier(model, make_processor())
    evaluate_robustness({"a": classifier}, photos, clean, path=path)
    evaluate_robustness({"a": classifier}, photos, clean, path=path)
    photos.classes_by_number = True
    with pytest.raises(ValueError, match="holds results of other weights, preprocessing or classes of 'a'"):
        evaluate_robustness({"a": classifier}, photos, clean, path=path)


def test_a_file_of_something_else_is_left_alone(classifier, data, tmp_path):
    path = tmp_path / "robustness.json"
    clean = RobustnessSettings(epsilons=[], corruptions=[])
    evaluate_robustness({"a": classifier}, data, clean, path=path)
    content = path.read_text()
    fewer = load_image_data(DataArguments(max_eval_samples=8))
    other = PixelClassifier(tiny_model("resnet-basic", num_labels=10), make_processor())
    wide = PixelClassifier(classifier._model, make_processor(40))
    for model, images_, seed, message in (
        (classifier, fewer, 42, "holds results with num_images 48, not 8. Name another folder"),
        (classifier, data, 1, "holds results with seed 42, not 1"),
        (other, data, 42, "holds results of other weights, preprocessing or classes of 'a'"),
        (wide, data, 42, "holds results of other weights, preprocessing or classes of 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_robustness({"a": model}, images_, clean, seed=seed, path=path)
        assert path.read_text() == content
    for damage in ("{", "[]", '{"settings": {}}', '{"settings": {}, "models": [1]}'):
        path.write_text(damage)
        with pytest.raises(ValueError, match="holds no robustness results"):
            evaluate_robustness({"a": classifier}, data, clean, path=path)
        assert path.read_text() == damage


# The script


def test_script(script, folders, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--models", *folders, "--baseline", folders[1], "--output_dir", str(out), "--max_samples", "20"]
    flags += ["--epsilons", "0", "1", "--corruptions", "fog", "contrast", "--severities", "1", "5", "--device", "cpu"]
    results = script.main(flags)
    stored = json.loads((out / "robustness.json").read_text())
    assert stored["settings"]["num_images"] == 20
    assert {name: model["accuracy"] for name, model in stored["models"].items()} == results.accuracy
    assert stored["summary"][folders[0]]["mce"] < stored["summary"][folders[1]]["mce"] == 1
    picture = (out / "robustness.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    table = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in table] == [
        "accuracy, %", "clean", "FGSM, 0/255", "FGSM, 1/255", "fog", "contrast", "unnormalized mCE, %",
        "mCE, % of random", "relative mCE, % of random",
    ]  # fmt: skip
    assert table[0].split()[-2:] == ["trained", "random"]
    assert table[1].split()[1] == f"{100 * results.accuracy[folders[0]]['clean']:.2f}"


def test_errors_come_before_anything_is_measured(script, folders, tmp_path, monkeypatch):
    def no_measurement(*args):
        raise AssertionError("measured")

    monkeypatch.setattr(PixelClassifier, "count_correct", no_measurement)
    photos = ("--validation_dir", str(images.make_folder(tmp_path / "photos")))
    three = tiny_model()
    others = save(tmp_path / "others", three, ("dog", "cat", "emu"))
    bare = save(tmp_path / "bare", three, processor=False)
    headless = save(tmp_path / "headless", tiny_model("convnext", num_labels=10).convnext)
    cases = [
        (folders[:1], ["--corruptions", "rain"], "`corruptions` must each be one of gaussian_noise, .*, but one is 'rain'"),
        (folders[:1], ["--severities", "0"], "`severities` must each be one of .*, but one is 0"),
        (folders[:1], ["--epsilons", "1", "-2"], r"`epsilons` must each be in \[0, 255\], .*, but one is -2.0"),
        (folders[:1], ["--epsilons", "1", "1"], r"`epsilons` must each be given once, but are \[1.0, 1.0\]"),
        (folders[:1], ["--max_samples", "0"], "`max_samples` must be 1 or more, but is 0"),
        (folders[:1], ["--device", "tpu9"], "`device` must be one that this machine has, but is 'tpu9'"),
        (folders[:1], ["--cutmix_alpha", "1"], "`cutmix_alpha` must be left out in a script that doesn't train, but is 1.0"),
        (folders[:1], ["--split", "train"], "`split` must be 'validation' or 'test', but is 'train'"),
        (folders[:1], ["--split", "test"], "There is no test split"),
        (folders[:1], ["--baseline", "other"], r"`baseline` must be one of the models \['.*trained'\], but is 'other'"),
        (folders[:1], photos, "'.*trained' has 10 classes, but photos has 3"),
        ([others], photos, "class 0 is 'dog' and 'cat'. Rename them"),
        ([bare], photos, "'.*bare' has no image processor"),
        ([str(tmp_path / "none")], [], "'.*none' is not an image classifier"),
        ([headless], [], r"'.*headless' has no weights for \['classifier"),
    ]  # fmt: skip
    for models, flags, message in cases:
        with pytest.raises(ValueError, match=message):
            script.main(["--models", *models, "--output_dir", str(tmp_path / "out"), "--device", "cpu", *flags])
    assert not (tmp_path / "out").exists()


def test_no_classifier(data):
    with pytest.raises(ValueError, match="`classifiers` must have one or more, but is empty"):
        evaluate_robustness({}, data, FEW)


def test_images_that_are_too_small_to_be_corrupted(trained, data):
    small = PixelClassifier(trained, make_processor(24))
    with pytest.raises(
        ValueError, match=r"'small' takes images of \(24, 24\) pixels, but the corruptions need 32 x 32"
    ):
        evaluate_robustness({"small": small}, data, FEW)


def test_unnamed_classes_are_compared_by_their_number(trained, data, tmp_path):
    model = tiny_model()  # LABEL_0 to LABEL_2
    photos = load_image_data(DataArguments(validation_dir=str(images.make_folder(tmp_path / "photos"))))
    clean = RobustnessSettings(epsilons=[], corruptions=[])
    results = evaluate_robustness({"model": PixelClassifier(model, make_processor())}, photos, clean)
    assert [*results.accuracy["model"]] == ["clean"]


@pytest.mark.parametrize("library", ["foolbox", "imagecorruptions"])
def test_a_missing_library_is_named_with_its_extra(trained, data, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"pip install 'hf_gradaug\[robustness\]'. Importing {library} failed"):
        evaluate_robustness({"a": PixelClassifier(trained, make_processor())}, data, FEW)
