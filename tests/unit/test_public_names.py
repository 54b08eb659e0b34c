# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Names that users import stay importable: from the top, from documented subpackages, and from pickled arguments."""

import importlib
import pickle

import pytest

import hf_gradaug


# Written out: a name that goes missing has to be missed here.
TOP = [
    "Compose",
    "DistillationTrainer",
    "GradAug",
    "GradAugConfig",
    "GradAugMixin",
    "GradAugPass",
    "GradAugSettings",
    "GradAugTrainer",
    "HubMixin",
    "HubPushError",
    "PixelClassifier",
    "PyramidNetConfig",
    "PyramidNetForImageClassification",
    "PyramidNetModel",
    "RandomRotation",
    "RandomScale",
    "RobustnessResults",
    "RobustnessSettings",
    "StopOnSignal",
    "StreamMixin",
    "TrainingStream",
    "WideResNetConfig",
    "WideResNetForImageClassification",
    "WideResNetModel",
    "convert_authors_checkpoint",
    "corrupt_image",
    "create_subnetwork_card",
    "evaluate_robustness",
    "evaluate_widths",
    "export_subnetwork",
    "export_widths",
    "format_widths",
    "leading_blocks",
    "load_classifier",
    "load_settings",
    "make_slimmable",
    "mean_corruption_error",
    "narrow_config",
    "plot_robustness",
    "plot_training_curves",
    "plot_widths",
    "recalibrate_batchnorm",
    "register_depth",
    "register_narrowing",
    "save_settings",
    "soft_label_cross_entropy",
    "soft_target_loss",
    "soft_targets",
    "subnetwork_state_dict",
    "supported_model_types",
    "to_authors_state_dict",
]
BELOW = {
    "data": """DataArguments ImageCollator ImageData TrainingStream decode_image get_class_names get_eval_transform
        get_image_size get_pixel_map get_streaming_arguments get_train_transform load_digits_dataset load_image_data
        make_image_processor match_classes""",
    "dense": "QueryTargets check_rotations query_loss query_targets resize_like_images select_rows transform_images",
    "export": """convert_authors_checkpoint create_subnetwork_card evaluate_widths export_subnetwork export_widths
        format_widths load_classifier plot_widths recalibrate_batchnorm to_authors_state_dict""",
    "gradaug_config": "GradAugConfig",
    "models": """PyramidNetConfig PyramidNetForImageClassification PyramidNetModel WideResNetConfig
        WideResNetForImageClassification WideResNetModel""",
    "reporting": """ModelCardMixin describe_machine describe_versions find_device is_hub_name new_figure
        plot_training_curves""",
    "robustness": """PixelClassifier RobustnessResults RobustnessSettings corrupt_image evaluate_robustness
        mean_corruption_error plot_robustness""",
    "settings": "GradAugSettings SETTINGS_NAME save_settings",
    "slimmable": """leading_blocks make_slimmable narrow_config register_depth register_narrowing subnetwork_state_dict
        supported_model_types""",
    "training": """DurableTrainerMixin FaultToleranceMixin HubMixin HubPushError StopOnSignal StreamMixin find_checkpoint
        find_damage""",
    "transforms": "Compose RandomRotation RandomScale",
}


@pytest.mark.parametrize("name", TOP)
def test_name_of_the_top(name):
    assert name in hf_gradaug.__all__
    namespace = {}
    exec(f"from hf_gradaug import {name}", namespace)
    assert namespace[name].__name__ == name


def test_no_name_of_the_top_is_unlisted():
    assert sorted(hf_gradaug.__all__) == sorted(TOP)


@pytest.mark.parametrize("module", BELOW)
def test_names_of_a_subpackage(module):
    found = vars(importlib.import_module(f"hf_gradaug.{module}"))
    assert not set(BELOW[module].split()) - set(found)
    # What is at the top too is the same object.
    assert all(getattr(hf_gradaug, name) is found[name] for name in BELOW[module].split() if name in TOP)


def test_subpackages_say_what_they_are_for():
    for module in BELOW:
        assert len(importlib.import_module(f"hf_gradaug.{module}").__doc__.split()) > 5


def test_pickled_arguments_of_earlier_runs_load():
    # As training_args.bin names the class.
    assert pickle.loads(b"chf_gradaug.gradaug_config\nGradAugConfig\n.") is hf_gradaug.GradAugConfig
