# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The benchmark runs and writes what it promises. No test here asserts a time: those are for a quiet machine."""

import json
import logging
import re
import runpy
import sys

import pytest
import torch
import yaml
from helpers.tiny import tiny_model

from benchmarks import accuracy, host_time, robustness, robustness_report, step, step_grid, streaming, widths
from benchmarks.common import temporary_folder
from hf_gradaug import GradAug, subnetwork_state_dict
from hf_gradaug.data import make_image_processor
from hf_gradaug.transforms import scaled_size


@pytest.fixture(autouse=True)
def one_thread():
    # Networks on so few pixels have nothing to share out, and threads that wait for each other are slow on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["host_time", "robustness", "step", "step_grid", "streaming", "widths"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # of the module that this file has imported
def test_benchmark_runs_with_the_smallest_settings(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, "--smoke", "--output", str(tmp_path / "results.json")])
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")  # as python -m, without importing everything again
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["command"].startswith(f"python -m benchmarks.{name} --smoke") and results["versions"]["torch"]


@pytest.mark.slow
def test_study_runs_with_the_smallest_settings(tmp_path, capsys):
    network = "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"
    shared = {"datasets": {"digits": {}}, "flags": {"model_type": "resnet", "config_overrides": network}}
    studies = {
        "steps": {"seeds": [1], "arms": {"plain": {"max_steps": 9}}},
        "search": {
            "seeds": [2],
            "tuned_by": "steps.yaml",
            "arms": {"plain": [{"tuned": "plain", "learning_rate": 0.1}]},
        },
        "some": {
            "seeds": [3, 4],
            "tuned_by": "search.yaml",
            "arms": {"plain": {"tuned": "plain"}, "GradAug": {"gradaug": True}, "CutMix": {"compute_of": "GradAug"}},
        },
    }
    for name, study in studies.items():
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump(shared | {"split": "validation"} | study, sort_keys=False)
        )
    accuracy.main([str(tmp_path / "some.yaml"), "--smoke"])
    printed, progress = capsys.readouterr()
    assert "2/2 [" in progress and "cells" in progress
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[:2] for row in rows[2:]] == [["| plain", "1"], ["| GradAug", "1"]]


def test_host_times_are_of_narrower_networks():
    for build in host_time.MODELS.values():
        full = build()
        counts = [sum(map(torch.numel, full.parameters()))]
        for width in host_time.WIDTHS:
            counts.append(sum(map(torch.numel, subnetwork_state_dict(full, width)[1].values())))
        assert counts == sorted(set(counts), reverse=True)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_host_times_of_every_mode(processes, tmp_path, capfd):
    argv = ["--smoke", "--models", "vit-small", "--processes", str(processes), "--output", str(tmp_path / "a.json")]
    host_time.main(argv)
    results = json.loads((tmp_path / "a.json").read_text())
    assert len(results["processes"]) == processes
    progress = capfd.readouterr().err
    assert "vit-small, steps: 100%" in progress
    assert ("vit-small, passes: 100%" in progress) == (processes == 1)
    for of_process in results["processes"]:
        measured = of_process["vit-small"]
        assert [*measured] == (["passes", "steps"] if processes == 1 else ["steps"])
        for arms in measured.values():
            assert [*arms] == ["plain", "detached", "views"]
            assert min(figures["microseconds"] for figures in arms.values()) > 0
            assert arms["plain"]["ratio"] == 1


@pytest.mark.slow
def test_flop_ratio_of_the_papers_configuration():
    assert step.WIDTHS == (0.97, 0.93, 0.9)
    assert [scaled_size((224, 224), scale) for scale in step.SCALES] == [(192, 192), (160, 160), (128, 128)]
    assert step.flop_ratio("resnet-50", image_size=224) == pytest.approx(2.40, abs=0.02)


