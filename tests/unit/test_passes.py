# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The passes of a step, for any training loop."""

import pytest
import torch
from helpers.tiny import largest_difference, tiny_images, tiny_model
from torch import nn
from torchvision.transforms import v2
from transformers import ResNetForImageClassification

from hf_gradaug import GradAug, GradAugSettings, RandomRotation, soft_target_loss


LABELS = torch.tensor([0, 1, 2, 0])


def run(gradaug, inputs, step=0, **forward):
    """Runs the passes of a step and returns what each of them saw."""
    seen = []
    for gradaug_pass in gradaug.passes(inputs, step):
        with gradaug_pass:
            outputs = gradaug.model(**gradaug_pass.inputs, **forward)
            loss = gradaug_pass.loss(outputs)
            loss.backward()
        seen.append((gradaug_pass, loss.detach(), outputs))
    return seen


def batch(**extra):
    return {"pixel_values": tiny_images(), "labels": LABELS, **extra}


def test_the_passes_of_a_step():
    gradaug = GradAug(tiny_model(), GradAugSettings(num_subnetworks=3, min_width=0.5), seed=1)
    seen = [gradaug_pass for gradaug_pass, _, _ in run(gradaug, batch())]
    assert [p.is_full for p in seen] == [True, False, False, False]
    assert [p.is_last for p in seen] == [False, False, False, True]
    widths = [p.width for p in seen]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 1 and widths[-1] == 0.5
    assert seen[0].inputs.keys() == {"pixel_values", "labels"}
    for p in seen[1:]:
        assert p.inputs.keys() == {"pixel_values"}
        assert tuple(p.inputs["pixel_values"].shape[-2:]) == p.size
    assert {p.size for step in range(9) for p, _, _ in run(gradaug, batch(), step)} == {
        (side, side) for side in (32, 27, 23, 18)
    }


def test_every_process_and_every_micro_batch_of_a_step_draws_the_same():
    def draws(seed, step, part):
        gradaug = GradAug(tiny_model(), seed=seed)
        inputs = {name: value[part] for name, value in batch().items()}
        return [(p.width, p.size) for p, _, _ in run(gradaug, inputs, step)]

    first, second = slice(0, 2), slice(2, 4)
    assert draws(0, 5, first) == draws(0, 5, second)
    assert draws(0, 5, first) != draws(0, 6, first)
    assert draws(0, 5, first) != draws(1, 5, first)


def test_losses_and_their_weights():
    settings = GradAugSettings(num_subnetworks=2, subnetwork_loss_weight=0.25, temperature=2.0, scales=[1.0])
    gradaug = GradAug(tiny_model("resnet-basic"), settings)
    seen = run(gradaug, batch())
    full = seen[0][2]
    assert seen[0][1] == full.loss
    targets = (full.logits.detach() / 2).softmax(1)
    for _, loss, outputs in seen[1:]:
        torch.testing.assert_close(loss, 0.25 * soft_target_loss(outputs.logits, targets, 2.0).detach())
    # A loss of one's own for the full network.
    for gradaug_pass in gradaug.passes(batch(), 0):
        with gradaug_pass:
            outputs = gradaug.model(**gradaug_pass.inputs)
            if gradaug_pass.is_full:
                assert gradaug_pass.loss(outputs, outputs.loss * 3) == outputs.loss * 3


def test_soft_labels():
    one_hot = torch.nn.functional.one_hot(LABELS, 3).float()
    hard = run(GradAug(tiny_model()), batch())
    soft = run(GradAug(tiny_model(problem_type="single_label_classification")), batch(labels=one_hot))
    for (_, loss, _), (_, expected, _) in zip(soft, hard):
        torch.testing.assert_close(loss, expected)
    assert torch.equal(soft[0][0].soft_labels, one_hot)
    assert soft[0][0].inputs.keys() == {"pixel_values"}


