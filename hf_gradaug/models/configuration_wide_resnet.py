# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""WideResNet's config."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class WideResNetConfig(PreTrainedConfig):
    """
    The config of a [`WideResNetForImageClassification`] (Zagoruyko and Komodakis, BMVC 2016, arXiv 1605.07146).

    The defaults are WRN-28-10: `depths` of n layers make 6 n + 4 convolutions, and a widening factor of k makes
    `hidden_sizes` of 16 k, 32 k and 64 k.

    Args:
        num_channels (`int`, *optional*, defaults to `3`):
            Channels of the images.
        embedding_size (`int`, *optional*, defaults to `16`):
            Channels of the first convolution.
        hidden_sizes (`list[int]`, *optional*, defaults to `[160, 320, 640]`):
            Channels of each stage. Every stage but the first halves height and width.
        depths (`list[int]`, *optional*, defaults to `[4, 4, 4]`):
            Layers of each stage, of two convolutions each.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: If `hidden_sizes` and `depths` have not the same length, or a
            number is below 1.

    Example:

    ```python
    model = WideResNetForImageClassification(WideResNetConfig(num_labels=100))
    ```
    """

    model_type = "wide_resnet"

    num_channels: int = 3
    embedding_size: int = 16
    hidden_sizes: list[int] | tuple[int, ...] = (160, 320, 640)
    depths: list[int] | tuple[int, ...] = (4, 4, 4)

    def __post_init__(self, **kwargs):
        self.hidden_sizes, self.depths = list(self.hidden_sizes), list(self.depths)
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Checks that every stage has a size and a depth."""
        if len(self.hidden_sizes) != len(self.depths) or not self.depths:
            raise ValueError(
                f"`hidden_sizes` and `depths` must have one number for each stage, but are {self.hidden_sizes} and "
                f"{self.depths}."
            )
        for name in ("num_channels", "embedding_size", "hidden_sizes", "depths"):
            value = getattr(self, name)
            if min(value if isinstance(value, list) else [value]) < 1:
                raise ValueError(f"`{name}` must be 1 or more, but is {value}.")


__all__ = ["WideResNetConfig"]
