from __future__ import annotations

from typing import Any

import pytest
import torch

from ien.errors import InputError
from ien.groups import Group
from ien.metrics import equivariance_sums, mean_errors, relative_errors
from ien.models import MODELS, default_width
from ien.pooling import PRESETS, ChannelMaxPool, group_size
from ien.taps import Tapped
from tests.symmetry.symmetric import average_kernels

CLASSES = {"BasicCNN": 10, "Resnet18": 100, "VGG": 100}
SIDES = {  # of the taps, as published; VGG with 3×3 kernels throughout
    "BasicCNN": [24, 24, 12, 12, 6, 2],
    "Resnet18": [65, 33, 17, 9],
    "VGG": [64, 32, 16, 16, 8, 8, 4, 4],
}
PUBLISHED = {  # parameters in millions
    ("BasicCNN", "R4"): 10.88, ("BasicCNN", "R4-2-1"): 5.16,
    ("Resnet18", "R4"): 50.44, ("Resnet18", "R8"): 100.48, ("Resnet18", "R8-4-2-1"): 45.38,
    ("Resnet18", "R8-4-2"): 21.13, ("Resnet18", "R4-2-1"): 21.14,
    ("VGG", "R4"): 38.57, ("VGG", "R8"): 73.93, ("VGG", "R8-4-2-1"): 30.94, ("VGG", "R4-2-1"): 18.45,
}  # fmt: skip
CASES = [
    *((Group(n, reflection), None) for n in (2, 3, 4, 5, 8) for reflection in (False, True)),
    *((Group(int(preset[1])), preset) for preset in PRESETS),
    (Group(4, True), "R8-4-2-1"),
]


def filter_groups(group: Group, preset: str | None) -> ChannelMaxPool:
    return (
        ChannelMaxPool.from_name(preset) if preset else ChannelMaxPool([group_size(group.rotations, group.reflection)])
    )


def build(model: str, pool: ChannelMaxPool, width: int, **more: Any) -> Tapped:
    network = MODELS[model].build(width, pool, CLASSES[model], **more)
    return Tapped(network, network.taps, pool)


def images(model: str, count: int = 2) -> torch.Tensor:
    side = MODELS[model].build.image_side
    return torch.rand(count, 1 if model == "BasicCNN" else 3, side, side)


@pytest.mark.parametrize(("model", "filters"), PUBLISHED)
def test_published_parameter_counts(model: str, filters: str) -> None:
    kernels = {"published_kernels": True} if model == "VGG" else {}
    group = Group(int(filters[1]))
    pool = filter_groups(group, filters if "-" in filters else None)
    with torch.device("meta"):
        tapped = build(model, pool, default_width(model, group, pool), **kernels)
    assert round(sum(p.numel() for p in tapped.parameters()) / 1e6, 2) == PUBLISHED[model, filters]


@pytest.mark.parametrize(("group", "preset"), CASES, ids=lambda case: getattr(case, "name", case))
@pytest.mark.parametrize("model", MODELS)
def test_every_network_with_every_group_and_preset(model: str, group: Group, preset: str | None) -> None:
    """At the default width the shapes fit (without computing), at the least one the network computes."""
    pool = filter_groups(group, preset)
    with torch.device("meta"):
        logits, maps = build(model, pool, default_width(model, group, pool))(images(model))
    assert [tap.shape[-1] for tap in maps.values()] == SIDES[model]
    assert logits.shape == (2, CLASSES[model])
    small = build(model, pool, pool.multiple)
    logits, maps = small(images(model))
    assert torch.isfinite(logits).all()
    channels = {name: layer for name, layer in small.model.named_children() if name in maps}
    assert len(channels) == len(maps)


