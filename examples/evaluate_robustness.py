# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Compares the robustness of image classifiers: accuracy under FGSM attacks and under the corruptions of ImageNet-C.

On the embedded digits' validation images, for two models that run_image_classification.py trained: outputs/plain, and
outputs/gradaug with --gradaug:

    python examples/evaluate_robustness.py --models outputs/plain outputs/gradaug --baseline outputs/plain \
        --output_dir outputs/robustness

On ImageNet's folders, for checkpoints from the Hub. The folders' names differ from the models' class names, but have the
same order:

    python examples/evaluate_robustness.py --models microsoft/resnet-50 facebook/convnext-tiny-224 --output_dir outputs/robustness \
        --validation_dir imagenet/val --classes_by_number --max_samples 5000 \
        --num_workers 8

The script prints a table and writes robustness.json and robustness.png. If it is interrupted, the same command continues.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

from common import MeasuringArguments, naming_unreachable_hub
from transformers import HfArgumentParser

from hf_gradaug import PixelClassifier, RobustnessResults, RobustnessSettings, evaluate_robustness, plot_robustness
from hf_gradaug.data import DataArguments, load_image_data
from hf_gradaug.reporting import find_device


@dataclass(kw_only=True)
class RobustnessArguments(MeasuringArguments):
    """The models to compare, and how."""

    models: list[str] = field(metadata={"help": "Image classifiers: Hub names or folders."})
    output_dir: str = field(metadata={"help": "Folder for robustness.json and robustness.png."})
    baseline: str | None = field(
        default=None, metadata={"help": "One of `models`. The mCE is relative to its errors."}
    )
    split: str = field(default="validation", metadata={"help": "Images to measure on: validation or test."})
    max_samples: int | None = field(
        default=None, metadata={"help": "Maximum number of images, instead of max_eval_samples."}
    )
    batch_size: int = field(default=64, metadata={"help": "Batch size."})

    def __post_init__(self):
        self.check_at_least(batch_size=1, max_samples=1)


def main(args: list[str] | None = None) -> RobustnessResults:
    logging.basicConfig(format="%(levelname)s - %(name)s - %(message)s", level=logging.WARNING)
    parser = HfArgumentParser((RobustnessArguments, RobustnessSettings, DataArguments))
    args, settings, data_args = parser.parse_args_into_dataclasses(args, look_for_args_file=False)
    data_args.check_no_training()
    with naming_unreachable_hub(args, data_args):
        return run(args, settings, data_args)


def run(args: RobustnessArguments, settings: RobustnessSettings, data_args: DataArguments) -> RobustnessResults:
    """Measures robustness, prints the table and draws the plot."""
    if args.max_samples is not None:
        data_args = replace(data_args, max_eval_samples=args.max_samples)
    device = find_device(args.device)
    data = load_image_data(data_args, args.seed)
    classifiers = {name: PixelClassifier.from_pretrained(name, device) for name in args.models}
    results = evaluate_robustness(
        classifiers,
        data,
        settings,
        split=args.split,
        baseline=args.baseline,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        seed=args.seed,
        path=Path(args.output_dir) / "robustness.json",
    )
    print(results.format_table())
    accuracies = {results.labels[name]: accuracy for name, accuracy in results.accuracy.items()}
    plot_robustness(accuracies, settings, Path(args.output_dir) / "robustness.png")
    return results


if __name__ == "__main__":
    main()
