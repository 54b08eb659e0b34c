# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Selects the entries of the full network's parameters and buffers that a sub-network uses."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .registry import FAMILIES, IfTheyFit


class Selection:
    """
    Entries of a tensor: the leading entries of every dimension, or of every part of a dimension that divides.

    Args:
        spans (`Sequence[Sequence[slice]]`):
            For each dimension, the slices of the full tensor, which are adjacent in the narrow tensor.

    Attributes:
        size (`tuple[int, ...]`, *optional*):
            Shape of the entries if they are the leading ones of every dimension, else `None`.
        key (`tuple`):
            Equal for equal selections.
    """

    def __init__(self, spans: Sequence[Sequence[slice]]):
        self.spans = spans
        narrow_spans = []
        for slices in spans:
            ends = itertools.accumulate(span.stop - span.start for span in slices)
            narrow_spans.append([slice(end - (span.stop - span.start), end) for span, end in zip(slices, ends)])
        # Most have one block, which is a view and begins at 0.
        self.blocks = list(zip(itertools.product(*spans), itertools.product(*narrow_spans)))
        self.size = tuple(span.stop for (span,) in spans) if len(self.blocks) == 1 else None
        self.key = self.size or tuple(tuple((span.start, span.stop) for span in slices) for slices in spans)

    def take(self, tensor: Tensor) -> Tensor:
        """The entries: a view if they are one block, else a concatenation through which gradients flow."""
        if len(self.blocks) == 1:
            return tensor[self.blocks[0][0]]
        for dim, slices in enumerate(self.spans):
            pieces = [tensor[(slice(None),) * dim + (span,)] for span in slices]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
        return tensor

    def add_to(self, tensor: Tensor, values: Tensor) -> None:
        """Adds values to the entries, in place."""
        for full, narrow in self.blocks:
            tensor[full].add_(values[narrow])


def select(
    name: str,
    full_shape: Sequence[int],
    narrow_shape: Sequence[int],
    full_config: PreTrainedConfig,
    narrow_config: PreTrainedConfig,
) -> Selection:
    """
    The entries of the parameter or buffer `name` that a sub-network uses, by its family's registered parts.

    Raises:
        `ValueError`: If a registered division into parts doesn't fit the shapes.
    """
    full_parts, narrow_parts = _parts(full_config, name, full_shape), _parts(narrow_config, name, narrow_shape)
    spans = []
    for dim, (full, narrow) in enumerate(zip(full_shape, narrow_shape, strict=True)):
        is_divided = dim in full_parts and dim in narrow_parts
        if not is_divided or full == 1:  # such as a dimension of `weight_norm`'s magnitudes
            spans.append([slice(0, narrow)])
            continue
        sizes = _sizes(full_parts[dim], full, name, dim), _sizes(narrow_parts[dim], narrow, name, dim)
        spans.append(_leading_of_parts(*sizes, name, dim))
    return Selection(spans)


def unmatched_patterns(model_type: str, names: Iterable[str]) -> list[str]:
    """Patterns of a user's `parts` that no parameter or buffer matches. Ours name layers that a model may not have."""
    family = FAMILIES.get(model_type)
    patterns = family.parts if family is not None and family.is_users else ()
    return [pattern for pattern in patterns if not any(_match(pattern, name) for name in names)]


def _match(pattern: str, name: str) -> re.Match | None:
    # The parts of a parametrized weight are those of the weight.
    name = re.sub(r"\.parametrizations\.(\w+)\.original\d*$", r".\1", name)
    return re.search(rf"(?:^|\.){pattern}$", name)


def _parts(config: PreTrainedConfig, name: str, shape: Sequence[int]) -> dict[int, int | Sequence[int]]:
    # A model's own layers, and those of its backbone or encoder, which is of another family.
    for part in _with_inner(config):
        family = FAMILIES.get(part.model_type)
        for pattern, dims in family.parts.items() if family else ():
            if match := _match(pattern, name):
                numbers = [int(group) for group in match.groups()]
                found = {
                    dim: sizes if isinstance(sizes, int) else sizes(part, *numbers) for dim, sizes in dims.items()
                }
                unfit = {dim for dim in found if isinstance(dims[dim], IfTheyFit) and sum(found[dim]) != shape[dim]}
                return {dim: sizes for dim, sizes in found.items() if dim not in unfit}
    return {}


def _with_inner(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():  # `backbone_config` in transformers; a user's may have another name
        if isinstance(value, PreTrainedConfig):
            yield from _with_inner(value)


def _sizes(parts: int | Sequence[int], length: int, name: str, dim: int) -> list[int]:
    sizes = [length // parts] * parts if isinstance(parts, int) else list(parts)
    if sum(sizes) != length:
        raise ValueError(
            f"`parts` of {name!r} must divide dimension {dim}, of length {length}, but is {parts}. Correct it in "
            "`register_narrowing`."
        )
    return sizes


def _leading_of_parts(full: list[int], narrow: list[int], name: str, dim: int) -> list[slice]:
    if len(full) != len(narrow) or any(n > f for f, n in zip(full, narrow)):
        raise ValueError(
            f"`parts` of {name!r} must be as many and no larger in a sub-network, but dimension {dim} has parts {full} in the "
            f"full network and {narrow} in a sub-network. Correct it in `register_narrowing`."
        )
    spans: list[slice] = []
    for start, length in zip(itertools.accumulate(full, initial=0), narrow):
        end = start + length
        if spans and spans[-1].stop == start:  # the part before stays whole: the two are one
            start = spans.pop().start
        spans.append(slice(start, end))
    return spans
