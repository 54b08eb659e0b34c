# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
GradAug in your own training loop, with Accelerate and without the Trainer.

Train a small ResNet from scratch on the embedded handwritten digits:

    accelerate launch examples/run_image_classification_no_trainer.py --output_dir out

With `--num_subnetworks 0`, the script trains the plain baseline.
"""

import contextlib
import logging
import math
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import set_seed
from common import check_has_subnetworks, label_names, load_pretrained, naming_unreachable_hub
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    HfArgumentParser,
    ResNetConfig,
    get_cosine_schedule_with_warmup,
)

from hf_gradaug import GradAug, GradAugSettings
from hf_gradaug.data import (
    DataArguments,
    ImageCollator,
    ImageData,
    get_class_names,
    get_eval_transform,
    get_train_transform,
    load_image_data,
)
from hf_gradaug.settings import save_settings
from hf_gradaug.training import NonFiniteLossGuard, end_with_launcher


logger = logging.getLogger(__name__)


@dataclass
class LoopArguments:
    """The settings of the loop."""

    output_dir: str = field(default="out", metadata={"help": "Folder for the trained model."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained model. Defaults to a small ResNet from scratch."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Use a new head if the pretrained head has other classes."}
    )
    num_train_epochs: int = field(default=10, metadata={"help": "Number of epochs."})
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Number of optimizer steps, instead of epochs."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Batch size per process and micro-batch."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Batch size per process in evaluation."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro-batches per optimizer step."})
    learning_rate: float = field(
        default=0.1, metadata={"help": "Learning rate of SGD with Nesterov momentum, with a cosine schedule."}
    )
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay."})
    num_workers: int = field(default=0, metadata={"help": "Data-loading workers per process."})
    seed: int = field(default=42, metadata={"help": "Random seed."})


def build_model(args: LoopArguments, data: ImageData):
    """The model for the classes of the data, and its image processor."""
    labels = label_names(data.class_names)
    if name := args.model_name_or_path:
        # Said outright, or code from the Hub would be asked for at the keyboard.
        hub = {"trust_remote_code": False}
        config = AutoConfig.from_pretrained(name, **hub)
        config.problem_type = "single_label_classification"  # so that mixed labels are class probabilities
        model = load_pretrained(
            AutoModelForImageClassification,
            name,
            config,
            data.name,
            data.class_names,
            by_number=data.classes_by_number,
            ignore_mismatched_sizes=args.ignore_mismatched_sizes,
            **hub,
        )
        return model, AutoImageProcessor.from_pretrained(name, **hub)
    network = {"layer_type": "basic", "embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1]}
    config = ResNetConfig(**network, problem_type="single_label_classification", **labels)
    return AutoModelForImageClassification.from_config(config), ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=1.0
    )


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader) -> float:
    """Top-1 accuracy of the full network over all processes."""
    model.eval()
    correct = total = 0
    for batch in tqdm(loader, "evaluation", disable=not accelerator.is_local_main_process):
        hits = model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]
        hits = accelerator.gather_for_metrics(hits)
        correct, total = correct + hits.sum().item(), total + len(hits)
    return correct / total


def main(args: list[str] | None = None) -> float:
    end_with_launcher()
    parser = HfArgumentParser((LoopArguments, DataArguments, GradAugSettings))
    flags, _ = parser.parse_known_args(args)
    if not any(getattr(flags, name) for name in DataArguments.DATA_SOURCES):
        # A mirrored digit is another sign, and a small crop can be any.
        parser.set_defaults(horizontal_flip=False, random_resized_crop_scale=[0.7, 1.0])
    args, data_args, settings = parser.parse_args_into_dataclasses(args, look_for_args_file=False)
    if data_args.streaming:
        raise ValueError("`streaming` must be off in this script, but is on. Use run_image_classification.py.")
    if data_args.in_memory:
        raise ValueError("`in_memory` must be off in this script, but is on. Use run_image_classification.py.")
    if data_args.skip_bad_images:
        raise ValueError("`skip_bad_images` must be off in this script, but is on. Use run_image_classification.py.")
    if settings.nonfinite_loss != "stop":
        raise ValueError(
            f"`nonfinite_loss` must be 'stop' in this script, but is {settings.nonfinite_loss!r}. Use run_image_classification.py."
        )
    logging.basicConfig(level=logging.INFO)
    with naming_unreachable_hub(args, data_args):
        return run(args, data_args, settings)


def run(args: LoopArguments, data_args: DataArguments, settings: GradAugSettings) -> float:
    """Trains as the arguments say; returns the last accuracy."""
    accelerator = Accelerator()
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise ValueError(
            "This script supports only a single process or DistributedDataParallel, but Accelerate is configured for "
            f"{accelerator.distributed_type.value}. Use run_image_classification.py."
        )
    set_seed(args.seed)

    if name := args.model_name_or_path:  # before the data are read
        check_has_subnetworks(AutoConfig.from_pretrained(name, trust_remote_code=False), settings)
    with accelerator.main_process_first():
        data = load_image_data(data_args, args.seed)
    model, image_processor = build_model(args, data)
    data = data.with_classes(args.model_name_or_path, get_class_names(model.config))
    collator = ImageCollator(len(data.class_names), data_args.cutmix_alpha, data_args.mixup_alpha, data_args.mix_prob)
    transform = get_train_transform(image_processor, **data_args.train_augmentation)
    train_dataset = data.get_dataset("train", transform, mix=True, seed=args.seed)
    train_loader = DataLoader(
        train_dataset,
        batch_size=args.per_device_train_batch_size,
        shuffle=True,
        collate_fn=collator,
        num_workers=args.num_workers,
    )
    eval_loader = DataLoader(
        data.get_dataset("validation", get_eval_transform(image_processor)),
        batch_size=args.per_device_eval_batch_size,
        collate_fn=collator,
        num_workers=args.num_workers,
    )
    gradaug = GradAug(model, settings, seed=args.seed)  # before the model is wrapped
    guard = NonFiniteLossGuard(accelerator, model, settings.nonfinite_loss)
    optimizer = torch.optim.SGD(
        model.parameters(), args.learning_rate, momentum=0.9, nesterov=True, weight_decay=args.weight_decay
    )
    model, optimizer, train_loader, eval_loader = accelerator.prepare(model, optimizer, train_loader, eval_loader)
    accumulation = args.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(train_loader) / accumulation)
    max_steps = args.max_train_steps or args.num_train_epochs * steps_per_epoch
    # Not prepared: it counts optimizer steps, and Accelerate would advance it by the number of processes.
    scheduler = get_cosine_schedule_with_warmup(optimizer, 0, max_steps)

    step, accuracy = 0, 0.0
    for epoch in range(math.ceil(max_steps / steps_per_epoch)):
        model.train()  # a pretrained model starts in eval mode, and each evaluation leaves it there
        train_loader.set_epoch(epoch)  # another order
        train_dataset.set_epoch(epoch)  # other augmentations; with several processes, the loader doesn't pass it on
        progress = tqdm(train_loader, f"epoch {epoch + 1}", disable=not accelerator.is_local_main_process)
        for micro_step, inputs in enumerate(progress):
            group_start = micro_step - micro_step % accumulation
            group_size = min(accumulation, len(train_loader) - group_start)  # the epoch's last step may have fewer
            is_last_batch = micro_step == group_start + group_size - 1
            losses, passes = [], []
            guard.start()
            for gradaug_pass in gradaug.passes(inputs, step):
                synchronize = gradaug_pass.is_last and is_last_batch
                with contextlib.nullcontext() if synchronize else accelerator.no_sync(model), gradaug_pass:
                    loss = gradaug_pass.compute(model)
                    accelerator.backward(loss / group_size)
                losses.append(loss.detach())
                passes.append(gradaug_pass)
            guard.finish(losses, passes, step + 1)
            if is_last_batch:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step += 1
                if step == max_steps:
                    break
        guard.settle()
        accuracy = evaluate(accelerator, model, eval_loader)
        if accelerator.is_main_process:
            logger.info(f"epoch {epoch + 1}: step {step}, last loss {losses[0].item():.4f}, top-1 {accuracy:.2%}")

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(args.output_dir)
        image_processor.save_pretrained(args.output_dir)
        save_settings(settings, args.output_dir)  # export_subnetworks.py rounds widths as the training did
    accelerator.end_training()
    return accuracy


if __name__ == "__main__":
    main()
