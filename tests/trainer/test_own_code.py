# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What a user's own code does to a trainer, its model, and its batches."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers.families import family_model
from helpers.tiny import (
    TinyImages,
    largest_difference,
    parameters_of,
    state_of,
    subnetwork_losses,
    tiny_config,
    tiny_images,
    tiny_model,
    tiny_trainer,
)
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import BatchFeature, ResNetForImageClassification, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import HPSearchBackend

from hf_gradaug import (
    DistillationTrainer,
    GradAug,
    GradAugConfig,
    GradAugMixin,
    GradAugSettings,
    GradAugTrainer,
    make_slimmable,
)


class AtStep(TrainerCallback):
    """Calls a function after a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.function(model)


def test_sub_networks_run_after_accelerates_unwrapping(tmp_path):
    trainer = tiny_trainer(tmp_path, bf16=True, max_steps=3, scales=[1.0])
    unwrap = trainer.accelerator.unwrap_model
    trainer.add_callback(
        AtStep(1, lambda model: unwrap(model, keep_fp32_wrapper=False).save_pretrained(tmp_path / "mine"))
    )
    trainer.train()
    assert len(subnetwork_losses(trainer)) == 3 and min(subnetwork_losses(trainer)) > 1e-3


def test_another_model_has_sub_networks_too(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=2, scales=[1.0])
    trainer.model = trainer.model_wrapped = tiny_model(seed=5)
    trainer.train()
    assert trainer.gradaug.model is trainer.model
    assert min(subnetwork_losses(trainer)) > 1e-3


@pytest.mark.parametrize("targets", ["soft", "labels"])
def test_outputs_of_another_model_are_an_error(targets):
    gradaug = GradAug(tiny_model(), GradAugSettings(subnetwork_targets=targets))
    other = tiny_model()
    full, subnetwork, *_ = gradaug.passes({"pixel_values": tiny_images(), "labels": torch.zeros(4).long()}, 0)
    with full:
        full.compute(gradaug.model)
    with subnetwork, pytest.raises(ValueError, match="must come from the model that `GradAug` was given"):
        subnetwork.compute(other)


class Inverting(GradAugTrainer):
    """Changes the images on the way to the model, as MixUp on the GPU does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.batch = inputs["pixel_values"]
        outputs = model(pixel_values=-inputs["pixel_values"], labels=inputs["labels"])
        model(pixel_values=0 * inputs["pixel_values"])  # another call, whose outputs are not the loss's
        return (outputs.loss, self.returned(outputs)) if return_outputs else outputs.loss

    def returned(self, outputs):
        return outputs


class InvertingWithOwnOutputs(Inverting):
    def returned(self, outputs):
        return {"logits": outputs.logits}


class InvertingWithLogitsAlone(Inverting):
    def returned(self, outputs):
        return outputs.logits


class InvertingWithAdjustedLogits(Inverting):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.batch = inputs["pixel_values"]
        logits = model(-inputs["pixel_values"]).logits + torch.tensor([0.1, 0.2, 0.3])
        loss = cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss


@pytest.mark.parametrize(
    "cls, targets, sign, fraction",
    [
        (Inverting, "soft", -1, 1.0),
        (Inverting, "soft", -1, 0.125),
        (Inverting, "labels", 1, 1.0),
        (InvertingWithOwnOutputs, "soft", -1, 1.0),
        (InvertingWithLogitsAlone, "soft", -1, 1.0),
        (InvertingWithAdjustedLogits, "soft", -1, 1.0),
    ],
)
def test_sub_networks_see_the_images_of_a_compute_loss_that_changes_them(tmp_path, cls, targets, sign, fraction):
    seen = []

    def note(images, generator):
        seen.append(images)
        return images

    args = {"subnetwork_targets": targets, "num_subnetworks": 1, "max_steps": 1, "subnetwork_batch_fraction": fraction}
    trainer = tiny_trainer(tmp_path, cls=cls, trainer_kwargs={"transform": note}, **args)
    trainer.train()
    assert not seen[-1].requires_grad
    torch.testing.assert_close(seen[-1], sign * trainer.batch[: len(seen[-1])])


class Outputs(dict):
    __getattr__ = dict.__getitem__


class OwnForImageClassification(ResNetForImageClassification):
    def forward(self, pixel_values=None, labels=None):
        return Outputs(super().forward(pixel_values, labels))


