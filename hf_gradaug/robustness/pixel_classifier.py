# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""An image classifier as a function of pixels, and the FGSM attack on it."""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2
from transformers import AutoImageProcessor, PreTrainedModel

from ..data.class_names import get_class_names
from ..data.image_processors import PixelMap, ProcessorCrop
from ..export.loading import load_classifier


def import_library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Measuring robustness needs foolbox and imagecorruptions-imaug: pip install 'hf_gradaug[robustness]'. "
            f"Importing {name} failed: {error}"
        ) from error


class _Logits(nn.Module):
    """From pixels in [0, 1] to logits."""

    def __init__(self, model: PreTrainedModel, pixel_map: PixelMap):
        super().__init__()
        self.model = model
        self.pixel_map = pixel_map

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.model.eval()  # it may have been trained since
        # Detached, so that the backward of an attack leaves no gradients in the parameters.
        parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        return torch.func.functional_call(
            self.model, parameters, kwargs={"pixel_values": self.pixel_map(pixels)}
        ).logits


class PixelClassifier:
    """
    An image classifier that takes pixels in [0, 1] and normalizes them itself, so that attacks are bounded in pixels.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A model with an image-classification head. It is moved to the device, and set to eval mode now and before
            each prediction.
        image_processor ([`~transformers.BaseImageProcessor`]):
            The model's image processor, for resizing, cropping and normalizing.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            The device of the model.

    Raises:
        `ImportError`: If foolbox is missing.
    """

    def __init__(self, model: PreTrainedModel, image_processor: Any, device: str | torch.device = "cpu"):
        foolbox = import_library("foolbox")
        self.class_names = get_class_names(model.config)
        self.crop = ProcessorCrop(image_processor)
        self.device = torch.device(device)
        self._model = model
        self._foolbox_model = foolbox.PyTorchModel(
            _Logits(model, self.crop.pixel_map).eval(), bounds=(0, 1), device=self.device
        )
        self._attack = foolbox.attacks.LinfFastGradientAttack()

    @classmethod
    def from_pretrained(cls, name_or_path: str, device: str | torch.device = "cpu") -> "PixelClassifier":
        """
        Loads a model (see [`load_classifier`]) and its image processor.

        Args:
            name_or_path (`str`): A Hub name or a folder.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Device of the model.

        Raises:
            `ValueError`: If it is not a complete image classifier with an image processor.
        """
        model = load_classifier(name_or_path)
        try:
            image_processor = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"'{name_or_path}' has no image processor: {error}") from error
        return cls(model, image_processor, device)

    def fingerprint(self, numbers: Sequence[int] = ()) -> str:
        """
        A hash of the weights and the preprocessing, which identifies the classifier.

        Args:
            numbers (`Sequence[int]`, *optional*): For each class of a data set, the classifier's index of this class.
                Include them to identify results on that data set.
        """
        pixel_map = self.crop.pixel_map
        digest = hashlib.sha256(f"{self.crop.fingerprint()} {pixel_map.weight} {pixel_map.bias}".encode())
        if list(numbers) != list(range(len(numbers))):  # results of older versions have no numbers
            digest.update(repr(list(numbers)).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images (`torch.Tensor`): (batch, 3, height, width), float32 in [0, 1].

        Returns:
            `torch.Tensor`: (batch,), the classes.
        """
        return self._foolbox_model(images).argmax(-1)

    def attack(self, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
        """
        FGSM (Goodfellow et al. 2015): one step of size epsilon along the sign of the gradient of the cross-entropy
        with the true labels, clipped to [0, 1].

        Args:
            images (`torch.Tensor`): (batch, 3, height, width), float32 in [0, 1].
            labels (`torch.Tensor`): (batch,), the true classes.
            epsilon (`float`): Largest change of a pixel, in units of 1/255.

        Returns:
            `torch.Tensor`: The attacked images.
        """
        return self._attack.run(self._foolbox_model, images, labels, epsilon=epsilon / 255)

    def count_correct(self, images: torch.Tensor, labels: torch.Tensor, epsilon: float | None = None) -> int:
        """
        Args:
            images (`torch.Tensor`): (batch, 3, height, width), uint8.
            labels (`torch.Tensor`): (batch,), the true classes.
            epsilon (`float`, *optional*): If given, the images are attacked first.

        Returns:
            `int`: Number of correctly classified images.
        """
        images = v2.functional.to_dtype(images.to(self.device), torch.float32, scale=True)
        labels = labels.to(self.device)
        if epsilon is not None:
            images = self.attack(images, labels, epsilon)
        return int((self.predict(images) == labels).sum())
