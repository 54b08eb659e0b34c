# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Exports sub-networks as standard models."""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ..messages import last_part
from ..settings import load_settings
from ..slimmable.binding import Source
from ..slimmable.depth import KeptBlocks, block_finder, depths_of
from ..slimmable.model import SlimmableModel, make_slimmable, subnetwork_state_dict
from ..slimmable.skeleton import changed_forwards, module_settings
from .calibration import batchnorm_layers, recalibrate_batchnorm


logger = logging.getLogger(__name__)

_TEMPLATE = Path(__file__).parents[1] / "templates" / "subnetwork_card.md"


def export_subnetwork(
    model: PreTrainedModel,
    width: float,
    width_divisor: int | None = None,
    calibration_data: Iterable[Mapping[str, Tensor]] | None = None,
    kept_blocks: KeptBlocks | None = None,
) -> PreTrainedModel:
    """
    Exports a sub-network as a standard model of the narrower or shallower config, with its own weights.

    The model has the parent's plain class, device, dtype and labels, and is in eval mode. `from_pretrained` loads its
    checkpoint without this package. The parent doesn't change.

    A sub-network needs its own BatchNorm statistics. Without calibration data, it keeps the full network's statistics
    of its channels, and its accuracy drops. Models without BatchNorm, such as ConvNeXt, need none.

    Args:
        model (`PreTrainedModel`):
            The parent: a model whose family has a narrowing (see [`register_narrowing`]). It need not be slimmable.
        width (`float`):
            Width multiplier, in (0, 1].
        width_divisor (`int`, *optional*):
            Channel counts are rounded to multiples of it. Defaults to the value of the model's training run: the run in
            this process, or the one that `gradaug_config.json` beside the loaded checkpoint describes, which may be looked
            up on the Hub. Otherwise 1.
        calibration_data (`Iterable[Mapping[str, torch.Tensor]]`, *optional*):
            Batches with `pixel_values` for BatchNorm's running statistics, see [`recalibrate_batchnorm`]. If the model
            has no BatchNorm, they are not read.
        kept_blocks (`Sequence[Sequence[int]]`, *optional*):
            For each stage, the indices of the residual blocks to keep, ascending from 0, for example from
            [`leading_blocks`]. If not given, all blocks are kept. Drop path rates, which only training uses, become
            those of the smaller config.

    Returns:
        `PreTrainedModel`: The sub-network, which shares no memory with `model`.

    Raises:
        `ValueError`: If `width` is outside (0, 1], `width_divisor` is below 1, or the calibration data or
            `kept_blocks` don't fit. For example, a Swin block with shifted windows can't move to a position where the
            config has none. Also if the model differs from its class and config, because `from_pretrained` would then
            fail or load a model that computes something else.
        `TypeError`: If the model's family has no narrowing, or `kept_blocks` are given and its blocks aren't
            registered (see [`register_depth`]).

    Example:

    ```python
    export_subnetwork(model, width=0.75, calibration_data=dataloader).save_pretrained("resnet-0.75")
    ```
    """
    exported = copy_subnetwork(model, width, width_divisor, kept_blocks)
    if calibration_data is not None:
        recalibrate_batchnorm(exported, calibration_data)
    elif narrowed_fields(model.config, exported.config) and batchnorm_layers(exported):
        blocks = "" if kept_blocks is None else f" and residual blocks {kept_blocks}"
        logger.warning(
            f"The sub-network of width multiplier {width}{blocks} uses the full network's BatchNorm statistics, so its accuracy "
            "drops. Pass `calibration_data`."
        )
    return exported


def copy_subnetwork(
    model: PreTrainedModel, width: float, width_divisor: int | None = None, kept_blocks: KeptBlocks | None = None
) -> PreTrainedModel:
    """[`export_subnetwork`] without calibration."""
    slimmable = as_slimmable(model)
    if width_divisor is None:
        width_divisor = 1 if width == 1 else find_width_divisor(model)
    config, state = subnetwork_state_dict(slimmable, width, width_divisor, kept_blocks)
    subnetwork = slimmable.subnetwork(width, width_divisor, kept_blocks).subnetwork
    exported_class = type(subnetwork.skeleton)
    # Built as `from_pretrained` builds it, so that what no checkpoint holds is what it will be when loaded.
    with no_init_weights():
        exported = exported_class(config).to(model.dtype)  # the buffers that no checkpoint holds, too
    try:
        exported.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"`model` must be what its class and config describe, but was changed after construction: the exported "
            f"{exported_class.__name__} could not be loaded by its config: {error}"
        ) from error
    exported.tie_weights()  # which were assigned one by one
    _check_settings(exported, subnetwork.skeleton)
    names = dict(subnetwork.skeleton.named_modules())
    sources = dict(zip(names, subnetwork.sources(kept_blocks), strict=True))
    _check_unsaved_buffers(exported, model, sources)
    if kept_blocks is not None:
        _check_places(exported, model, sources, kept_blocks)
    return exported.to(model.device).eval()


