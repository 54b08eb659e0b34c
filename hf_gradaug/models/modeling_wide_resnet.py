# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""WideResNet, the network of pre-activation layers of the paper's first CIFAR experiment."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils.generic import can_return_tuple

from .configuration_wide_resnet import WideResNetConfig


class WideResNetLayer(nn.Module):
    """Batch normalization, ReLU and a 3 x 3 convolution, twice, added to the input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.normalization1 = nn.BatchNorm2d(in_channels)
        self.convolution1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.normalization2 = nn.BatchNorm2d(out_channels)
        self.convolution2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, hidden_state: Tensor) -> Tensor:
        residual = hidden_state
        hidden_state = relu(self.normalization1(hidden_state))
        if self.shortcut is not None:
            residual = self.shortcut(hidden_state)
        hidden_state = self.convolution1(hidden_state)
        hidden_state = self.convolution2(relu(self.normalization2(hidden_state)))
        return hidden_state + residual


class WideResNetPreTrainedModel(PreTrainedModel):
    """What the models of the family share: their config, names and initialization."""

    config: WideResNetConfig
    base_model_prefix = "wide_resnet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["WideResNetLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            # PyTorch's own; the bias is 0.
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)


class WideResNetModel(WideResNetPreTrainedModel):
    """
    WideResNet without a head.

    Args:
        config ([`WideResNetConfig`]):
            The architecture.
    """

    def __init__(self, config: WideResNetConfig):
        super().__init__(config)
        self.embedder = nn.Conv2d(config.num_channels, config.embedding_size, 3, padding=1, bias=False)
        self.stages = nn.ModuleList()
        in_channels = config.embedding_size
        for i, (out_channels, depth) in enumerate(zip(config.hidden_sizes, config.depths)):
            stage = nn.Sequential()
            for j in range(depth):
                stage.append(WideResNetLayer(in_channels, out_channels, stride=2 if i > 0 and j == 0 else 1))
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
            `(batch_size, hidden_sizes[-1], height, width)`, after the last normalization and ReLU, and
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


class WideResNetForImageClassification(WideResNetPreTrainedModel):
    """
    WideResNet with a linear classifier on the pooled features.

    Args:
        config ([`WideResNetConfig`]):
            The architecture, and with `num_labels` the classes.
    """

    def __init__(self, config: WideResNetConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.wide_resnet = WideResNetModel(config)
        self.classifier = (
            nn.Linear(config.hidden_sizes[-1], config.num_labels) if config.num_labels > 0 else nn.Identity()
        )
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
        outputs = self.wide_resnet(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = ["WideResNetForImageClassification", "WideResNetModel", "WideResNetPreTrainedModel"]