@pytest.mark.parametrize("preset", [None, "R8-4-2-1"])
@pytest.mark.parametrize("model", MODELS)
def test_averaged_kernels_have_no_equivariance_error_at_the_configured_size(model: str, preset: str | None) -> None:
    """If every kernel is its own mean over D4, the backbone commutes with D4: its layers and sides keep alignment."""
    group = Group(4, reflection=True)
    pool = filter_groups(group, preset)
    tapped = build(model, pool, pool.multiple).double()
    torch.manual_seed(3)
    for norm in (m for m in tapped.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -1, 1)
    average_kernels(tapped, group)
    tapped.eval()
    batch = [images(model).double()]
    errors = mean_errors(relative_errors(equivariance_sums(tapped, batch, group), group))
    assert set(errors) == set(tapped.layers)
    assert max(error for error in errors.values() if error is not None) < 1e-12
    logits, _ = tapped(batch[0])
    for element in group.moves:
        assert torch.allclose(tapped(group.act(batch[0], element))[0], logits, atol=1e-10)


@pytest.mark.parametrize(("model", "side", "kernels"), [("Resnet18", 64, {}), ("VGG", 64, {"published_kernels": True})])
def test_a_wrong_size_breaks_what_averaged_kernels_promise(model: str, side: int, kernels: dict[str, bool]) -> None:
    """The negative control: on even sides Resnet18's strides, and VGG's published kernels, lose alignment."""
    group, pool = Group(4), ChannelMaxPool([4])
    tapped = build(model, pool, 4, **kernels).eval()
    average_kernels(tapped, group)
    sums = equivariance_sums(tapped, [torch.rand(2, 3, side, side)], group)
    assert max(error or 0.0 for error in mean_errors(relative_errors(sums, group)).values()) > 0.05


def test_vgg_published_kernels_give_the_published_sides() -> None:
    _, maps = build("VGG", ChannelMaxPool([4]), 4, published_kernels=True)(images("VGG"))
    assert [tap.shape[-1] for tap in maps.values()] == [64, 33, 16, 17, 8, 8, 5, 5]


def test_parameters_stand_in_the_order_of_computation() -> None:
    """A published state_dict can be copied over one by one: within a block norm, conv, norm, conv, shortcut."""
    names = [name for name, _ in build("Resnet18", ChannelMaxPool([4]), 4).model.named_parameters()]
    block = [name.removeprefix("stage2.0.").rsplit(".", 1)[0] for name in names if name.startswith("stage2.0.")]
    assert list(dict.fromkeys(block)) == ["norm1", "conv1", "norm2", "conv2", "shortcut"]
    for model in MODELS:
        tapped, used = build(model, ChannelMaxPool([4]), 4), []
        for name, layer in tapped.model.named_modules():
            if next(layer.parameters(recurse=False), None) is not None:
                layer.register_forward_hook(lambda *_, name=name, used=used: used.append(name))
        tapped(images(model))
        registered = dict.fromkeys(name.rsplit(".", 1)[0] for name, _ in tapped.model.named_parameters())
        assert used == list(registered)


def test_basic_cnn_starts_as_published() -> None:
    network = build("BasicCNN", ChannelMaxPool([4]), 32).model
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            fan = layer.weight[0].numel() + layer.weight[:, 0].numel()
            bound = (6 / fan) ** 0.5
            assert 0.95 * bound < layer.weight.abs().max() <= bound
        if isinstance(layer, torch.nn.Linear):
            assert torch.all(layer.bias == 0.01)


def test_a_width_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(InputError, match="nearest: 22 or 33"):
        build("VGG", ChannelMaxPool.from_name("R4-2-1"), 30)


def test_taps_leave_the_network_as_it_is() -> None:
    pool = ChannelMaxPool([4])
    network = MODELS["BasicCNN"].build(8, pool, 10).eval()
    batch = images("BasicCNN")
    before, keys = network(batch), list(network.state_dict())
    tapped = Tapped(network, network.taps, pool)
    logits, maps = tapped(batch)
    assert torch.equal(logits, before)
    assert list(network.state_dict()) == keys
    assert torch.equal(maps["block1"], pool(network.block1(batch)))
    tapped.close()
    assert not any(layer._forward_hooks for layer in network.modules())


def test_taps_that_cannot_be_are_refused() -> None:
    pool = ChannelMaxPool([4])
    network = MODELS["BasicCNN"].build(8, pool, 10)
    with pytest.raises(InputError, match="did you mean 'block1'"):
        Tapped(network, ["blok1"], pool)
    with pytest.raises(InputError, match=r"'head' gives shape \(2, 10\), no feature map"):
        Tapped(network, ["head"], pool).eval()(images("BasicCNN"))
