# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""A map-style dataset whose examples are transformed as they are read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from ..sampling import example_seed


# Called with an example, its name for errors, and the seed of its random draws.
TransformExample = Callable[[dict[str, Any], str, int], Any]


class TransformedDataset(Dataset):
    """
    A map-style dataset with a transform that is applied when examples are read.

    Randomness depends only on the seed, the epoch and the example's index, not on the order of reading or the number
    of workers.

    Args:
        dataset ([`~datasets.Dataset`]):
            The stored examples.
        transform (`Callable[[dict, str, int], Any]`):
            Called with an example, its name for errors, such as `"image 17"`, and a seed, which differs by epoch.
        seed (`int`, *optional*, defaults to `42`):
            The run's seed.
        rows (`Sequence[int]`, *optional*):
            Number of each example in the split that it was taken from. Defaults to its index.
    """

    def __init__(self, dataset: Any, transform: TransformExample, seed: int = 42, rows: Sequence[int] | None = None):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.rows = range(len(dataset)) if rows is None else rows
        # In shared memory: workers that live on from epoch to epoch have to see the change.
        self._epoch = torch.tensor(0).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Changes the random draws of all examples. [`StreamMixin`] calls it; call it in your own training loop."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        seed = example_seed(self.seed, int(self._epoch), index)
        return self.transform(self.dataset[index], f"image {self.rows[index]}", seed)


def transformed_datasets(dataset: Any) -> list[TransformedDataset]:
    """
    The transformed datasets that a dataset reads: itself, or those inside of `Subset` (`.dataset`), `ConcatDataset`
    (`.datasets`) and wrappers like them.
    """
    found, seen, left = [], set(), [dataset]
    while left:
        part = left.pop()
        if isinstance(part, TransformedDataset):
            found.append(part)
        elif id(part) not in seen:  # other classes may have these names for anything
            seen.add(id(part))
            several = getattr(part, "datasets", None)
            several = [*several.values()] if isinstance(several, Mapping) else several
            left += [getattr(part, "dataset", None), *(several if isinstance(several, (list, tuple)) else ())]
    return found
