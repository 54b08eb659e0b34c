# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The data and the runs that the tests of faults share."""

import pytest
from helpers import harness, images


class Example:
    """Runs of the example script on one kind of data, with the same flags."""

    def __init__(self, folder, kind: str):
        self.folder = folder
        path = folder / "data"
        if kind == "folder":
            images.make_folder(path, images_per_class=12)
        else:
            images.make_parquet(path, num_shards=3, images_per_shard=8)
        self.flags = ["--train_dir", str(path), "--validation_dir", str(path), "--max_steps", str(harness.STEPS)]
        # A larger buffer would hold hundreds of epochs of so few images.
        self.flags += ["--streaming", "--shuffle_buffer_size", "16"] if kind == "stream" else []

    def run(self, output_dir, *flags: str, fault=None, fault_args=(), timeout: float = 60) -> harness.Run:
        log = output_dir.with_name(f"{output_dir.name}.log")
        flags = [*self.flags, "--output_dir", str(output_dir), "--save_steps", "2", *flags]
        process = harness.start(log, harness.run_example, flags, fault, *fault_args)
        return harness.finish(process, log, timeout)


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """An `Example` by the kind of its data, `"folder"` or `"stream"`."""
    made = {}

    def get(kind: str) -> Example:
        if kind not in made:
            made[kind] = Example(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def uninterrupted(examples):
    """The output folder of a run that nothing happens to, by the kind of its data."""
    made = {}

    def get(kind: str):
        if kind not in made:
            example = examples(kind)
            made[kind] = example.folder / "uninterrupted"
            done = example.run(made[kind])
            assert done.code == 0, done.text
        return made[kind]

    return get


@pytest.fixture
def weights():
    """The bytes of the trained weights in an output folder."""
    return lambda output_dir: (output_dir / "model.safetensors").read_bytes()
