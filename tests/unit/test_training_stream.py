# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The training stream: each example once an epoch, another order in each, and a position that can be saved."""

import itertools
import json
from collections import Counter

import datasets
import pytest
from helpers import images
from helpers.streams import IMAGES_PER_SHARD, SEED, make_readers, make_rows, make_stream
from torchdata.stateful_dataloader import StatefulDataLoader

from hf_gradaug.data import DataArguments, TrainingStream, load_image_data
from hf_gradaug.sampling import example_seed


KINDS = ("parquet", "tar")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    made = {(kind, shards): make_rows(path, kind, shards) for kind in KINDS for shards in (4, 5)}
    return lambda kind="parquet", num_shards=4: made[kind, num_shards]


@pytest.fixture
def counted(monkeypatch):
    """Counts what is read from shards: rows, and which shards are opened."""
    counts = {"rows": 0, "shards": []}
    read, shard = datasets.IterableDataset.iter, datasets.IterableDataset.shard

    def counting_iter(self, *args, **kwargs):
        for batch in read(self, *args, **kwargs):
            counts["rows"] += 1
            yield batch

    def counting_shard(self, *args, **kwargs):
        counts["shards"].append(kwargs["index"])
        return shard(self, *args, **kwargs)

    monkeypatch.setattr(datasets.IterableDataset, "iter", counting_iter)
    monkeypatch.setattr(datasets.IterableDataset, "shard", counting_shard)
    return counts


