# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The runner of studies: what it reads, what it runs again, what it computes, and that its tables come from results."""

import json
import math
import shutil
import statistics
import time
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock
from helpers.studies import fill
from scipy import stats

from benchmarks import accuracy, evidence, grid, robustness_report, study_report
from benchmarks.grid import Grid
from benchmarks.study import Study


STUDY = {
    "datasets": {"few": {"max_train_samples": 30}, "more": {"max_train_samples": 60}},
    "flags": {"num_train_epochs": 1, "model_type": "resnet"},
    "seeds": [1, 2, 3],
    "split": "test",
    "arms": {
        "plain": {},
        "GradAug": {"gradaug": True},
        "long": {"compute_of": "GradAug"},
        "taught": {"teacher_arm": "plain", "compute_of": "GradAug"},
    },
}


@pytest.fixture
def write(tmp_path):
    def write(name="some", **changes):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False), "utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sedes": [1]}, "unknown keys ['sedes']"),
        ({"datasets": {}}, "needs the keys ['datasets']"),
        ({"split": "train"}, "but is 'train'"),
        ({"seeds": [1, 1]}, "a list of whole numbers, each once"),
        ({"seeds": 3}, "a list of whole numbers, each once"),
        ({"axis": "labels"}, "unless each data set begins with a number, but is 'labels' for ['few', 'more']"),
        ({"arms": {"plain": []}}, "'plain' in {path} has 0 candidates"),
        ({"arms": {"plain": [{}, {"learning_rate": 1.0}]}}, "'plain' in {path} has 2 candidates"),
        ({"arms": {"GradAug": {}}}, "`baseline` in {path} must be one of the arms ['GradAug'], but is 'plain'"),
        ({"arms": {"plain": {"compute_of": "GradAug"}, "GradAug": {}}}, "must be one of [], but is 'GradAug'"),
        ({"arms": {"plain": {"tuned": "plain"}}}, "must be one of [], but is 'plain'"),
        ({"arms": {"plain": {}, "b": {}, "c": {"teacher_arm": "b"}}}, "must be one of ['plain'], but is 'b'"),
        (
            {"arms": {"plain": {}, "b": {"against": ["plain", "c"]}}},
            "`against` of the arm 'b' in {path} must be one of ['plain'], but is 'c'",
        ),
        ({"tuned_by": "same.yaml"}, "must be a study of the validation split"),
    ],
)
def test_mistakes_are_named(write, changes, words):
    write("same", arms={"plain": {}})
    path = write(**changes)
    with pytest.raises(ValueError) as error:
        Study.read(path)
    assert words.format(path=path) in str(error.value)


def test_folder_stands_for_three_splits(write):
    study = Study.read(write(datasets={"digits": {"folder": "data/digits"}}))
    assert study.datasets == {
        "digits": {f"{split}_dir": f"data/digits/{split}" for split in ("train", "validation", "test")}
    }


def test_base_gives_data_sets_and_flags(write):
    write("root", datasets={"few": {"folder": "data/few"}}, flags={"image_size": 32, "max_steps": 10})
    child = {"base": "root.yaml", "flags": {"max_steps": 20, "optim": "sgd"}}
    path = write("child")
    path.write_text(yaml.safe_dump({**child, "seeds": [7], "arms": {"plain": {}}}), "utf-8")
    study = Study.read(path)
    assert study.datasets == Study.read(path.parent / "root.yaml").datasets
    assert study.flags == {"image_size": 32, "max_steps": 20, "optim": "sgd"}
    assert (study.seeds, [*study.arms]) == ([7], ["plain"])
    path = write("other", base="root.yaml", datasets={"more": {}})
    assert Study.read(path).datasets == {"more": {}}


def test_best_candidate_of_a_search_is_taken(write, tmp_path):
    arms = {"plain": [{}, {"learning_rate": 0.2}], "GradAug": [{"gradaug": True}, {"gradaug": True, "min_width": 0.5}]}
    search = {"split": "validation", "datasets": {"few": {}}, "seeds": [11, 12]}
    path = write("search", arms=arms, **search)
    accuracies = {("plain", 0): [0.5, 0.7], ("plain", 1): [0.8, 0.6], ("GradAug", 0): [0.3, 0.3]}
    fill(path, tmp_path, accuracies | {("GradAug", 1): [0, 0.6]}, split="eval")
    own = {
        "plain": {"tuned": "plain"},
        "small": {"tuned": "GradAug", "scales": [0.5]},
        "more": {"compute_of": "small"},
    }
    study = Study.read(write(tuned_by="search.yaml", arms=own))
    assert Grid(study, tmp_path / "results").arms["more"] == {  # of equal means the first
        "plain": [{"learning_rate": 0.2}],
        "small": [{"gradaug": True, "scales": [0.5]}],
        "more": [{"compute_of": "small"}],
    }
    # A candidate that was changed since has not run, whatever lines are there.
    arms["plain"][1]["learning_rate"] = 9.0
    write("search", arms=arms, **search)
    study = Study.read(study.path)
    with pytest.raises(ValueError, match="have not run with their settings, of the arm 'plain' on 'few'"):
        Grid(study, tmp_path / "results")
    (tmp_path / "results" / "search.jsonl").unlink()
    fill(path, tmp_path, accuracies, split="eval")
    with pytest.raises(ValueError, match="have not run with their settings, of the arm 'GradAug' on 'few'"):
        Grid(study, tmp_path / "results")


