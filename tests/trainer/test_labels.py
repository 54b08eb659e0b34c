# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What floating-point labels are, and losses of one's own."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import TinyImages, largest_difference, parameters_of, tiny_images, tiny_model, tiny_trainer
from torch.utils.data import Subset
from transformers import Trainer

from hf_gradaug import DistillationTrainer, GradAug, GradAugConfig, GradAugMixin, GradAugSettings, GradAugTrainer
from hf_gradaug.losses import binary_soft_target_loss, binary_soft_targets


SEVERAL = torch.tensor([[1.0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]])
ONE_EACH = torch.eye(3)[[0, 1, 2, 0]]
MIXED = torch.tensor([[0.5, 0.5, 0], [0, 0, 1], [1, 0, 0], [0.2, 0.3, 0.5]])


class FloatLabels(TinyImages):
    def __init__(self, rows):
        super().__init__(32)
        self.rows = rows

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.rows[index % len(self.rows)]}


def run(gradaug, labels):
    losses = []
    for gradaug_pass in gradaug.passes({"pixel_values": tiny_images(), "labels": labels}, 0):
        with gradaug_pass:
            outputs = gradaug.model(**gradaug_pass.inputs)
            losses.append((gradaug_pass.loss(outputs), outputs))
    return losses


def test_what_float_labels_mean():
    for labels, problem_type, given in (
        (SEVERAL, "multi_label_classification", None),
        (ONE_EACH, "multi_label_classification", "multi_label_classification"),
        (MIXED, "single_label_classification", "single_label_classification"),
    ):
        model = tiny_model(problem_type=given)
        gradaug = GradAug(model)
        assert model.config.problem_type == given  # not before there are labels
        (loss, outputs), *subnetworks = run(gradaug, labels)
        assert model.config.problem_type == problem_type
        multi_label = problem_type == "multi_label_classification"
        expected = F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy
        torch.testing.assert_close(loss, expected(outputs.logits, labels))
        for loss, sub in subnetworks:
            if multi_label:
                expected = binary_soft_target_loss(sub.logits, outputs.logits.detach().sigmoid())
            else:
                expected = F.kl_div(
                    sub.logits.log_softmax(1), outputs.logits.detach().softmax(1), reduction="batchmean"
                )
            torch.testing.assert_close(loss, expected)


def test_rows_that_are_no_probabilities():
    gradaug = GradAug(tiny_model(problem_type="single_label_classification"))
    with pytest.raises(
        ValueError, match="`labels` must be class probabilities.*`config.problem_type` to 'multi_label_classification'"
    ):
        run(gradaug, SEVERAL)
    run(gradaug, MIXED)
    with pytest.raises(ValueError, match="`labels` must be class probabilities"):
        run(gradaug, SEVERAL)


@pytest.mark.parametrize(
    "rows, loss",
    [
        (MIXED, None),
        (ONE_EACH, None),
        (torch.tensor([[10.0, 200.0, -3.0]]), F.mse_loss),
        (torch.tensor([[0.4, 0.7, 1.0]]), F.mse_loss),
    ],
)
def test_labels_that_may_be_of_several_kinds(tmp_path, rows, loss):
    """
    Of images with one label each, the first batch doesn't say whether later images have several. Other numbers may be a
    regression's, such as the places of key points.
    """
    own = loss and (lambda outputs, labels, **_: loss(outputs.logits, labels))
    kwargs = {"train_dataset": FloatLabels(rows), "eval_dataset": None, "compute_loss_func": own}
    trainer = tiny_trainer(tmp_path, trainer_kwargs=kwargs)
    with pytest.raises(ValueError, match="`config.problem_type` must be set .* but is None.*CutMix.*'regression'"):
        trainer.train()
    assert "compute_loss" not in vars(trainer) and trainer.model.config.problem_type is None


