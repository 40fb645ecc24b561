"""Projection onto equivariant weights: it is one, it makes every network exact, and training can start from, be drawn
to, or stay on it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call

from ien.errors import InputError
from ien.groups import Group
from ien.models import MODELS
from ien.pooling import PRESETS, ChannelMaxPool, group_size
from ien.symmetry import Symmetry, project, weight_distance
from ien.symmetry.carriers import carriers
from ien.symmetry.representations import channel_origins
from ien.taps import Tapped

GROUPS = [Group(4), Group(8), Group(4, True), Group(8, True)]


def by_name(case: object) -> str:
    return case.name if isinstance(case, Group) else str(case)


def filter_groups(group: Group, preset: str | None) -> ChannelMaxPool:
    size = group_size(group.rotations, group.reflection)
    return ChannelMaxPool.from_name(preset) if preset else ChannelMaxPool([size])


@torch.no_grad()
def shaken(network: nn.Module) -> nn.Module:
    """The network in double precision and eval mode, its weights and statistics telling channels and pixels apart."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.normal_(std=2 * layer.weight[0].numel() ** -0.5)
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d | nn.GroupNorm):
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else tensor.uniform_(-1, 1)
    return network.double().eval()


@torch.no_grad()
def errors(tapped: Tapped, group: Group, side: int, channels: int) -> tuple[float, float, float]:
    """Over the exact elements: the largest relative error of a tap; of the logits; the least variation of a tap."""
    exact = [element for element in group.elements if element.exact]
    image = torch.rand(1, channels, side, side, dtype=torch.float64)
    logits, maps = tapped(torch.cat([group.act(image, element) for element in exact]))
    worst, least = 0.0, float("inf")
    for tap in maps.values():
        expected = torch.cat([group.act(tap[:1], element) for element in exact])
        worst = max(worst, float((tap - expected).norm() / tap.norm()))
        least = min(least, float(tap[0].std(dim=(-2, -1)).max() / tap[0].abs().mean()))
    return worst, float((logits - logits[:1]).abs().max() / logits.std()), least


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("group", GROUPS, ids=by_name)
@pytest.mark.parametrize("model", MODELS)
def test_every_projected_network_is_exactly_equivariant(model: str, group: Group, preset: str | None) -> None:
    """At the side of its configs, in every tap and to every exact element; and it is not dead."""
    pool, channels = filter_groups(group, preset), 1 if model == "BasicCNN" else 3
    network = shaken(MODELS[model].build(pool.multiple, pool, 10, channels))
    tapped = Tapped(network, network.taps, pool)
    before, _, _ = errors(tapped, group, network.image_side, channels)
    assert before > 1e-2
    project(network, group, pool)
    tap, logits, variation = errors(tapped, group, network.image_side, channels)
    assert max(tap, logits) < 1e-10
    assert variation > 1e-3
    kernels = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d)).weight
    assert not torch.allclose(kernels[0], kernels[1], atol=1e-3)  # more than one and the same symmetric kernel


def test_a_side_that_loses_alignment_keeps_its_error() -> None:
    pool = ChannelMaxPool([4])
    network = shaken(MODELS["Resnet18"].build(4, pool, 10))
    project(network, Group(4), pool)
    tapped = Tapped(network, network.taps, pool)
    assert errors(tapped, Group(4), 65, 3)[0] < 1e-10
    assert errors(tapped, Group(4), 64, 3)[0] > 1e-2


@pytest.mark.parametrize("group", [Group(4), Group(8), Group(4, True)], ids=by_name)
def test_a_stock_network_becomes_equivariant(group: Group) -> None:
    """torchvision's resnet18, whose head reads unpooled channels; 33 keeps alignment through all of its strides."""
    pool = filter_groups(group, None)
    network = shaken(torchvision.models.resnet18(num_classes=7))
    tapped = Tapped(network, ["relu", "layer1", "layer2", "layer3", "layer4"], pool)
    before = errors(tapped, group, 33, 3)
    assert min(before[:2]) > 1e-2
    project(network, group, pool)
    tap, logits, variation = errors(tapped, group, 33, 3)
    assert max(tap, logits) < 1e-10
    assert variation > 1e-3


class Average(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(-2, -1))


def small(width: int = 8, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, width, 3, padding=1),
        norm(width),
        nn.PReLU(width),
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.ELU(),
        nn.Conv2d(width, width, 2, padding=1, bias=False),
        Average(),
        nn.Linear(width, 16),
        nn.BatchNorm1d(16),
        nn.PReLU(16),
        nn.Linear(16, 3),
    )


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda width: nn.GroupNorm(2, width)], ids=["batch", "group"])
@pytest.mark.parametrize("group", [Group(4), Group(2, True), Group(3, True), Group(4, True)], ids=by_name)
def test_depthwise_kernels_even_kernels_and_other_norms(group: Group, norm: Callable[[int], nn.Module]) -> None:
    pool = ChannelMaxPool([3 if group.rotations == 3 else 4])
    network = shaken(small(2 * pool.multiple, norm))
    for layer in network:
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, -1, 1)
    tapped = Tapped(network, ["1", "2", "4", "5"], pool)
    assert min(errors(tapped, group, 6, 2)[:2]) > 1e-2
    project(network, group, pool)
    assert max(errors(tapped, group, 6, 2)[:2]) < 1e-12