def test_gradients_add_up():
    model = tiny_model("resnet-basic").double()
    gradaug = GradAug(model, GradAugSettings(num_subnetworks=2, min_width=0.5))
    inputs = {"pixel_values": tiny_images().double(), "labels": LABELS}
    run(gradaug, inputs)
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert all(gradient.abs().max() > 0 for gradient in together.values())

    total = {name: torch.zeros_like(gradient) for name, gradient in together.items()}
    for gradaug_pass in gradaug.passes(inputs, 0):
        model.zero_grad()
        with gradaug_pass:
            gradaug_pass.loss(model(**gradaug_pass.inputs)).backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad
    assert largest_difference(total, together) < 1e-12


def test_no_subnetworks_is_one_pass():
    gradaug = GradAug(tiny_model(), GradAugSettings(num_subnetworks=0))
    ((gradaug_pass, _, _),) = run(gradaug, batch())
    assert gradaug_pass.is_full and gradaug_pass.is_last


@pytest.mark.parametrize(
    ("batch_size", "fraction", "rows"), [(9, 1 / 3, [0, 3, 6]), (8, 0.5, [0, 2, 4, 6]), (4, 0.01, [0])]
)
def test_batch_fraction(batch_size, fraction, rows):
    images, labels = tiny_images(batch_size), torch.arange(batch_size) % 3
    settings = GradAugSettings(scales=[1.0], subnetwork_batch_fraction=fraction)
    gradaug = GradAug(tiny_model(), settings)
    inputs = {"pixel_values": images, "labels": labels}
    (_, _, full), *subnetworks = run(gradaug, inputs)
    targets = full.logits.detach().softmax(-1)
    assert len(subnetworks) == 3
    for index, (gradaug_pass, loss, outputs) in enumerate(subnetworks):
        expected = [(row + index) % batch_size for row in rows]
        assert gradaug_pass.rows.tolist() == expected
        assert gradaug_pass.batch_fraction == len(rows) / batch_size
        assert torch.equal(gradaug_pass.inputs["pixel_values"], images[expected])
        assert torch.equal(loss, soft_target_loss(outputs.logits.detach(), targets[expected]))


def test_rows_of_micro_batches_are_those_of_the_batch():
    settings = GradAugSettings(scales=[1.0], subnetwork_batch_fraction=1 / 3)

    def subnetwork_images(part):
        gradaug = GradAug(tiny_model(), settings)
        inputs = {"pixel_values": tiny_images(12)[part], "labels": torch.zeros(12, dtype=torch.long)[part]}
        return [p.inputs["pixel_values"] for p, _, _ in run(gradaug, inputs)[1:]]

    whole_batch, *halves = map(subnetwork_images, (slice(0, 12), slice(0, 6), slice(6, 12)))
    assert len(whole_batch) == 3
    for whole, first, second in zip(whole_batch, *halves, strict=True):
        assert torch.equal(whole, torch.cat([first, second]))


def test_subnetworks_in_every_third_step():
    gradaug = GradAug(tiny_model(), GradAugSettings(num_subnetworks=2, subnetwork_every=3))
    passes = [[p for p, _, _ in run(gradaug, batch(), step)] for step in range(4)]
    assert [len(step) for step in passes] == [3, 1, 1, 3]
    assert all(step[-1].is_last for step in passes)


def test_widths_are_of_the_choices_and_each_may_be_compiled():
    settings = GradAugSettings(num_subnetworks=2, width_choices=[0.9, 0.95, 1.0])
    with torch._dynamo.config.patch(recompile_limit=8):
        for _ in range(2):  # a second trainer raises the limit no further
            gradaug = GradAug(tiny_model(), settings)
            assert torch._dynamo.config.recompile_limit == 3 * 4 + 8
    widths = {p.width for step in range(12) for p, _, _ in run(gradaug, batch(), step)[1:]}
    assert widths == {0.9, 0.95, 1.0}


