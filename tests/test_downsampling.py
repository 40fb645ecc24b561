from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models as stock

from ien import BlurPool2d, antialias
from ien.alignment import prove, trace
from ien.errors import InputError
from ien.models import Resnet18
from ien.pooling import ChannelMaxPool
from tests.alignment.verdicts import agreed

SIDES = range(5, 14)
LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv2d(2, 2, 3, 2, 1),
    lambda: nn.Conv2d(2, 2, 2, 2),
    lambda: nn.Conv2d(2, 2, 3, 3, 1, padding_mode="reflect"),
    lambda: nn.Conv2d(2, 2, 1, 2),
    lambda: nn.Conv2d(2, 2, 5, 4, 2, groups=2),
    lambda: nn.MaxPool2d(3, 2, 1),
    lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    lambda: nn.MaxPool2d(2, 3, ceil_mode=True),
    lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    lambda: nn.AvgPool2d(3, 2, 1),
]


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_a_blur_keeps_the_middle_of_maps_of_every_size(stride: int) -> None:
    for side in (*SIDES, 1, 2):
        blur = BlurPool2d(stride)
        assert agreed(blur, side)
        assert blur(torch.rand(1, 2, side, side)).shape[-1] == -(-side // stride)


def test_its_filters_are_binomial_and_keep_a_constant() -> None:
    """[1 2 1]/4 about pixels 0, 2 … of nine, [1 3 3 1]/8 about the middles of pairs of eight."""
    row = torch.arange(9) == 4
    odd = BlurPool2d()(row[None, None, :, None].expand(1, 1, 9, 9) * 4.0)
    assert odd[0, 0, :, 0].tolist() == [0, 0, 2, 0, 0]
    even = BlurPool2d()((row[None, None, 1:, None]).expand(1, 1, 8, 8) * 8.0)
    assert even[0, 0, :, 0].tolist() == [0, 3, 1, 0]
    assert torch.equal(BlurPool2d(1, size=3)(odd), odd)  # where nothing is skipped nothing is smoothed
    assert all(torch.equal(BlurPool2d()(torch.ones(2, 3, side, side)).unique(), torch.ones(1)) for side in SIDES)
    assert not BlurPool2d().state_dict()


def test_a_shift_by_one_pixel_changes_less() -> None:
    """What it is for."""
    images = torch.rand(4, 1, 33, 33)
    kept = BlurPool2d()(images), BlurPool2d()(images.roll(1, dims=-1))
    skipped = images[..., ::2, ::2], images.roll(1, dims=-1)[..., ::2, ::2]
    inner = (..., slice(2, -2), slice(2, -2))
    assert (kept[0] - kept[1])[inner].std() < 0.5 * (skipped[0] - skipped[1])[inner].std()


@pytest.mark.parametrize("make", LAYERS)
def test_each_layer_gives_as_many_pixels_and_keeps_the_middle(make: Callable[[], nn.Module]) -> None:
    for side in SIDES:
        layer = make()
        pixels = layer(torch.rand(1, 2, side, side)).shape
        smooth = antialias(nn.Sequential(layer))
        assert smooth(torch.rand(1, 2, side, side)).shape == pixels
        assert agreed(smooth, side)


def test_weights_keep_their_names_and_stay_the_same_objects() -> None:
    network = stock.resnet18(num_classes=5)
    before, keys = dict(network.named_parameters()), list(network.state_dict())
    assert antialias(network) is network
    assert list(network.state_dict()) == keys
    assert all(parameter is before[name] for name, parameter in network.named_parameters())
    network.load_state_dict(stock.resnet18(num_classes=5).state_dict())


def test_networks_become_exact_at_sizes_at_which_they_were_not() -> None:
    network = Resnet18(4, ChannelMaxPool([4]), 10)
    for side in (64, 66):
        assert trace(network, side).broken
        smooth = antialias(copy.deepcopy(network))
        assert prove(smooth, trace(smooth, side)).error < 1e-12
    assert not trace(antialias(stock.resnet18()), 224).broken


def test_a_1x1_convolution_may_come_last() -> None:
    """It commutes with the smoothing, its bias too."""
    layer = nn.Conv2d(3, 4, 1, stride=2).double()
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    dense = nn.functional.conv2d(images, layer.weight, layer.bias)
    expected = BlurPool2d().double()(dense)
    assert torch.allclose(antialias(nn.Sequential(layer))(images), expected, atol=1e-12)


def test_some_layers_alone_and_layers_that_stand_twice() -> None:
    pool = nn.MaxPool2d(2)
    network = nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), pool, nn.Conv2d(2, 2, 3, padding=1), pool)
    antialias(network, layers=["1", "3"])
    assert type(network[0]) is nn.Conv2d
    assert network[1] is network[3]
    assert network[1] is not pool
    assert antialias(network, layers=["0"])[0].training
    with pytest.raises(InputError, match=r"has no strided nn\.Conv2d"):
        antialias(network)


def test_it_trains_in_half_precision_and_keeps_the_mode() -> None:
    network = antialias(nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.MaxPool2d(2))).eval()
    assert not any(layer.training for layer in network.modules())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(torch.rand(2, 2, 12, 12)).float().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("layers", "message"),
    [(["conv"], "did you mean 'conv1'"), (["fc"], "only strided nn.Conv2d, MaxPool2d and AvgPool2d can be")],
)
def test_names_that_cannot_be_are_refused(layers: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        antialias(stock.resnet18(), layers)


def test_filters_that_leave_gaps_are_refused() -> None:
    for stride, size in itertools.product((2, 3), (0, 1)):
        with pytest.raises(InputError, match="leaves gaps"):
            BlurPool2d(stride, size)