@pytest.fixture
def make_runner(tmp_path, write, monkeypatch):
    """A runner whose cells write what a training would; `ran` lists the flags of those that ran."""

    def make(broken_seed=None, name="some", arms_run=None, **changes):
        folders = {"results_dir": str(tmp_path / "results"), "work_dir": str(tmp_path / "work")}
        args = accuracy.AccuracyArguments(arms=arms_run, **folders)
        runner = accuracy.Runner(Study.read(write(name, **changes)), args)
        runner.ran = []

        def process(target, args, daemon):
            argv, _, _ = args
            flags = dict(zip(argv[::2], argv[1::2]))
            failed = flags["--seed"] == str(broken_seed)

            def start():
                runner.ran.append(flags)
                folder = tmp_path / "work" / name / flags["--output_dir"].split(f"work/{name}/")[1]
                results = {"train_runtime": 1.0, "predict_accuracy": 0.5}
                (folder / "all_results.json").write_text(json.dumps(results))
                flops = 2.5 if "--gradaug" in flags else 1.0
                (folder / "trainer_state.json").write_text(json.dumps({"total_flos": flops}))
                (folder / "model.safetensors").touch()

            return SimpleNamespace(start=start, join=lambda timeout: None, exitcode=int(failed))

        runner.processes = SimpleNamespace(Process=process)
        return runner

    return make


def test_cells_run_once_and_build_on_each_other(make_runner, tmp_path):
    runner = make_runner()
    runner.run()
    assert len(runner.ran) == 2 * 3 * 4
    of = {
        (cell.arm, cell.seed): flags
        for cell, found in runner.grid.lines.items()
        if cell.dataset == "few"
        for flags in [found["flags"]]
    }
    assert of["plain", 1]["num_train_epochs"] == 1 and of["plain", 1]["max_train_samples"] == 30
    assert of["long", 1]["num_train_epochs"] == 2.5
    # The teacher's training and its forwards, a third of a step each, are compute, too: 1 + 4 / 3 x 1.12 is 2.5.
    assert of["taught", 3]["num_train_epochs"] == pytest.approx(1.5 / (4 / 3), abs=0.01)
    assert of["taught", 3]["teacher"].endswith("few/plain/0/3")  # with the same seed's training images

    again = make_runner()
    again.run()
    assert again.ran == []
    changed = make_runner(arms={**STUDY["arms"], "GradAug": {"gradaug": True, "min_width": 0.5}})
    changed.run()
    assert len(changed.ran) == 2 * 3 and all(flags["--min_width"] == "0.5" for flags in changed.ran)
    lines = (tmp_path / "results" / "some.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 3 * 4  # a changed cell takes the place of the old one
    # So do the students of a changed teacher, and what has the compute of a changed arm: here it has the same.
    changed = make_runner(arms={**changed.grid.study.arms, "plain": {"learning_rate": 0.5}})
    changed.run()
    assert len(changed.ran) == 2 * 3 * 2 and {"--learning_rate" in flags for flags in changed.ran} == {True, False}


def test_some_arms_run_alone(make_runner):
    runner = make_runner(arms_run=["GradAug"])
    runner.run()
    assert len(runner.ran) == 2 * 3 and {cell.arm for cell in runner.grid.lines} == {"GradAug"}
    with pytest.raises(ValueError, match="`arms` must be of plain, GradAug, long, taught, but has gradaug"):
        make_runner(arms_run=["gradaug"])


def test_an_arm_runs_with_those_that_it_builds_on(make_runner):
    runner = make_runner(arms_run=["long"])
    runner.run()
    assert {cell.arm for cell in runner.grid.lines} == {"plain", "GradAug", "long"}


def test_runner_goes_on_after_a_stop(make_runner, tmp_path):
    runner = make_runner()
    runner.left = 5
    runner.run()
    assert len(runner.ran) == 5
    results = tmp_path / "results" / "some.jsonl"
    results.write_text(results.read_text() + '{"dataset": "few", "ar')  # the stop came while a line was written
    again = make_runner()
    again.run()
    assert len(again.ran) == 2 * 3 * 4 - 5
    assert len([json.loads(line) for line in results.read_text().splitlines()]) == 2 * 3 * 4
    # Another study has cells with the same flags: they are taken over, but for the student's, whose teacher is elsewhere.
    other = make_runner(name="other", datasets={"renamed": STUDY["datasets"]["few"]})
    other.run()
    assert {flags["--seed"] for flags in other.ran if "--teacher" not in flags} == {"1", "2", "3"}
    assert len(other.ran) == 3 + 3 and len(other.grid.lines) == 3 * 4
    (tmp_path / "results" / "other.jsonl").unlink()
    # A clone has the results, and not the models, of which the teachers are trained again for a student that is missing.
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(line for line in lines if json.loads(line)["arm"] != "taught"))
    for model in (tmp_path / "work").rglob("model.safetensors"):
        model.unlink()
    clone = make_runner()
    clone.run()
    assert len(clone.ran) == 2 * 3 * 2