def test_outputs_of_a_type_of_the_models_own(tmp_path):
    seen = []
    model = OwnForImageClassification(tiny_config("resnet-basic"))
    args = {"trainer_kwargs": {"transform": lambda images, _: seen.append(images) or images}, "max_steps": 1}
    trainer = tiny_trainer(tmp_path, model, Inverting, **args)
    trainer.train()
    torch.testing.assert_close(seen[-1], -trainer.batch)


def test_a_compute_loss_that_returns_some_rows(tmp_path):
    class Doubling(GradAugTrainer):
        """Sees each image twice, as R-Drop does."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**{name: torch.cat([value, value]) for name, value in inputs.items()})
            logits = outputs.logits[: len(inputs["labels"])]
            return (outputs.loss, {"loss": outputs.loss, "logits": logits}) if return_outputs else outputs.loss

    trainer = tiny_trainer(tmp_path, cls=Doubling, max_steps=1)
    trainer.train()
    assert 0 < subnetwork_losses(trainer)[0] < 1


class WeightedImages(TinyImages):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "weight": 1.0 + index % 2}


@pytest.mark.parametrize("targets", ["soft", "labels"])
def test_inputs_for_the_loss_alone_dont_reach_the_model(tmp_path, targets):
    """`OwnForImageClassification` takes no other arguments than its own."""

    class Weighting(GradAugTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            weight, labels = inputs.pop("weight"), inputs.pop("labels")
            outputs = model(**inputs)
            loss = (weight * cross_entropy(outputs.logits, labels, reduction="none")).mean()
            return (loss, outputs) if return_outputs else loss

    model = OwnForImageClassification(tiny_config("resnet-basic"))
    data = {"trainer_kwargs": {"train_dataset": WeightedImages()}, "remove_unused_columns": False}
    trainer = tiny_trainer(tmp_path, model, Weighting, subnetwork_targets=targets, max_steps=1, **data)
    trainer.train()
    assert subnetwork_losses(trainer)[0] > 0


class SeveralTasksForImageClassification(ResNetForImageClassification):
    seen = []

    def forward(self, pixel_values=None, labels=None, task="first", gain=1.0):
        if not pixel_values.is_meta:  # which sizes fit is tried without weights
            self.seen.append(task)
        return super().forward(pixel_values * gain, labels)


@pytest.mark.parametrize("positional", [False, True])
def test_sub_networks_get_the_arguments_of_a_compute_loss(tmp_path, positional):
    class SecondTask(GradAugTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            images, labels, gain = inputs["pixel_values"], inputs["labels"], self.log_gain.exp()
            if positional:
                outputs = model(images, labels, "second", gain)
            else:
                outputs = model(images, labels=labels, task="second", gain=gain)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    model = SeveralTasksForImageClassification(tiny_config("resnet-basic"))
    trainer = tiny_trainer(tmp_path, model, SecondTask, num_subnetworks=2, max_steps=1)
    trainer.log_gain = torch.zeros((), requires_grad=True)  # sub-networks don't train what comes from the outside
    SeveralTasksForImageClassification.seen.clear()
    trainer.train()
    assert SeveralTasksForImageClassification.seen == ["second"] * 3


class Scaling(GradAugTrainer):
    def _prepare_inputs(self, inputs):
        return {**super()._prepare_inputs(inputs), "pixel_values": inputs["pixel_values"] / 10}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.prepared = inputs["pixel_values"]
        self.other = self._prepare_inputs({"pixel_values": 10 * torch.ones(1)})["pixel_values"]  # not the batch
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def test_inputs_are_prepared_once(tmp_path):
    trainer = tiny_trainer(tmp_path, cls=Scaling, num_subnetworks=2, scales=[1.0], max_steps=1)
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    trainer.train()
    assert len(seen) == 3
    for images in seen:
        torch.testing.assert_close(images, trainer.prepared)
    deviation = TinyImages().images.std()
    assert trainer.prepared.std() == pytest.approx(float(deviation) / 10, rel=0.3) and trainer.other == 1
    assert "_prepare_inputs" not in vars(trainer) and "compute_loss" not in vars(trainer)


def test_a_hook_on_the_model_changes_the_inputs_of_each_pass_once(tmp_path):
    def normalize(module, args, kwargs):
        return args, {**kwargs, "pixel_values": kwargs["pixel_values"] / 10}

    seen = []
    trainer = tiny_trainer(tmp_path, num_subnetworks=1, scales=[1.0], max_steps=1)
    trainer.model.register_forward_pre_hook(normalize, with_kwargs=True)
    trainer.model.register_forward_hook(
        lambda module, args, kwargs, outputs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    trainer.train()
    torch.testing.assert_close(*seen)


def test_a_new_model_of_the_class_is_a_plain_one(tmp_path):
    model = make_slimmable(tiny_model())
    model.save_pretrained(tmp_path)
    loaded, fresh = type(model).from_pretrained(tmp_path), type(model)(model.config)
    assert largest_difference(state_of(loaded), state_of(model)) == 0
    assert type(loaded) is type(fresh) is type(tiny_model())
    assert type(make_slimmable(fresh)) is type(model)
    replica = model._replicate_for_data_parallel()  # it takes `__new__` without arguments
    assert type(replica) is type(model) and replica(tiny_images()).logits.shape == (4, 3)


def test_a_model_init_without_sub_networks_makes_a_plain_model(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1, trainer_kwargs={"model_init": lambda: tiny_model()})
    trainer.args.num_subnetworks = 0
    trainer.train()
    assert type(trainer.model) is type(tiny_model()) and not subnetwork_losses(trainer)


def test_each_trial_of_a_search_has_its_model_and_settings(tmp_path, monkeypatch):
    """The second model has no block to drop, as the first trial's settings do."""
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    depths = {0: [2, 1, 1], 1: [1, 1, 1], None: [2, 1, 1]}
    trainer = tiny_trainer(
        tmp_path,
        trainer_kwargs={
            "model_init": lambda trial: tiny_model("resnet-basic", depths=depths[getattr(trial, "number", None)])
        },
        max_steps=1,
    )
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: trial.params
    for number, params in enumerate([{"subnetwork_kind": "depth"}, {"subnetwork_kind": "width", "min_width": 0.5}]):
        trainer.train(trial=SimpleNamespace(number=number, params=params))
        assert trainer.gradaug.model is trainer.model and trainer.gradaug.settings is trainer.args
        (line,) = [row for row in trainer.state.log_history if "loss" in row]
        assert line["loss_subnetworks"] > 1e-3 and ("subnetwork_depth" in line) == (number == 0)
    assert line["subnetwork_width"] < 0.9


