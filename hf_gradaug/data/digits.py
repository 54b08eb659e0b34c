# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The embedded images: scikit-learn's handwritten digits."""

import datasets
import numpy as np


def load_digits_dataset() -> datasets.DatasetDict:
    """
    The embedded dataset: the 1,797 handwritten digits (8 x 8 pixels, 10 classes) that scikit-learn ships.

    Returns:
        [`~datasets.DatasetDict`]: `"train"` and `"validation"` (a fixed, stratified 20 %), with the columns `image`
        (`Image`) and `label` (`ClassLabel`).

    Raises:
        `ImportError`: If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "The embedded digits need scikit-learn: pip install 'hf_gradaug[examples]', or name a dataset."
        ) from error
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    names = [str(name) for name in digits.target_names]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    train, validation = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": list(images[indices]), "label": digits.target[indices].tolist()}, features=features
            )
            for split, indices in (("train", train), ("validation", validation))
        }
    )