def test_lines_are_of_the_files_that_they_were_made_from(make_runner, tmp_path):
    data, checkpoint = tmp_path / "data", tmp_path / "checkpoint"
    checkpoint.mkdir()
    data.mkdir()
    flags = {"train_dir": str(data / "train"), "model_name_or_path": str(checkpoint)}

    def count_runs(**files):
        for name, text in files.items():
            (data / "data.json" if name == "data" else checkpoint / name).write_text(text)
        grid.find_data_hash.cache_clear()
        grid.find_checkpoint_hash.cache_clear()
        runner = make_runner(datasets={"few": flags}, arms={"plain": {}})
        runner.run()
        return len(runner.ran)

    assert count_runs(data='{"sha256": "1"}', weights="a", config="a") == 3
    assert count_runs() == 0
    assert count_runs(weights="b") == 3
    assert count_runs(config="b") == 3
    assert count_runs(data='{"sha256": "2"}') == 3
    shutil.rmtree(checkpoint)
    (data / "data.json").unlink()
    assert count_runs() == 0  # what is not at hand may be any


def test_what_has_not_ended_in_time_is_killed_and_begins_again(make_runner, capsys):
    runner = make_runner(arms={"plain": {}}, datasets={"few": {}})
    killed = []

    def process(target, args, daemon):
        def join(timeout=None):  # the first cell ends, the second has not when the time is up
            if len(runner.grid.lines) == 1 and not killed:
                runner.end = 0.0

        made = fake(target, args, daemon)
        made.join, made.kill = join, lambda: killed.append(args)
        made.exitcode = None if runner.grid.lines else 0
        return made

    fake, runner.processes = runner.processes.Process, SimpleNamespace(Process=process)
    runner.end = time.monotonic() + 1000
    runner.run()
    assert "3/3" not in capsys.readouterr().err
    assert len(killed) == 1 and len(runner.ran) == 2  # the third did not begin
    assert [cell.seed for cell in runner.grid.lines] == [1] and runner.failed == []
    again = make_runner(arms={"plain": {}}, datasets={"few": {}})
    again.run()
    assert [flags["--seed"] for flags in again.ran] == ["2", "3"]


def test_progress_shows_what_runs_and_goes_on_while_it_does(make_runner, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "REFRESH", 0.05)
    runner = make_runner(arms={"plain": {}}, datasets={"few": {}})

    def process(target, args, daemon):
        made = fake(target, args, daemon)
        made.join = lambda timeout: time.sleep(0.5)
        return made

    fake, runner.processes = runner.processes.Process, SimpleNamespace(Process=process)
    runner.run()
    shown = [state for state in capsys.readouterr().err.split("\r") if "cells" in state]
    for number in (1, 2, 3):
        assert sum(f"{number - 1}/3" in state and f"['few/plain/0/{number}']" in state for state in shown) >= 3
    assert "3/3" in shown[-1]


def test_failed_cells_are_named_and_left_out(make_runner, tmp_path, capsys):
    runner = make_runner(broken_seed=2, arms={"plain": {}}, datasets={"few": {}})
    runner.run()
    assert [cell.seed for cell in runner.failed] == [2]
    assert [cell.seed for cell in runner.grid.lines] == [1, 3]
    assert "few, plain, candidate 0, seed 2: failed, see " in capsys.readouterr().err
    again = make_runner(arms={"plain": {}}, datasets={"few": {}})
    again.run()
    assert [flags["--seed"] for flags in again.ran] == ["2"] and again.failed == []