def places_by_seed(num_shards, epochs):
    """The seeds of the examples tell their epoch, shard and number."""
    return {
        example_seed(SEED, *place): place
        for place in itertools.product(range(epochs), range(num_shards), range(IMAGES_PER_SHARD))
    }


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("num_shards", [4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_each_epoch_holds_each_example_once(rows, monkeypatch, kind, num_shards, processes, workers):
    places = places_by_seed(num_shards, epochs=5)
    by_process = make_readers(monkeypatch, make_stream(rows(kind, num_shards)), processes, workers)
    readers = list(itertools.chain(*by_process))
    assert len(readers) == processes * max(1, workers)
    counts = {epoch: Counter() for epoch in range(5)}
    for reader in readers:
        epochs = [0]
        while epochs[-1] < 3:
            number, seed = next(reader)
            epoch, shard, in_shard = places[seed]
            assert number == shard * IMAGES_PER_SHARD + in_shard
            counts[epoch][number] += 1
            epochs.append(epoch)
        assert epochs == sorted(epochs)  # one after the other: a window holds no rows of two
    for epoch in range(3):
        assert counts[epoch] == Counter(range(num_shards * IMAGES_PER_SHARD))


def numbers(stream, count):
    return [number for number, _ in itertools.islice(stream, count)]


def test_order_is_another_in_each_epoch_and_the_same_for_the_same_seed(rows):
    order = numbers(make_stream(rows()), 72)
    assert order == numbers(make_stream(rows()), 72)
    assert order != numbers(make_stream(rows(), seed=4), 72)
    epochs = [order[:24], order[24:48], order[48:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3

    # Without a window, shards come whole, in an order that is drawn for each epoch.
    by_shard = numbers(make_stream(rows(), buffer_size=1), 72)
    shard_orders = [
        [number // IMAGES_PER_SHARD for number in by_shard[start : start + 24 : 6]] for start in (0, 24, 48)
    ]
    assert [sorted(shards) for shards in shard_orders] == [[0, 1, 2, 3]] * 3
    assert len({tuple(shards) for shards in shard_orders}) > 1
    assert by_shard != numbers(make_stream(rows(), buffer_size=1, seed=4), 72)
    # A window permutes what it holds, each in an order of its own.
    patterns = set()
    for start in range(0, 20, 5):
        read, given = by_shard[start : start + 5], order[start : start + 5]
        assert sorted(given) == sorted(read)
        patterns.add(tuple(read.index(number) for number in given))
    assert len(patterns) > 1
    # One that holds an epoch mixes all its shards.
    mixed = numbers(make_stream(rows(), buffer_size=100), 24)
    assert len({number // IMAGES_PER_SHARD for number in mixed[:IMAGES_PER_SHARD]}) > 1


@pytest.mark.parametrize("buffer_size", [1, 5, 12, 100])
def test_memory_is_bounded_by_the_window(rows, counted, buffer_size):
    stream = make_stream(rows(), buffer_size=buffer_size)
    most = 0
    for given, _ in enumerate(itertools.islice(stream, 60), start=1):
        most = max(most, counted["rows"] - given)
    assert most == min(buffer_size, 24)


def test_workers_share_the_window(rows, counted, monkeypatch):
    ((first, second),) = make_readers(monkeypatch, make_stream(rows(), buffer_size=8), processes=1, workers=2)
    for reader in (first, second):
        before = counted["rows"]
        next(reader)
        assert counted["rows"] - before == 4 + 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("reader", "processes"), [(0, 1), (0, 2), (2, 3), (1, 7)])
@pytest.mark.parametrize("buffer_size", [1, 5, 100])
def test_resume_goes_on_where_it_was(rows, counted, kind, reader, processes, buffer_size):
    stream = make_stream(rows(kind), buffer_size=buffer_size).for_process(reader, processes)
    order = list(itertools.islice(stream, 40))
    running = iter(stream)
    # With fewer shards than readers, most rows are those of others: at the border of two shards up to 2 x 7 are between.
    most = 2 * min(buffer_size, 24) * (2 * processes if processes > 4 else 1)
    for given in range(30):
        state = json.loads(json.dumps(running.state_dict()))
        resumed = iter(stream)
        counted.update(rows=0, shards=[])
        resumed.load_state_dict(state)
        assert counted["rows"] <= most
        assert resumed.state_dict() == state
        assert list(itertools.islice(resumed, 10)) == order[given : given + 10]
        assert next(running) == order[given]


def test_resume_opens_no_shard_that_is_done(rows, counted):
    stream = make_stream(rows())
    running = iter(stream)
    given = list(itertools.islice(running, 90))  # three epochs of 24, three shards and a half
    opened = counted["shards"][12:16]
    counted.update(rows=0, shards=[])
    resumed = iter(stream)
    resumed.load_state_dict(running.state_dict())
    assert set(counted["shards"]) <= set(opened[2:])
    assert len(given) == 90 and sorted(numbers(resumed, 6)) == sorted(set(range(24)) - {n for n, _ in given[72:]})


@pytest.mark.parametrize("kind", KINDS)
def test_real_workers_read_as_their_readers_do_and_resume(rows, monkeypatch, kind):
    stream = make_stream(rows(kind, 5)).for_process(1, 2)
    readers = make_readers(monkeypatch, make_stream(rows(kind, 5)), processes=2, workers=2)[1]
    expected = [list(itertools.islice(reader, 4)) for _ in range(10) for reader in readers]

    def make_loader():
        return StatefulDataLoader(stream, batch_size=4, num_workers=2, collate_fn=list)

    loader = make_loader()
    states = []
    for batch, expected_batch in zip(loader, expected):
        assert batch == expected_batch
        states.append(json.loads(json.dumps(loader.state_dict())))  # two batches of each worker are read ahead by now
    for position in (1, 4, 11):
        resumed = make_loader()
        resumed.load_state_dict(states[position - 1])
        assert list(itertools.islice(resumed, 6)) == expected[position : position + 6]


def test_a_part_of_a_stream(tmp_path):
    stream = make_stream(make_rows(tmp_path, max_train_samples=7))
    order = numbers(stream, 21)
    assert [len(set(order[start : start + 7])) for start in (0, 7, 14)] == [7, 7, 7]
    assert len(set(order)) == 7


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_part_of_unequal_shards_has_the_first_images(tmp_path, kind):
    make = images.make_parquet if kind == "parquet" else images.make_tar
    for number, count in enumerate((2, 10, 1)):
        folder = make(tmp_path / str(number), num_shards=1, images_per_shard=count)
        (folder / f"0.{kind}").rename(tmp_path / f"{number}.{kind}")
    args = {"train_dir": str(tmp_path), "validation_dir": str(tmp_path), "streaming": True, "num_labels": 3}
    data = load_image_data(DataArguments(**args, max_train_samples=9))
    stream = make_stream(data.splits["train"])
    assert data.num_train_examples == 9
    expected = {0: 2, 1: 2, **dict.fromkeys(range(2, 7), 1)}
    order = numbers(stream, 27)
    assert [Counter(order[start : start + 9]) for start in (0, 9, 18)] == [expected] * 3
    # Of nine images, one of two processes has five, the other four.
    shares = [numbers(stream.for_process(rank, 2), count) for rank, count in ((0, 5), (1, 4))]
    assert Counter(itertools.chain(*shares)) == expected


def test_parts_of_two_splits_are_stored_apart(tmp_path):
    root = tmp_path / "data"
    for name, count in (("train", 4), ("other", 7)):
        folder = images.make_parquet(tmp_path / name, num_shards=1, images_per_shard=count)
        root.mkdir(exist_ok=True)
        (folder / "0.parquet").rename(root / f"{name}-00000-of-00001.parquet")
    images.name_splits(root, {name: f"{name}-*.parquet" for name in ("train", "other")})
    args = {
        "dataset_name": str(root),
        "streaming": True,
        "num_labels": 3,
        "max_train_samples": 5,
        "max_eval_samples": 6,
    }
    sizes = {}
    for one, other in (("train", "other"), ("other", "train")):
        data = load_image_data(
            DataArguments(**args, train_split_name=one, validation_split_name=other), cache_dir=str(tmp_path / "cache")
        )
        sizes[one] = (data.num_train_examples, len(data.splits["validation"]))
    assert sizes == {"train": (4, 6), "other": (5, 4)}


def test_fewer_examples_than_readers():
    stream = make_stream(
        datasets.Dataset.from_dict({"x": [0, 1]}).to_iterable_dataset(), lambda row, name, seed: row["x"]
    )
    seen = Counter(itertools.chain(*(itertools.islice(stream.for_process(rank, 3), 4) for rank in range(3))))
    assert seen == {0: 6, 1: 6}


def test_errors(rows):
    with pytest.raises(ValueError, match="`buffer_size` must be 1 .*, but is 0"):
        TrainingStream(rows(), None, buffer_size=0)
    for make in (
        lambda: TrainingStream(rows(), None, rank=2, world_size=2),
        lambda: make_stream(rows()).for_process(2, 2),
    ):
        with pytest.raises(ValueError, match=r"`rank` must be in 0..1 \(world_size is 2\), but is 2"):
            make()
    with pytest.raises(ValueError, match="stream has no images"):
        next(iter(make_stream(rows().filter(lambda example: False))))
