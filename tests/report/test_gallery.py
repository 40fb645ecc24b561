from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ien.groups import Group
from ien.pooling import ChannelMaxPool
from ien.report.gallery import first_filters, stabilised
from ien.report.pictures import draw_filters, draw_stabilised
from ien.taps import Tapped
from tests.symmetry.symmetric import average_kernels


def tapped(*layers: nn.Module, sizes: tuple[int, ...] = (2,), ratio: tuple[int, ...] = (1,)) -> Tapped:
    return Tapped(nn.Sequential(*layers), [str(n) for n in range(len(layers))], ChannelMaxPool(sizes, ratio))


def test_the_maps_of_an_equivariant_layer_stand_still() -> None:
    network, image = tapped(nn.Conv2d(1, 4, 3, padding=1)), torch.rand(1, 1, 9, 9)
    restless = stabilised(network, image, Group(4, True)).views[0]
    average_kernels(network, Group(4, True))
    still = stabilised(network, image, Group(4, True)).views[0]
    assert np.ptp(still.maps, axis=0).max() < 1e-6
    assert max(still.errors) < 1e-6
    assert np.ptp(restless.maps, axis=0).max() > 0.1
    assert max(restless.errors[1:]) > 0.1
    assert restless.errors[0] == 0


@pytest.mark.parametrize("scale", [0.5, 1.25])
def test_a_layer_that_commutes_with_scales_has_no_error_there(scale: float) -> None:
    """A 1×1 convolution without a bias. Magnified, the edge of the frame is not seen."""
    view = stabilised(
        tapped(nn.Conv2d(1, 4, 1, bias=False), sizes=(1,)), torch.rand(1, 1, 9, 9), Group(1, scales=(scale,))
    ).views[0]
    assert view.errors[1] < 1e-6
    assert np.isnan(view.maps[1, 0, 0]) == (scale > 1)
    assert not np.isnan(view.maps[1, 4, 4])


def test_outside_the_disc_nothing_is_shown() -> None:
    view = stabilised(tapped(nn.Conv2d(1, 4, 3, padding=1)), torch.rand(1, 1, 9, 9), Group(8)).views[0]
    corners = np.isnan(view.maps[:, 0, 0])
    assert corners.tolist() == [turn % 2 == 1 for turn in range(8)]
    assert not np.isnan(view.maps[:, 4, 4]).any()


def test_the_channel_that_is_shown_is_the_liveliest() -> None:
    layer = nn.Conv2d(1, 6, 1, bias=False)
    layer.weight.data = torch.tensor([0.1, 0, 5, 0, 0.2, 0])[:, None, None, None]
    assert stabilised(tapped(layer), torch.rand(1, 1, 9, 9), Group(4)).views[0].channel == 1


def test_large_groups_and_deep_networks_are_shown_in_part() -> None:
    layers = [nn.Conv2d(2 if n else 1, 2, 3, padding=1) for n in range(6)]
    seen = stabilised(tapped(*layers), torch.rand(1, 1, 9, 9), Group(16))
    assert [element.degrees for element in seen.elements] == [0, 67.5, 90, 157.5, 180, 247.5, 270, 337.5]
    assert [view.tap for view in seen.views] == ["0", "2", "5"]
    tiny = stabilised(tapped(nn.Conv2d(1, 2, 1), nn.AvgPool2d(3)), torch.rand(1, 1, 9, 9), Group(4))
    assert [view.tap for view in tiny.views] == ["0"]


def test_filters_are_ordered_by_filter_group() -> None:
    """Shares 8:2:1 of filter groups of 4, 2 and 1: two groups of four, one of two, one of one; the rest is empty."""
    layer = nn.Conv2d(1, 11, 3)
    layer.weight.data = torch.arange(11.0)[:, None, None, None].expand(11, 1, 3, 3)
    found = first_filters(tapped(layer, sizes=(4, 2, 1), ratio=(8, 2, 1)))
    assert found is not None
    empty = np.nan
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, empty, empty], [10, empty, empty, empty]]
    assert found.shape == (4, 4, 3, 3)
    assert np.array_equal(found[:, :, 1, 1], np.array(expected), equal_nan=True)


def test_filters_of_colour_images_keep_their_colours() -> None:
    found = first_filters(tapped(nn.Conv2d(3, 4, 5)))
    assert found is not None
    assert found.shape == (2, 2, 5, 5, 3)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 4, 1), nn.Conv2d(1, 3, 3), nn.Identity()])
def test_networks_without_filters_to_be_seen(layer: nn.Module) -> None:
    assert first_filters(tapped(layer)) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pictures_can_be_opened(channels: int) -> None:
    network = tapped(nn.Conv2d(channels, 80, 3, padding=1), sizes=(4, 2, 1), ratio=(2, 1, 1))
    filters = first_filters(network)
    assert filters is not None
    image = torch.rand(1, channels, 9, 9)
    for picture in (draw_filters("a", filters), draw_stabilised("a", stabilised(network, image, Group(8, True)))):
        assert Image.open(io.BytesIO(picture)).width > 400