def test_the_first_candidate_that_is_enough_is_chosen(write, tmp_path):

    changes = {"split": "validation", "datasets": {"few": {}}, "seeds": [11, 12], "enough": 0.01}
    candidates = [{"max_steps": 1}, {"max_steps": 3}, {"max_steps": 9}]
    for number, (means, steps) in enumerate((([0.5, 0.6, 0.605], 3), ([0.5, 0.49, 0.6], 1), ([0.5, 0.6, 0.7], 9))):
        path = write(f"steps{number}", arms={"plain": candidates}, **changes)
        fill(path, tmp_path, {("plain", i): [mean - 0.1, mean + 0.1] for i, mean in enumerate(means)}, split="eval")
        found = Grid(Study.read(path), tmp_path / "results").choose("few")
        assert found == {"plain": {"max_steps": steps}}
    for wrong in ({"enough": 0}, {"split": "test", "arms": {"plain": {}}}):
        with pytest.raises(ValueError, match="`enough` must be above 0, of a study of the validation split"):
            Study.read(write(**{**changes, "arms": {"plain": candidates}, **wrong}))


def test_rows_are_means_and_paired_differences(write, tmp_path):
    arms = {"plain": {}, "CutMix": {}, "GradAug": {"against": "CutMix"}}
    arms["taught"] = {"teacher_arm": "plain", "against": ["plain", "GradAug"]}
    plain, other = [0.5, 0.6, 0.8], [0.6, 0.8, 0.9]
    accuracies = {("plain", 0): plain, ("GradAug", 0): other, ("CutMix", 0): [0.5, 0.6], ("taught", 0): [0.5] * 3}
    results = fill(write(arms=arms), tmp_path, accuracies, flops={"GradAug": 2.5, "taught": 1.2})
    first, cutmix, second, taught = study_report.get_rows(results, "few")
    assert first.difference is None and second.compute == 2.5 and second.macro_f1 == pytest.approx(0.3833, abs=1e-4)
    assert cutmix.compute is None  # not all of its seeds have run
    mean = statistics.mean(other)
    low, high = stats.t.interval(0.95, 2, loc=mean, scale=statistics.stdev(other) / math.sqrt(3))
    assert (second.result.mean - second.result.half, second.result.mean + second.result.half) == pytest.approx(
        (low, high)
    )
    paired = stats.ttest_rel(other, plain).confidence_interval(0.95)
    assert (second.difference.mean - second.difference.half) == pytest.approx(paired.low)
    assert (second.difference.mean + second.difference.half) == pytest.approx(paired.high)
    # Over the two seeds that both have, 0.1 and 0.2; a student costs its teacher's training, too.
    assert second.counterparts["CutMix"].half == pytest.approx(study_report.Mean.of([0.1, 0.2]).half)
    assert taught.compute == pytest.approx(2.2) and taught.result.half == 0
    table = study_report.make_table([first, cutmix, second, taught], "plain")
    assert "| GradAug | 3 | 76.67 ± 37.95 | +13.33 ± 14.34 | CutMix: +15.00 ± 63.53 | 38.33 | 2.50 x |" in table
    both = "plain: -13.33 ± 37.95; GradAug: -26.67 ± 37.95"
    assert f"| taught | 3 | 50.00 ± 0.00 | -13.33 ± 37.95 | {both} | 25.00 | 2.20 x |" in table
    assert study_report.Mean.of([0.5]).show() == "50.00 ± ?"


def test_probabilities_are_shown_where_all_runs_measured_them(write, tmp_path):
    arms = {"plain": {}, "GradAug": {}}
    results = fill(write(arms=arms), tmp_path, {("plain", 0): [0.5, 0.6, 0.8], ("GradAug", 0): [0.5, 0.6, 0.8]})
    losses = {"plain": [2.0, 3.0, 4.0], "GradAug": [1.0, 2.5, 4.0]}
    for cell, line in results.lines.items():
        loss = losses[cell.arm][cell.seed - 1]
        line["metrics"] |= {"predict_loss": loss, "predict_expected_calibration_error": loss / 20}
    titles, _, plain, gradaug = study_report.make_table(study_report.get_rows(results, "few"), "plain").splitlines()
    assert titles.endswith("| macro-F1, % | loss | calibration error, % | compute |")
    assert plain.endswith("| 31.67 | 3.00 | 15.00 | 1.00 x |")
    # 0.5 is the deviation of -1, -0.5 and 0; 4.303 is Student's t
    assert gradaug.endswith("| 31.67 | 2.50 (-0.50 ± 1.24) | 12.50 (-2.50 ± 6.21) | 1.00 x |")
    for line in results.lines.values():
        del line["metrics"]["predict_expected_calibration_error"]
    assert "loss" not in study_report.make_table(study_report.get_rows(results, "few"), "plain")