def find_width_divisor(model: PreTrainedModel) -> int:
    """The `width_divisor` that a model was trained with: in this process, or by the settings beside its checkpoint."""
    if isinstance(model, SlimmableModel) and model.trained_width_divisor is not None:
        return model.trained_width_divisor
    name = model.name_or_path
    if not name:  # not loaded
        return 1
    try:
        return load_settings(name, revision=getattr(model.config, "_commit_hash", None)).width_divisor
    except (OSError, HFValidationError) as error:  # the Hub's other errors are of the first kind
        logger.warning(
            f"`width_divisor` is taken to be 1, because the settings of the run that trained '{name}' can't be read "
            f"({type(error).__name__}). If it was another, pass it, or the sub-network has channels that were not trained."
        )
        return 1


def as_slimmable(model: PreTrainedModel) -> PreTrainedModel:
    """The model if it is slimmable, else a shallow copy that is. The copy has the same modules."""
    if isinstance(model, SlimmableModel):
        return model
    slimmable = copy.copy(model)
    vars(slimmable).pop("forward", None)  # Accelerate's for mixed precision; only weights are read
    return make_slimmable(slimmable)


def _check_settings(exported: PreTrainedModel, skeleton: PreTrainedModel) -> None:
    """
    Raises a `ValueError` if a loaded model would compute something else than the sub-network that `build` made.

    The weights alone don't tell: `build` may replace an activation or a pooling.
    """
    expected, found = _eval_settings(exported), _eval_settings(skeleton)
    for name, setting in found.items():
        if setting != expected.get(name):
            raise ValueError(
                f"`model` must be what its class and config describe, but {name!r} is {setting} by `build`, and "
                f"{expected.get(name, 'absent')} in a {type(exported).__name__} that `from_pretrained` makes. Put this "
                "change into your own model class, or save the state dict of `subnetwork_state_dict`."
            )


def _eval_settings(model: PreTrainedModel) -> dict[str, str]:
    """The settings of each module that matter in eval mode."""
    settings = module_settings(model)
    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd) or type(module).__name__.endswith("DropPath"):
            settings[name] = "dropout"
        elif isinstance(module, nn.SyncBatchNorm):  # of one process
            settings[name] = settings[name].replace("SyncBatchNorm", "BatchNorm2d", 1)
    return settings | {name: f"{settings[name]} with a changed forward" for name in changed_forwards(model)}


def _check_unsaved_buffers(exported: PreTrainedModel, parent: PreTrainedModel, sources: Mapping[str, Source]) -> None:
    """
    Raises a `ValueError` if buffers that no checkpoint holds have other values than the sub-network's.

    A loaded model computes them from its config. Sinusoidal positions of fewer channels have other frequencies.
    """
    for name, source in sources.items():
        module, parent_module = exported.get_submodule(name), parent.get_submodule(source.full_name)
        for entries in source.buffers:
            found = module.get_buffer(entries.name)
            expected = entries.selection.take(parent_module.get_buffer(entries.name)).to(found)
            if not torch.allclose(found, expected, equal_nan=True):
                raise ValueError(
                    f"`model` must save the buffers that its width changes, but {entries.full_name!r} is not in its checkpoints, "
                    "and a narrower model computes other values than the sub-network's. Register it with `persistent=True`."
                )


def _check_places(
    exported: PreTrainedModel, parent: PreTrainedModel, sources: Mapping[str, Source], kept_blocks: KeptBlocks
) -> None:
    """
    Raises a `ValueError` if a kept block would compute something else in its new place.

    A sub-network's block keeps its settings from the full network. A loaded model has the settings that the config
    gives to the place, for example whether Swin shifts the windows.
    """
    modules, find_block = dict(exported.named_modules()), block_finder(parent.config)
    for name, source in sources.items():
        if not find_block(name):
            continue
        for setting, value in source.settings.items():
            here = getattr(modules[name], setting)
            if setting != "drop_prob" and isinstance(value, (int, float, str, tuple)) and here != value:
                raise ValueError(
                    f"`kept_blocks` must keep the settings of each block, but is {kept_blocks}: {source.full_name!r}, whose "
                    f"`{setting}` is {value}, would be {name!r} in the exported model, whose `{setting}` is {here}. Keep "
                    "the first blocks of each stage, which keep their positions."
                )


