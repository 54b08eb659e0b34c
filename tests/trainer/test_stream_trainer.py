# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The Trainer on a stream: resumed where it was, bit for bit, and told the epoch."""

import itertools
import json
import multiprocessing
import shutil
from collections import Counter

import datasets
import pytest
import torch
from accelerate import debug_launcher
from helpers import harness, images
from helpers.streams import IMAGES_PER_SHARD, SEED, RecordingTrainer, stream_trainer
from helpers.tiny import TinyImages, largest_difference, state_of, tiny_model, tiny_trainer
from torch.utils.data import ConcatDataset, StackDataset, Subset, default_collate
from transformers import Trainer, TrainingArguments

from hf_gradaug import StreamMixin
from hf_gradaug.data.transformed_dataset import TransformedDataset
from hf_gradaug.sampling import example_seed


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(images.make_parquet(tmp_path_factory.mktemp("shards") / "parquet", num_shards=5))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shards):
    """An uninterrupted run on the stream."""
    trainer = stream_trainer(tmp_path_factory.mktemp("whole"), shards, RecordingTrainer)
    trainer.train()
    return trainer


def checkpoint_of(trainer, step):
    return f"{trainer.args.output_dir}/checkpoint-{step}"


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4])
def test_resumed_training_is_the_uninterrupted_one(tmp_path, shards, whole, step):
    resumed = stream_trainer(tmp_path, shards, RecordingTrainer)
    resumed.train(resume_from_checkpoint=checkpoint_of(whole, step))
    assert resumed.seen == whole.seen[step:]
    assert largest_difference(state_of(resumed.model), state_of(whole.model)) == 0
    epochs = [[row["epoch"] for row in t.state.log_history if "learning_rate" in row] for t in (resumed, whole)]
    assert epochs[0] == epochs[1] == pytest.approx([4 * (step + 1) / 30 for step in range(6)], abs=1e-4)


def test_resume_doesnt_read_the_past(tmp_path, shards, monkeypatch):
    common = {"dataloader_num_workers": 0, "save_steps": 6, "max_steps": 8}
    whole = stream_trainer(tmp_path, shards, **common)
    whole.train()
    counts = {"rows": 0}
    read = datasets.IterableDataset.iter

    def counting_iter(self, *args, **kwargs):
        for batch in read(self, *args, **kwargs):
            counts["rows"] += 1
            yield batch

    monkeypatch.setattr(datasets.IterableDataset, "iter", counting_iter)
    resumed = stream_trainer(tmp_path / "out", shards, **common)
    resumed.train(resume_from_checkpoint=checkpoint_of(whole, 6))
    assert largest_difference(state_of(resumed.model), state_of(whole.model)) == 0
    assert 8 <= counts["rows"] <= 8 + 2 * 5  # two batches of four, and two windows


def test_batches_read_ahead_dont_count(whole):
    with open(f"{checkpoint_of(whole, 2)}/stream_state_0.json") as file:
        workers = json.load(file)["loader"]["_snapshot"]["_worker_snapshots"]
    # Each worker has read two batches ahead by then. One of four was trained on, two windows of two.
    states = [worker["fetcher_state"]["dataset_iter_state"] for worker in workers.values()]
    assert [(state["window"]["number"], state["given"]) for state in states] == [(2, 2), (2, 2)]


def test_training_lets_go_of_the_workers(whole):
    assert not multiprocessing.active_children()


def test_resume_with_other_readers_is_an_error_unless_the_stream_begins_anew(tmp_path, shards, whole):
    message = (
        r"position of the training stream in '.*checkpoint-2' doesn't fit: dataloader_num_workers was 2 and is 0; "
        r"shuffle_buffer_size was 5 and is 6. Resume with the earlier values, or set `ignore_data_skip`"
    )
    with pytest.raises(ValueError, match=message):
        other = stream_trainer(tmp_path, shards, dataloader_num_workers=0, buffer_size=6)
        other.train(resume_from_checkpoint=checkpoint_of(whole, 2))

    class TwoProcesses(type(whole.args)):
        world_size, process_index = 2, 1

    two = stream_trainer(tmp_path, shards)
    two.args.__class__ = TwoProcesses
    with pytest.raises(ValueError, match="processes was 1 and is 2"):
        two._read_stream_state(checkpoint_of(whole, 2))

    anew = stream_trainer(tmp_path, shards, RecordingTrainer, ignore_data_skip=True, dataloader_num_workers=0)
    anew.train(resume_from_checkpoint=checkpoint_of(whole, 2))
    assert anew.state.global_step == 6 and len(anew.seen) == 4
    assert anew.seen[0][0] in places_by_seed(epochs=1)


def test_a_checkpoint_without_a_position_is_an_error(tmp_path, shards, whole):
    checkpoint = shutil.copytree(checkpoint_of(whole, 2), tmp_path / "checkpoint-2")
    (checkpoint / "stream_state_0.json").unlink()
    with pytest.raises(
        ValueError, match="must hold the position of the training stream, but is '.*', without stream_state_0.json"
    ):
        stream_trainer(tmp_path, shards).train(resume_from_checkpoint=str(checkpoint))


def test_batches_out_of_order_have_no_position(tmp_path, shards):
    with pytest.raises(ValueError, match="`dataloader_in_order` must be True with a stream, .* but is False"):
        stream_trainer(tmp_path, shards, dataloader_in_order=False).train()


