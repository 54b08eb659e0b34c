# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""PyramidNet with bottlenecks, the network of the paper's second CIFAR experiment. Each layer adds a few channels."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils.generic import can_return_tuple

from .configuration_pyramidnet import PyramidNetConfig


class PyramidNetLayer(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1 with normalizations, added to the input, which zero channels pad."""

    def __init__(self, in_channels: int, inner_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.normalization1 = nn.BatchNorm2d(in_channels)
        self.convolution1 = nn.Conv2d(in_channels, inner_channels, 1, bias=False)
        self.normalization2 = nn.BatchNorm2d(inner_channels)
        self.convolution2 = nn.Conv2d(inner_channels, inner_channels, 3, stride=stride, padding=1, bias=False)
        self.normalization3 = nn.BatchNorm2d(inner_channels)
        self.convolution3 = nn.Conv2d(inner_channels, out_channels, 1, bias=False)
        self.normalization4 = nn.BatchNorm2d(out_channels)
        # Rounds up where the size is odd, as the convolution does.
        self.shortcut = nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True)

    def forward(self, hidden_state: Tensor) -> Tensor:
        residual = self.shortcut(hidden_state)
        hidden_state = self.convolution1(self.normalization1(hidden_state))  # no ReLU before the first
        hidden_state = self.convolution2(relu(self.normalization2(hidden_state)))
        hidden_state = self.convolution3(relu(self.normalization3(hidden_state)))
        hidden_state = self.normalization4(hidden_state)
        return hidden_state + pad(residual, (0, 0, 0, 0, 0, hidden_state.shape[1] - residual.shape[1]))


class PyramidNetPreTrainedModel(PreTrainedModel):
    """What the models of the family share: their config, names and initialization."""

    config: PyramidNetConfig
    base_model_prefix = "pyramidnet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["PyramidNetLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            # PyTorch's own.
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)


class PyramidNetModel(PyramidNetPreTrainedModel):
    """
    PyramidNet without a head.

    Args:
        config ([`PyramidNetConfig`]):
            The architecture.
    """

    def __init__(self, config: PyramidNetConfig):
        super().__init__(config)
        self.embedder = nn.Sequential(
            nn.Conv2d(config.num_channels, config.embedding_size, 3, padding=1, bias=False),
            nn.BatchNorm2d(config.embedding_size),
        )
        self.stages = nn.ModuleList()
        sizes, in_channels = iter(config.layer_sizes), config.embedding_size
        for i, depth in enumerate(config.depths):
            stage = nn.Sequential()
            for j, (inner_channels, out_channels) in enumerate(itertools.islice(sizes, depth)):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(PyramidNetLayer(in_channels, inner_channels, out_channels, stride))
                in_channels = out_channels
            self.stages.append(stage)
        self.normalization = nn.BatchNorm2d(in_channels)
        self.pooler = nn.AdaptiveAvgPool2d(1)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Images.
            output_hidden_states (`bool`, *optional*):
                Whether to return what each stage gets, and what the last one gives. Defaults to the config's.

        Returns:
            `BaseModelOutputWithPoolingAndNoAttention`: `last_hidden_state` of shape
            `(batch_size, outer size of the last layer, height, width)`, after the last normalization and ReLU, and
            `pooler_output`, its mean over height and width.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = [self.embedder(pixel_values)]
        for stage in self.stages:
            hidden_states.append(stage(hidden_states[-1]))
        last_hidden_state = relu(self.normalization(hidden_states[-1]))
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last_hidden_state,
            pooler_output=self.pooler(last_hidden_state).flatten(1),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )


class PyramidNetForImageClassification(PyramidNetPreTrainedModel):
    """
    PyramidNet with a linear classifier on the pooled features.

    Args:
        config ([`PyramidNetConfig`]):
            The architecture, and with `num_labels` the classes.
    """

    def __init__(self, config: PyramidNetConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.pyramidnet = PyramidNetModel(config)
        num_features = self.pyramidnet.normalization.num_features
        self.classifier = nn.Linear(num_features, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Images.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Classes, in `[0, num_labels - 1]`, for the loss.
            output_hidden_states (`bool`, *optional*):
                Whether to return what each stage gets, and what the last one gives. Defaults to the config's.
            **kwargs:
                For the loss, such as the Trainer's `num_items_in_batch`.

        Returns:
            `ImageClassifierOutputWithNoAttention`: `logits` of shape `(batch_size, num_labels)`, and the loss if there
            are labels.
        """
        outputs = self.pyramidnet(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = ["PyramidNetForImageClassification", "PyramidNetModel", "PyramidNetPreTrainedModel"]
