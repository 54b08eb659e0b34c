# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What only a GPU can show: captured passes, no waiting, gradients of detached passes by the foreach fast path."""

import pytest
import torch
from helpers.tiny import TinyImages, largest_difference, parameters_of, tiny_images, tiny_model, tiny_trainer

from hf_gradaug import GradAug, GradAugSettings


pytestmark = pytest.mark.cuda  # collected where there is a GPU
LABELS = torch.tensor([0, 1, 2, 0])
FAMILIES = ["resnet-basic", "convnext"]


def batch(step=0, size=32):
    return {"pixel_values": tiny_images(seed=step, size=size).cuda(), "labels": LABELS.cuda()}


@pytest.fixture(autouse=True)
def exact():
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False


def gradients(family, detached=True, cuda_graphs=False, dtype=None, steps=3, micro_batches=1, double=False):
    """Sums of gradients, losses and running statistics after some steps, with weights that move in between."""
    model = tiny_model(family).cuda().train()
    if double:
        model = model.double()
    settings = GradAugSettings(
        num_subnetworks=3, min_width=0.5, scales=[1.0, 0.75], width_divisor=4, cuda_graphs=cuda_graphs
    )
    gradaug = GradAug(model, settings, seed=3)
    gradaug.detached = detached
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses, total = [], []
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(micro_batches):
            inputs = batch(10 * step + part)
            if double:
                inputs["pixel_values"] = inputs["pixel_values"].double()
            for gradaug_pass in gradaug.passes(inputs, step):
                with gradaug_pass:
                    with torch.autocast("cuda", dtype, enabled=dtype is not None):
                        loss = gradaug_pass.compute(model)
                    (loss / micro_batches).backward()
                losses.append(loss.detach())
        total.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        optimizer.step()
    return torch.stack(losses), total, dict(model.named_buffers()), gradaug


@pytest.mark.parametrize("family", FAMILIES)
def test_detached_passes_are_views(family):
    left, right = gradients(family, detached=False, double=True), gradients(family, double=True)
    torch.testing.assert_close(left[0], right[0], rtol=1e-9, atol=1e-9)
    for expected, found in zip(left[1], right[1]):
        assert largest_difference(found, expected) < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_captured_passes_are_eager_ones(family, micro_batches, dtype):
    eager = gradients(family, dtype=dtype, micro_batches=micro_batches, steps=6)
    graphs = gradients(family, dtype=dtype, micro_batches=micro_batches, steps=6, cuda_graphs=True)
    assert 1 < len(graphs[3].captured._captures) <= 64
    tolerance = 1e-5 if dtype is None else 2e-2
    torch.testing.assert_close(graphs[0], eager[0], rtol=tolerance, atol=tolerance)
    for expected, found in zip(eager[1], graphs[1]):
        scale = max(tensor.abs().max() for tensor in expected.values())
        assert largest_difference(found, expected) < tolerance * scale
    for name, buffer in eager[2].items():
        torch.testing.assert_close(graphs[2][name].float(), buffer.float(), rtol=1e-3, atol=1e-4, msg=name)


def test_captures_are_bounded_and_follow_the_weights():
    model = tiny_model("resnet-basic").cuda().train()
    gradaug = GradAug(model, GradAugSettings(min_width=0.5, scales=[1.0], cuda_graphs=True))
    gradaug.captured.limit = 2
    for step in range(3):
        for gradaug_pass in gradaug.passes(batch(step), step):
            with gradaug_pass:
                gradaug_pass.compute(model).backward()
    assert len(gradaug.captured._captures) == 2
    model.double()
    inputs = {"pixel_values": batch()["pixel_values"].double(), "labels": LABELS.cuda()}
    for gradaug_pass in gradaug.passes(inputs, 0):
        with gradaug_pass:
            gradaug_pass.compute(model).backward()
    assert all(parameter.grad.dtype == torch.float64 for parameter in model.parameters())


def test_what_cannot_be_captured_is_an_error():
    model = tiny_model("resnet-basic").cuda().train()
    gradaug = GradAug(model, GradAugSettings(cuda_graphs=True))
    model.register_forward_hook(lambda module, args, outputs: outputs.logits.sum().item() and None)
    with pytest.raises(RuntimeError, match="`cuda_graphs` must be False for this ResNetForImageClassification"):
        for gradaug_pass in gradaug.passes(batch(), 0):
            with gradaug_pass:
                gradaug_pass.compute(model).backward()


@pytest.mark.parametrize(
    "args", [{}, {"bf16": True}, {"cuda_graphs": True, "width_divisor": 4}, {"bf16": True, "cuda_graphs": True}]
)
def test_a_step_of_the_trainer_never_waits(tmp_path, args):
    """Apart from the log lines, which there are none of between the steps that are watched."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step >= 12:
                torch.cuda.set_sync_debug_mode("error")

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            torch.cuda.set_sync_debug_mode("default")

    try:
        trainer = tiny_trainer(
            tmp_path, tiny_model("resnet-basic"), trainer_kwargs={"callbacks": [Watch()]}, use_cpu=False, max_steps=16,
            logging_steps=100, min_width=0.5, scales=[1.0, 0.75], max_grad_norm=1.0, dataloader_pin_memory=True, **args,
        )  # fmt: skip
        before = parameters_of(trainer.model)
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(not torch.equal(before[name], after) for name, after in parameters_of(trainer.model).items())


def test_a_loss_that_is_not_finite_is_seen_before_the_save(tmp_path):
    data = TinyImages()
    data.images[8:16] = float("nan")
    from transformers.trainer_utils import get_last_checkpoint

    trainer = tiny_trainer(
        tmp_path, trainer_kwargs={"train_dataset": data}, use_cpu=False, max_steps=4, save_strategy="steps", save_steps=4,
        logging_steps=100,
    )  # fmt: skip
    assert not trainer._loss_guard.waits
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(data)
    with pytest.raises(FloatingPointError, match="The loss of the full network .* in optimizer step 2"):
        trainer.train()
    assert get_last_checkpoint(str(tmp_path)) is None


def test_memory_is_given_back():
    model = tiny_model("resnet-basic").cuda().train()
    gradaug = GradAug(model)
    for gradaug_pass in gradaug.passes(batch(), 0):
        with gradaug_pass:
            gradaug_pass.compute(model).backward()
    del gradaug, gradaug_pass
    before = torch.cuda.memory_allocated()
    model.cpu()
    model.zero_grad()
    assert torch.cuda.memory_allocated() < before
    del model
    torch.cuda.empty_cache()
