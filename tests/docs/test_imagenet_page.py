# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The section on ImageNet at scale: its commands mean what it says, and its arithmetic is right."""

import json
import re
import shlex

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from helpers import images


PAGE = (images.ROOT / "docs" / "distributed.md").read_text("utf-8").split("\n## ImageNet at scale\n")[1]
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).replace("\\\n", " ")
COMMANDS = [line for line in BLOCKS.splitlines() if line.startswith("accelerate launch ")]
IMAGES, EPOCHS, BATCH = 1_281_167, 120, 512


@pytest.fixture(scope="module")
def script():
    return images.load_script("run_image_classification")


@pytest.fixture
def parse(script, monkeypatch, tmp_path):
    """The number of processes that a command starts, and the script's three groups of arguments."""

    def parse(command):
        monkeypatch.chdir(images.ROOT)  # the paths are those from the repository's folder
        args = launch_command_parser().parse_args(shlex.split(command)[2:])
        assert (images.ROOT / args.training_script).name == "run_image_classification.py"
        processes = load_config_from_file(args.config_file).num_processes
        return processes, script.parse_arguments(
            [*args.training_script_args, "--use_cpu", "--output_dir", str(tmp_path)]
        )

    return parse


def number(text):
    return float(text.replace(",", ""))


def test_there_are_commands():
    assert len(COMMANDS) == 8


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_keep_the_recipe(parse, command):
    processes, (model_args, data_args, args) = parse(command)
    if "--do_eval --output_dir" in command:
        assert args.do_eval and not args.do_train and data_args.dataset_name == "ILSVRC/imagenet-1k"
        return
    assert processes * args.per_device_train_batch_size * args.gradient_accumulation_steps == BATCH
    assert (model_args.gradaug, args.learning_rate, args.num_train_epochs, args.bf16) == (True, 0.2, EPOCHS, True)
    assert bool(data_args.dataset_name) != bool(data_args.train_dir)
    if "--max_steps 300" in command:
        assert not args.do_eval and args.eval_strategy == args.save_strategy == "no"


def test_the_baseline_is_one_flag_away(parse):
    _, (_, _, args) = parse(f"{COMMANDS[0]} --gradaug false")
    assert args.num_subnetworks == 0


def test_arithmetic():
    assert f"{IMAGES:,} // {BATCH} = {IMAGES // BATCH:,} steps are {EPOCHS * (IMAGES // BATCH):,} steps" in PAGE
    area = sum((size / 224) ** 2 for size in (224, 192, 160, 128)) / 4
    squares = 0.9**2 + 2 * (1 - 0.9**3) / 3 / 0.1  # of 0.9, and of two widths that are uniform in [0.9, 1]
    ratio = round(1 + squares * area, 2)
    assert f"= {area:.3f}." in PAGE and f"= {squares:.3f}." in PAGE and f"**{ratio}**" in PAGE
    ratios = {}
    for kind, file, setting, digits in (
        ("fast", "graphs", "graphs, batch 256", 2),
        ("TF32", "steps", "float32, batch 128", 2),
        ("small", "batch-64", "divisor 32, batch 64", 1),
    ):
        results = json.loads((images.ROOT / "docs" / "results" / "h200" / f"{file}.json").read_text("utf-8"))
        (entry,) = (each for name, each in results["entries"].items() if name.endswith(setting))
        measured, factor = round(entry["arms"]["gradaug"]["time_ratio"], 2), round(ratio / entry["flop_ratio"], 2)
        ratios[kind] = round(measured * factor, digits)
        assert f"{measured} x {factor} = **{ratios[kind]}**" in PAGE
    rows = re.findall(r"^\| (\d+) x (.*?) \| ([\d,]+) \| \[\d\] \| ([\d.]+) \| (\d+) \|$", PAGE, re.M)
    assert len(rows) == 7 and sum("TF32" in name for _, name, *_ in rows) == 1
    for gpus, name, plain, hours, gpu_hours in rows:
        expected = EPOCHS * IMAGES * ratios["TF32" if "TF32" in name else "fast"] / number(plain) / 3600
        assert number(hours) == pytest.approx(expected, abs=0.05)
        assert number(gpu_hours) == pytest.approx(expected * int(gpus), abs=0.5)
    costs = {
        kind: [2 * number(row[-1]) for row in rows if row[0] == "8" and ("TF32" in row[1]) == kind] for kind in (0, 1)
    }
    assert f"8 GPUs cost ${min(costs[0]):.0f} to ${max(costs[0]):.0f}, and ${costs[1][0]:.0f} with TF32" in PAGE