@pytest.mark.slow
def test_results_of_every_arm(tmp_path, capsys):
    output = tmp_path / "folder" / "results.json"
    command = "--model wrn-16-4 --batch_size 2 --repetitions 1 --device cpu --memory False --output"
    step.main([*command.split(), str(output)])
    assert "time, separate: 100%" in capsys.readouterr().err
    results = json.loads(output.read_text())

    assert [*results["arms"]] == ["plain", "gradaug", "views", "naive", "separate"]
    for figures in results["arms"].values():
        assert figures["seconds_median"] > 0
        assert figures["images_per_second"] > 0
        assert len(figures["seconds"]) == 1
        assert figures["time_ratio"] > 0
    assert results["arms"]["plain"]["time_ratio"] == 1
    assert {"cpu", "cores", "threads"} <= {*results["hardware"]}
    assert {"torch", "transformers", "hf_gradaug"} <= {*results["versions"]}
    # What ran is what the FLOP ratio was counted for, in every arm.
    for arm in ("gradaug", "views", "naive"):
        assert [ran["width"] for ran in results["passes"][arm]] == pytest.approx([1.0, 0.97, 0.93, 0.9], abs=0.0005)
        assert [ran["size"][0] for ran in results["passes"][arm]] == [32, 27, 23, 18]


def test_compiled_sub_networks_have_the_same_widths():
    settings = step.make_settings(step.BenchmarkArguments(torch_compile=True), "gradaug")
    gradaug = GradAug(tiny_model("resnet-basic", num_labels=10), settings, seed=step.SEED)
    batch = {"pixel_values": torch.zeros(2, 3, 28, 28), "labels": torch.tensor([0, 1])}
    drawn = []
    for gradaug_pass in gradaug.passes(batch, step=0):
        with gradaug_pass:
            gradaug_pass.loss(gradaug.model(**gradaug_pass.inputs)).backward()
        drawn.append((gradaug_pass.width, gradaug_pass.size[0]))
    assert drawn == [(1.0, 28), (0.97, 24), (0.93, 20), (0.9, 16)]


def test_memory_of_each_arm_shows_progress(monkeypatch, capsys):
    monkeypatch.setattr(step, "measure_memory_apart", lambda argv, arm: {"peak_memory_bytes": 1})
    results = step.measure(["--smoke", "--device", "cpu"])
    assert [figures["peak_memory_bytes"] for figures in results["arms"].values()] == [1, 1]
    assert "memory, gradaug: 100%" in capsys.readouterr().err


@pytest.mark.slow
def test_float16_trains_with_a_scaler():
    args = step.BenchmarkArguments(smoke=True, dtype="float16", device="cpu")
    passes = []
    step.build_step(args, "gradaug", passes)()
    assert len(passes) == 4