def test_a_multi_label_loss_of_ones_own(tmp_path):
    """The head doesn't see these labels, and so can't tell that there are several."""
    trainer = tiny_trainer(
        tmp_path,
        trainer_kwargs={
            "train_dataset": FloatLabels(SEVERAL),
            "eval_dataset": None,
            "compute_loss_func": lambda outputs, labels, **_: F.binary_cross_entropy_with_logits(
                outputs.logits, labels
            ),
        },
        max_steps=1,
    )
    trainer.train()
    targets = trainer.gradaug.target_kind.from_outputs({"logits": torch.zeros(1, 3)})
    assert targets.tolist() == [[0.5, 0.5, 0.5]]


def sigmoid_loss(outputs, labels, num_items_in_batch=None):
    return F.binary_cross_entropy_with_logits(outputs.logits, labels.float())


def packed_loss(outputs, labels, num_items_in_batch=None):
    """Of labels that MixUp packed: a class, another one, and the share of the first."""
    losses = [F.cross_entropy(outputs.logits, labels[:, column].long(), reduction="none") for column in (0, 1)]
    return torch.lerp(losses[1], losses[0], labels[:, 2]).mean()


PACKED = torch.tensor([[1, 2, 0.3], [0, 1, 0.5], [3, 0, 0.9]])


@pytest.mark.parametrize(
    "rows, num_labels, given, loss, problem_type",
    [
        (SEVERAL.long(), 3, None, sigmoid_loss, "multi_label_classification"),
        (SEVERAL.bool(), 3, None, sigmoid_loss, "multi_label_classification"),
        (ONE_EACH.long(), 3, "single_label_classification", None, "single_label_classification"),
        (PACKED, 4, None, packed_loss, None),
        (PACKED, 4, "single_label_classification", packed_loss, "single_label_classification"),
    ],
)
def test_rows_of_labels_of_any_type_and_length(tmp_path, rows, num_labels, given, loss, problem_type):
    """Rows of the length `num_labels` say what the classes are, whatever their type; others say nothing about them."""
    model = tiny_model(num_labels=num_labels, problem_type=given)
    kwargs = {"train_dataset": FloatLabels(rows), "eval_dataset": None, "compute_loss_func": loss}
    trainer = tiny_trainer(tmp_path, model, trainer_kwargs=kwargs, max_steps=1)
    trainer.train()
    assert model.config.problem_type == problem_type
    targets = trainer.gradaug.target_kind.from_outputs({"logits": torch.zeros(1, num_labels)})
    multi_label = problem_type == "multi_label_classification"
    torch.testing.assert_close(targets, torch.full_like(targets, 0.5 if multi_label else 1 / num_labels))


def test_soft_targets_of_a_multi_label_model():
    logits, other = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    other.requires_grad_()
    targets = binary_soft_targets(logits, 2.0)
    torch.testing.assert_close(targets, torch.sigmoid(logits / 2))
    loss = binary_soft_target_loss(other, targets, 2.0)
    p, q = targets, torch.sigmoid(other / 2)
    written = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean() * 4
    torch.testing.assert_close(loss, written)
    assert binary_soft_target_loss(logits, targets, 2.0).abs() < 1e-12  # where they agree
    (gradient,) = torch.autograd.grad(loss, other)
    torch.testing.assert_close(gradient, 2 * (q - p).detach() / p.numel())


def test_a_multi_label_model_trains(tmp_path):
    trainer = tiny_trainer(tmp_path, trainer_kwargs={"train_dataset": FloatLabels(SEVERAL), "eval_dataset": None})
    before = parameters_of(trainer.model)
    trainer.train()
    assert trainer.model.config.problem_type == "multi_label_classification"
    assert all(not torch.equal(before[name], after) for name, after in parameters_of(trainer.model).items())


def weighted(logits, labels):
    return F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))


