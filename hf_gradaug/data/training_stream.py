# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
An endless stream of training examples, whose position can be saved.

Words: a *reader* is one data-loading worker of one process. A *row* is a stored example with its image undecoded. A
*window* holds the rows that a reader has in memory to shuffle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from ..sampling import example_seed
from .transformed_dataset import TransformExample


if TYPE_CHECKING:
    import datasets


class Row(NamedTuple):
    """A stored example and its place: the epoch, the shard, and its number in the shard."""

    place: tuple[int, int, int]
    example: dict[str, Any]


class TrainingStream(IterableDataset):
    """
    The transformed examples of a `datasets.IterableDataset`, epoch after epoch, without end.

    Each epoch holds each example once, over all processes and data-loading workers together. Shards are shuffled in
    each epoch and dealt to the readers. If there are fewer shards than readers, each reader walks through all shards
    and keeps its share of the rows. A reader with fewer rows than others begins its next epoch sooner.

    A reader shuffles window by window: while it gives out one window in random order, it reads the next. Memory never
    holds more rows than one window. A window holds rows of one epoch only.

    Randomness depends on the seed, the epoch and the example alone, transforms included. Equal seeds give equal
    streams.

    `iter(stream)` has a `state_dict` and a `load_state_dict` (see [`StreamReader`]), which torchdata's
    `StatefulDataLoader` collects from its workers. [`StreamMixin`] makes that loader, and saves and restores its
    state.

    Args:
        stream ([`~datasets.IterableDataset`]):
            One epoch, its images undecoded: not shuffled and not split by process.
        transform (`Callable[[dict, str, int], Any]`):
            Called with an example, its name for errors, such as `"image 17 of shard 3"`, and a seed.
        seed (`int`, *optional*, defaults to `42`):
            Seeds the order and the transforms, in all processes alike.
        buffer_size (`int`, *optional*, defaults to `10000`):
            Rows in memory in each process. Its workers share them.
        num_examples (`int`, *optional*):
            Examples in an epoch, if known. Needed to know the epoch of a run.
        rank (`int`, *optional*, defaults to `0`):
            Index of the reading process.
        world_size (`int`, *optional*, defaults to `1`):
            Number of processes.

    Raises:
        `ValueError`: If `buffer_size` isn't positive, or `rank` isn't below `world_size`.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        transform: TransformExample,
        seed: int = 42,
        buffer_size: int = 10000,
        num_examples: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if buffer_size < 1:
            raise ValueError(f"`buffer_size` must be 1 (only the shards are shuffled) or more, but is {buffer_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must be in 0..{world_size - 1} (world_size is {world_size}), but is {rank}.")
        self.stream = stream
        self.transform = transform
        self.seed = seed
        self.buffer_size = buffer_size
        self.num_examples = num_examples
        self.rank = rank
        self.world_size = world_size

    @property
    def num_shards(self) -> int:
        """The number of files, or parts of one, that can be read apart."""
        return self.stream.num_shards

    def for_process(self, rank: int, world_size: int) -> TrainingStream:
        """The same stream, as process `rank` of `world_size` reads it."""
        return type(self)(
            self.stream, self.transform, self.seed, self.buffer_size, self.num_examples, rank, world_size
        )

    def __iter__(self) -> StreamReader:
        worker = get_worker_info()
        index, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # Readers with more shards than others have the lowest numbers: they are spread over the processes.
        return StreamReader(
            self,
            reader=index * self.world_size + self.rank,
            num_readers=num_workers * self.world_size,
            window_size=max(1, self.buffer_size // num_workers),
        )


class StreamReader(Iterator):
    """
    Iterates over one reader's part of a [`TrainingStream`].

    Its state holds the place where the current window begins (`datasets`' own state), and how much of the window was
    given out. Loading the state reads at most two windows: this one, and what had been read of the next. Finished
    shards are not opened. In the shard where the window begins, `datasets` skips rows undecoded.
    """

    def __init__(self, stream: TrainingStream, reader: int, num_readers: int, window_size: int):
        self.stream = stream
        self.reader = reader
        self.num_readers = num_readers
        self.window_size = window_size
        self._begin(None)

    def _begin(self, state: dict[str, Any] | None) -> None:
        self._rows = _Rows(self.stream, self.reader, self.num_readers, state)
        self._rows_iterator = iter(self._rows)
        self._window: list[Row] = []  # what is still to be given out, the next one last
        self._given = 0
        self._ahead: list[Row] = []  # the next window, as far as it is read
        self._ahead_is_whole = False
        self._start = self._ahead_start = self._rows.state_dict()

    def __next__(self) -> Any:
        (epoch, shard, number), example = self._next_row()
        seed = example_seed(self.stream.seed, epoch, shard, number)
        return self.stream.transform(example, f"image {number} of shard {shard}", seed)

    def _next_row(self) -> Row:
        if not self._window:
            self._open_window()
        row = self._window.pop()
        self._given += 1
        self._read_ahead(len(self._ahead) + 1)
        return row

    def _open_window(self) -> None:
        self._read_ahead(self.window_size)
        rng = np.random.default_rng((self.stream.seed, *self._ahead[0].place))
        self._window = [self._ahead[index] for index in rng.permutation(len(self._ahead))]
        self._start, self._given = self._ahead_start, 0
        self._ahead, self._ahead_is_whole = [], False
        self._ahead_start = self._rows.state_dict()

    def _read_ahead(self, size: int) -> None:
        while len(self._ahead) < size and not self._ahead_is_whole:
            row = next(self._rows_iterator)
            if row is not None:
                self._ahead.append(row)
            elif self._ahead:  # the epoch's last window, which may be smaller
                self._ahead_is_whole = True

    def state_dict(self) -> dict[str, Any]:
        """The position, in plain numbers, strings, lists and dicts."""
        return {"window": self._start, "given": self._given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a state. The number of readers and the window size must be the same."""
        self._begin(state_dict["window"])
        for _ in range(state_dict["given"]):
            self._next_row()


class _Rows:
    """One reader's rows, epoch after epoch, in the order of reading, with `None` after each epoch."""

    def __init__(self, stream: TrainingStream, reader: int, num_readers: int, state: dict[str, Any] | None):
        self.stream = stream
        self.reader = reader
        self.num_readers = num_readers
        state = state or {"epoch": 0, "position": 0, "number": 0, "shard": None}
        self._epoch = state["epoch"]
        self._position = state["position"]  # which of the reader's shards
        self._number = state["number"]  # of the next row in it
        self._shard_state = state["shard"]
        self._shard: datasets.IterableDataset | None = None

    def state_dict(self) -> dict[str, Any]:
        shard = self._shard.state_dict() if self._shard is not None else self._shard_state
        return {"epoch": self._epoch, "position": self._position, "number": self._number, "shard": shard}

    def __iter__(self) -> Iterator[Row | None]:
        num_shards, empty_epochs = self.stream.num_shards, 0
        while True:
            is_empty = True
            order = np.random.default_rng((self.stream.seed, self._epoch)).permutation(num_shards).tolist()
            by_row = num_shards < self.num_readers
            shards = order if by_row else order[self.reader :: self.num_readers]
            while self._position < len(shards):
                # The beginning of the deal moves on, so that no reader is always the one that gets a row more.
                offset = self._epoch + self._position
                for example in self._read_shard(shards[self._position]):
                    number = self._number
                    self._number += 1
                    if not by_row or (number + offset) % self.num_readers == self.reader:
                        is_empty = False
                        yield Row((self._epoch, shards[self._position], number), example)
                self._shard = self._shard_state = None
                self._position, self._number = self._position + 1, 0
            self._epoch, self._position = self._epoch + 1, 0
            # A reader can go without for some epochs, if there are hardly more examples than readers.
            empty_epochs = empty_epochs + 1 if is_empty else 0
            if empty_epochs > num_shards + self.num_readers:
                raise ValueError("The training stream has no images. Check the files that it reads.")
            yield None

    def _read_shard(self, index: int) -> Iterator[dict[str, Any]]:
        self._shard = self.stream.stream.shard(num_shards=self.stream.num_shards, index=index)
        if self._shard_state is not None:
            self._shard.load_state_dict(self._shard_state)
        # `iter(self._shard)` would split the shard over the workers once more; batches are read as they are.
        for batch in self._shard.iter(batch_size=1):
            yield {name: values[0] for name, values in batch.items()}
