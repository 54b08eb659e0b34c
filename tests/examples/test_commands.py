# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What commands of the example scripts can ask for, and what they get by default."""

import pytest
from helpers import images


QUIET = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
MODEL = ["--model_type", "resnet", "--image_size", "20", "--crop_pct", "1.0"]
MODEL += ["--config_overrides", "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"]


@pytest.fixture(scope="module")
def script():
    return images.load_script("run_image_classification")


def test_a_new_model_is_measured_only_after_training(script, tmp_path):
    out = ["--output_dir", str(tmp_path / "out"), *QUIET]
    needs_model = (
        "`model_name_or_path` must be a trained model without `do_train`, but is None. Name one, or give `do_train`"
    )
    recipe = str(images.ROOT / "examples" / "recipes" / "cifar100_wrn28_10.yaml")
    for words in (
        out,  # recipes/digits.yaml evaluates after each epoch
        [*out, "--do_eval", *MODEL],
        [*out, "--do_predict", "--test_dir", "photos", *MODEL],
        [recipe, *out, "--do_train", "false"],
    ):
        with pytest.raises(ValueError, match=needs_model):
            script.main(words)
    with pytest.raises(ValueError, match="One of `do_train`, `do_eval`, `do_predict` must be on, but all are off"):
        script.main([*out, "--train_dir", "photos", *MODEL])


def test_predictions_are_of_test_images(script, tmp_path):
    out = ["--output_dir", str(tmp_path / "out"), "--do_train", "--do_predict", *QUIET]
    data = str(images.make_folder(tmp_path / "photos"))
    for words in (out, [*out, *MODEL, "--train_dir", data, "--validation_dir", data]):  # the digits have no test split
        with pytest.raises(ValueError, match="`test_dir` must be given with `do_predict`, but is None"):
            script.main(words)
    images.make_parquet(tmp_path / "shards", num_shards=1)
    with pytest.raises(ValueError, match=r"There is no test split; the splits of .* are \['train', 'validation'\]"):
        script.main([*out, *MODEL, "--dataset_name", str(tmp_path / "shards"), "--train_val_split", "0.5"])
    assert not (tmp_path / "out" / "trainer_state.json").exists()


@pytest.mark.parametrize("name", ["run_image_classification", "run_image_classification_no_trainer"])
def test_only_the_digits_have_an_augmentation_of_their_own(name, tmp_path, monkeypatch):
    script = images.load_script(name)
    monkeypatch.setattr(script, "run", lambda model_args, data_args, training_args: seen.append(data_args) or {})
    words, seen = ["--output_dir", str(tmp_path / "out")], []
    words += ["--do_train", *QUIET] if name == "run_image_classification" else []
    for more in ([], ["--horizontal_flip", "true"], ["--train_dir", "photos"], ["--dataset_name", "org/photos"]):
        script.main([*words, *more])
    found = [(data_args.random_resized_crop_scale, data_args.horizontal_flip) for data_args in seen]
    assert found == [([0.7, 1.0], False), ([0.7, 1.0], True), ([0.08, 1.0], True), ([0.08, 1.0], True)]
