# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The Trainer with GradAug."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.training_args import OptimizerNames, ParallelMode

from .losses import soft_label_cross_entropy
from .model_card import add_gradaug
from .passes import GradAug, GradAugPass, get_logits
from .settings import GradAugSettings
from .subnetwork import Build
from .transforms import Transform


class GradAugMixin:
    """
    Adds GradAug to any Trainer: `class MyTrainer(GradAugMixin, SomeTrainer)`.

    Each batch takes one pass of the full network, with the loss that the Trainer computes, and one of each sub-network, which
    learns from the full network's soft targets on a transformation of the batch. Evaluation and prediction run the full
    network alone.

    With `num_subnetworks=0` everything is as with `SomeTrainer`, with two corrections for image classifiers, so that a
    comparison is fair: the loss has the same size whatever the gradient accumulation and the number of processes
    (transformers issue 47688), and floating-point labels of shape `(batch_size, num_labels)` are class probabilities where
    the model's `config.problem_type` is `"single_label_classification"`.

    Args:
        *args, **kwargs:
            The Trainer's. `args` may be a [`GradAugConfig`], or plain `TrainingArguments`, which mean the default settings.
        transform (`Callable[[torch.Tensor, torch.Generator], torch.Tensor]`, *optional*):
            Transformation of the images for a sub-network, in the place of `scales` and `rotations`. See [`GradAug`].
        build (`Callable[[PreTrainedConfig], nn.Module]`, *optional*):
            Builds a model from a config, for models that class and config alone don't give. See [`make_slimmable`].

    Raises:
        `TypeError`, `ValueError`: If the model can't have sub-networks or isn't for single-label classification, or an
        argument can't go with several backwards in a step. Nothing is written before.
    """

    def __init__(self, *args, transform: Transform | None = None, build: Build | None = None, **kwargs):
        self.transform = transform
        self.build = build
        self.gradaug: GradAug | None = None
        self._pass: GradAugPass | None = None
        self._log_sums: dict[str, Tensor | float] = {}
        self._logged_steps: set[int] = set()
        self._subnetwork_flops = 0.0
        super().__init__(*args, **kwargs)
        if self.settings.num_subnetworks > 0 or getattr(self.model, "loss_type", None) == "ForImageClassification":
            # These heads take `**kwargs`, from which the Trainer concludes that they scale their loss by
            # `num_items_in_batch`. They don't: it would grow with the accumulation steps and the processes.
            self.model_accepts_loss_kwargs = False

    @property
    def settings(self) -> GradAugSettings:
        return self.args if isinstance(self.args, GradAugSettings) else GradAugSettings()

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # The constructor's first hook that knows model, arguments and devices: an error comes before it makes folders
        # and Hub repositories.
        if self.settings.num_subnetworks > 0:
            self._check_arguments()
            if self.model is not None:
                self._make_gradaug(self.model)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        if self.settings.num_subnetworks > 0:
            self._make_gradaug(model)
        return model

    def _make_gradaug(self, model: nn.Module) -> None:
        self.gradaug = GradAug(
            model,
            self.settings,
            seed=self.args.seed,
            transform=self.transform,
            build=self.build,
            label_names=self.args.label_names,
        )

    def _check_arguments(self) -> None:
        if self.args.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
            raise ValueError(
                f"GradAug can't train with `nn.DataParallel`, whose replicas have no parameters to slice, but {self.args.n_gpu} "
                "GPUs are visible to one process. Start one process a GPU, `accelerate launch script.py`, or make one GPU "
                "visible, `CUDA_VISIBLE_DEVICES=0`."
            )
        if self.is_deepspeed_enabled:
            raise ValueError(
                "GradAug can't train with DeepSpeed: it runs one backward for each network, and DeepSpeed's engine steps the "
                "optimizer in the backward. Use DistributedDataParallel (`accelerate launch --multi_gpu`) instead."
            )
        optim = OptimizerNames(self.args.optim)
        if optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO) or "layerwise" in optim.value:
            raise ValueError(
                f"GradAug can't train with `optim={optim.value!r}`: it runs one backward for each network, and this optimizer "
                "steps in the backward. Use one that steps after it, such as 'adamw_torch' or 'sgd'."
            )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if self.settings.num_subnetworks == 0:
            return super().training_step(model, inputs, num_items_in_batch)
        inputs = self._prepare_inputs(inputs)
        losses, passes, flops = [], [], 0.0
        try:
            for gradaug_pass in self.gradaug.passes(inputs, step=self.state.global_step):
                self._pass = gradaug_pass
                sync = contextlib.nullcontext() if gradaug_pass.is_last else self.accelerator.no_sync(model)
                with sync, gradaug_pass:
                    items = num_items_in_batch if gradaug_pass.is_full else None
                    losses.append(super().training_step(model, gradaug_pass.inputs, items))
                    if not gradaug_pass.is_full:
                        flops += self._subnetwork_floating_point_ops(gradaug_pass)
                passes.append(gradaug_pass)
        finally:
            self._pass = None
        self._subnetwork_flops = flops
        self._add_to_log(losses, passes)
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        if self._pass is not None and not self._pass.is_full:
            outputs = model(**inputs)
            loss = self._pass.loss(outputs)
            # The Trainer takes the loss of `compute_loss_func` for one that is scaled already, and this one isn't.
            is_scaled = getattr(self, "loss_is_scaled_for_ga", None)
            if self.compute_loss_func is not None if is_scaled is None else is_scaled:
                loss = loss / self.current_gradient_accumulation_steps
        else:
            if self._has_soft_labels(inputs):
                labels = inputs["labels"]
                outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
                loss = soft_label_cross_entropy(get_logits(outputs), labels, self.args.label_smoothing_factor)
            else:
                # Its own dictionary: label smoothing and `compute_loss_func` take the labels out.
                loss, outputs = super().compute_loss(
                    model, dict(inputs), return_outputs=True, num_items_in_batch=num_items_in_batch
                )
            if self._pass is not None:
                loss = self._pass.loss(outputs, full_network_loss=loss)
        return (loss, outputs) if return_outputs else loss

    def _has_soft_labels(self, inputs: dict[str, Tensor | Any]) -> bool:
        labels = inputs.get("labels")
        return (
            isinstance(labels, Tensor)
            and labels.ndim == 2
            and labels.is_floating_point()
            and self.compute_loss_func is None
            and getattr(getattr(self.model, "config", None), "problem_type", None) == "single_label_classification"
        )

    def floating_point_ops(self, inputs: dict[str, Tensor | Any]) -> int:
        flops, self._subnetwork_flops = self._subnetwork_flops, 0.0
        return super().floating_point_ops(inputs) + flops

    def _subnetwork_floating_point_ops(self, gradaug_pass: GradAugPass) -> float:
        # The Trainer's estimate is proportional to input size and parameters: a sub-network has its share of both.
        share = _count_parameters(gradaug_pass.network) / _count_parameters(self.gradaug.model)
        return super().floating_point_ops(gradaug_pass.inputs) * share

    def _add_to_log(self, losses: list[Tensor], passes: list[GradAugPass]) -> None:
        if self.args.logging_nan_inf_filter and not all(torch.isfinite(loss) for loss in losses):
            return  # as the Trainer does with the sum
        n = len(passes) - 1
        for name, value in (
            ("loss_full", losses[0]),
            ("loss_subnetworks", torch.stack(losses[1:]).sum()),
            ("subnetwork_width", sum(p.width for p in passes[1:]) / n),
            ("subnetwork_size", sum(sum(p.size) / 2 for p in passes[1:]) / n),
        ):
            self._log_sums[name] = self._log_sums.get(name, 0.0) + value
        self._log_sums["batches"] = self._log_sums.get("batches", 0) + 1
        self._logged_steps.add(self.state.global_step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # "loss" and "learning_rate" together are the Trainer's own line, which every process logs.
        if self._log_sums and "loss" in logs and "learning_rate" in logs:
            sums, steps = self._log_sums, len(self._logged_steps)
            for name in ("loss_full", "loss_subnetworks"):
                logs[name] = self.accelerator.reduce(sums[name], reduction="mean").item() / steps
            for name in ("subnetwork_width", "subnetwork_size"):
                logs[name] = sums[name] / sums["batches"]
            self._log_sums, self._logged_steps = {}, set()
        super().log(logs, start_time)

    def create_model_card(self, *args, **kwargs) -> None:
        super().create_model_card(*args, **kwargs)
        if self.settings.num_subnetworks > 0 and self.is_world_process_zero():
            add_gradaug(Path(self.args.output_dir) / "README.md", self.settings)


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class GradAugTrainer(GradAugMixin, Trainer):
    """
    The Trainer of transformers with GradAug (Yang, Zhu and Chen, NeurIPS 2020, arXiv 2006.07989).

    Takes what `Trainer` takes; see [`GradAugMixin`].

    Example:

    ```python
    trainer = GradAugTrainer(
        model=AutoModelForImageClassification.from_pretrained("microsoft/resnet-50"),
        args=GradAugConfig(output_dir="resnet-50-gradaug"),
        train_dataset=dataset,
    )
    trainer.train()
    ```
    """
