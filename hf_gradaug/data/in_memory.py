# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Small images, decoded once, then cropped, mirrored and normalized batch by batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets.fingerprint import Hasher

from ..sampling import example_seed
from .decoding import decode_image
from .image_processors import ProcessorCrop
from .image_transforms import check_padding
from .transformed_dataset import TransformedDataset


class InMemoryDataset(TransformedDataset):
    """
    A [`TransformedDataset`] that holds decoded pixels, for data whose decoding takes longer than the model.

    On CIFAR-10 a batch of 128 takes a tenth of the time. The images equal [`~image_transforms.get_eval_transform`]'s.
    With augmentation they are cropped and mirrored as by [`~image_transforms.get_train_transform`], but with other random
    draws. These draws depend only on the seed, the epoch and the example's index.

    Args:
        dataset ([`TransformedDataset`]):
            Images and labels, with the [`~image_transforms.ExampleTransform`] that reads them.
        image_processor ([`~transformers.BaseImageProcessor`]):
            The model's image processor.
        random_crop_padding (`int`, *optional*):
            Pixels to mirror at each side before the random crop.
        horizontal_flip (`bool`, *optional*, defaults to `False`):
            Whether half of the images are mirrored.

    Raises:
        `ValueError`: If an image can't be read, a label is missing or out of range, or the padding is not below the
            size of the images.
    """

    def __init__(
        self,
        dataset: TransformedDataset,
        image_processor: Any,
        random_crop_padding: int | None = None,
        horizontal_flip: bool = False,
    ):
        super().__init__(dataset.dataset, dataset.transform, dataset.seed, dataset.rows)
        self._crop = ProcessorCrop(image_processor)
        if random_crop_padding is not None:
            check_padding(random_crop_padding, self._crop.size)
        self.padding = random_crop_padding or 0
        self.horizontal_flip = horizontal_flip
        # Now, not on the first read: each worker of each epoch would do it again.
        self._pixels = self._decode()
        self._labels = self._read_labels()
        self._drawn: tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

    def _decode(self) -> np.ndarray:
        """Of shape (images, height, width, 3), in 0..255. `datasets` keeps them on disk for later runs."""
        column, split, rows = self.transform.image_column, self.transform.split, self.rows

        def decode(example: dict[str, Any], index: int) -> dict[str, bytes]:
            image = decode_image(example[column], f"image {rows[index]} of {split}")
            return {"pixels": np.asarray(self._crop(image)).tobytes()}

        stored = self.dataset.map(
            decode,
            with_indices=True,
            remove_columns=self.dataset.column_names,
            new_fingerprint=Hasher.hash((self.dataset._fingerprint, column, self._crop.fingerprint())),
        )
        pixels = np.frombuffer(b"".join(stored["pixels"]), dtype=np.uint8)
        return pixels.reshape(len(self), *self._crop.size, 3)

    def _read_labels(self) -> list[int] | None:
        column = self.transform.label_column
        if column is None:
            return None
        name = f"of {self.transform.split}"
        labels = zip(self.rows, self.dataset[column])
        return [self.transform.get_class(label, f"image {row} {name}") for row, label in labels]

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each image in an epoch: row and column of the crop, whether it is mirrored, and its seed."""
        if self._drawn is None or self._drawn[0] != epoch:
            random = np.random.Generator(np.random.PCG64(example_seed(self.seed, epoch)))
            places = random.integers(-self.padding, self.padding + 1, (len(self), 2))
            is_mirrored = random.random(len(self)) < 0.5 * self.horizontal_flip
            self._drawn = epoch, (places, is_mirrored, random.integers(2**63, size=len(self)))
        return self._drawn[1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        places, is_mirrored, seeds = self._draw(int(self._epoch))
        images = self._pixels[indices]
        if self.padding or self.horizontal_flip:
            height, width = images.shape[1:3]
            rows = _mirror(places[indices, :1] + np.arange(height), height)
            columns = _mirror(places[indices, 1:] + np.arange(width), width)
            columns = np.where(is_mirrored[indices, None], columns[:, ::-1], columns)
            images = images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
        batch = self._crop.pixel_map(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        examples = [{"pixel_values": image, "mix": None} for image in batch]
        for index, example in zip(indices, examples):
            if self.transform.mix:
                example["mix"] = int(seeds[index])
            if self._labels is not None:
                example["labels"] = self._labels[index]
        return examples


def _mirror(places: np.ndarray, size: int) -> np.ndarray:
    """Indices outside 0..size - 1, mirrored at the first and last pixel."""
    return size - 1 - np.abs(size - 1 - np.abs(places))