def narrowed_fields(parent: PreTrainedConfig, config: PreTrainedConfig) -> dict[str, tuple[Any, Any]]:
    """The fields in which the config of a sub-network differs from its parent's, with both values."""
    before, after = parent.to_dict(), config.to_dict()
    written_by_saving = ("architectures", "auto_map", "dtype", "transformers_version")
    fields = {
        name: (before.get(name), value)
        for name, value in after.items()
        if value != before.get(name) and name not in written_by_saving and not name.startswith("_")
    }
    if fields.pop("backbone_config", None):  # of a detector or segmenter
        of_backbone = narrowed_fields(parent.backbone_config, config.backbone_config)
        fields |= {f"backbone_config.{name}": values for name, values in of_backbone.items()}
    return fields


def create_subnetwork_card(
    model: PreTrainedModel,
    parent: PreTrainedModel,
    width: float,
    calibration_images: int = 0,
    measured: Mapping[str, tuple[str, str]] | None = None,
    base_model: str | None = None,
    kept_blocks: KeptBlocks | None = None,
    **metadata: Any,
) -> ModelCard:
    """
    A model card for an exported sub-network, which names its parent.

    Pass the parent's name on the Hub as `base_model`. It is not read from `parent`, whose weights may have changed since
    it was loaded.

    Args:
        model (`PreTrainedModel`):
            The exported model.
        parent (`PreTrainedModel`):
            The model that `model` was exported from.
        width (`float`):
            The width multiplier.
        calibration_images (`int`, *optional*, defaults to `0`):
            Number of images from which BatchNorm's statistics were recomputed. 0 means that they are the parent's.
        measured (`Mapping[str, tuple[str, str]]`, *optional*):
            Rows to add to the card's table: by name, the parent's value and the sub-network's value.
        base_model (`str`, *optional*):
            The parent's name on the Hub. Without it, the card shows the last part of the parent's path, without a link.
        kept_blocks (`Sequence[Sequence[int]]`, *optional*):
            The `kept_blocks` that were passed to [`export_subnetwork`].
        **metadata (`Any`):
            Further fields of [`~huggingface_hub.ModelCardData`], such as `license`, `pipeline_tag` or `tags`.

    Returns:
        [`~huggingface_hub.ModelCard`]: The card; `card.save(folder / "README.md")` writes it.

    Raises:
        `ValueError`: If `base_model` is not a valid name on the Hub.
    """
    if base_model is not None:
        try:
            validate_repo_id(base_model)
        except HFValidationError as error:
            raise ValueError(f"`base_model` must be a name on the Hub, but is '{base_model}': {error}") from error
    # Of the Hub's relations to a base model (adapter, finetune, merge, quantized) none fits, so none is given.
    tags = ["sub-network", *metadata.pop("tags", [])]
    data = ModelCardData(base_model=base_model, library_name="transformers", tags=tags, **metadata)
    stages = [] if kept_blocks is None else kept_blocks
    all_blocks = sum(depths_of(parent.config)) if stages else 0
    rows = {
        "width multiplier": ("1", f"{width:g}"),
        **{f"residual blocks of stage {stage}": ("all", _show_blocks(kept)) for stage, kept in enumerate(stages, 1)},
        **{f"`{name}`": values for name, values in narrowed_fields(parent.config, model.config).items()},
        "parameters": (f"{parent.num_parameters():,}", f"{model.num_parameters():,}"),
        **(measured or {}),
    }
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        hub_name=base_model,
        parent_name=base_model or last_part(parent.name_or_path or type(parent).__name__),
        class_name=type(model).__name__,
        # A class that transformers doesn't have is saved with the model.
        load_class=model._auto_class or type(model).__name__,
        has_own_code=bool(model._auto_class),
        width=f"{width:g}",
        num_blocks=sum(map(len, stages)),
        all_blocks=all_blocks,
        rows=rows,
        has_batchnorm=bool(batchnorm_layers(model)),
        calibration_images=calibration_images,
    )


def _show_blocks(blocks: Sequence[int]) -> str:
    return ", ".join(str(block) for block in blocks)
