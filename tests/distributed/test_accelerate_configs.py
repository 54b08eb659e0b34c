# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The configs of `accelerate launch` in the examples: read, checked and started, on no GPU."""

import json
import multiprocessing
import os
import socket

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from helpers import images


FOLDER = images.ROOT / "examples" / "accelerate_configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
RECIPE = ["examples/run_image_classification.py", "examples/recipes/imagenet_resnet50.yaml"]


def validate(name, *flags):
    """The arguments that `accelerate launch` comes to, its config file applied."""
    words = ["--config_file", str(FOLDER / f"{name}.yaml"), *flags, *RECIPE]
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


def start(words, environment):
    os.environ.update(environment)
    launch_command(launch_command_parser().parse_args(words))


@pytest.fixture
def launch(tmp_path, subprocess_env):
    """Starts `accelerate launch` once for each tuple of words, all at once; returns what their processes were told."""

    def launch(name, *launches, script="tests/helpers/scripts/show_launch.py", arguments=(str(tmp_path),)):
        # Forked, because another launcher would take seconds to import what this process has imported.
        fork = multiprocessing.get_context("fork")
        config = ["--config_file", str(FOLDER / f"{name}.yaml")]
        launchers = [
            fork.Process(target=start, args=([*config, *words, str(images.ROOT / script), *arguments], subprocess_env))
            for words in launches
        ]
        for launcher in launchers:
            launcher.start()
        for launcher in launchers:
            launcher.join(timeout=90)
            if launcher.exitcode is None:
                launcher.terminate()
        assert [launcher.exitcode for launcher in launchers] == [0] * len(launchers)
        told = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
        return sorted(told, key=lambda process: int(process.get("RANK", 0)))

    return launch


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_there_are_configs():
    assert [path.stem for path in CONFIGS] == ["eight_gpus", "fsdp2", "single_gpu", "two_nodes"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_is_known(path):
    config = load_config_from_file(str(path))  # raises for a top-level key that it doesn't know
    assert isinstance(config, ClusterConfig)
    # It takes any key inside of a section, and launches as if it weren't there.
    flags = {action.dest for action in launch_command_parser()._actions}
    sections = {key: value for key, value in yaml.safe_load(path.read_text()).items() if isinstance(value, dict)}
    assert not {key for section in sections.values() for key in section} - flags


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_command_in_the_comments_is_one_that_parses(path):
    comment = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    words = comment[comment.index("accelerate launch ") :].replace("\\ ", "").split()[2:]
    args = launch_command_parser().parse_args(words)
    assert images.ROOT / args.config_file == path
    assert [args.training_script, args.training_script_args[0]] == RECIPE
    for name in RECIPE:
        assert (images.ROOT / name).is_file()


def test_single_gpu():
    args = validate("single_gpu")
    assert (args.multi_gpu, args.use_fsdp, args.num_processes, args.mixed_precision) == (False, False, 1, "no")
    command, environment = prepare_simple_launcher_cmd_env(args)
    assert command[-2:] == RECIPE
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"  # two would mean `nn.DataParallel`
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


def test_eight_gpus():
    args = validate("eight_gpus")
    assert (args.multi_gpu, args.num_processes, args.gpu_ids) == (True, 8, "all")
    prepare_multi_gpu_env(args)
    assert args.nproc_per_node == "8"
    assert validate("eight_gpus", "--num_processes", "4").num_processes == 4
    assert validate("eight_gpus", "--mixed_precision", "fp16").mixed_precision == "fp16"


def test_two_nodes():
    # As on the second machine: on the first one, Accelerate looks whether the port is free.
    args = validate("two_nodes", "--machine_rank", "1")
    assert (args.multi_gpu, args.num_machines, args.num_processes) == (True, 2, 16)
    prepare_multi_gpu_env(args)
    assert (args.nproc_per_node, args.nnodes, args.node_rank) == ("8", "2", 1)
    assert args.rdzv_endpoint == "node0:29500"
    assert validate("two_nodes").machine_rank == 0
    assert validate("two_nodes", "--main_process_ip", "10.0.0.1").main_process_ip == "10.0.0.1"


def test_fsdp2_is_one_unit(monkeypatch):
    args = validate("fsdp2")
    assert (args.use_fsdp, args.multi_gpu, args.num_processes, args.fsdp_version) == (True, False, 8, 2)
    environment = prepare_multi_gpu_env(args)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()  # as the Accelerator of each process makes it
    assert plugin.fsdp_version == 2
    assert plugin.auto_wrap_policy is None
    assert plugin.reshard_after_forward is False
    assert plugin.cpu_ram_efficient_loading is False
    assert "FULL" in str(plugin.state_dict_type)


@pytest.mark.distributed
def test_launch_on_one_machine(launch):
    told = launch("eight_gpus", ["--num_processes", "2", "--main_process_port", free_port()])
    assert [(process["RANK"], process["LOCAL_RANK"], process["WORLD_SIZE"]) for process in told] == [
        ("0", "0", "2"),
        ("1", "1", "2"),
    ]
    assert all(process["ACCELERATE_MIXED_PRECISION"] == "no" for process in told)


@pytest.mark.distributed
def test_launch_on_two_nodes(launch):
    # Both on this machine, each with two of the eight processes.
    common = ["--num_processes", "4", "--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    told = launch("two_nodes", *[["--machine_rank", rank, *common] for rank in "01"])
    assert [(process["RANK"], process["LOCAL_RANK"]) for process in told] == [
        ("0", "0"),
        ("1", "1"),
        ("2", "0"),
        ("3", "1"),
    ]
    assert {process["WORLD_SIZE"] for process in told} == {"4"}


@pytest.mark.slow
@pytest.mark.distributed
def test_launch_trains_in_two_processes(launch, tmp_path):
    launch(
        "eight_gpus",
        ["--num_processes", "2", "--main_process_port", free_port()],
        script="tests/helpers/scripts/train_tiny.py",
        arguments=(json.dumps([{"output": str(tmp_path), "per_device_train_batch_size": 4}]),),
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["processes"] == 2
    assert result["synchronizations"] > 0
