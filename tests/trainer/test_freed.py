# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What a trainer leaves in memory, and among its callbacks: nothing."""

import gc
import weakref

import pytest
from helpers.tiny import TinyImages, tiny_model, tiny_trainer
from transformers import Trainer, TrainingArguments

from hf_gradaug import StopOnSignal
from hf_gradaug.data.transformed_dataset import TransformedDataset


def transformed():
    return TransformedDataset(TinyImages(), lambda example, name, seed: example)


@pytest.fixture
def without_gc():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("num_subnetworks", [0, 2])
@pytest.mark.parametrize("data", [TinyImages, transformed])
def test_deleted_trainer_is_freed_without_a_garbage_collection(tmp_path, without_gc, num_subnetworks, data):
    settings = {"num_subnetworks": num_subnetworks, "save_strategy": "steps", "save_steps": 2}
    trainer = tiny_trainer(tmp_path, trainer_kwargs={"train_dataset": data()}, **settings)
    trainer.add_callback(StopOnSignal())
    trainer.train()
    kept = {
        "trainer": trainer,
        "model": trainer.model,
        "optimizer": trainer.optimizer.optimizer,
        "weights": next(iter(trainer.model.parameters())),
    }
    alive = {name: weakref.ref(value) for name, value in kept.items()}
    del trainer, kept
    assert [name for name, reference in alive.items() if reference() is not None] == []


@pytest.mark.slow
def test_callbacks_are_the_stock_ones_unless_the_data_need_more(tmp_path):
    def callbacks(*args, **kwargs):
        trainer = tiny_trainer(tmp_path, *args, **kwargs)
        trainer.train()
        trainer.train()
        return [type(callback).__name__ for callback in trainer.callback_handler.callbacks]

    stock = callbacks(tiny_model(), Trainer, TrainingArguments)
    assert callbacks() == stock
    assert callbacks(trainer_kwargs={"train_dataset": transformed()}) == [*stock, "_EpochCallback"]