def test_temperature_follows_the_settings():
    def losses(gradaug):
        total = []
        for gradaug_pass in gradaug.passes({"pixel_values": tiny_images(), "labels": torch.zeros(4).long()}, 0):
            with gradaug_pass:
                total.append(gradaug_pass.compute(gradaug.model).item())
        return total

    changed = GradAug(tiny_model())
    before = losses(changed)
    changed.settings.temperature = 5.0
    hot = losses(GradAug(tiny_model(), GradAugSettings(temperature=5.0)))
    assert losses(changed) == hot != before


@pytest.mark.parametrize("replaces", [False, True])
def test_settings_that_are_changed_before_training(tmp_path, replaces):
    settings = {"subnetwork_targets": "labels", "num_subnetworks": 1, "max_steps": 1, "scales": [1.0]}
    changed = tiny_trainer(tmp_path, **{**settings, "subnetwork_targets": "soft"})
    if replaces:
        changed.args = copy.copy(changed.args)
    changed.args.subnetwork_targets = "labels"
    changed.train()
    expected = tiny_trainer(tmp_path, **settings)
    expected.train()
    assert subnetwork_losses(changed) == subnetwork_losses(expected) != []


def test_sub_networks_interpolate_positions_whatever_the_full_network_was_called_with(tmp_path):
    class Explicit(GradAugTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs, interpolate_pos_encoding=False)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    trainer = tiny_trainer(tmp_path, family_model("vit"), Explicit, max_steps=1, scales=[0.5])
    trainer.train()
    assert subnetwork_losses(trainer)[0] > 0


def test_masks_of_a_compute_loss_are_not_rotated(tmp_path):
    class Masked(GradAugTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs, gain=torch.ones(len(inputs["labels"]), 1, 32, 32))
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    model = SeveralTasksForImageClassification(tiny_config("resnet-basic"))
    trainer = tiny_trainer(tmp_path, model, Masked, max_steps=1, rotations=[0, 90])
    with pytest.raises(ValueError, match=r"`rotations` must be None with masks, maps or boxes, such as \['gain'\]"):
        trainer.train()


def test_settings_that_are_changed_before_training_are_checked(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1, use_cpu=True)
    trainer.args.cuda_graphs = True
    with pytest.raises(ValueError, match="`cuda_graphs` must be False with the device 'cpu', but is True"):
        trainer.train()
    trainer.args.cuda_graphs, trainer.args.width_choices = False, [0.5]
    with pytest.raises(ValueError, match="`width_choices` must be one or more width multipliers"):
        trainer.train()


