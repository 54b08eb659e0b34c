# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What the example scripts share."""

import logging
import sys

from transformers import Trainer

from hf_gradaug import HubPushError, StopOnSignal


logger = logging.getLogger(__name__)


def train_and_save(trainer: Trainer) -> None:
    """
    Trains, saves the model, and logs and saves the metrics.

    `resume_from_checkpoint` of the trainer's arguments may be `"true"`, for the newest checkpoint that is whole. A push that
    failed is logged: evaluation goes on, and the push at the script's end tries again and decides about the exit code.

    Args:
        trainer (`Trainer`):
            With [`HubMixin`], such as a [`GradAugTrainer`].

    Raises:
        `SystemExit`: If SIGTERM stopped the training, with 128 and the signal's number.
    """
    args = trainer.args
    checkpoint = args.resume_from_checkpoint
    if checkpoint and checkpoint.lower() == "true":
        checkpoint = True  # the newest one that is whole
    stop = StopOnSignal()
    trainer.add_callback(stop)
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    except HubPushError as error:
        logger.error(error)
        result = error.train_output
    if stop.received:
        logger.warning(
            f"{stop.received.name} stopped the training after step {trainer.state.global_step}, whose checkpoint is in "
            f"'{args.output_dir}'. The same command with --resume_from_checkpoint true goes on from there."
        )
        sys.exit(128 + stop.received)
    if not args.push_to_hub:  # with it, `train` has saved the model, and `save_model` would push it
        trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