@pytest.mark.parametrize("group", [*GROUPS, Group(2), Group(6, True)], ids=by_name)
def test_the_projection_is_the_mean_over_the_group(group: Group) -> None:
    """Σ_g g·w / |G|, written out for a hidden kernel and a norm."""
    pool = ChannelMaxPool([2, 1], [4, 2])
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 12, 5)).double()
    nn.init.normal_(network[1].bias)
    kernel, bias = network[2].weight.detach().clone(), network[1].bias.detach().clone()
    exact = [element for element in group.elements if element.exact]
    kernels, biases = [], []
    for element in exact:
        outputs, inputs = (channel_origins(pool, group, element, channels) for channels in (12, 6))
        kernels.append(group.act(kernel[outputs][:, inputs], element))
        biases.append(bias[inputs])
    project(network, group, pool)
    assert torch.allclose(network[2].weight, torch.stack(kernels).mean(dim=0), atol=1e-15)
    assert torch.allclose(network[1].bias, torch.stack(biases).mean(dim=0), atol=1e-15)


def moving(network: nn.Module, pool: ChannelMaxPool) -> list[Tensor]:
    return [one.tensor for one in carriers(network, pool)]


def inner(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


@torch.no_grad()
@pytest.mark.parametrize("group", GROUPS, ids=by_name)
def test_it_is_an_orthogonal_projection(group: Group) -> None:
    """P² = P to the bit, ‖w‖² = ‖P w‖² + ‖w - P w‖², (w - P w)·P v = 0, and P (2 w + v) = 2 P w + P v."""
    pool = ChannelMaxPool([4, 2], [2, 1])
    w, v, both = (shaken(small(12)) for _ in range(3))
    for tensor, a, b in zip(*(moving(network, pool) for network in (both, w, v)), strict=True):
        tensor.copy_(2 * a + b)
    before = [tensor.clone() for tensor in moving(w, pool)]
    expected = weight_distance(w, group, pool)
    for network in (w, v, both):
        project(network, group, pool)
    pw, pv = moving(w, pool), moving(v, pool)
    apart = [a - b for a, b in zip(before, pw, strict=True)]
    assert inner(before, before) == pytest.approx(float(inner(pw, pw) + inner(apart, apart)), rel=1e-12)
    assert abs(inner(apart, pv)) < 1e-12 * inner(apart, apart)
    for tensor, a, b in zip(moving(both, pool), pw, pv, strict=True):
        assert torch.allclose(tensor, 2 * a + b, atol=1e-14)
    weights = [place for place, tensor in enumerate(pw) if isinstance(tensor, nn.Parameter)]
    lost, whole = ([tensors[place] for place in weights] for tensors in (apart, before))
    assert expected == pytest.approx(float(inner(lost, lost) / inner(whole, whole)), rel=1e-12)
    once = [tensor.clone() for tensor in pw]
    project(w, group, pool)
    assert all(torch.equal(a, b) for a, b in zip(moving(w, pool), once, strict=True))
    assert weight_distance(w, group, pool) == 0


def test_what_does_not_move_stays() -> None:
    """The head behind pooled filter groups, and its norm."""
    pool = ChannelMaxPool([4])
    network = shaken(MODELS["BasicCNN"].build(4, pool, 10))
    before = copy.deepcopy(network.head.state_dict())
    project(network, Group(4), pool)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.head.state_dict().items())


def test_the_penalty_has_the_gradient_of_its_formula() -> None:
    """Against differences; orthogonal to the weights of each layer, and 0 where the weights are equivariant."""
    group, pool = Group(4), ChannelMaxPool([4])
    network = shaken(small())
    symmetry = Symmetry(network, group, pool)
    penalty = symmetry.asymmetry()
    penalty.backward()
    found = carriers(network, pool)
    layers = {one.layer for one in found}
    assert 0 < float(penalty.detach()) < len(layers)
    for name in sorted(layers):
        weights = [one.tensor for one in found if one.layer == name and isinstance(one.tensor, nn.Parameter)]
        slopes = [weight.grad for weight in weights if weight.grad is not None]
        assert len(slopes) == len(weights)
        assert abs(inner(weights, slopes)) < 1e-12
    weight = network[3].weight
    for place in ((0, 0, 0, 0), (5, 0, 2, 1)):
        with torch.no_grad():
            around = []
            for step in (1e-5, -2e-5):
                weight[place] += step
                around.append(symmetry.asymmetry())
            weight[place] += 1e-5
        assert weight.grad is not None
        assert float(weight.grad[place]) == pytest.approx(float(around[0] - around[1]) / 2e-5, rel=1e-6)
    symmetry.project()
    network.zero_grad()
    symmetry.asymmetry().backward()
    assert all(one.tensor.grad is None or not one.tensor.grad.any() for one in carriers(network, pool))


