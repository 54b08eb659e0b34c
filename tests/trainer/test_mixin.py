# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""GradAug on Trainers that are not the stock one."""

import pytest
import torch
from helpers.tiny import largest_difference, parameters_of, tiny_model, tiny_trainer
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_gradaug import GradAugMixin
from hf_gradaug.settings import SETTINGS_NAME
from hf_gradaug.training.shared import SharedTrainerMixin


class LossOnlyTrainer(Trainer):
    """Takes batches that are tuples, and gives the loss alone in training."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert not return_outputs
        return model(pixel_values=inputs[0], labels=inputs[1]).loss


class SoftLabelTrainer(Trainer):
    """Knows by itself what to do with soft labels."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = (outputs.logits - inputs["labels"]).square().mean()
        return (loss, outputs) if return_outputs else loss


@pytest.mark.slow
def test_mixin_leaves_the_trainer_its_ways(tmp_path):
    def tuples(examples):
        images = torch.stack([example["pixel_values"] for example in examples])
        return images, torch.tensor([example["labels"] for example in examples])

    def soft(examples):
        images, labels = tuples(examples)
        return {"pixel_values": images, "labels": nn.functional.one_hot(labels, 3).float()}

    for base, collator in ((LossOnlyTrainer, tuples), (SoftLabelTrainer, soft)):
        mixed = type("Mixed", (GradAugMixin, base), {})
        kwargs = {"trainer_kwargs": {"data_collator": collator}}
        stock = tiny_trainer(tmp_path, tiny_model(), base, TrainingArguments, **kwargs)
        mine = tiny_trainer(tmp_path, tiny_model(), mixed, num_subnetworks=0, **kwargs)
        stock.train()
        mine.train()
        assert largest_difference(parameters_of(mine.model), parameters_of(stock.model)) == 0
    model = tiny_model(problem_type="single_label_classification")
    trainer = tiny_trainer(tmp_path, model, mixed, **kwargs)  # a loss of one's own beside sub-networks
    trainer.train()
    assert trainer.state.log_history[0]["loss_subnetworks"] > 0


class DoublingTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (2 * loss, outputs) if return_outputs else 2 * loss


def test_mixin_on_another_trainer(tmp_path):
    class MyTrainer(GradAugMixin, DoublingTrainer):
        pass

    mine, stock = tiny_trainer(tmp_path, cls=MyTrainer), tiny_trainer(tmp_path)
    mine.train()
    stock.train()
    first, other = mine.state.log_history[0], stock.state.log_history[0]
    assert first["loss_full"] == pytest.approx(2 * other["loss_full"])
    assert first["loss_subnetworks"] == pytest.approx(other["loss_subnetworks"])


def test_mixin_has_the_method_alone(tmp_path):
    assert GradAugMixin.__bases__ == (SharedTrainerMixin,) and SharedTrainerMixin.__bases__ == (object,)
    mixed = type("Mixed", (GradAugMixin, Trainer), {})
    with pytest.raises(ValueError, match="`lr_milestones` must be None without `DurableTrainerMixin`"):
        tiny_trainer(tmp_path / "out", cls=mixed, lr_scheduler_type="constant", lr_milestones=[0.5])
    assert not (tmp_path / "out").exists()
    trainer = tiny_trainer(tmp_path, cls=mixed)
    trainer.save_model()
    assert (tmp_path / SETTINGS_NAME).is_file()


def test_evaluate_passes_on_the_arguments_of_other_trainers(tmp_path):
    class Generating(Trainer):
        def evaluate(self, eval_dataset=None, eval_examples=None, **gen_kwargs):
            return {"examples": eval_examples, **gen_kwargs}

    trainer = tiny_trainer(tmp_path, cls=type("Mixed", (GradAugMixin, Generating), {}))
    assert trainer.evaluate(None, "these", max_length=3) == {"examples": "these", "max_length": 3}