def test_own_transform_and_rotations():
    calls = []

    def transform(images, generator):
        calls.append(torch.rand((), generator=generator).item())
        return images[..., :24, :20]

    gradaug = GradAug(tiny_model("resnet-basic"), transform=transform)
    assert [p.size for p, _, _ in run(gradaug, batch())] == [(32, 32)] + [(24, 20)] * 3
    assert len(set(calls)) == 3
    settings = GradAugSettings(scales=[1.0], rotations=[90])
    last = run(GradAug(tiny_model(), settings), batch())[-1][0]
    assert torch.equal(last.inputs["pixel_values"], RandomRotation([90])(tiny_images(), torch.Generator()))


@pytest.mark.parametrize(
    ("transform", "returned"),
    [
        (lambda images, generator: images[:1], r"\(1, 3, 32, 32\)"),
        (lambda images, generator: images[0], r"\(3, 32, 32\)"),
        (v2.RandomResizedCrop(24), "a tuple"),
    ],
)
def test_a_transform_that_returns_no_batch_is_an_error(transform, returned):
    gradaug = GradAug(tiny_model("resnet-basic"), transform=transform)
    with pytest.raises(
        ValueError, match=rf"`transform` must map .* as many images and channels, \(4, 3\), but returned {returned}"
    ):
        run(gradaug, batch())


def test_a_transform_that_cant_be_called_is_an_error():
    with pytest.raises(TypeError, match="`transform` must be a function .* but is 'flip'"):
        GradAug(tiny_model("resnet-basic"), transform="flip")


def test_settings_of_another_kind_are_an_error():
    with pytest.raises(TypeError, match="`settings` must be `GradAugSettings`, but is a dict"):
        GradAug(tiny_model("resnet-basic"), {"min_width": 0.5})


def test_a_transform_may_write_into_its_images():
    inputs = batch()
    gradaug = GradAug(tiny_model("resnet-basic"), transform=lambda images, generator: images.add_(1))
    full, *subnetworks = (gradaug_pass.inputs["pixel_values"] for gradaug_pass, _, _ in run(gradaug, inputs))
    for images in (inputs["pixel_values"], full):
        assert torch.equal(images, tiny_images())
    assert len(subnetworks) == 3 and all(torch.equal(images, tiny_images() + 1) for images in subnetworks)


def test_a_pass_outside_of_its_block_is_an_error():
    gradaug = GradAug(tiny_model("resnet-basic"))
    full, subnetwork, *_ = gradaug.passes(batch(), step=0)
    full.compute(gradaug.model)
    with pytest.raises(ValueError, match="its sub-network was not run. .* in the `with` block of the pass"):
        subnetwork.compute(gradaug.model)


@pytest.mark.parametrize("num_subnetworks", [0, 2])
def test_a_model_in_eval_mode_is_an_error(tmp_path, num_subnetworks):
    tiny_model("resnet-basic").save_pretrained(tmp_path)
    model = ResNetForImageClassification.from_pretrained(tmp_path)
    wrapped = nn.Sequential(model)  # its modes reach the model, as those of DistributedDataParallel do
    gradaug = GradAug(model, GradAugSettings(num_subnetworks=num_subnetworks))
    with pytest.raises(ValueError, match=r"`model` must be in train mode, but .* Call `model.train\(\)`"):
        run(gradaug, batch())
    wrapped.train()
    model.resnet.embedder.eval()  # frozen statistics
    run(gradaug, batch())
    wrapped.eval()
    with pytest.raises(ValueError, match="`model` must be in train mode"):
        run(gradaug, batch())


@pytest.mark.parametrize("targets", ["soft", "labels"])
def test_a_batch_without_labels_is_an_error(targets):
    gradaug = GradAug(tiny_model("resnet-basic"), GradAugSettings(subnetwork_targets=targets))
    with pytest.raises(ValueError, match=r"must return a loss, but returned \['logits'\] for .*\['pixel_values'\]"):
        run(gradaug, {"pixel_values": tiny_images()})


def test_other_inputs_reach_every_pass():
    class WithNamesForImageClassification(ResNetForImageClassification):
        seen = []

        def forward(self, pixel_values, names, labels=None, **kwargs):
            self.seen.append(names)
            return super().forward(pixel_values, labels=labels, **kwargs)

    model = WithNamesForImageClassification(tiny_model("resnet-basic").config)
    run(GradAug(model), batch(names=["a", "b"]))
    assert WithNamesForImageClassification.seen == [["a", "b"]] * 4


