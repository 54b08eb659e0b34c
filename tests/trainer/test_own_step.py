# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""A `training_step` of a user's own, above or below the mixin."""

import pytest
import torch
from helpers.tiny import largest_difference, state_of, subnetwork_losses, tiny_trainer
from transformers import Trainer

from hf_gradaug import GradAugMixin, GradAugTrainer


def test_a_step_without_sub_networks_is_an_error(tmp_path):
    class OwnStep(GradAugTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = self.compute_loss(model.train(), self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    tiny_trainer(tmp_path, cls=OwnStep, num_subnetworks=0, max_steps=1).train()
    trainer = tiny_trainer(tmp_path, cls=OwnStep, max_steps=1)
    before = state_of(trainer.model)
    with pytest.raises(ValueError, match="`training_step` must call `super\\(\\).training_step`"):
        trainer.train()
    assert largest_difference(state_of(trainer.model), before) == 0


def test_a_step_may_skip_a_batch(tmp_path):
    class Skipping(GradAugTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            if self.state.global_step == 1:
                return torch.zeros(())
            return super().training_step(model, inputs, num_items_in_batch)

    trainer = tiny_trainer(tmp_path, cls=Skipping, max_steps=3, logging_steps=1)
    trainer.train()
    assert len(subnetwork_losses(trainer)) == 2


class OwnStep(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = model(**inputs).loss
        self.accelerator.backward(loss)
        return loss.detach()


class OwnStepWithGradAug(GradAugMixin, OwnStep):
    pass


class SkippingStep(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.state.global_step == 0:
            return torch.zeros(())
        return super().training_step(model, inputs, num_items_in_batch)


class SkippingStepWithGradAug(GradAugMixin, SkippingStep):
    pass


@pytest.mark.parametrize("targets", ["soft", "labels"])
def test_a_training_step_without_compute_loss_is_an_error(tmp_path, targets):
    trainer = tiny_trainer(tmp_path, cls=OwnStepWithGradAug, subnetwork_targets=targets)
    with pytest.raises(ValueError, match="`training_step` must compute the loss by `self.compute_loss`.*OwnStepWithG"):
        trainer.train()


@pytest.mark.parametrize("targets", ["soft", "labels"])
def test_a_training_step_below_may_skip_a_batch(tmp_path, targets):
    trainer = tiny_trainer(tmp_path, cls=SkippingStepWithGradAug, subnetwork_targets=targets, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