@pytest.mark.slow
def test_one_cell_runs_for_real(write, tmp_path, capsys):
    path = write(
        datasets={"few": {"max_train_samples": 20, "max_eval_samples": 20}},
        arms={"plain": {}},
        seeds=[7],
        split="validation",
        flags={"max_steps": 1, "per_device_train_batch_size": 20, "model_type": "resnet", "image_size": 16}
        | {"config_overrides": "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"},
    )
    folders = ["--results_dir", str(tmp_path / "results"), "--work_dir", str(tmp_path / "work")]
    accuracy.main([str(path), *folders])
    (line,) = map(json.loads, (tmp_path / "results" / "some.jsonl").read_text().splitlines())
    assert 0 <= line["metrics"]["eval_accuracy"] <= 1 and line["flops"] > 0
    assert line["command"].startswith("python examples/run_image_classification.py --do_train True")
    assert {"torch", "transformers"} <= set(line["versions"]) and "cpu" in line["hardware"]
    assert "| plain | 1 |" in (tmp_path / "results" / "some.md").read_text()
    assert (tmp_path / "results" / "some.png").stat().st_size > 5000


def test_lines_are_written_at_once_or_not(make_runner, tmp_path):
    runner = make_runner()
    runner.run()
    before = (tmp_path / "results" / "some.jsonl").read_text()
    broken = before.replace("{", "", 1)
    (tmp_path / "results" / "some.jsonl").write_text(broken)
    with pytest.raises(ValueError, match="Line 1 of .*some.jsonl is broken"):
        make_runner()
    assert (tmp_path / "results" / "some.jsonl").read_text() == broken
    (tmp_path / "results" / "some.jsonl").write_text(before.rstrip("\n"))  # whole, but for its end
    again = make_runner()
    again.run()
    assert again.ran == [] and (tmp_path / "results" / "some.jsonl").read_text() == before
    assert len(grid.read_records(tmp_path / "results" / "some.jsonl")) == 2 * 3 * 4


def test_two_runners_of_a_study_exclude_each_other(write, tmp_path):
    (tmp_path / "work").mkdir()
    with FileLock(tmp_path / "work" / "some.lock"), pytest.raises(SystemExit, match="Another process runs"):
        accuracy.main([str(write()), "--work_dir", str(tmp_path / "work")])


@pytest.mark.slow
def test_tables_of_the_repository_come_from_its_results(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)  # as the paths in the results are
    results = sorted((root / "docs" / "results").glob("*.jsonl"))
    assert results
    for path in results:
        study = Study.read(root / "benchmarks" / "studies" / f"{path.stem}.yaml")
        found = Grid(study, path.parent)
        missing = {cell for cell in found.cells if found.record(cell) is None}
        assert {*found.lines} == {*found.cells} - missing, path.stem  # no line is stale, or another study's
        assert ("**Unfinished**" in path.with_suffix(".md").read_text()) == bool(missing), path.stem
        study_report.write_report(found, tmp_path)
        assert (tmp_path / f"{path.stem}.md").read_text() == path.with_suffix(".md").read_text()


def test_tables_of_robustness_come_from_its_results(root, tmp_path):
    results = sorted((root / "docs" / "results").glob("*-robustness.json"))
    assert results
    for path in results:
        robustness_report.write_report(json.loads(path.read_text()), tmp_path / path.name)
        assert (tmp_path / f"{path.stem}.md").read_text() == path.with_suffix(".md").read_text()


def test_texts_show_the_tables_of_the_results(root, tmp_path):
    (tmp_path / "one.md").write_text("| a |\n")
    text = "before\n<!-- results: one -->\nold\n<!-- end of results -->\nafter\n"
    assert evidence.fill(text, tmp_path) == text.replace("old\n", "\n| a |\n\n")
    assert len(evidence.PAGES) > 4
    for page in evidence.PAGES:
        text = page.read_text("utf-8")
        assert evidence.fill(text, root / "docs" / "results") == text, f"run python -m benchmarks.evidence for {page}"
        assert evidence.PLACE.search(text)
    others = (root / "README.md", root / "docs" / "evidence.md")
    assert not [page.name for page in others if evidence.PLACE.search(page.read_text("utf-8"))]  # would not be filled