@pytest.mark.slow
def test_stored_images_are_augmented_alike_with_any_workers_and_after_resume(tmp_path, shards):
    common = {"streaming": False, "max_steps": 10, "save_steps": 3}  # 8 batches an epoch
    whole = stream_trainer(tmp_path / "whole", shards, RecordingTrainer, dataloader_num_workers=0, **common)
    whole.train()
    assert {example_seed(SEED, epoch, index) for epoch, index in itertools.product((0, 1), range(30))} > set(
        itertools.chain(*whole.seen)
    )
    assert len(set(itertools.chain(*whole.seen))) == 30 + 8  # other seeds in the second epoch
    assert not list(tmp_path.rglob("stream_state*"))
    for step, workers in ((3, 2), (9, 1)):
        resumed = stream_trainer(tmp_path / "out", shards, RecordingTrainer, dataloader_num_workers=workers, **common)
        resumed.train(resume_from_checkpoint=checkpoint_of(whole, step))
        assert resumed.seen == whole.seen[step:]
        assert largest_difference(state_of(resumed.model), state_of(whole.model)) == 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: data,
        lambda data: Subset(data, range(8)),
        lambda data: Subset(ConcatDataset([TinyImages(4), data]), range(4, 12)),
        lambda data: StackDataset(example=data),
    ],
)
def test_each_epoch_has_its_own_augmentation_inside_of_wrappers_too(tmp_path, wrap):
    data = TransformedDataset(TinyImages(8), lambda example, name, seed: example | {"mix": seed}, SEED)
    seen = set()

    def collate(examples):
        examples = [example.get("example", example) for example in examples]
        seen.update(example["mix"] for example in examples)
        return default_collate([{name: example[name] for name in ("pixel_values", "labels")} for example in examples])

    kwargs = {"train_dataset": wrap(data), "data_collator": collate}
    tiny_trainer(tmp_path, trainer_kwargs=kwargs, num_subnetworks=0, max_steps=-1, num_train_epochs=2).train()
    assert seen == {example_seed(SEED, epoch, index) for epoch, index in itertools.product((0, 1), range(8))}


class Wrapper(TinyImages):
    """Has the names of wrappers for something else."""

    datasets = None

    @property
    def dataset(self):
        return self


def test_data_may_have_the_names_of_wrappers(tmp_path):
    tiny_trainer(tmp_path, trainer_kwargs={"train_dataset": Wrapper(8)}, num_subnetworks=0, max_steps=1).train()


class PlainTrainer(StreamMixin, Trainer):
    pass


@pytest.mark.slow
def test_mixin_serves_other_trainers_and_leaves_other_data_alone(tmp_path, shards):
    common = {"dataloader_num_workers": 0, "max_steps": 4}
    trainer = stream_trainer(tmp_path, shards, PlainTrainer, **common)
    trainer.train()
    resumed = stream_trainer(tmp_path / "out", shards, PlainTrainer, **common)
    resumed.train(resume_from_checkpoint=checkpoint_of(trainer, 2))
    assert largest_difference(state_of(resumed.model), state_of(trainer.model)) == 0
    states = []
    for cls in (PlainTrainer, Trainer):
        trainer = tiny_trainer(tmp_path, cls=cls, args_cls=TrainingArguments)
        trainer.train()
        states.append(state_of(trainer.model))
    assert largest_difference(*states) == 0


def places_by_seed(epochs):
    places = itertools.product(range(epochs), range(5), range(IMAGES_PER_SHARD))
    return {example_seed(SEED, *place): place for place in places}


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_share_the_stream_and_resume(tmp_path, root, shards):
    def run(output, *checkpoint):
        output.mkdir()
        script = root / "tests" / "helpers" / "scripts" / "train_stream.py"
        harness.run_script_in_ranks(output, script, str(output), shards, "16", *checkpoint)
        return [json.loads((output / f"seen_{rank}.json").read_text()) for rank in range(2)]

    seen = run(tmp_path / "whole")
    # Four readers have one shard or two: 16 steps of 2 images take each through its first epoch.
    places = places_by_seed(epochs=5)
    first_epoch = Counter(places[seed] for seed in itertools.chain(*itertools.chain(*seen)) if places[seed][0] == 0)
    assert first_epoch == Counter(place for place in places.values() if place[0] == 0)

    resumed = run(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-6"))
    assert resumed == [batches[6:] for batches in seen]
    states = [torch.load(tmp_path / name / "state.pt") for name in ("whole", "resumed")]
    assert largest_difference(*states) == 0


def count_evaluated(folder, ddp_backend=None):
    trainer = tiny_trainer(
        folder,
        tiny_model("convnext", num_labels=13),
        ddp_backend=ddp_backend,
        per_device_eval_batch_size=2,
        trainer_kwargs={
            "eval_dataset": Numbered(13),
            "compute_metrics": lambda result: {"labels": result.label_ids.tolist()},
        },
    )
    assert sorted(trainer.evaluate()["eval_labels"]) == list(range(13))


class Numbered(TinyImages):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "labels": index}


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_evaluation_example_is_counted_once(tmp_path, processes):
    if processes == 1:
        count_evaluated(str(tmp_path))
    else:
        debug_launcher(count_evaluated, (str(tmp_path), "gloo"), num_processes=processes)
