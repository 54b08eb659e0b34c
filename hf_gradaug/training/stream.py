# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Streams as training data of a Trainer: the loader, the position in checkpoints, and the epoch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..data.training_stream import TrainingStream
from ..data.transformed_dataset import transformed_datasets


class StreamMixin:
    """
    Lets any Trainer train on a [`TrainingStream`]: `class MyTrainer(StreamMixin, Trainer)`. [`GradAugTrainer`] includes it.

    - Each process reads its own part of the stream, through torchdata's `StatefulDataLoader`.
    - Each checkpoint holds the stream's position in every process, `stream_state_{rank}.json`: the place after the
      last example that was trained on. Examples that workers read ahead don't count.
    - A resumed run continues there. It needs the same number of processes and workers. With `ignore_data_skip` in the
      training arguments, the stream restarts instead.
    - If the stream's `num_examples` is known, the logs show the epoch of the data. Otherwise they show the finished
      fraction of `max_steps`, as in the Trainer.

    It also passes the epoch to a [`TransformedDataset`], even inside of `Subset` and `ConcatDataset`. With other
    training data it has no effect.

    Raises:
        `ImportError`: If there is a stream and torchdata is missing.
        `ValueError`: If `dataloader_in_order` is off, or a resumed checkpoint has no position of the stream. Also if
            its position is from another number of processes or workers, another seed or other data.
    """

    _stream_loader: DataLoader | None = None

    @property
    def _stream(self) -> TrainingStream | None:
        return self.train_dataset if isinstance(self.train_dataset, TrainingStream) else None

    @property
    def _is_transformed(self) -> bool:
        return self._stream is not None or bool(transformed_datasets(self.train_dataset))

    def get_train_dataloader(self) -> DataLoader:
        # Only where the data need it: with other data the Trainer is the stock one.
        if self._is_transformed:
            self.remove_callback(_EpochCallback)
            self.add_callback(_EpochCallback())
        if self._stream is None:
            return super().get_train_dataloader()
        try:
            from torchdata.stateful_dataloader import StatefulDataLoader
        except ImportError as error:
            raise ImportError("A training stream needs torchdata: pip install 'hf_gradaug[examples]'.") from error
        args = self.args
        if not args.dataloader_in_order:
            raise ValueError(
                "`dataloader_in_order` must be True with a stream, whose position is known only if batches come in order, but "
                "is False."
            )
        # Not prepared by Accelerate, which would split it once more, and reads a batch ahead. The Trainer moves the inputs to
        # their device itself.
        self._stream_loader = StatefulDataLoader(
            self._stream.for_process(args.process_index, args.world_size),
            batch_size=self._train_batch_size,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description="training"),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            # Of its own, so that starting the workers leaves the global one where a checkpoint has put it.
            generator=torch.Generator().manual_seed(args.seed),
        )
        return self._stream_loader

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        # What transformed examples have beside the model's inputs is there for the collator.
        if self._is_transformed:
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        epochs_trained, batches_to_skip = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        return epochs_trained, 0 if self._stream is not None else batches_to_skip

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._stream is not None:
            state = {"settings": self._stream_settings(), "loader": self._stream_loader.state_dict()}
            self._stream_file(output_dir).write_text(json.dumps(state), "utf-8")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self._stream is not None and checkpoint is not None and not self.args.ignore_data_skip:
            self._stream_loader.load_state_dict(self._read_stream_state(checkpoint))

    def _stream_file(self, folder: str) -> Path:
        return Path(folder) / f"stream_state_{self.args.process_index}.json"

    def _stream_settings(self) -> dict[str, int]:
        """The settings that a stream's position depends on, under their public names."""
        return {
            "processes": self.args.world_size,
            "dataloader_num_workers": self.args.dataloader_num_workers,
            "shuffle_buffer_size": self._stream.buffer_size,
            "seed": self._stream.seed,
            "shards": self._stream.num_shards,
        }

    def _read_stream_state(self, checkpoint: str) -> dict[str, Any]:
        file, anew = self._stream_file(checkpoint), "or set `ignore_data_skip` to restart the stream."
        # The first process always wrote one. It has the number of processes, if that was smaller.
        first = file.with_name("stream_state_0.json")
        if not first.is_file():
            raise ValueError(
                f"`resume_from_checkpoint` must hold the position of the training stream, but is '{checkpoint}', without "
                f"{first.name}. Resume from a checkpoint that has it, {anew}"
            )
        saved = json.loads((file if file.is_file() else first).read_text("utf-8"))
        differences = [
            f"{name} was {saved['settings'].get(name)} and is {value}"
            for name, value in self._stream_settings().items()
            if saved["settings"].get(name) != value
        ]
        if differences:
            raise ValueError(
                f"The position of the training stream in '{checkpoint}' doesn't fit: {'; '.join(differences)}. Resume with "
                f"the earlier values, {anew}"
            )
        return saved["loader"]


class _EpochCallback(TrainerCallback):
    """
    Passes the epoch to the data, and a stream's epoch to the Trainer. It holds only the loader: a reference to the
    Trainer would keep it and the model in memory after `del trainer`.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        # Accelerate's loader does so in a single process only.
        for dataset in transformed_datasets(train_dataloader.dataset):
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, train_dataloader=None, **kwargs):
        stream = train_dataloader.dataset
        if isinstance(stream, TrainingStream):
            # The Trainer counts from where a run was resumed, since it has no batches to skip.
            batches = state.global_step * args.gradient_accumulation_steps
            images = batches * train_dataloader.batch_size * args.world_size
            state.epoch = images / stream.num_examples if stream.num_examples else state.global_step / state.max_steps

    def on_train_end(self, args, state, control, train_dataloader=None, **kwargs):
        if isinstance(train_dataloader.dataset, TrainingStream):
            train_dataloader.load_state_dict({})  # frees the workers and their memory
