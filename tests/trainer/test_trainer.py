# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""GradAugTrainer: the stock Trainer without sub-networks, exact under accumulation and resuming, and its logs."""

import pytest
import torch
from helpers.tiny import TinyImages, largest_difference, parameters_of, state_of, tiny_model, tiny_trainer
from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_gradaug import GradAugConfig, GradAugTrainer


# SGD without clipping: the change of a weight is proportional to its gradient.
EXACT = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


def trained(tmp_path, **kwargs):
    trainer = tiny_trainer(tmp_path, **kwargs)
    trainer.train()
    return parameters_of(trainer.model)


class MendedTrainer(Trainer):
    """The stock Trainer, with the scaling of the loss of image classifiers mended (transformers issue 47688)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


@pytest.mark.parametrize("family", ["resnet-basic", "resnet-bottleneck", "convnext", "convnextv2"])
def test_every_parameter_moves(tmp_path, family):
    model = tiny_model(family)
    before = parameters_of(model)
    tiny_trainer(tmp_path, model, weight_decay=0.0).train()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("family", ["resnet-basic", "convnext"])
def test_no_subnetworks_is_the_stock_trainer(tmp_path, family, accumulation):
    args = {"gradient_accumulation_steps": accumulation, "optim": "adamw_torch"}
    stock = tiny_trainer(tmp_path, tiny_model(family), MendedTrainer, TrainingArguments, **args)
    mine = tiny_trainer(tmp_path, tiny_model(family), num_subnetworks=0, **args)
    stock.train()
    mine.train()
    assert largest_difference(state_of(mine.model), state_of(stock.model)) == 0
    assert not hasattr(mine.model, "subnetwork")
    drop = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    for line, expected in zip(mine.state.log_history, stock.state.log_history, strict=True):
        assert {k: v for k, v in line.items() if k not in drop} == {k: v for k, v in expected.items() if k not in drop}


def test_no_subnetworks_takes_what_trainer_takes(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x, y):
            return {"loss": (self.linear(x) - y).square().mean()}

    data = [{"x": torch.randn(4), "y": torch.randn(2)} for _ in range(16)]
    losses = []
    for cls, args in ((GradAugTrainer, {"num_subnetworks": 0}), (Trainer, {})):
        torch.manual_seed(0)
        args_cls = GradAugConfig if args else TrainingArguments
        kwargs = {"train_dataset": data, "eval_dataset": None}
        trainer = tiny_trainer(tmp_path, Net(), cls, args_cls, kwargs, remove_unused_columns=False, **args)
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_accumulation_is_the_larger_batch(tmp_path):
    for family, tolerance in (("convnext", 1e-7), ("resnet-basic", 1e-4)):
        # A model with BatchNorm sees the statistics of each micro-batch: in eval mode it is the same function.
        def model(family=family):
            model = tiny_model(family)
            if family == "resnet-basic":
                for module in model.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.train = lambda mode=True, module=module: module
                        module.training = False
            return model

        runs = [
            trained(
                tmp_path, model=model(), per_device_train_batch_size=size, gradient_accumulation_steps=steps, **EXACT
            )
            for size, steps in ((8, 1), (4, 2), (2, 4))
        ]
        start = parameters_of(tiny_model(family))
        assert largest_difference(runs[0], start) > 100 * tolerance
        for run in runs[1:]:
            assert largest_difference(run, runs[0]) < tolerance


def _own_loss(outputs, labels, num_items_in_batch=None):
    loss = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def test_the_last_step_of_an_epoch_may_have_fewer_batches(tmp_path):
    # 20 images: steps of 8, 8 and 4.
    kwargs = {"trainer_kwargs": {"train_dataset": TinyImages(20)}, "max_steps": 6, **EXACT}
    large = trained(tmp_path, per_device_train_batch_size=8, **kwargs)
    accumulated = trained(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, **kwargs)
    assert largest_difference(accumulated, large) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compute_loss_func", "label_smoothing", "soft_labels"])
def test_loss_scaling(tmp_path, kind):
    """The update is the same for 1 x 8 and 4 x 2, and with one-hot soft labels the same as with hard ones."""
    kwargs, args = {}, {}
    if kind == "compute_loss_func":
        kwargs["compute_loss_func"] = _own_loss
    elif kind == "label_smoothing":
        args["label_smoothing_factor"] = 0.1
    else:
        kwargs["data_collator"] = lambda examples: {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": nn.functional.one_hot(torch.tensor([example["labels"] for example in examples]), 3).float(),
        }

    def run(batch_size, steps):
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}
        model = tiny_model(problem_type="single_label_classification" if kind == "soft_labels" else None)
        return trained(tmp_path, model=model, trainer_kwargs=kwargs, **sizes, **args, **EXACT)

    large, accumulated = run(8, 1), run(2, 4)
    assert largest_difference(accumulated, large) < 1e-7
    plain = trained(tmp_path, **EXACT)
    if kind == "label_smoothing":
        assert largest_difference(large, plain) > 1e-4
    else:
        assert largest_difference(large, plain) < 1e-7


def test_plain_training_arguments_mean_the_defaults(tmp_path):
    plain = tiny_trainer(tmp_path, args_cls=TrainingArguments)
    config = tiny_trainer(tmp_path)
    for trainer in (plain, config):
        trainer.train()
    assert largest_difference(parameters_of(plain.model), parameters_of(config.model)) == 0
    assert plain.gradaug_settings.num_subnetworks == 3


def test_training_twice_and_turning_gradaug_on(tmp_path):
    trainer = tiny_trainer(tmp_path, num_subnetworks=0, logging_steps=2)
    trainer.train()
    trainer.args.num_subnetworks = 2
    for _ in range(2):
        trainer.train()
    lines = [line for line in trainer.state.log_history if "loss_full" in line]
    assert len(lines) == 1
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss_full"] + lines[0]["loss_subnetworks"], rel=1e-5)


def test_logs(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=4, logging_steps=2, gradient_accumulation_steps=2, min_width=0.5)
    passes = []
    original = trainer.gradaug.passes

    def recorded(inputs, step):
        for gradaug_pass in original(inputs, step):
            passes.append(gradaug_pass)
            yield gradaug_pass

    trainer.gradaug.passes = recorded
    result = trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2
    for index, line in enumerate(lines):
        assert line["loss"] == pytest.approx(line["loss_full"] + line["loss_subnetworks"], rel=1e-5)
        assert line["loss_full"] > 0 and line["loss_subnetworks"] > 0
        subs = [p for p in passes[16 * index : 16 * (index + 1)] if not p.is_full]
        assert len(subs) == 12
        assert line["subnetwork_width"] == pytest.approx(sum(p.width for p in subs) / 12)
        assert line["subnetwork_size"] == pytest.approx(sum(p.size[0] for p in subs) / 12)
    assert result.training_loss == pytest.approx(sum(line["loss"] for line in lines) / 2, rel=1e-5)

    plain = tiny_trainer(tmp_path, num_subnetworks=0, max_steps=4, gradient_accumulation_steps=2)
    plain.train()
    ratio = trainer.state.total_flos / plain.state.total_flos
    model = trainer.model
    numbers = [sum(x.numel() for x in model.subnetwork(p.width).skeleton.parameters()) for p in passes]
    by_hand = sum((p.size[0] / 32) ** 2 * number for p, number in zip(passes, numbers, strict=True))
    assert ratio == pytest.approx(by_hand / model.num_parameters() / (len(passes) / 4))
    assert ratio > 1


def test_evaluation_and_prediction_run_the_full_network_alone(tmp_path):
    def accuracy(prediction):
        return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}

    trainer = tiny_trainer(tmp_path, trainer_kwargs={"compute_metrics": accuracy}, eval_strategy="steps", eval_steps=2)
    trainer.train()
    stock = tiny_trainer(
        tmp_path, trainer.model, Trainer, TrainingArguments, trainer_kwargs={"compute_metrics": accuracy}
    )
    mine, theirs = trainer.evaluate(), stock.evaluate()
    assert mine["eval_loss"] == theirs["eval_loss"]
    assert mine["eval_accuracy"] == theirs["eval_accuracy"]
    assert (trainer.predict(TinyImages(12)).predictions == stock.predict(TinyImages(12)).predictions).all()


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_resumed_run_is_the_uninterrupted_one(tmp_path, optim):
    def trainer(**args):
        args = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "optim": optim, **args}
        # Drop path draws from the global generator, which the checkpoint holds.
        return tiny_trainer(tmp_path, tiny_model("convnext", drop_path_rate=0.3), **args)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert largest_difference(state_of(resumed.model), state_of(whole.model)) == 0
    assert [line.get("subnetwork_width") for line in resumed.state.log_history] == [
        line.get("subnetwork_width") for line in whole.state.log_history
    ]


@pytest.mark.parametrize(
    "args",
    [
        {"bf16": True},
        pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.slow),
        {"auto_find_batch_size": True},
        {"optim": "adafactor"},
        {"optim": "adamw_torch_fused"},
        {"lr_scheduler_type": "cosine", "warmup_steps": 1},
        {"dataloader_num_workers": 1},
        {"torch_empty_cache_steps": 1},
        {
            "load_best_model_at_end": True,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
        },
        {"report_to": ["tensorboard"]},
    ],
    ids=lambda args: next(iter(args)),
)
def test_as_with_trainer(tmp_path, args):
    trainer = tiny_trainer(tmp_path, **args)
    before = parameters_of(trainer.model)
    result = trainer.train()
    assert result.global_step == 3
    assert torch.isfinite(torch.tensor(result.training_loss))
    after = parameters_of(trainer.model)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    if "torch_compile" in args:
        assert largest_difference(after, trained(tmp_path)) < 1e-6


def test_gradient_checkpointing(tmp_path, swin):
    runs = []
    for checkpointing in (False, True):
        trainer = tiny_trainer(
            tmp_path, swin(), scales=[1.0], min_width=0.5, width_divisor=8, gradient_checkpointing=checkpointing
        )
        trainer.train()
        assert (
            any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules())
            == checkpointing
        )
        runs.append(parameters_of(trainer.model))
    assert largest_difference(*runs) < 1e-6


@pytest.mark.slow
def test_out_of_memory_in_a_pass_leaves_the_full_network(tmp_path):
    """`auto_find_batch_size` tries again with a smaller batch after an error in the middle of a sub-network's pass."""
    model = tiny_model()
    trainer = tiny_trainer(tmp_path, model, auto_find_batch_size=True)
    original, sizes = trainer.gradaug.passes, []

    def passes(inputs, step):
        for gradaug_pass in original(inputs, step):
            sizes.append(len(inputs["labels"]))
            yield gradaug_pass
            if gradaug_pass.width < 1 and sizes[-1] == 8:
                raise RuntimeError("CUDA out of memory.")

    trainer.gradaug.passes = passes
    assert trainer.train().global_step == 3
    assert sizes[0] == 8 and sizes[-1] < 8
    assert not model.__dict__["_subnetworks"].active
    assert "compute_loss" not in vars(trainer)


def test_model_init(tmp_path):
    trainer = tiny_trainer(tmp_path, trainer_kwargs={"model_init": lambda: tiny_model()})
    trainer.train()
    assert largest_difference(parameters_of(trainer.model), trained(tmp_path)) == 0


def test_callbacks_see_the_model_and_its_full_gradient(tmp_path):
    norms = []

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            norms.append(sum(parameter.grad.square().sum() for parameter in model.parameters()).sqrt().item())

    trainer = tiny_trainer(tmp_path, trainer_kwargs={"callbacks": [Spy()]}, max_grad_norm=1e9)
    trainer.train()
    assert norms == pytest.approx([line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line])


def test_not_a_number_in_the_log(tmp_path):
    data = TinyImages()
    data.images[:] = float("nan")
    kwargs = {"trainer_kwargs": {"train_dataset": data}, "nonfinite_loss": "skip"}
    trainer = tiny_trainer(tmp_path, **kwargs)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert lines and all("loss_full" not in line for line in lines)
    trainer = tiny_trainer(tmp_path, logging_nan_inf_filter=False, **kwargs)
    trainer.train()
    assert trainer.state.log_history[0]["loss_full"] != trainer.state.log_history[0]["loss_full"]