def test_gradaug_can_begin_later(tmp_path):
    trainer = tiny_trainer(tmp_path, bf16=True, max_steps=3, logging_steps=1)
    wanted, trainer.args.num_subnetworks = trainer.args.num_subnetworks, 0
    trainer.add_callback(AtStep(2, lambda model: setattr(trainer.args, "num_subnetworks", wanted)))
    trainer.train()
    assert len(subnetwork_losses(trainer)) == 1 and subnetwork_losses(trainer)[0] > 1e-3


class SeveralLabels(TinyImages):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "labels": torch.tensor([1.0, 1.0, 0.0])}


class OwnLoss(Trainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


class WithOwnLoss(GradAugMixin, OwnLoss):
    pass


class OwnBinaryLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = binary_cross_entropy_with_logits(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class WithOwnBinaryLoss(GradAugMixin, OwnBinaryLoss):
    pass


def test_several_labels_are_no_class_probabilities(tmp_path):
    def trainer(problem_type, cls=GradAugTrainer, **kwargs):
        model = tiny_model(problem_type=problem_type)
        data = {"train_dataset": SeveralLabels(), **kwargs}
        return tiny_trainer(tmp_path, model, cls, trainer_kwargs=data, num_subnetworks=0, max_steps=1)

    for cls in (GradAugTrainer, WithOwnLoss):
        with pytest.raises(ValueError, match="`labels` must be class probabilities"):
            trainer("single_label_classification", cls).train()
    trainer("single_label_classification", WithOwnBinaryLoss).train()  # which takes all labels as they are
    with pytest.raises(ValueError, match="a model for single-label image classification, but"):
        trainer(None, DistillationTrainer, teacher=tiny_model("resnet-basic")).train()


@pytest.mark.parametrize("settings", [{"num_subnetworks": 0}, {"num_subnetworks": 1, "subnetwork_loss_weight": 0.0}])
def test_a_loss_that_is_scaled_already(tmp_path, settings):
    """`loss_is_scaled_for_ga` says that the loss is divided by the number of items, where the Trainer gives it."""

    def trained(cls, args_cls, **args):
        class Scaled(cls):
            loss_is_scaled_for_ga = True

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                outputs = model(pixel_values=inputs["pixel_values"])
                loss = cross_entropy(outputs.logits, inputs["labels"], reduction="sum")
                loss = loss / (len(inputs["labels"]) if num_items_in_batch is None else num_items_in_batch)
                return (loss, outputs) if return_outputs else loss

        sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        trainer = tiny_trainer(tmp_path, tiny_model("resnet-basic"), Scaled, args_cls, **sizes, **args)
        trainer.train()
        return parameters_of(trainer.model)

    mine, stock = trained(GradAugTrainer, GradAugConfig, **settings), trained(Trainer, TrainingArguments)
    assert largest_difference(mine, stock) == 0


class Labelled(BatchFeature):
    """Checks its content, which a batch without labels fails."""

    def __init__(self, data):
        super().__init__(data)
        assert "labels" in self.data


@pytest.mark.parametrize("batch_type", [BatchFeature, Labelled])
def test_a_batch_keeps_its_type(tmp_path, batch_type):
    """Collators return what an image processor does."""

    class ByAttributes(GradAugTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(pixel_values=inputs.pixel_values, labels=inputs.pop("labels"))
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    def collate(examples):
        images, labels = zip(*(each.values() for each in examples))
        return batch_type({"pixel_values": torch.stack(images), "labels": torch.tensor(labels)})

    for targets in ("soft", "labels"):
        kwargs = {"trainer_kwargs": {"data_collator": collate}, "subnetwork_targets": targets}
        trainer = tiny_trainer(tmp_path, cls=ByAttributes, max_steps=1, **kwargs)
        trainer.train()
        assert subnetwork_losses(trainer)[0] > 0


def test_without_arguments_the_trainer_has_gradaugs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = GradAugTrainer(tiny_model(), train_dataset=TinyImages())
    assert type(trainer.args) is GradAugConfig
    assert (trainer.args.output_dir, trainer.args.logging_nan_inf_filter) == ("tmp_trainer", False)
    with pytest.raises(TypeError, match="str has none. Load a model by its name with `from_pretrained`"):
        GradAugTrainer("microsoft/resnet-50")