def pops(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    labels = inputs.pop("labels")  # as in the Trainer's documentation
    outputs = model(**inputs)
    loss = weighted(outputs["logits"], labels)
    return (loss, outputs) if return_outputs else loss


def has_an_old_signature(self, model, inputs, return_outputs=False):
    return pops(self, model, inputs, return_outputs)


@pytest.mark.slow
def test_a_loss_of_ones_own_is_the_full_networks(tmp_path):
    class AsFunction(GradAugTrainer):
        pass

    class Subclass(GradAugTrainer):
        compute_loss = pops

    class Old(GradAugTrainer):
        compute_loss = has_an_old_signature

    class Own(Trainer):
        compute_loss = pops

    class Mixed(GradAugMixin, Own):
        pass

    class WithTerm(GradAugTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            loss = loss - loss + weighted(outputs.logits, inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    trained = {}
    for cls in (AsFunction, Subclass, Old, Mixed, WithTerm):
        kwargs = {}
        if cls is AsFunction:
            kwargs["compute_loss_func"] = lambda outputs, labels, num_items_in_batch: weighted(outputs.logits, labels)
        trainer = tiny_trainer(tmp_path, cls=cls, trainer_kwargs=kwargs, subnetwork_loss_weight=0.5, max_steps=2)
        trainer.train()
        losses = [line["loss_subnetworks"] for line in trainer.state.log_history if "loss" in line]
        assert len(losses) == 2 and min(losses) > 0
        trained[cls] = parameters_of(trainer.model)
    for cls, parameters in trained.items():
        assert largest_difference(parameters, trained[AsFunction]) < 1e-6, cls


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_weight_of_subnetworks_with_a_loss_of_ones_own(tmp_path, weight):
    class Subclass(GradAugTrainer):
        compute_loss = pops

    settings = {
        "subnetwork_targets": "labels",
        "subnetwork_loss_weight": weight,
        "num_subnetworks": 2,
        "scales": [1.0],
    }
    trainer = tiny_trainer(tmp_path, cls=Subclass, min_width=1.0, max_steps=1, max_grad_norm=0.0, **settings)
    start = parameters_of(trainer.model)
    trainer.train()
    plain = tiny_trainer(tmp_path, cls=Subclass, num_subnetworks=0, max_steps=1, max_grad_norm=0.0)
    plain.train()
    # At width and scale 1, without BatchNorm, each sub-network adds its weight of the full network's gradient.
    for name, before in start.items():
        moved = parameters_of(trainer.model)[name] - before
        torch.testing.assert_close(
            moved, (parameters_of(plain.model)[name] - before) * (1 + 2 * weight), rtol=1e-3, atol=1e-6
        )


def test_a_loss_without_outputs_is_an_error(tmp_path):
    class Subclass(GradAugTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs).loss

    with pytest.raises(ValueError, match="`compute_loss` must return the loss and the model's outputs"):
        tiny_trainer(tmp_path, cls=Subclass).train()


def test_a_loss_that_is_set_on_the_model_is_the_subnetworks(tmp_path):
    seen = []

    def own(labels, pooled_logits, config, **kwargs):
        seen.append(pooled_logits.shape)
        return 7 + 0 * pooled_logits.sum()

    settings = {"subnetwork_targets": "labels", "num_subnetworks": 2, "max_steps": 1, "logging_steps": 1}
    trainer = tiny_trainer(tmp_path, **settings)
    stock = trainer.model.loss_function
    trainer.model.loss_function = own
    trainer.train()
    assert len(seen) == 3
    assert next(line for line in trainer.state.log_history if "loss_full" in line)["loss"] == pytest.approx(21)
    del trainer.model._loss_function
    trainer.train()
    assert trainer.model.loss_function is stock and len(seen) == 3


@pytest.mark.parametrize("targets", ["plain", "distilling", "soft", "labels"])
def test_a_loss_that_is_set_on_the_model_takes_mixed_labels(tmp_path, targets):
    seen = []

    def own(labels, pooled_logits, config, **kwargs):
        seen.append(labels)
        return weighted(pooled_logits, labels)

    model = tiny_model(problem_type="single_label_classification")
    model.loss_function = own
    cls, data, settings = GradAugTrainer, {"train_dataset": FloatLabels(MIXED), "eval_dataset": FloatLabels(MIXED)}, {}
    if targets in ("plain", "distilling"):
        settings["num_subnetworks"] = 0
    else:
        settings = {"num_subnetworks": 1, "subnetwork_targets": targets}
    if targets == "distilling":
        cls, data["teacher"] = DistillationTrainer, tiny_model(seed=1)
    trainer = tiny_trainer(tmp_path, model, cls, trainer_kwargs=data, max_steps=1, **settings)
    trainer.train()
    assert len(seen) == (2 if targets == "labels" else 1)
    expected = trainer.predict(FloatLabels(MIXED))
    loss = weighted(torch.from_numpy(expected.predictions), torch.from_numpy(expected.label_ids))
    assert expected.metrics["test_loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("cls", [GradAugTrainer, DistillationTrainer])
def test_label_smoothing_replaces_a_loss_that_is_set_on_the_model(tmp_path, cls):
    def trained(loss_function):
        model = tiny_model(problem_type="single_label_classification")
        if loss_function is not None:
            model.loss_function = loss_function
        data = {"train_dataset": FloatLabels(MIXED)}
        settings = {"num_subnetworks": int(cls is GradAugTrainer), "label_smoothing_factor": 0.1, "max_steps": 1}
        if cls is DistillationTrainer:
            data["teacher"] = tiny_model(seed=1)
        trainer = tiny_trainer(tmp_path, model, cls, trainer_kwargs=data, **settings)
        trainer.train()
        return parameters_of(model)

    def own(labels, pooled_logits, config, **kwargs):
        return weighted(pooled_logits, labels)

    assert largest_difference(trained(own), trained(None)) == 0


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_parameters_see_each_pass(tmp_path, kind):
    """A masked gradient keeps an entry as it is."""
    trainer = tiny_trainer(tmp_path, max_steps=2)
    weight, calls = trainer.model.classifier.weight, []
    before = weight.detach().clone()

    def mask(gradient):
        calls.append(1)
        return gradient * torch.tensor([[0.0], [1.0], [1.0]])

    def mask_sum(parameter):
        parameter.grad = mask(parameter.grad)

    getattr(weight, kind)(mask if kind == "register_hook" else mask_sum)
    trainer.train()
    assert len(calls) == 2 * 4
    assert torch.equal(weight[0], before[0]) and not torch.equal(weight[1], before[1])


@pytest.mark.parametrize("targets", ["soft", "labels"])
def test_mixed_labels_under_a_distilling_trainer(tmp_path, targets):
    """Its loss goes through the model's head, which takes floating-point labels for multi-label ones."""
    teacher = tiny_model(seed=1).eval()

    class Distilling(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            with torch.no_grad():
                targets = teacher(pixel_values=inputs["pixel_values"]).logits.softmax(-1)
            loss = loss + F.cross_entropy(outputs.logits, targets)
            return (loss, outputs) if return_outputs else loss

    class Both(GradAugMixin, Distilling):
        pass

    trainer = tiny_trainer(
        tmp_path,
        tiny_model(problem_type="single_label_classification"),
        cls=Both,
        trainer_kwargs={"train_dataset": FloatLabels(MIXED), "eval_dataset": None},
        subnetwork_targets=targets,
    )
    before = parameters_of(trainer.model)
    trainer.train()
    assert "_loss_function" not in vars(trainer.model)
    assert all(not torch.equal(before[name], after) for name, after in parameters_of(trainer.model).items())


def test_a_mixin_behind_the_trainer_is_an_error():
    with pytest.raises(TypeError, match="`GradAugMixin` must come before the Trainer among the bases of Wrong"):

        class Wrong(Trainer, GradAugMixin):
            pass


@pytest.mark.slow
def test_nothing_is_left_of_an_aborted_try(tmp_path):
    """`auto_find_batch_size` tries again after an error of memory: the log begins anew."""

    class Fails(GradAugTrainer):
        calls = 0

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            Fails.calls += 1
            if Fails.calls == 2:
                raise RuntimeError("CUDA out of memory.")
            return loss

    args = {"max_steps": 4, "logging_steps": 4, "auto_find_batch_size": True}
    trainer = tiny_trainer(tmp_path, cls=Fails, **args)
    trainer.train()
    smaller = tiny_trainer(
        tmp_path, per_device_train_batch_size=trainer._train_batch_size, max_steps=4, logging_steps=4
    )
    smaller.train()
    # The second try starts from weights that the first has trained, so that only the sums' share of steps is compared.
    line = next(line for line in trainer.state.log_history if "loss_full" in line)
    assert abs(line["loss"] - line["loss_full"] - line["loss_subnetworks"]) < 1e-3


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_last_batch_of_one_image(tmp_path, caplog, pretrained):
    """Where BatchNorm has no statistics of a single pixel of a single image, that sub-network is left out."""
    model = tiny_model("resnet-basic", hidden_sizes=[8, 16, 24], depths=[1, 1, 1])
    model.train(not pretrained)  # the mode in which `from_pretrained` leaves a model
    dataset = TinyImages(9, size=28)
    trainer = tiny_trainer(
        tmp_path,
        model,
        trainer_kwargs={"train_dataset": Subset(dataset, [0]) if pretrained else dataset},
        max_steps=1 if pretrained else 2,
        scales=[4 / 7],
        logging_steps=2,
    )
    trainer.train()
    assert trainer.state.global_step == trainer.args.max_steps
    (warning,) = [record.getMessage() for record in caplog.records if "are skipped" in record.getMessage()]
    assert "16 x 16" in warning and "`dataloader_drop_last`" in warning


def test_models_without_subnetworks():
    from transformers import BertConfig, BertForSequenceClassification, ResNetModel

    bert = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    )
    with pytest.raises(
        TypeError, match="no sub-networks for model type 'bert'.*'convnext'.*images.*`num_subnetworks=0`"
    ):
        GradAug(bert)
    with pytest.raises(ValueError, match="must return `logits`.*pooler_output"):
        GradAug(ResNetModel(tiny_model("resnet-basic").config))


def test_the_filter_of_logged_losses_does_not_wait(tmp_path):
    assert not GradAugConfig(output_dir=tmp_path).logging_nan_inf_filter
    assert GradAugConfig(output_dir=tmp_path, num_subnetworks=0).logging_nan_inf_filter  # the Trainer's default
    assert GradAugConfig(output_dir=tmp_path, nonfinite_loss="skip").logging_nan_inf_filter
    assert GradAugConfig(output_dir=tmp_path, logging_nan_inf_filter=True).logging_nan_inf_filter
    assert GradAugSettings().nonfinite_loss == "stop"


@pytest.mark.parametrize(
    "chosen, message",
    [
        ({"min_width": 1.5}, "`min_width`.*1.5"),
        ({"min_width": 0.9, "width_choices": [0.5, 1.0]}, "`width_choices` must be .* in \\[min_width, 1\\].*0.5"),
        ({"subnetwork_batch_fraction": 1.5}, "`subnetwork_batch_fraction` must be in .*1.5"),
    ],
)
def test_settings_that_a_search_set(chosen, message):
    settings = GradAugSettings()
    for name, value in chosen.items():
        setattr(settings, name, value)
    with pytest.raises(ValueError, match=message):
        GradAug(tiny_model(), settings)


def test_without_subnetworks_their_images_may_be_small():
    settings = GradAugSettings(num_subnetworks=0, scales=[0.1])
    model = tiny_model(hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1], num_stages=4)
    (only,) = GradAug(model, settings).passes({"pixel_values": tiny_images(), "labels": torch.tensor([0, 1, 2, 0])}, 0)
    assert only.is_full and only.is_last
