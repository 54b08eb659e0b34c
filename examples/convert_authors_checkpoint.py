# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Converts a checkpoint of the GradAug authors to a standard checkpoint for `from_pretrained` and `pipeline`.

    python examples/convert_authors_checkpoint.py model_best.pth.tar resnet50-gradaug \
        --model_card model_cards/authors_resnet50.md

With --to_authors, writes a file for the authors' script. To evaluate it there, set `test_only: True` and `pretrained` to
the file:

    python examples/convert_authors_checkpoint.py --to_authors resnet50-gradaug resnet50.pth.tar
"""

import argparse
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from hf_gradaug import convert_authors_checkpoint, load_classifier, to_authors_state_dict


logger = logging.getLogger(__name__)


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A path to write to. It becomes `out` when complete; an error leaves nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        yield Path(folder) / out.name
        if out.is_dir():  # empty
            out.rmdir()
        (Path(folder) / out.name).rename(out)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "file", metavar="FILE", help="The authors' checkpoint; with --to_authors, a model's Hub name or folder."
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="Folder to write; with --to_authors, a file.")
    parser.add_argument(
        "--model_card",
        type=Path,
        help="Model card to save with the weights. Not with --to_authors, which writes no card.",
    )
    parser.add_argument("--to_authors", action="store_true", help="Convert a model to the authors' layout.")
    args = parser.parse_args(args)
    logging.basicConfig(level=logging.INFO)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"`OUT` must not exist, or be an empty folder, but is '{args.out}'.")
    if args.model_card is not None and args.to_authors:
        raise ValueError(f"`--model_card` must not be given with `--to_authors`, but is '{args.model_card}'.")
    if args.model_card is not None and not args.model_card.is_file():
        raise ValueError(f"`--model_card` must be a file, but is '{args.model_card}'.")

    if args.to_authors:
        state = to_authors_state_dict(load_classifier(args.file))
        with written_whole(args.out) as path:
            torch.save({"model": state}, path)
    else:
        model, image_processor = convert_authors_checkpoint(args.file)
        with written_whole(args.out) as path:
            model.save_pretrained(path)
            image_processor.save_pretrained(path)
            if args.model_card is not None:
                shutil.copyfile(args.model_card, path / "README.md")
    logger.info(f"'{args.file}' was converted to '{args.out}'.")


if __name__ == "__main__":
    main()
