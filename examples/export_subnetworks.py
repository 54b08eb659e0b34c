# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Exports sub-networks of an image classifier as standard models, and measures them beside the full network.

For a model that run_image_classification.py trained on the embedded digits, in outputs/gradaug:

    python examples/export_subnetworks.py outputs/gradaug --widths 0.5 0.75 0.9 --output_dir outputs/widths

For a checkpoint from the Hub, measured on your own images. The folders have the names of the model's classes:

    python examples/export_subnetworks.py microsoft/resnet-50 --widths 0.9 --output_dir outputs/widths \
        --train_dir photos/train --validation_dir photos/validation --num_workers 8

For a model that was trained with --subnetwork_kind depth. Each stage must have at least as many residual blocks:

    python examples/export_subnetworks.py outputs/gradaug --widths 1 --depths 2,2,1 1,1,1 --output_dir outputs/depths

Each sub-network gets a folder with float32 weights, config, image processor and model card, which `from_pretrained`
loads. The output folder also has widths.json, widths.md and widths.png.
"""

import json
import logging
import statistics
import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from common import MeasuringArguments, naming_unreachable_hub
from huggingface_hub.errors import LocalEntryNotFoundError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, HfArgumentParser, PreTrainedModel
from transformers.utils import logging as transformers_logging

from hf_gradaug import (
    GradAugSettings,
    create_subnetwork_card,
    export_widths,
    format_widths,
    leading_blocks,
    load_classifier,
    make_slimmable,
    plot_widths,
)
from hf_gradaug.data import (
    DataArguments,
    ImageCollator,
    ImageData,
    get_class_names,
    get_eval_transform,
    load_image_data,
)
from hf_gradaug.reporting import find_device, is_hub_name
from hf_gradaug.settings import SETTINGS_NAME, load_settings


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ExportArguments(MeasuringArguments):
    """The sub-networks to export, and how to measure them."""

    output_dir: str = field(metadata={"help": "Folder for the models, the table and the plot."})
    widths: list[float] = field(
        default_factory=lambda: [0.5, 0.75, 0.9],
        metadata={"help": "Width multipliers of the sub-networks, in (0, 1]."},
    )
    depths: list[str] | None = field(
        default=None,
        metadata={
            "help": "Residual blocks of the sub-networks, for each width: numbers per stage such as 2,2,1, or one "
            "number for the whole model. The first blocks are kept. If not given, all blocks are kept."
        },
    )
    width_divisor: int | None = field(
        default=None,
        metadata={
            "help": "Rounds channel counts to multiples of this number. Defaults to the training run's value, else 1."
        },
    )
    calibration_samples: int = field(
        default=1024,
        metadata={
            "help": "Number of random training images to recompute BatchNorm's statistics; 0 keeps the full network's."
        },
    )
    batch_size: int = field(default=128, metadata={"help": "Batch size, also for calibration."})
    repetitions: int = field(default=20, metadata={"help": "Number of timed forwards. The latency is their median."})

    def __post_init__(self):
        self.check_at_least(calibration_samples=0, batch_size=2, repetitions=1)
        if self.calibration_samples == 1:
            raise ValueError(
                "`calibration_samples` must be 2 or more, which BatchNorm needs, or 0, which turns it off, but is 1."
            )
        for depth in self.depths or []:
            if not all(number.isdecimal() for number in depth.split(",")):
                raise ValueError(f"`depths` must be numbers with commas between, such as 2,2,1, but one is {depth!r}.")


def load_batches(
    args: ExportArguments, data: ImageData, transform: Any, model: PreTrainedModel
) -> tuple[DataLoader, DataLoader | None, int]:
    """Batches to evaluate on, and to calibrate on, with the number of those images."""
    names = get_class_names(model.config)
    data = data.with_classes(model.name_or_path, names)
    options = {"collate_fn": ImageCollator(len(names)), "num_workers": args.num_workers}
    eval_batches = DataLoader(data.get_dataset("validation", transform), args.batch_size, **options)
    if not args.calibration_samples:
        return eval_batches, None, 0
    images = data.get_dataset("train", transform)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))
    order = order[: args.calibration_samples].tolist()
    # A split of its own, of which unreadable images are left out before they are counted, as of those to evaluate on.
    splits, rows = {"calibration": images.dataset.select(order)}, {"calibration": [images.rows[row] for row in order]}
    images = replace(data, splits=splits, rows=rows).get_dataset("calibration", transform)
    # Whole batches: BatchNorm can't compute statistics of a single image, which the last one could be.
    batch_size = min(args.batch_size, len(images))
    count = len(images) // batch_size * batch_size
    return eval_batches, DataLoader(Subset(images, range(count)), batch_size, **options), count


@torch.inference_mode()
def count_flops(model: PreTrainedModel, images: torch.Tensor) -> int:
    """FLOPs of the forward for one image. A multiplication with an addition counts as two."""
    # The counter has no formula for the fused attention of CPUs, and would leave it out.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixel_values=images[:1])
    return counter.get_total_flops()


@torch.inference_mode()
def measure_latency(models: list[PreTrainedModel], images: torch.Tensor, repetitions: int) -> list[float]:
    """Median seconds of a forward of each model. They take turns, so other load affects all equally."""
    seconds: list[list[float]] = [[] for _ in models]
    warmup = 3
    what = "latency, 1 image" if len(images) == 1 else f"latency, {len(images)} images"
    for repetition in transformers_logging.tqdm(range(warmup + repetitions), desc=what):
        for model, times in zip(models, seconds):
            start = time.perf_counter()
            model(pixel_values=images)
            if images.device.type != "cpu":
                torch.accelerator.synchronize(images.device)
            if repetition >= warmup:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def add_depth(name: str, kept_blocks: list[list[int]] | None) -> str:
    """The name of a sub-network, with its numbers of blocks if it was asked for them."""
    return name if kept_blocks is None else "-".join([name, "blocks", *(str(len(kept)) for kept in kept_blocks)])


def main(args: list[str] | None = None) -> list[dict[str, Any]]:
    logging.basicConfig(format="%(levelname)s - %(name)s - %(message)s", level=logging.WARNING)
    parser = HfArgumentParser((ExportArguments, DataArguments))
    parser.add_argument("model", help="Image classifier: a Hub name or folder.")
    args, data_args, positional = parser.parse_args_into_dataclasses(args, look_for_args_file=False)
    data_args.check_no_training()
    if data_args.streaming:
        raise ValueError(
            "`streaming` must be off, because images to calibrate on are drawn from all of them, but is on."
        )
    with naming_unreachable_hub(args, data_args, positional):
        return run(args, data_args, positional)


def run(args: ExportArguments, data_args: DataArguments, positional: Namespace) -> list[dict[str, Any]]:
    """Exports and measures as the arguments say; returns the rows of the table."""
    # Made slimmable once: each call of `export_widths` would warn of the same hooks.
    model = make_slimmable(load_classifier(positional.model).to(find_device(args.device)))
    image_processor = AutoImageProcessor.from_pretrained(positional.model, trust_remote_code=False)
    data = load_image_data(data_args, args.seed)
    eval_batches, calibration_batches, count = load_batches(args, data, get_eval_transform(image_processor), model)

    try:
        settings = load_settings(positional.model)
    except LocalEntryNotFoundError as error:
        if args.width_divisor is None:
            raise SystemExit(
                "`width_divisor` must be given, because the settings of the training run can't be read: "
                f"{SETTINGS_NAME} of '{positional.model}' is not in the cache, and the Hub can't be reached."
            ) from error
        settings = GradAugSettings(num_subnetworks=0)
    is_gradaug = settings.num_subnetworks > 0
    # With another one, sub-networks have channel counts that were not trained.
    width_divisor = settings.width_divisor if args.width_divisor is None else args.width_divisor
    base_model = positional.model if is_hub_name(positional.model) else None

    # The last is the full network, which is measured like the others, but not saved.
    whole = leading_blocks(model.config) if args.depths else None
    kinds = [leading_blocks(model.config, [*map(int, depth.split(","))]) for depth in args.depths or []] or [None]
    plan = {kept: [width for width in sorted(set(args.widths)) if (kept, width) != (whole, 1)] for kept in kinds}
    exports = [
        export
        for kept_blocks, widths in [*plan.items(), (whole, [1.0])]
        if widths
        for export in export_widths(model, widths, eval_batches, calibration_batches, width_divisor, kept_blocks)
    ]
    models, rows = map(list, zip(*exports))
    images = next(iter(eval_batches))["pixel_values"].to(model.device)
    latencies = [measure_latency(models, batch, args.repetitions) for batch in (images[:1], images)]
    for row, network, latency_1, latency_batch in zip(rows, models, *latencies):
        row |= {"flops": count_flops(network, images), "latency_1": latency_1, "latency_batch": latency_batch}

    output_dir = Path(args.output_dir)
    full = rows[-1]
    for row, network in zip(rows[:-1], models):
        recalibrated = row["accuracy_recalibrated"] is not None
        accuracy = row["accuracy_recalibrated"] if recalibrated else row["accuracy"]
        measured = {
            f"top-1 accuracy on {data.name}": (f"{full['accuracy']:.2%}", f"{accuracy:.2%}"),
            "MFLOPs of an image": (f"{full['flops'] / 1e6:,.1f}", f"{row['flops'] / 1e6:,.1f}"),
        }
        metadata = {"pipeline_tag": "image-classification", "tags": ["gradaug"] if is_gradaug else []}
        images_read = count if recalibrated else 0
        kept_blocks = row["kept_blocks"]
        card = create_subnetwork_card(
            network, model, row["width"], images_read, measured, base_model, kept_blocks, **metadata
        )
        folder = output_dir / add_depth(f"width-{row['width']:g}", kept_blocks)
        network.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        card.save(folder / "README.md")
    result = {
        "model": positional.model,
        "data": data.name,
        "evaluation_images": len(eval_batches.dataset),
        "calibration_images": count,
        "batch_size": len(images),
        "width_divisor": width_divisor,
        "image_size": list(images.shape[-2:]),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "widths.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    table = format_widths(rows)
    (output_dir / "widths.md").write_text(table + "\n", encoding="utf-8")
    try:
        curves: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            curves.setdefault(add_depth(Path(positional.model).name, row["kept_blocks"]), []).append(row)
        plot_widths(curves, output_dir / "widths.png")
    except ImportError as error:  # no matplotlib: the models are good without the picture
        logger.warning(error)
    print(table)
    return rows


if __name__ == "__main__":
    main()
