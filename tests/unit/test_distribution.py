# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Wheel and sdist hold what they need: a model trains with the installed wheel, outside of the clone."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest


BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, f'build_{sys.argv[1]}')(sys.argv[2])"
TRAIN = """
import sys
import torch
from transformers import ResNetConfig, ResNetForImageClassification
import hf_gradaug
from hf_gradaug import GradAugConfig, GradAugTrainer

assert hf_gradaug.__file__.startswith(sys.argv[1]), hf_gradaug.__file__
config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
model = ResNetForImageClassification(config)
data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(8)]
before = [parameter.clone() for parameter in model.parameters()]
args = GradAugConfig("out", max_steps=2, per_device_train_batch_size=4, report_to="none", use_cpu=True)
trainer = GradAugTrainer(model=model, args=args, train_dataset=data)
trainer.train()
trainer.save_model()
trainer.create_model_card()  # from a template, which is no Python file
assert all((a != b).any() for a, b in zip(before, model.parameters()))
"""


@pytest.mark.slow
def test_two_steps_with_the_installed_wheel(root, tracked_files, tmp_path, subprocess_env):
    def run(*words, cwd, **env):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=cwd,
            env={**subprocess_env, **env},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done

    # A copy: a build writes beside what it builds.
    source, dist, site = tmp_path / "source", tmp_path / "dist", tmp_path / "site"
    for file in tracked_files:
        copy = source / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    run("-c", BUILD, "sdist", str(dist), cwd=source)
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= {path.name for path in unpacked.iterdir()}
    assert not (unpacked / "tests").exists()

    run("-c", BUILD, "wheel", str(dist), cwd=unpacked)
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("hf_gradaug/")}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    package = source / "hf_gradaug"
    assert inside == {path.relative_to(source).as_posix() for path in package.rglob("*") if path.is_file()}

    run("-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", str(site), str(wheel), cwd=tmp_path)
    run("-c", TRAIN, str(site), cwd=tmp_path, PYTHONPATH=os.fspath(site))
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "README.md").is_file()
