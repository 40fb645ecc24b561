"""Taps: whatever is done with the network, a forward gives the maps of the named layers, once, and nothing stays."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ien.errors import InputError
from ien.objective import EquivariantObjective
from ien.pooling import ChannelMaxPool
from ien.taps import Tapped, channels_last_as_map, tappable, tokens_as_map


class Branched(nn.Module):
    """Two branches of a shared stem, in-place activations, a part that can be checkpointed, names inside names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.left = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(inplace=True))
        self.right = nn.ModuleDict({"deep": nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))})
        self.again = nn.ReLU()
        self.unused = nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(12, 10)
        self.reentrant: bool | None = None  # None: no checkpointing

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        deep = self.right["deep"]
        right = deep(maps) if self.reentrant is None else checkpoint(deep, maps, use_reentrant=self.reentrant)
        maps = torch.cat((self.again(self.left(maps)), self.again(right)), dim=1)
        return self.head(maps.mean(dim=(-2, -1)))


LAYERS = ["stem", "stem.0", "left.0", "right.deep.0", "right.deep"]


def step(network: Branched, wrap: Callable[[Tapped], Any] = lambda tapped: tapped) -> tuple[Tensor, list[Tensor]]:
    """The total of one batch, and its gradients."""
    torch.manual_seed(1)
    tapped = Tapped(network, LAYERS, pool=4)
    objective = EquivariantObjective("R4", beta_weight=2.0)
    terms = objective.terms(wrap(tapped), torch.rand(7, 1, 9, 9), torch.randint(10, (7,)))
    terms.total.backward()
    assert tapped._maps is None
    tapped.close()
    return terms.total.detach(), [p.grad for p in network.parameters() if p.grad is not None]


@pytest.fixture
def network() -> Branched:
    return Branched()


def test_in_place_activations_do_not_reach_what_was_tapped_before_them(network: Branched) -> None:
    images = torch.rand(2, 1, 9, 9)
    network.eval()
    raw = network.left[0](network.stem(images))
    assert raw.min() < 0
    for pool in (1, 4):
        _, maps = Tapped(network, ["left.0", "left"], pool)(images)
        assert torch.equal(maps["left.0"], ChannelMaxPool([pool])(raw))
        assert torch.equal(maps["left"], ChannelMaxPool([pool])(raw.relu()))


def test_checkpointing_changes_neither_loss_nor_gradients(network: Branched) -> None:
    total, gradients = step(copy.deepcopy(network))
    network.reentrant = False
    again, recomputed = step(network)
    assert torch.equal(again, total)
    assert len(recomputed) == len(gradients) == 10
    assert all(torch.equal(a, b) for a, b in zip(recomputed, gradients, strict=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, in the last line
def test_checkpointing_that_would_cut_the_gradients_is_refused(network: Branched) -> None:
    network.reentrant = True
    with pytest.raises(InputError, match=r"'right\.deep\.0' runs without gradients .* use_reentrant=False"):
        step(network)
    with torch.no_grad():  # where nothing learns, nothing is lost
        assert Tapped(network, LAYERS, 4)(torch.rand(2, 1, 9, 9))[1].keys() == set(LAYERS)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, where a graph is cut
@pytest.mark.parametrize("reentrant", [None, False])
def test_compiled_networks_have_the_same_loss_and_gradients(network: Branched, reentrant: bool | None) -> None:
    """With the graph of `torch.compile` (one, but for checkpointing) and without its code generator, which is slow."""
    total, gradients = step(copy.deepcopy(network))
    network.reentrant, whole = reentrant, reentrant is None
    again, compiled = step(network, lambda tapped: torch.compile(tapped, backend="aot_eager", fullgraph=whole))
    assert torch.allclose(again, total, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(compiled, gradients, strict=True))


def test_autocast_gives_a_loss_in_full_precision_and_gradients(network: Branched) -> None:
    total, _ = step(copy.deepcopy(network))
    with torch.autocast("cpu", torch.bfloat16):
        again, gradients = step(network)
    assert again.dtype == torch.float32
    assert torch.allclose(again, total, rtol=0.02)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_maps_that_are_measured_alone_keep_no_graph(network: Branched) -> None:
    tapped, images = Tapped(network.eval(), LAYERS, 4), torch.rand(2, 1, 9, 9)
    logits, maps = tapped(images)
    tapped.differentiable = False
    again, measured = tapped(images)
    assert again.requires_grad
    assert torch.equal(again, logits)
    for name in LAYERS:
        assert maps[name].requires_grad
        assert not measured[name].requires_grad
        assert torch.equal(measured[name], maps[name])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tapped: pickle.loads(pickle.dumps(tapped))])
def test_a_copy_keeps_its_own_maps(network: Branched, copied: Callable[[Tapped], Tapped]) -> None:
    tapped, images = Tapped(network.eval(), LAYERS, 4), torch.rand(2, 1, 9, 9)
    other = copied(tapped)
    nn.init.zeros_(other.model.stem[0].weight)  # type: ignore[index, union-attr]
    nn.init.ones_(other.model.stem[0].bias)  # type: ignore[index, union-attr]
    assert torch.equal(other(images)[1]["stem.0"], torch.ones(2, 2, 9, 9))
    assert not torch.equal(tapped(images)[1]["stem.0"], torch.ones(2, 2, 9, 9))
    other.close()
    assert not any(layer._forward_hooks for layer in other.model.modules())
    assert tapped(images)[1].keys() == set(LAYERS)