@pytest.mark.slow
def test_grid_draws_what_it_measured(tmp_path):
    step_grid.main(["--smoke", "--output", f"{tmp_path}/a.json", "--plot", f"{tmp_path}/a.png"])
    results = json.loads((tmp_path / "a.json").read_text())
    assert [*results["entries"]] == ["wrn-16-4: channels_last, divisor 8"]
    assert results["overhead"]["share"] < 1 and (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.slow
def test_peak_memory_is_counted(capsys):
    argv = ["--batch_size", "2", "--image_size", "32", "--device", "cpu", "--memory_of", "plain"]
    memory = step.main(argv)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == memory  # the process that started it reads this
    # The second step has weights, gradients and momentum of ResNet-50's 25.6 million parameters in float32, and more.
    assert 3 * 25.5e6 * 4 < memory["peak_memory_bytes"] < 2 * 3 * 25.6e6 * 4


@pytest.mark.slow
def test_streaming_measures_each_arm(tmp_path, capsys):
    results = streaming.main(["--smoke", "--output", f"{tmp_path}/a.json", "--plot", f"{tmp_path}/a.png"])
    assert json.loads((tmp_path / "a.json").read_text()) == results
    assert (tmp_path / "a.png").stat().st_size > 10_000
    trained = ["tiny, parquet, 1 workers", "tiny, tar, 1 workers"]
    loaded = ["loader, parquet, 1 workers", "loader, tar, 1 workers", "raw, 1 workers"]
    assert [*results["arms"]] == ["tiny, memory", *trained, *loaded]
    assert all(arm["images_per_second"] > 0 for arm in results["arms"].values())
    for name in trained:
        assert results["arms"][name].keys() >= {"waiting", "of_memory", "of_raw"}
    for parts in results["milliseconds_per_image"].values():
        assert [*parts] == ["reading", "decoding", "augmenting", "collating"] and min(parts.values()) > 0
    assert {"command", "hardware", "versions", "settings"} <= results.keys()
    printed, progress = capsys.readouterr()
    assert all(name in printed for name in results["arms"]) and "train_runtime" not in printed
    assert all(f"{what}: 100%" in progress for what in ("shards", "loader, 1 workers", "raw, 1 workers"))
    assert progress.count("5/5 [") >= 3  # the steps of each training
    with pytest.raises(ValueError, match="`workers` must be in 1..num_shards"):
        streaming.main(["--workers", "9"])


@pytest.mark.slow
def test_widths_show_the_progress_of_each_script(capfd):
    widths.main(["--smoke"])
    printed, progress = capfd.readouterr()
    assert "1/1 [" in progress and "width 0.5, recalibrated: 100%" in progress
    assert "%|" not in printed


def test_accuracies_by_width_are_averaged_over_seeds():
    seeds = [
        {
            "rows": [
                {
                    "width": 0.5,
                    "accuracy": a,
                    "accuracy_recalibrated": b,
                    "latency_1": c,
                    "latency_batch": c,
                    "flops": 7,
                }
            ]
        }
        for a, b, c in ((0.1, 0.8, 3), (0.2, 0.8, 1), (0.3, 0.8, 20))
    ]
    (row,) = widths.summarize(seeds)
    assert row == {
        "width": 0.5,
        "flops": 7,
        "accuracy": pytest.approx(0.2),
        "accuracy_deviation": pytest.approx(0.1),
        "accuracy_recalibrated": pytest.approx(0.8),
        "accuracy_recalibrated_deviation": pytest.approx(0),
        "latency_1": 3,
        "latency_batch": 3,
    }
    assert widths.summarize(seeds[:1])[0]["accuracy_deviation"] is None


@pytest.mark.slow
def test_robustness_of_both_arms(tmp_path, capsys):
    train = "--max_steps 2 --max_train_samples 64 --max_eval_samples 20 --use_cpu"
    measure = "--max_samples 20 --epsilons 8 --corruptions fog contrast --severities 2 --device cpu"
    files = ["--output", f"{tmp_path}/a.json", "--plot", f"{tmp_path}/a.png"]
    results = robustness.main(["--seeds", "1", "2", "--train_flags", train, "--eval_flags", measure, *files])
    progress = capsys.readouterr().err
    assert progress.count("2/2 [") >= 4 and "contrast/2: 100%" in progress  # trainings, and conditions
    assert json.loads((tmp_path / "a.json").read_text()) == results
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert len(results["commands"]) == 5 and "--gradaug" in results["commands"][1]
    assert all(str(tmp_path.parent) not in command for command in results["commands"])
    clean = [run["clean"] for run in results["accuracy"]["GradAug"]]
    figures = results["summary"]["GradAug"]["clean"]
    assert figures["mean"] == pytest.approx(sum(clean) / 2)
    assert figures["deviation"] == pytest.approx(abs(clean[0] - clean[1]) / 2**0.5)
    differences = [one - other["clean"] for one, other in zip(clean, results["accuracy"]["plain"])]
    assert results["summary"]["GradAug - plain"]["clean"]["by_seed"] == differences


@pytest.mark.slow
def test_robustness_of_the_models_of_a_study(tmp_path):
    study = tmp_path / "some.yaml"
    study.write_text(
        "datasets: {digits: {}}\nseeds: [1, 2]\nsplit: validation\narms: {plain: {}, CutMix: {cutmix_alpha: 1.0}}\n"
    )
    measure = "--max_samples 20 --epsilons 8 --corruptions fog --severities 2 --device cpu"
    flags = ["--study", str(study), "--work_dir", str(tmp_path), "--eval_flags", measure]
    flags += ["--output", str(tmp_path / "some-robustness.json")]
    with pytest.raises(ValueError, match=r"but 4 are missing, .*: python -m benchmarks.accuracy .* trains them"):
        robustness.main(flags)
    for number, arm in enumerate(("plain", "CutMix")):
        for seed in (1, 2):
            torch.manual_seed(10 * number + seed)
            folder = tmp_path / "some" / "digits" / arm / "0" / str(seed)
            tiny_model("resnet-basic", num_labels=10).save_pretrained(folder)
            make_image_processor(32, 1.0).save_pretrained(folder)
    results = robustness.main(flags)
    assert results["seeds"] == [1, 2] and len(results["commands"]) == 1
    assert [*results["summary"]] == ["plain", "CutMix", "CutMix - plain"]
    table = (tmp_path / "some-robustness.md").read_text().splitlines()
    assert table[0] == "**digits**: accuracy, %, on the validation images"
    assert table[2] == "| arm | clean | FGSM, 8/255 | under corruptions |"
    for line, arm in zip(table[4:], ("plain", "CutMix"), strict=True):
        clean = [run["clean"] for run in results["accuracy"][arm]]
        assert line.startswith(f"| {arm} | {100 * sum(clean) / 2:.2f}")
    assert (tmp_path / "some-robustness.png").stat().st_size > 5_000
    robustness.main(
        [*flags[:-4], "--eval_flags", "--corruptions none " + measure.split("--corruptions")[0], *flags[-2:]]
    )
    assert (tmp_path / "some-robustness.md").read_text().splitlines()[2] == "| arm | clean | FGSM, 8/255 |"
    assert all(0 <= run["fog/2"] <= 1 for run in results["accuracy"]["CutMix"])
    assert [*robustness.main([*flags, "--arms", "CutMix", "plain"])["summary"]] == [
        "CutMix",
        "plain",
        "plain - CutMix",
    ]
    with pytest.raises(ValueError, match="`arms` must be of plain, CutMix, but is GradAug"):
        robustness.main([*flags, "--arms", "GradAug"])
    with pytest.raises(ValueError, match="`output` must be given with `study`"):
        robustness.main(flags[:2])
    with pytest.raises(ValueError, match="must not be given with `study`"):
        robustness.main([*flags, "--train_flags", "--max_steps 1"])
    with pytest.raises(ValueError, match=re.escape("`seeds` must be of the study's, [1, 2], but is [2, 3]")):
        robustness.main([*flags, "--seeds", "2", "3"])
    assert robustness.main([*flags, "--seeds", "2"])["accuracy"]["CutMix"] == results["accuracy"]["CutMix"][1:]


def test_the_models_of_a_study_are_measured_on_its_images(tmp_path):
    def find(flags):
        study = tmp_path / "some.yaml"
        study.write_text(f"datasets: {{photos: {flags}}}\nseeds: [1]\nsplit: validation\narms: {{plain: {{}}}}\n")
        folder = tmp_path / "some" / "photos" / "plain" / "0" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").touch()
        args = robustness.RobustnessBenchmarkArguments(study=str(study), work_dir=str(tmp_path), output="some.json")
        return robustness.find_models(args.read_study, args)[1]

    words = find("{dataset_name: some/photos, label_column_name: kind, max_train_samples: 5}")
    assert words == ["--dataset_name", "some/photos", "--label_column_name", "kind", "--split", "validation"]
    assert find("{train_dir: a, validation_dir: b}") == ["--validation_dir", "b", "--split", "validation"]
    with pytest.raises(ValueError, match="`validation_dir` must be given in .*some.yaml, but is not"):
        find("{train_dir: a}")


def test_table_of_robustness_has_differences_to_the_baseline_of_the_same_seed(tmp_path):
    runs = {"plain": [0.5, 0.7, 0.6], "CutMix": [0.6, 0.9, 0.6]}
    figures = {arm: [{"clean": run, "fgsm/4.0": run / 2, "corrupted": 0.1} for run in runs[arm]] for arm in runs}
    results = {"dataset": "some", "split": "test", "baseline": "plain", "accuracy": runs}
    text = robustness_report.write_report(
        results | {"summary": robustness.summarize(figures, "plain")}, tmp_path / "some.json"
    )
    assert text.splitlines()[2:] == [
        "| arm | clean | FGSM, 4/255 | under corruptions |",
        "| --- | --- | --- | --- |",
        "| plain | 60.00 | 30.00 | 10.00 |",
        # 10.00 is the deviation of 10, 20 and 0; 4.303 is Student's t
        "| CutMix | 70.00 (+10.00 ± 24.84) | 35.00 (+5.00 ± 12.42) | 10.00 (+0.00 ± 0.00) |",
    ]


def test_a_stopped_benchmark_does_not_send_anyone_to_its_temporary_folder(caplog):
    with pytest.raises(SystemExit, match="Nothing of it is kept: the same command starts again"), temporary_folder():
        logging.getLogger("common").warning("... --resume_from_checkpoint true goes on from there.")
        raise SystemExit(143)
    assert not caplog.records
    logging.getLogger("common").warning("heard again")
    assert caplog.messages == ["heard again"]
