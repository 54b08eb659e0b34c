# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""PyramidNet's config."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class PyramidNetConfig(PreTrainedConfig):
    """
    The config of a [`PyramidNetForImageClassification`] of bottlenecks (Han, Kim and Kim, CVPR 2017, arXiv
    1610.02915).

    The defaults are PyramidNet-200 with alpha 240: `depths` of n layers make 9 n + 2 convolutions.

    Args:
        num_channels (`int`, *optional*, defaults to `3`):
            Channels of the images.
        embedding_size (`int`, *optional*, defaults to `16`):
            Channels of the first convolution.
        alpha (`float`, *optional*, defaults to `240`):
            Channels that the inner convolutions gain from the first convolution to the last layer, evenly spaced. The
            outer convolution of each layer has four times as many channels as its inner ones.
        depths (`list[int]`, *optional*, defaults to `[22, 22, 22]`):
            Layers of each stage, of three convolutions each. Every stage but the first halves height and width.
        inner_sizes, outer_sizes (`list[int]`, *optional*):
            Channels of the inner and outer convolutions of every layer, which override `alpha`. Sub-networks use them,
            because each count is rounded separately.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: If a number is out of range, or there are not as many sizes as
            layers.

    Example:

    ```python
    model = PyramidNetForImageClassification(PyramidNetConfig(num_labels=100))
    ```
    """

    model_type = "pyramidnet"

    num_channels: int = 3
    embedding_size: int = 16
    alpha: int | float = 240
    depths: list[int] | tuple[int, ...] = (22, 22, 22)
    inner_sizes: list[int] | None = None
    outer_sizes: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.depths = list(self.depths)
        super().__post_init__(**kwargs)

    @property
    def layer_sizes(self) -> list[tuple[int, int]]:
        """Channels of the inner and the outer convolutions, a pair for each layer."""
        if self.inner_sizes is not None:
            return list(zip(self.inner_sizes, self.outer_sizes, strict=True))
        num_layers = sum(self.depths)
        inner = [round(self.embedding_size + self.alpha * i / num_layers) for i in range(1, num_layers + 1)]
        return [(size, 4 * size) for size in inner]

    def validate_sizes(self):
        """Checks that the sizes are those of a pyramid, one pair for each layer."""
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"`depths` must be 1 or more for each stage, but is {self.depths}.")
        if not self.alpha >= 0:
            raise ValueError(f"`alpha` must be 0 or more, but is {self.alpha}.")
        for name in ("num_channels", "embedding_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, but is {getattr(self, name)}.")
        lengths = [None if sizes is None else len(sizes) for sizes in (self.inner_sizes, self.outer_sizes)]
        if lengths not in ([None, None], [sum(self.depths)] * 2):
            raise ValueError(
                f"`inner_sizes` and `outer_sizes` must have one size for each of the {sum(self.depths)} layers, or both be "
                f"left out, but have {lengths[0]} and {lengths[1]}."
            )
        outer = [self.embedding_size, *(size for _, size in self.layer_sizes)]
        if outer != sorted(outer) or min(size for size, _ in self.layer_sizes) < 1:
            raise ValueError(
                "`inner_sizes` must be 1 or more, and `outer_sizes` must not fall from layer to layer nor begin below "
                f"`embedding_size`, {self.embedding_size}, but are {self.inner_sizes} and {self.outer_sizes}."
            )


__all__ = ["PyramidNetConfig"]
