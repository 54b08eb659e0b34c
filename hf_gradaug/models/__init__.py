# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
The networks of the paper's CIFAR experiments, which transformers doesn't have.

Importing this module registers the networks with the Auto classes, and registers how they narrow. Saved models carry
their code. Where this package is absent, the Auto classes load it with `trust_remote_code=True`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from ..slimmable.registry import Depth, Narrow, register_family
from .configuration_pyramidnet import PyramidNetConfig
from .configuration_wide_resnet import WideResNetConfig
from .modeling_pyramidnet import PyramidNetForImageClassification, PyramidNetModel
from .modeling_wide_resnet import WideResNetForImageClassification, WideResNetModel


for _config, _model, _classifier in (
    (PyramidNetConfig, PyramidNetModel, PyramidNetForImageClassification),
    (WideResNetConfig, WideResNetModel, WideResNetForImageClassification),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    AutoModelForImageClassification.register(_config, _classifier)
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModel")
    _classifier.register_for_auto_class("AutoModelForImageClassification")


@register_family("wide_resnet", depth=Depth("depths", r"stages\.(\d+)\.(\d+)"))
def _(config: WideResNetConfig, narrow: Narrow) -> None:
    config.embedding_size, *config.hidden_sizes = narrow([config.embedding_size, *config.hidden_sizes])


# Without `depth`: its layers all differ in channels, so that where one is missing, the next has inputs that nothing
# computes.
@register_family("pyramidnet")
def _(config: PyramidNetConfig, narrow: Narrow) -> None:
    # One by one: no shortcut depends on which counts are equal, and inner ones are not a quarter of outer ones when both
    # are rounded, as in the authors' code.
    inner, outer = zip(*config.layer_sizes)
    config.inner_sizes, config.outer_sizes = ([narrow([size])[0] for size in sizes] for sizes in (inner, outer))
    (config.embedding_size,) = narrow([config.embedding_size])


__all__ = [
    "PyramidNetConfig",
    "PyramidNetForImageClassification",
    "PyramidNetModel",
    "WideResNetConfig",
    "WideResNetForImageClassification",
    "WideResNetModel",
]