def test_a_call_without_images_keeps_those_of_the_batch():
    inputs = batch()
    full = next(GradAug(tiny_model()).passes(inputs, step=0))
    full.set_inputs({"pixel_values": None, "labels": LABELS})
    assert full.inputs["pixel_values"] is inputs["pixel_values"]


def test_tuples_instead_of_model_outputs():
    expected = run(GradAug(tiny_model("resnet-basic")), batch())
    seen = run(GradAug(tiny_model("resnet-basic")), batch(), return_dict=False)
    assert isinstance(seen[0][2], tuple)
    assert [loss for _, loss, _ in seen] == [loss for _, loss, _ in expected]


def test_images_too_small_for_the_model():
    # Four stages of stride 2 after patches of 4 pixels take 32 pixels at the least.
    model = tiny_model(hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1], num_stages=4)
    with pytest.raises(
        ValueError, match=r"18 x 18 pixels, scaled from 32 x 32,.*takes 32 x 32 at the least.*`scales`"
    ):
        run(GradAug(model), batch())
    assert all(parameter.grad is None for parameter in model.parameters())  # found out before the first pass
    with pytest.raises(ValueError, match=r"23 x 23 pixels.*takes 32 x 32 at the least"):
        run(GradAug(model, transform=lambda images, generator: images[..., :23, :23]), batch())
    images = tiny_images(size=64)
    with pytest.raises(ValueError, match=r"27 x 27 pixels, scaled from 64 x 64,.*takes 32 x 32 at the least"):
        run(GradAug(model, GradAugSettings(scales=[1, 0.42])), batch(pixel_values=images))
    run(GradAug(model, GradAugSettings(scales=[1, 0.5])), batch(pixel_values=images))


def test_batches_and_models_that_it_cannot_take():
    for wrong, found in (({"images": tiny_images(), "labels": LABELS}, "'images', 'labels'"), ((LABELS,), "a tuple")):
        with pytest.raises(ValueError, match=f"'pixel_values', the `main_input_name` of .*{found}"):
            run(GradAug(tiny_model()), wrong)
    for changes in ({"problem_type": "regression"}, {"num_labels": 1}):
        with pytest.raises(ValueError, match="a model for single-label or multi-label image classification"):
            GradAug(tiny_model(**changes))

    class WithoutLogitsForImageClassification(ResNetForImageClassification):
        def forward(self, pixel_values, labels=None, **kwargs):
            outputs = super().forward(pixel_values, labels=labels, **kwargs)
            return {"loss": outputs.loss, "scores": outputs.logits}

    with pytest.raises(ValueError, match=r"must return `logits`.*'scores'"):
        run(GradAug(WithoutLogitsForImageClassification(tiny_model("resnet-basic").config)), batch())


def test_a_model_that_is_no_pretrained_model():
    class Net(nn.Module):
        main_input_name = "pixel_values"

        def __init__(self, config):
            super().__init__()
            self.config = config
            self.inner = ResNetForImageClassification(config)

        def forward(self, pixel_values, labels=None):
            return self.inner(pixel_values=pixel_values, labels=labels)

    net = Net(tiny_model("resnet-basic").config)
    with pytest.raises(TypeError, match="`make_slimmable` or the trainer `build=...`"):
        GradAug(net)
    assert len(run(GradAug(net, build=Net), batch())) == 4


@pytest.mark.parametrize("name, value", [("scales", [1.0, 0.5]), ("rotations", [0, 90])])
def test_settings_of_a_transformation_that_is_replaced_are_errors(name, value):
    settings = GradAugSettings(**{name: value})
    with pytest.raises(ValueError, match=f"`{name}` must keep its default with a `transform`"):
        GradAug(tiny_model("resnet-basic"), settings, transform=lambda images, generator: images)
