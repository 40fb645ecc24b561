from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ien.pooling import ChannelMaxPool
from ien.report.activity import LOGITS, activity, figures, observed
from ien.taps import Tapped


class Two(nn.Module):
    """A layer that is given, then the mean of its maps as logits."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images).mean(dim=(-2, -1))


def of(layer: nn.Module, images: Tensor) -> dict:
    return activity(Tapped(Two(layer), ["layer"], ChannelMaxPool([1])), images.split(3))


def convolution(weight: float, bias: float) -> nn.Conv2d:
    layer = nn.Conv2d(1, 4, 1)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]
    return layer


@pytest.mark.parametrize(("weight", "bias"), [(0.0, 0.0), (0.0, 3.0), (1e-9, 3.0)])
def test_a_constant_network_is_collapsed(weight: float, bias: float) -> None:
    found = of(convolution(weight, bias), torch.rand(8, 1, 6, 6))
    assert found["layer"]["verdict"] == found[LOGITS]["verdict"] == "collapsed"
    assert found["layer"]["dead_channels"] == 1
    assert found["layer"]["rms"] == pytest.approx(bias)


def test_hardly_varying_maps_are_collapsed_though_no_channel_is_dead() -> None:
    found = of(convolution(0.01, 3.0), torch.rand(8, 1, 6, 6))["layer"]
    assert found["dead_channels"] == 0
    assert found["verdict"] == "collapsed"


def test_one_image_of_many_keeps_a_channel_alive() -> None:
    """Dead means constant over *all* images, also across batches."""
    images = torch.zeros(8, 1, 6, 6)
    images[7, 0, 2, 2] = 1
    assert of(convolution(1.0, 0.0), images)["layer"]["dead_channels"] == 0


def test_the_share_of_dead_channels() -> None:
    maps = torch.rand(5, 4, 6, 6)
    maps[:, :3] = torch.tensor([0.0, 2.0, -1.0])[:, None, None]
    assert figures(observed(maps))["dead_channels"] == 3 / 4
    assert figures(observed(maps))["verdict"] == "alive"


def test_flat_maps_are_not_taken_for_equivariant_ones() -> None:
    """Each image's map is one number everywhere: it varies over images and is turned by nothing."""
    flat = torch.rand(8, 4, 1, 1).expand(8, 4, 6, 6)
    assert figures(observed(flat))["verdict"] == "flat"
    assert figures(observed(torch.rand(8, 4, 6, 6)))["verdict"] == "alive"
    assert figures(observed(torch.rand(8, 4, 1, 1)))["verdict"] == "alive"  # logits have no space to vary over


def test_known_variances() -> None:
    """Half of the pixels 1, half 3: mean square 5, variance 1, the same within each image."""
    maps = torch.ones(4, 2, 2, 2)
    maps[..., 0] = 3
    found = figures(observed(maps))
    assert found["rms"] == pytest.approx(5**0.5)
    assert found["spatial_variance"] == pytest.approx(1)
    assert found["varying"] == found["spatial_share"] == pytest.approx(1 / 5)


def test_batches_are_one_set_of_images() -> None:
    tapped = Tapped(Two(nn.Conv2d(1, 4, 3)), ["layer"], ChannelMaxPool([2]))
    images = torch.rand(7, 1, 6, 6)
    whole, parts = activity(tapped, [images]), activity(tapped, images.split(2))
    for name in whole:
        assert whole[name].pop("verdict") == parts[name].pop("verdict")
        assert whole[name] == pytest.approx(parts[name], rel=1e-6)
