# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""A sub-network with fewer blocks computes what an independently built shallower model does."""

import copy

import pytest
import torch
from helpers.families import FAMILIES, family_config, family_model, image_size, model_class
from helpers.tiny import largest_difference, state_of, tiny_images, tiny_model
from transformers import ResNetForImageClassification

from hf_gradaug import export_subnetwork, make_slimmable, register_depth, register_narrowing
from hf_gradaug.slimmable.depth import droppable_model_types
from hf_gradaug.slimmable.registry import FAMILIES as REGISTERED


LABELS = torch.tensor([0, 1, 2, 0])
WITH_DEPTH = [family for family in FAMILIES if family_config(family).model_type in droppable_model_types()]
# Parts of the names of the blocks, read off the models: the first number is the stage, the second the block.
PLACES = {
    **dict.fromkeys(("swin", "swinv2", "pvt_v2"), "layers.{}.blocks.{}."),
    **dict.fromkeys(("vit", "deit", "beit"), "layers.{1}."),
    "dinov2": "layer.{1}.",
    "wide_resnet": "stages.{}.{}.",
    "poolformer": "block.{}.{}.",
    **dict.fromkeys(("segformer", "hgnet_v2"), "stages.{}.blocks.{}."),
}
STAGES = "stages.{}.layers.{}."


def depth_field(config) -> str:
    return next(name for name in ("stage_num_blocks", "depths", "num_hidden_layers") if hasattr(config, name))


def stages_of(config) -> list[int]:
    depths = getattr(config, depth_field(config))
    return [depths] if isinstance(depths, int) else list(depths)


def with_last_stage(config, depth: int):
    """The config with another number of blocks in the last stage."""
    field = depth_field(config)
    value = depth if field == "num_hidden_layers" else [*getattr(config, field)[:-1], depth]
    setattr(config, field, value)
    return config


def deep_config(family: str, depth: int = 4, **changes):
    config = with_last_stage(family_config(family), depth)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def deep_model(family: str, **changes):
    return family_model(family, config=deep_config(family, **changes)).double()


def kept_blocks(model, last_stage) -> tuple[tuple[int, ...], ...]:
    return (*(tuple(range(depth)) for depth in stages_of(model.config)[:-1]), tuple(last_stage))


def copied_into_a_shallower_model(family: str, model, last_stage: tuple[int, ...]):
    """A plain model of a config with fewer blocks, the kept ones' weights copied in; and their names in `model`."""
    config = with_last_stage(copy.deepcopy(model.config), len(last_stage))
    shallower = model_class(family)(config).double().train(model.training)
    stage = len(stages_of(config)) - 1
    place = PLACES.get(model.config.model_type, STAGES)
    names = {}
    for name in shallower.state_dict():
        names[name] = name
        for position, block in enumerate(last_stage):
            if f".{place.format(stage, position)}" in f".{name}":
                names[name] = name.replace(place.format(stage, position), place.format(stage, block), 1)
                break
    weights = model.state_dict()
    shallower.load_state_dict({name: weights[full_name] for name, full_name in names.items()})
    return shallower, names


def run(model, family: str):
    outputs = model(pixel_values=tiny_images(size=image_size(family)).double(), labels=LABELS)
    outputs.loss.backward()
    return outputs.logits.detach()


@pytest.mark.parametrize("family", WITH_DEPTH)
def test_equals_an_independent_shallower_model(family):
    model = make_slimmable(deep_model(family))
    # Swin's windows are shifted in blocks of odd index, so that here each block stays even or odd.
    for last_stage, training in (((0, 3), True), ((0,), False)):
        shallower, names = copied_into_a_shallower_model(family, model.train(training), last_stage)
        expected = run(shallower, family)
        for detached in (False, True):
            model.zero_grad()
            with model.subnetwork(1.0, kept_blocks=kept_blocks(model, last_stage), detached=detached) as skeleton:
                logits = run(model, family)
            assert stages_of(skeleton.config) == stages_of(shallower.config)
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
            gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
            for name, parameter in shallower.named_parameters():
                found = gradients.pop(names[name])
                assert (found is None) == (parameter.grad is None), name
                if found is not None:
                    torch.testing.assert_close(found, parameter.grad, rtol=1e-7, atol=1e-9, msg=name)
            # Of dropped blocks. DistributedDataParallel waits for a gradient of each parameter, so views give one.
            assert gradients
            for name, gradient in gradients.items():
                assert gradient is None if detached else not gradient.any(), name


@pytest.mark.parametrize("family", ["resnet-basic", "resnet-bottleneck", "convnext", "vit", "swin"])
def test_narrower_and_shallower(family):
    plain = deep_model(family)
    narrower = export_subnetwork(plain, 0.6).train()
    shallower, _ = copied_into_a_shallower_model(family, narrower, (0, 3))
    model = make_slimmable(plain).train()
    with model.subnetwork(0.6, kept_blocks=kept_blocks(model, (0, 3))) as skeleton:
        torch.testing.assert_close(run(model, family), run(shallower, family), rtol=1e-9, atol=1e-10)
        assert skeleton.num_parameters() == shallower.num_parameters()


@pytest.mark.parametrize("family", WITH_DEPTH)
def test_all_blocks_are_the_full_network(family):
    model = make_slimmable(deep_model(family))
    before = state_of(model)
    with model.subnetwork(1.0, kept_blocks=kept_blocks(model, range(4))):
        logits = run(model, family)
    assert largest_difference(state_of(model), before) == 0  # running statistics too
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    assert torch.equal(run(model, family), logits)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, model.get_parameter(name).grad), name


