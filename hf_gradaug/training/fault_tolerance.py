# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Runs that survive being killed: they resume from the newest complete checkpoint."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, has_length

from ..data.bad_images import SkippedImages
from ..messages import shorten
from ..settings import GradAugSettings, describe_changes
from .checkpoints import clear_checkpoint, compare_groups, find_checkpoint, find_damage, load_weights
from .preemption import StopOnSignal
from .tokens import HiddenTokenMixin


logger = logging.getLogger(__name__)


class FaultToleranceMixin(HiddenTokenMixin):
    """
    Makes any Trainer survive kills, full disks and unreadable images:
    `class MyTrainer(FaultToleranceMixin, SomeTrainer)`.

    - `train(resume_from_checkpoint=True)` resumes from the newest complete checkpoint. A warning names the faults of
      newer ones. If all are corrupt, an error names them. A run killed in its first save starts from the beginning.
    - `train(resume_from_checkpoint=folder)` raises an error that names the corrupt file.
    - Resuming and `load_best_model_at_end` load the weights of every family. The stock Trainer doesn't load them if
      transformers saves them under older names (ViT, Swin, DETR, ...).
    - A checkpoint of a model with other classes, or another order of classes, raises an error. So does a checkpoint of
      another model or optimizer. A warning is logged if the checkpoint holds only the model, or has other settings
      of the optimizer or of GradAug, or another global batch size.
    - A failed save is logged, leaves nothing of the checkpoint behind and keeps the older checkpoints. Older
      checkpoints are deleted only when the new checkpoint is complete, with the files of all processes. Your own files
      in the folder stay.
    - A run killed after its last step trains no further step when resumed.
    - Hub tokens stay out of `training_args.bin`.
    - Images that [`~hf_gradaug.data.ImageCollator`] skipped are named and counted.

    Write further files of a checkpoint in `_save_rng_state`, which runs in all processes. Later files are not covered.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._skipped_images = SkippedImages()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        self._skipped_images = SkippedImages()
        try:
            checkpoint = self._choose_checkpoint(resume_from_checkpoint)
            if checkpoint and checkpoint is not True:
                self._check_classes(checkpoint)
                self._warn_of_settings(checkpoint)
            return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            for callback in self.callback_handler.callbacks:  # after an error no event reaches them
                if isinstance(callback, StopOnSignal):
                    callback.restore()

    def _choose_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | bool | None:
        if not resume_from_checkpoint:
            return resume_from_checkpoint
        # One process looks, so that all of them take the same.
        found: list[Any] = [None]
        if self.is_world_process_zero():
            if resume_from_checkpoint is True:
                found = [find_checkpoint(self.args.output_dir)]
            else:
                damage = find_damage(resume_from_checkpoint) if os.path.isdir(resume_from_checkpoint) else None
                found = [(resume_from_checkpoint, [] if damage is None else [damage])]
        checkpoint, damages = broadcast_object_list(found)[0]
        if not damages:
            return checkpoint or True  # if there is none, the Trainer says so
        what = "; ".join(map(str, damages))
        if resume_from_checkpoint is not True:
            raise ValueError(f"`resume_from_checkpoint` must be a complete checkpoint, but is '{checkpoint}': {what}.")
        if checkpoint is None and not all(damage.is_unfinished for damage in damages):
            raise ValueError(
                f"`resume_from_checkpoint` must not be set without a complete checkpoint in '{self.args.output_dir}', but is "
                f"set: {what}. Leave it out to start from the beginning."
            )
        start = "starts from the beginning" if checkpoint is None else f"resumes from '{checkpoint}'"
        self._warn(f"The run {start}, because newer checkpoints can't be used: {what}.")
        return checkpoint

    def _check_classes(self, checkpoint: str) -> None:
        """Raises an error if a number stands for another class in the checkpoint than in the model."""
        if not Path(checkpoint, "config.json").is_file():
            return
        stored = json.loads(Path(checkpoint, "config.json").read_text("utf-8")).get("id2label")
        own = getattr(getattr(self.model, "config", None), "id2label", None)
        if not stored or not own:
            return
        classes, others = ([labels[key] for key in sorted(labels, key=int)] for labels in (own, stored))
        if classes != others:
            raise ValueError(
                f"`resume_from_checkpoint` must be a checkpoint of the model's classes, {shorten(classes)}, but is "
                f"'{checkpoint}' with {shorten(others)}. Leave it out, and load the checkpoint as a pretrained model."
            )

    def _warn_of_settings(self, checkpoint: str) -> None:
        own = getattr(self, "gradaug_settings", GradAugSettings(num_subnetworks=0))
        if changes := describe_changes(own, checkpoint):
            self._warn(
                f"The run resumes from '{checkpoint}' with changed GradAug settings: {'; '.join(changes)}. To avoid "
                "that, resume with the checkpoint's settings. A run with `num_subnetworks=0` trains without GradAug."
            )

    def _load_weights(self, checkpoint: str, model: nn.Module) -> bool:
        """[`load_weights`], which leaves DeepSpeed and FSDP to the Trainer: they have formats of their own."""
        has_own_format = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return not has_own_format and load_weights(checkpoint, model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_weights(resume_from_checkpoint, self.model if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_weights(self.state.best_model_checkpoint, self.model):
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if not Path(checkpoint, "scheduler.pt").is_file():
            self._warn(
                f"'{checkpoint}' holds only the model (`save_only_model`). The optimizer, the learning rate schedule and the "
                f"random state start from the beginning, in step {self.state.global_step + 1}."
            )
        fresh = [dict(group) for group in self.optimizer.param_groups]
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:  # other groups
            missing, others = [str(error)], []
        else:
            missing, others = compare_groups(fresh, self.optimizer.param_groups)
        if missing:
            name = type(getattr(self.optimizer, "optimizer", self.optimizer)).__name__
            raise ValueError(
                f"`optim` must be the optimizer of the checkpoint '{checkpoint}', but is {name}, which doesn't fit its state: "
                f"{', '.join(missing)}. Resume with the earlier `optim`, or load the checkpoint as a pretrained model."
            )
        if others:
            self._warn(
                f"The optimizer keeps the settings of '{checkpoint}': {'; '.join(others)}. To train with others, load the "
                "checkpoint as a pretrained model."
            )

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        started = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None or self.args.ignore_data_skip or not has_length(self.train_dataset):
            return started
        step, steps = self.state.global_step, num_update_steps_per_epoch
        # An epoch's last step may have fewer micro-batches than the others, which moves the share by less than a step.
        if abs((self.state.epoch or 0) * steps - step) >= 1:
            self._warn(
                f"'{resume_from_checkpoint}' was saved in epoch {self.state.epoch:.4g}, after {step} optimizer steps, but an epoch "
                f"has {steps} now: the training images or the global batch size (`per_device_train_batch_size`, "
                "`gradient_accumulation_steps`, processes) differ. The run continues at another position in the data and the schedule."
            )
        return started

    def _warn(self, message: str) -> None:
        if self.is_world_process_zero():
            logger.warning(message)

    def _run_epoch(self, *args, **kwargs) -> None:  # eleven arguments, none of which matters here
        # The Trainer looks at `max_steps` after a step only: a run that is resumed from its last one would train one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = self._get_output_dir(trial=trial)
        folder = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        was_there = os.path.isdir(folder)
        try:
            if self.args.should_save:
                clear_checkpoint(folder)  # what a killed run left would mix with the new files
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        except Exception:
            is_whole = os.path.isdir(folder) and find_damage(folder) is None
            # If it is, the save was good, and what follows it failed, such as a push to the Hub.
            if not is_whole and self.args.should_save:
                if was_there:
                    clear_checkpoint(folder)
                else:
                    shutil.rmtree(folder, ignore_errors=True)
                logger.error(
                    f"The checkpoint '{folder}' could not be saved, and what was written of it is removed. The earlier "
                    f"checkpoints in '{run_dir}' are untouched."
                )
            raise

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The main process goes on to the file that makes the checkpoint whole, and to the rotation of the older ones.
        self.accelerator.wait_for_everyone()

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            self._skipped_images.take_from(batch)
        return batches, num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:  # the last line, which every process comes to
            count = self._skipped_images.count_in_all(self.accelerator)
            if count > 0:
                logs["skipped_images"] = count
        super().log(logs, start_time)
