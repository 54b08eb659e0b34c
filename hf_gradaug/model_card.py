# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What GradAug adds to the model card that the Trainer writes."""

import dataclasses
from pathlib import Path

from huggingface_hub import ModelCard

from .settings import GradAugSettings


TAGS = ["gradaug"]
PAPER = "https://arxiv.org/abs/2006.07989"

# The Trainer's words for a model that was built from a config, whose checkpoint has no name.
_FINE_TUNED_FROM_NOTHING = "This model is a fine-tuned version of [](https://huggingface.co/) on"
_FROM_SCRATCH = "This model was trained from scratch on"

_SECTION = """
## GradAug

Trained with [GradAug]({paper}): in each step, narrower sub-networks that share the model's weights learn, on randomly
transformed copies of the batch, from the full network's soft predictions. The checkpoint is the full network, an ordinary
model of `transformers`.

| setting | value |
|---|---|
{rows}

```bibtex
@inproceedings{{yang2020gradaug,
  title     = {{GradAug: A New Regularization Method for Deep Neural Networks}},
  author    = {{Yang, Taojiannan and Zhu, Sijie and Chen, Chen}},
  booktitle = {{Advances in Neural Information Processing Systems}},
  year      = {{2020}}
}}
```
"""


def complete_card(path: str | Path, settings: GradAugSettings) -> None:
    """
    Mends the origin of a model that was built from a config, and adds tags, settings and citation of GradAug.

    Args:
        path (`str` or `Path`):
            The card, as `Trainer.create_model_card` wrote it.
        settings ([`GradAugSettings`]):
            The settings of the run. With 0 sub-networks nothing is added.
    """
    card = ModelCard.load(path)
    card.text = card.text.replace(_FINE_TUNED_FROM_NOTHING, _FROM_SCRATCH)
    if settings.num_subnetworks > 0:
        _add_gradaug(card, settings)
    card.save(path)


def _add_gradaug(card: ModelCard, settings: GradAugSettings) -> None:
    card.data.tags = [*dict.fromkeys([*(card.data.tags or []), *TAGS])]
    names = [field.name for field in dataclasses.fields(GradAugSettings)]
    rows = "\n".join(f"| `{name}` | {_show(getattr(settings, name))} |" for name in names)
    card.text += _SECTION.format(paper=PAPER, rows=rows)


def _show(value: float | str | list[float] | None) -> str:
    if isinstance(value, list):
        return ", ".join(map(_show, value))
    if isinstance(value, str):
        return value
    return "none" if value is None else f"{value:.4g}"