@pytest.mark.parametrize("family", ["swin", "swinv2", "convnext", "beit"])
def test_what_goes_by_a_blocks_place_stays(family):
    """Rates of drop path and shifted windows are those of the kept block, whichever place it comes to."""
    model = make_slimmable(deep_model(family, depth=6, drop_path_rate=0.5).eval())
    stage = len(stages_of(model.config)) - 1
    place = PLACES.get(model.config.model_type, STAGES).format(stage, "*").replace("1*", "*").split("*")[0].rstrip(".")
    (blocks,) = (name for name, _ in model.named_modules() if name.endswith(place))
    for last_stage in ((0, 1, 4), (0, 3, 4), (0, 2, 5)):  # one config, and so one skeleton, for all
        independent = copy.deepcopy(model)
        kept = [independent.get_submodule(blocks)[block] for block in last_stage]
        setattr(
            independent.get_submodule(blocks.rpartition(".")[0]), place.rpartition(".")[2], torch.nn.ModuleList(kept)
        )
        with torch.no_grad(), model.subnetwork(1.0, kept_blocks=kept_blocks(model, last_stage)) as skeleton:
            images = tiny_images().double()
            torch.testing.assert_close(model(pixel_values=images).logits, independent(pixel_values=images).logits)
            found = [block.drop_path.drop_prob for block in skeleton.get_submodule(blocks)[1:]]
        assert found == [block.drop_path.drop_prob for block in kept[1:]]
        assert found == sorted(set(found))
    assert (
        len({id(model.subnetwork(1.0, kept_blocks=kept_blocks(model, s)).subnetwork) for s in ((0, 1), (0, 5))}) == 1
    )


@pytest.mark.parametrize("family", ["resnet-basic", "convnext"])
def test_blocks_of_several_stages(family):
    model = make_slimmable(tiny_model(family, depths=[4, 3, 2]).eval())
    independent = copy.deepcopy(model)
    stages = independent.base_model.encoder.stages
    del stages[0].layers[3], stages[0].layers[1], stages[1].layers[1], stages[2].layers[1]
    with torch.no_grad(), model.subnetwork(1.0, kept_blocks=[[0, 2], [0, 2], [0]]) as skeleton:
        expected = independent(pixel_values=tiny_images()).logits
        torch.testing.assert_close(model(pixel_values=tiny_images()).logits, expected)
    assert skeleton.config.depths == [2, 2, 1]


def test_nested_with_one_skeleton():
    model = make_slimmable(deep_model("resnet-basic").eval())
    first, second = (model.subnetwork(1.0, kept_blocks=kept_blocks(model, last)) for last in ((0, 1), (0, 3)))
    images = tiny_images().double()
    with torch.no_grad(), first:
        expected = model(pixel_values=images).logits
        with second:
            assert not torch.equal(model(pixel_values=images).logits, expected)
        assert torch.equal(model(pixel_values=images).logits, expected)
    assert all(tensor.is_meta for tensor in first.skeleton.state_dict().values())


@pytest.mark.parametrize(
    "wrong", [[[0, 1], [0]], [[0], [1], [0]], [[0, 2, 1], [0], [0]], [[0, 3], [0], [0]], [[], [0], [0]]]
)
def test_kept_blocks_that_do_not_fit(wrong):
    model = make_slimmable(tiny_model("resnet-basic", depths=[3, 1, 1]))
    with pytest.raises(ValueError) as error:
        model.subnetwork(1.0, kept_blocks=wrong)
    assert "`kept_blocks`" in str(error.value)
    assert f"but is {wrong}. The stages have [3, 1, 1] blocks." in str(error.value)


def test_families_without_depth():
    model = make_slimmable(family_model("levit"))
    with pytest.raises(
        TypeError, match="'levit'.*`subnetwork_kind`.*`kept_blocks`, are for: .*'convnext'.*register_depth"
    ):
        model.subnetwork(1.0, kept_blocks=[[0], [0], [0]])


def test_a_build_that_ignores_the_depth_is_found_out():
    def build(config):
        config = copy.deepcopy(config)
        config.depths = [3, 1, 1]
        return ResNetForImageClassification(config)

    model = make_slimmable(tiny_model("resnet-basic", depths=[3, 1, 1]), build=build)
    with pytest.raises(ValueError, match=r"stages\.0\.layers\.2.*is absent in the model.*`build=...`"):
        model.subnetwork(1.0, kept_blocks=[[0, 2], [0], [0]])


def test_own_family(monkeypatch):
    monkeypatch.setitem(REGISTERED, "mine", None)
    del REGISTERED["mine"]  # and it is gone after the test
    register_narrowing("mine")(REGISTERED["resnet"].narrowing)
    model = make_slimmable(deep_model("resnet-basic", model_type="mine").eval())
    with pytest.raises(TypeError, match="'mine'"):
        model.subnetwork(1.0, kept_blocks=kept_blocks(model, (0, 2)))
    register_depth("mine", field="depths", blocks=r"stages\.(\d+)\.layers\.(\d+)")
    with model.subnetwork(1.0, kept_blocks=kept_blocks(model, (0, 2))):
        logits = model(pixel_values=tiny_images().double()).logits
    layers = model.resnet.encoder.stages[2].layers
    del layers[3], layers[1]
    torch.testing.assert_close(model(pixel_values=tiny_images().double()).logits, logits)


def test_gradient_checkpointing():
    plain, checkpointed = (make_slimmable(deep_model("swin").train()) for _ in range(2))
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    gradients = []
    for model in (plain, checkpointed):
        for last_stage in ((0, 3), (0, 1)):  # one skeleton, bound to other blocks
            with model.subnetwork(0.5, kept_blocks=kept_blocks(model, last_stage), detached=True):
                run(model, "swin")
        gradients.append(
            {n: parameter.grad for n, parameter in model.named_parameters() if parameter.grad is not None}
        )
    assert largest_difference(*gradients) < 1e-10