def test_the_penalty_is_blind_to_the_scale_of_a_layer() -> None:
    network = shaken(small())
    symmetry = Symmetry(network, Group(4), ChannelMaxPool([4]))
    with torch.no_grad():
        before = float(symmetry.asymmetry())
        for parameter in network[0].parameters():
            parameter.mul_(0.01)
        assert float(symmetry.asymmetry()) == pytest.approx(before, rel=1e-6)


def test_an_equivariant_start_keeps_every_norm() -> None:
    pool = ChannelMaxPool.from_name("R8-4-2-1")
    network = MODELS["Resnet18"].build(43, pool, 10)
    before = [tensor.detach().norm() for tensor in moving(network, pool) if isinstance(tensor, nn.Parameter)]
    symmetry = Symmetry(network, Group(4, True), pool)
    assert float(symmetry.distance()) > 0.2
    symmetry.start()
    assert float(symmetry.distance()) == 0
    after = [tensor.detach().norm() for tensor in moving(network, pool) if isinstance(tensor, nn.Parameter)]
    assert torch.allclose(torch.stack(after), torch.stack(before), rtol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_tied_training_is_training_of_free_weights_through_the_projection(weight_decay: float) -> None:
    """Adam on weights whose gradients are projected walks as Adam on θ does in the network with weights P θ."""
    group, pool = Group(4), ChannelMaxPool([4])
    tied = shaken(small()).eval()
    project(tied, group, pool)
    free = copy.deepcopy(tied)
    symmetry = Symmetry(tied, group, pool)
    images, labels = torch.rand(6, 2, 5, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    walk, reference = (torch.optim.Adam(net.parameters(), 0.02, weight_decay=weight_decay) for net in (tied, free))
    for _ in range(5):
        walk.zero_grad()
        nn.functional.cross_entropy(tied(images), labels).backward()
        symmetry.project_gradients()
        walk.step()
        symmetry.project()
        reference.zero_grad()
        logits = functional_call(free, through_projection(free, group, pool), (images,))
        nn.functional.cross_entropy(logits, labels).backward()
        reference.step()
    for mine, theirs in zip(tied.parameters(), free.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)
    assert float(symmetry.distance()) == 0
    assert (tied[5].weight - tied[5].weight.flip(0)).abs().max() > 1e-3


def through_projection(network: nn.Module, group: Group, pool: ChannelMaxPool) -> dict[str, Tensor]:
    """P θ by name, differentiable in θ, from the formula alone."""
    exact = [element for element in group.elements if element.exact]
    moves = {(one.layer, id(one.tensor)): one for one in carriers(network, pool)}
    projected = {}
    for name, weight in network.named_parameters():
        one = moves.get((name.rpartition(".")[0], id(weight)))
        copies = []
        for element in exact if one else []:
            moved = weight
            for dim in one.channels if one else ():
                places = channel_origins(pool, group, element, weight.shape[dim])
                moved = moved.index_select(dim, places)
            copies.append(group.act(moved, element) if one and one.turns else moved)
        projected[name] = torch.stack(copies).mean(dim=0) if copies else weight
    return projected


def test_what_the_documentation_shows_works(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "symmetry.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    assert 0.1 < float(capsys.readouterr().out) < 1
    assert weight_distance(names["model"], names["group"], names["pool"]) == 0


REFUSED: list[tuple[str, Any, str]] = [
    ("a flattened map", nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(36, 2)), "2: sees 36 numbers, not"),
    ("grouped", nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, groups=2)), "1: 2 groups of channels"),
    ("oblong", nn.Sequential(nn.Conv2d(1, 4, (1, 3))), "0: a kernel of"),
    ("the width", nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)), "1: 6 channels cannot be put"),
    ("unknown", nn.Sequential(nn.Conv2d(1, 4, 3), nn.LayerNorm(4)), "1: it is not known how .* LayerNorm"),
    ("a gate", nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Conv2d(4, 4, 1)), "2: .* behind a linear layer"),
    ("half groups", nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8)), "1: GroupNorm over 2 channels"),
    ("no map", nn.Sequential(nn.Linear(4, 4)), "0: sees 4 numbers"),
]


@pytest.mark.parametrize(("network", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_equivariant_is_refused_by_name(network: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Symmetry(network, Group(4), ChannelMaxPool([4]))
