# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Images and labels for classifiers: read from folders, files or the Hub, transformed, mixed, and streamed."""

from .arguments import DataArguments
from .class_names import get_class_names, match_classes, warn_of_missing
from .decoding import decode_image, to_rgb
from .digits import load_digits_dataset
from .folders import check_no_splits, is_image, walk_classes
from .image_processors import get_image_size, get_pixel_map, make_image_processor
from .image_transforms import ImageCollator, get_eval_transform, get_train_transform
from .in_memory import InMemoryDataset
from .loading import ImageData, load_image_data
from .streaming import get_streaming_arguments
from .training_stream import TrainingStream


__all__ = [
    "DataArguments",
    "ImageCollator",
    "ImageData",
    "InMemoryDataset",
    "TrainingStream",
    "check_no_splits",
    "decode_image",
    "get_class_names",
    "get_eval_transform",
    "get_image_size",
    "get_pixel_map",
    "get_streaming_arguments",
    "get_train_transform",
    "is_image",
    "load_digits_dataset",
    "load_image_data",
    "make_image_processor",
    "match_classes",
    "to_rgb",
    "walk_classes",
    "warn_of_missing",
]
