# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The Trainer with GradAug."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from .gradaug_config import GradAugConfig
from .losses import get_label_rows, soft_labels_in_heads
from .passes import GradAug, GradAugPass
from .reporting.model_card import ModelCardMixin
from .settings import GradAugSettings, settings_as_dict
from .slimmable.model import Build
from .training.distributed import check_can_train, no_sync
from .training.durable import DurableTrainerMixin
from .training.nonfinite import NonFiniteLossGuard
from .training.shared import SharedTrainerMixin, is_training_line
from .training.step_log import StepLog
from .transforms import Transform


class GradAugMixin(SharedTrainerMixin):
    """
    Adds GradAug to any Trainer: `class MyTrainer(GradAugMixin, SomeTrainer)`.

    Each batch takes one pass of the full network, with the loss that the Trainer computes. Each sub-network then takes
    one pass on a transformation of the batch. `subnetwork_targets` says what it learns from: the full network's soft
    targets, the labels, or the full network's queries. Evaluation and prediction run the full network alone.

    With `num_subnetworks=0` the Trainer behaves as `SomeTrainer`, with two corrections for image classifiers. They
    make a comparison fair:

    - The size of the loss doesn't depend on gradient accumulation or the number of processes (transformers issue
      47688). With `subnetwork_targets` "labels" or "queries" this holds for every model.
    - Labels of shape `(batch_size, num_labels)` are class probabilities if the model's `config.problem_type` is
      `"single_label_classification"`.

    The settings are saved beside the model: see [`~hf_gradaug.save_settings`]. Model cards, durable runs and
    `lr_milestones` are separate mixins: see [`GradAugTrainer`].

    Args:
        *args, **kwargs:
            The Trainer's arguments. `args` may be a [`GradAugConfig`]. With plain `TrainingArguments`, the settings
            have their defaults.
        transform (`Callable[[torch.Tensor, torch.Generator], torch.Tensor]`, *optional*):
            Transformation of the images for a sub-network, instead of `scales` and `rotations`. See [`GradAug`].
        build (`Callable[[PreTrainedConfig], nn.Module]`, *optional*):
            Builds a model from a config. Needed if the model differs from what its class builds from its config. See
            [`make_slimmable`].

    Raises:
        `TypeError`: If the model can't have sub-networks.
        `ValueError`: If the model can't have the chosen targets, or a training argument doesn't work with several
            backwards per step. Nothing is written before the error.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(GradAugMixin):
            raise TypeError(
                f"`GradAugMixin` must come before the Trainer among the bases of {cls.__name__}, but comes after it, so it has no "
                "effect. Write `class MyTrainer(GradAugMixin, SomeTrainer)`."
            )

    def __init__(self, *args, transform: Transform | None = None, build: Build | None = None, **kwargs):
        self._gradaug_transform = transform
        self._gradaug_build = build
        self._gradaug_made_with: dict[str, Any] | None = None
        self.gradaug: GradAug | None = None
        self._loss_guard: NonFiniteLossGuard | None = None
        self._has_run_subnetworks = False
        self._subnetwork_flops = 0.0  # in the last batch, relative to the full network
        super().__init__(*args, **kwargs)

    @property
    def gradaug_settings(self) -> GradAugSettings:
        """The settings in `args`, or the defaults if `args` are plain `TrainingArguments`."""
        return self.args if isinstance(self.args, GradAugSettings) else GradAugSettings()

    @property
    def _needs_trainer_fixes(self) -> bool:
        """Whether the Trainer's own loss scaling and FSDP2 wrapping are wrong for this model or these settings."""
        is_classifier = getattr(self.model, "loss_type", None) == "ForImageClassification"
        settings = self.gradaug_settings
        return settings.num_subnetworks > 0 or settings.subnetwork_targets != "soft" or is_classifier

    def _new_step_log(self) -> StepLog:
        return StepLog()

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # The constructor's first hook that knows model, arguments and devices: an error comes before it makes folders
        # and Hub repositories.
        milestones = getattr(self.args, "lr_milestones", None)
        if milestones is not None and not isinstance(self, DurableTrainerMixin):
            raise ValueError(
                f"`lr_milestones` must be None without `DurableTrainerMixin`, which schedules them, but is {milestones}. "
                "Add it: `class MyTrainer(GradAugMixin, DurableTrainerMixin, SomeTrainer)`."
            )
        if self.gradaug_settings.num_subnetworks > 0:
            self._prepare_gradaug(self.model)

    def _prepare_gradaug(self, model: nn.Module | None) -> None:
        """Makes `GradAug`, unless the present one is for this model and these settings. `model_init` has no model yet."""
        settings = self.gradaug_settings
        check_can_train(self, model, settings)
        if model is None:
            return
        if self.gradaug is not None and self.gradaug.model is model:
            # Plain `TrainingArguments` always have the same settings, in a new object each time.
            is_same = self.gradaug.settings is settings or not isinstance(self.args, GradAugSettings)
            if is_same and self._gradaug_made_with == settings_as_dict(settings):
                return
        self.gradaug = GradAug(
            model,
            settings,
            seed=self.args.seed,
            transform=self._gradaug_transform,
            build=self._gradaug_build,
            label_names=self.args.label_names,
        )
        # DeepSpeed's engine takes gradients from hooks on the parameters, in every backward.
        self.gradaug.detached = not self.is_deepspeed_enabled
        self._gradaug_made_with = settings_as_dict(settings)
        self._loss_guard = self._new_loss_guard()

    def _new_loss_guard(self) -> NonFiniteLossGuard:
        return NonFiniteLossGuard(self.accelerator, self.gradaug.model, self.gradaug_settings.nonfinite_loss)

    def _inner_training_loop(self, *args, **kwargs) -> TrainOutput:
        self._subnetwork_flops = 0.0  # `auto_find_batch_size` calls this once per batch size
        if self.gradaug_settings.num_subnetworks > 0:
            self._prepare_gradaug(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        if self.gradaug is not None:
            self.gradaug.seed = self.args.seed
            self._loss_guard = self._new_loss_guard()
        try:
            output = super()._inner_training_loop(*args, **kwargs)
        except Exception:
            self._settle()  # a loss that is not finite may be why
            raise
        self._settle()
        return output

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if self.gradaug_settings.num_subnetworks == 0:
            return super().training_step(model, inputs, num_items_in_batch)
        if self.gradaug is None:  # a callback has turned GradAug on
            self._prepare_gradaug(self.model)
        self._has_run_subnetworks = True
        inputs = self._prepare_inputs(inputs)
        losses, passes, relative_flops = [], [], 0.0
        model.train()  # as the Trainer's step does, but before the passes look at the layers' modes
        self._loss_guard.start()
        # The Trainer's step calls `compute_loss`, which may be a user's: only passes that learn from labels go through it.
        label_loss = self.compute_loss
        for gradaug_pass in self.gradaug.passes(inputs, step=self.state.global_step):
            calls = []
            compute_loss = functools.partial(self._compute_pass_loss, gradaug_pass, label_loss, type(inputs), calls)
            batch, num_items = _with_labels(gradaug_pass, inputs.get("labels"), num_items_in_batch)
            prepare_inputs = functools.partial(_prepare_others, batch, self._prepare_inputs)
            sync = contextlib.nullcontext() if gradaug_pass.is_last else no_sync(self.accelerator, model)
            with sync, gradaug_pass, _methods_set(self, compute_loss=compute_loss, _prepare_inputs=prepare_inputs):
                losses.append(super().training_step(model, batch, num_items))
                if not calls and losses[-1] != 0:  # a step that skips its batch has no loss
                    raise ValueError(
                        "`training_step` must compute the loss by `self.compute_loss`, in which GradAug runs its passes, but "
                        f"that of {type(self).__name__} doesn't."
                    )
                if not gradaug_pass.is_full:
                    relative_flops += self._relative_flops(gradaug_pass, inputs)
            passes.append(gradaug_pass)
        self._loss_guard.finish(losses, passes, step=self.state.global_step + 1)
        self._subnetwork_flops = relative_flops
        self._step_log.add(
            losses,
            passes,
            weight=1 / self.current_gradient_accumulation_steps,
            only_finite=self.args.logging_nan_inf_filter,
        )
        return torch.stack(losses).sum()

    def _compute_pass_loss(
        self,
        gradaug_pass: GradAugPass,
        label_loss: Callable,
        batch_type: type,
        calls: list[GradAugPass],
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        calls.append(gradaug_pass)
        is_overridden = getattr(label_loss, "__func__", None) is not GradAugMixin.compute_loss
        if (
            gradaug_pass.is_full
            and self.gradaug.captured is not None
            and not is_overridden
            and self._trainer_uses_model_loss
        ):
            return gradaug_pass.compute(model)
        if gradaug_pass.learns_from_labels:
            # A copy, because `compute_loss` may pop the labels. Of the batch's type, as the Trainer's own.
            kwargs = {"return_outputs": True, "num_items_in_batch": num_items_in_batch}
            with _calls_noted(model, self.gradaug.model, self.gradaug.image_name) as model_calls:
                loss = label_loss(model, batch_type(dict(inputs)), **_accepted(label_loss, kwargs))
            if not (isinstance(loss, tuple) and len(loss) == 2):
                raise ValueError(
                    "`compute_loss` must return the loss and the model's outputs if `return_outputs` is True, but returns "
                    f"a {type(loss).__name__}. The sub-networks learn from the outputs."
                )
            loss, outputs = loss
            if gradaug_pass.is_full:  # a user's loss may have mixed the images, or taken inputs for itself
                gradaug_pass.set_inputs(_arguments_of(outputs, model_calls, self.gradaug.image_name, inputs))
            return gradaug_pass.loss(outputs, label_loss=loss)
        loss = gradaug_pass.compute(model)
        # The Trainer takes the loss of `compute_loss_func` for one that is scaled already, and this one isn't.
        is_scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if is_scaled is None:
            is_scaled = self.compute_loss_func is not None
        if is_scaled:
            loss = loss / self.current_gradient_accumulation_steps
        return loss

    @property
    def _trainer_uses_model_loss(self) -> bool:
        """Whether the Trainer's loss is the one in the model's outputs, which a CUDA graph can replay."""
        stock = super().compute_loss.__func__ is Trainer.compute_loss
        return stock and self.compute_loss_func is None and self.label_smoother is None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """
        Computes the Trainer's loss. Labels may be class probabilities.

        A subclass may override this method. In training, the full network then uses the overridden loss. Sub-networks
        use it too if they learn from labels.
        """
        config, trainer_loss = getattr(self.model, "config", None), super().compute_loss
        labels = get_label_rows(inputs, getattr(config, "num_labels", None))
        is_single_label = getattr(config, "problem_type", None) == "single_label_classification"
        # A user's own loss takes all labels as they are.
        is_own = self.compute_loss_func is not None or self._takes_own_loss
        are_soft = labels is not None and is_single_label and not is_own
        if are_soft and trainer_loss.__func__ is Trainer.compute_loss:
            self._settle_problem_type(config, labels)
            loss, outputs = self._soft_label_loss(model, inputs, labels)
            return (loss, outputs) if return_outputs else loss
        kwargs = _accepted(trainer_loss, {"num_items_in_batch": num_items_in_batch})
        # The heads take floating-point labels for multi-label ones. A loss that doesn't use them may do so too.
        check = functools.partial(self._settle_problem_type, config)
        with soft_labels_in_heads(self.model, check) if are_soft else contextlib.nullcontext():
            return trainer_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.gradaug_settings.num_subnetworks > 0:
            if not self._has_run_subnetworks:  # a subclass has a step of its own; it may skip some batches
                raise ValueError(
                    "`training_step` must call `super().training_step`, which runs the sub-networks, but doesn't. You can "
                    "change the batch before that call, and override `compute_loss` to change the loss."
                )
            self._loss_guard.check_gradients(norm)
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._settle()
        super()._save_checkpoint(model, trial)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:  # other Trainers have other arguments
        self._settle()
        return super().evaluate(*args, **kwargs)

    def _settle(self) -> None:
        if self._loss_guard is not None:
            self._loss_guard.settle()

    def floating_point_ops(self, inputs: dict[str, Tensor | Any]) -> float:
        relative_flops, self._subnetwork_flops = self._subnetwork_flops, 0.0
        return super().floating_point_ops(inputs) * (1 + relative_flops)

    def _relative_flops(self, gradaug_pass: GradAugPass, inputs: dict[str, Tensor | Any]) -> float:
        # The Trainer's estimate is proportional to input size and parameters.
        name = self.gradaug.image_name
        pixels = gradaug_pass.inputs[name].numel() / inputs[name].numel()
        return pixels * gradaug_pass.num_parameters / self.gradaug.num_parameters

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._settle()
        if is_training_line(logs) and self._loss_guard is not None and self._loss_guard.num_skipped > 0:
            logs["skipped_steps"] = self._loss_guard.num_skipped
        super().log(logs, start_time)


def _prepare_others(batch: dict[str, Tensor | Any], prepare: Callable, inputs: Any) -> Any:
    """Prepares inputs other than this batch, which is prepared already."""
    return inputs if inputs is batch else prepare(inputs)


@contextlib.contextmanager
def _methods_set(trainer: Trainer, **methods: Callable) -> Iterator[None]:
    """Sets methods on a trainer itself inside the `with` block. They come before those of its class."""
    own = {name: vars(trainer)[name] for name in methods if name in vars(trainer)}  # a user's
    vars(trainer).update(methods)
    try:
        yield
    finally:
        for name in methods:
            vars(trainer).pop(name, None)
        vars(trainer).update(own)


@contextlib.contextmanager
def _calls_noted(
    model: nn.Module, unwrapped: nn.Module, image_name: str
) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """The outputs and the arguments, by name, of each call of the model inside the `with` block."""
    calls, started = [], []
    # Without `*args`, whose entries have no names.
    parameters = inspect.signature(unwrapped.forward).parameters.values()
    names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]

    def note_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        images = {image_name: args[0]} if args else {}  # `forward` may be `(*args, **kwargs)`
        started.append({**images, **dict(zip(names, args)), **kwargs})

    def note_outputs(module: nn.Module, args: tuple, outputs: Any) -> None:
        calls.append((outputs, started.pop()))

    handles = [
        # Before the model's own hooks, which change the inputs of sub-networks too.
        model.register_forward_pre_hook(note_arguments, prepend=True, with_kwargs=True),
        model.register_forward_hook(note_outputs),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _arguments_of(
    outputs: Any, calls: list[tuple[Any, dict[str, Any]]], image_name: str, batch: dict[str, Tensor | Any]
) -> dict[str, Any] | None:
    """The arguments of the call that made these outputs, if it is found."""
    for found, arguments in calls:
        if found is outputs or _share_tensors(found, outputs):
            return arguments
    if len(calls) != 1:
        return None
    # Outputs that were computed from the only call's, such as adjusted logits. With more images they are some rows.
    ((_, arguments),) = calls
    images = arguments.get(image_name)
    return arguments if isinstance(images, Tensor) and len(images) == len(batch[image_name]) else None


def _share_tensors(outputs: Any, others: Any) -> bool:
    """Whether outputs have a tensor in common. A loss of one's own may return some of the model's in a new dictionary."""

    def found_in(each: Any) -> set[int]:  # not the loss, which may be of more images than the logits
        return {id(leaf) for leaf in tree_leaves(each) if isinstance(leaf, Tensor) and leaf.ndim > 0}

    return not found_in(outputs).isdisjoint(found_in(others))


def _with_labels(
    gradaug_pass: GradAugPass, all_labels: Any, num_items_in_batch: Tensor | int | None
) -> tuple[dict[str, Tensor | Any], Tensor | float | None]:
    """The inputs of a pass with their labels, and the number of items among the labels, for the Trainer's step."""
    inputs = dict(gradaug_pass.inputs)
    if gradaug_pass.soft_labels is not None:
        inputs["labels"] = gradaug_pass.soft_labels
    if num_items_in_batch is None or not gradaug_pass.learns_from_labels:
        return inputs, None
    # The number includes the items of other processes and micro-batches, so it can't be counted here. A sub-network has
    # a share of them: fewer images, and smaller label maps.
    share, labels = gradaug_pass.batch_fraction, inputs.get("labels")
    if isinstance(labels, Tensor) and isinstance(all_labels, Tensor) and all_labels.numel() > 0:
        share = labels.numel() / all_labels.numel()
    return inputs, num_items_in_batch if share == 1 else num_items_in_batch * share


def _accepted(function: Callable, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that this `compute_loss` takes. Older ones don't take `num_items_in_batch`."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return kwargs if takes_all else {name: value for name, value in kwargs.items() if name in parameters}


class GradAugTrainer(GradAugMixin, ModelCardMixin, DurableTrainerMixin, Trainer):
    """
    The Trainer of transformers with GradAug (Yang, Zhu and Chen, NeurIPS 2020, arXiv 2006.07989).

    Takes the arguments of `Trainer`, and `transform` and `build` of [`GradAugMixin`], which implements the method and
    lists its errors. Without `args`, they are a [`GradAugConfig`]. The training data may also be a [`TrainingStream`].
    [`~hf_gradaug.training.DurableTrainerMixin`] adds checkpoints, streams and Hub pushes.
    [`~hf_gradaug.reporting.ModelCardMixin`] writes the model card.

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

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        *other_args,
        transform: Transform | None = None,
        build: Build | None = None,
        **kwargs,
    ):
        if args is None:
            args = GradAugConfig("tmp_trainer")  # the Trainer's folder
        super().__init__(model, args, *other_args, transform=transform, build=build, **kwargs)