def test_the_network_is_what_it_was_during_and_after(network: Branched) -> None:
    keys, images = list(network.state_dict()), torch.rand(2, 1, 9, 9)
    before = network.eval()(images)
    with Tapped(network, LAYERS, "R4") as tapped:
        assert torch.equal(tapped(images)[0], before)
        assert torch.equal(network(images), before)
        assert tapped._maps is None  # the network alone keeps nothing
        assert list(network.state_dict()) == keys
    assert not any(layer._forward_hooks for layer in network.modules())


@pytest.mark.parametrize(
    ("layers", "pool", "line"),
    [
        (["again"], 4, "layer 'again' runs more than once in a forward; tap a layer that runs once"),
        (["unused"], 4, "layer 'unused' does not run in a forward, or was replaced; tap another layer"),
        (["right"], 4, "layer 'right' does not run in a forward"),
        (["stem", "stem"], 4, "layer 'stem' is to be tapped twice; name it once"),
        ("stem", 4, r"'stem' is no list of layers to tap; write layers=['stem']"),
        ([], 4, r"[] is no list of layers to tap; write layers=['layer1']"),
        (["right.deeep"], 4, "no layer 'right.deeep' to tap; did you mean 'right.deep'?"),
        (["left"], 8, "layer 'left': 4 channels cannot be put in filter groups of 8 (they must be a multiple of 8; "),
        (["left"], "R4-2-1", "layer 'left': 4 channels cannot be shared as 8:2:1 in filter groups of 4, 2, 1 (they "),
        (["left"], "R4-2", "no filter groups are called 'R4-2'; take one of R8-4-2-1, R8-4-2, R4-2-1, or R<N>"),
        (["head"], 4, "layer 'head' gives shape (2, 10), no feature map (B, C, S, S); tap another layer"),
    ],
)
def test_what_cannot_be_tapped_is_told_in_one_line(network: Branched, layers: Any, pool: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        Tapped(network, layers, pool)(torch.rand(2, 1, 9, 9))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_maps_that_are_not_square_are_named(network: Branched) -> None:
    with pytest.raises(InputError, match=r"'stem' gives shape \(2, 8, 9, 8\), no square map .* crop or pad"):
        Tapped(network, ["stem"], 4)(torch.rand(2, 1, 9, 8))


def test_a_forward_that_fails_leaves_nothing_behind(network: Branched) -> None:
    tapped = Tapped(network, ["stem", "left"], 4)
    with pytest.raises(InputError, match="no square map"):
        tapped(torch.rand(2, 1, 9, 8))
    assert tapped._maps is None
    assert tapped(torch.rand(2, 1, 9, 9))[1]["left"].shape == (2, 1, 9, 9)


class Tokens(nn.Module):
    """Images (B, 1, S, S) → one token per pixel behind two others, as a transformer has them; their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).transpose(1, 2).expand(-1, -1, 10)
        return self.block(torch.cat((torch.full_like(tokens[:, :2], 99.0), tokens), dim=1)).mean(dim=1)


def test_tokens_become_maps_where_asked_for() -> None:
    images = torch.rand(2, 1, 5, 5)
    with pytest.raises(InputError, match=r"gives shape \(2, 27, 10\), no feature map .*network.tap_layout: NLC"):
        Tapped(Tokens(), ["block"], 1)(images)
    _, maps = Tapped(Tokens(), ["block"], 1, as_map=tokens_as_map)(images)
    assert torch.equal(maps["block"], images.expand(-1, 10, -1, -1))
    with pytest.raises(InputError, match=r"shape \(2, 5\) are no tokens"):
        tokens_as_map(torch.rand(2, 5))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.block(images.permute(0, 2, 3, 1)).mean(dim=(1, 2))


def test_maps_whose_channels_stand_last_are_taken_where_that_is_said() -> None:
    images = torch.rand(2, 8, 5, 5)
    with pytest.raises(InputError, match=r"gives shape \(2, 5, 5, 8\); if .* last, say so .*tap_layout: NHWC"):
        Tapped(ChannelsLast(), ["block"], 4)(images)
    _, maps = Tapped(ChannelsLast(), ["block"], 4, as_map=channels_last_as_map)(images)
    assert torch.equal(maps["block"], images.unflatten(1, (2, 4)).amax(dim=2))
    with pytest.raises(InputError, match=r"shape \(2, 5\) is no map"):
        channels_last_as_map(torch.rand(2, 5))
    assert tappable(ChannelsLast(), images) == {}
    assert tappable(ChannelsLast(), images, channels_last_as_map) == {"block": (8, 5)}


def test_a_layer_can_be_named_by_either_of_its_names() -> None:
    shared = nn.Conv2d(1, 4, 1)
    network = nn.ModuleDict({"one": shared, "other": shared})
    network.forward = lambda images: shared(images).mean(dim=(-2, -1))  # type: ignore[method-assign]
    assert Tapped(network, ["other"], 4)(torch.rand(2, 1, 3, 3))[1]["other"].shape == (2, 1, 3, 3)


def test_the_layers_that_can_be_tapped_are_listed(network: Branched) -> None:
    assert tappable(network, torch.rand(1, 1, 9, 9)) == {
        "stem.0": (8, 9), "stem.1": (8, 9), "stem.2": (8, 9), "stem": (8, 9), "right.deep.0": (8, 9),
        "right.deep.1": (8, 9), "right.deep": (8, 9), "left.0": (4, 9), "left.1": (4, 9), "left": (4, 9),
    }  # fmt: skip
    assert not any(layer._forward_hooks for layer in network.modules())
