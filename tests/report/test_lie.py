"""The local error against derivatives that are known, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ien.models import BasicCNN
from ien.pooling import ChannelMaxPool
from ien.report.activity import LOGITS
from ien.report.lie import PROBABILITIES, local_errors, shifting, tap_strides, turning
from ien.taps import Tapped, tokens_as_map

SIDE = 32


def blob(side: int = SIDE, x: float = 1.0, y: float = -2.0, width: float = 2.5) -> Tensor:
    """A Gaussian at (x, y) pixels from the middle, y downwards: (1, 1, S, S) float64, as good as 0 at the border."""
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return torch.exp(-((place - x) ** 2 + (place[:, None] - y) ** 2) / (2 * width**2))[None, None]


class Readout(nn.Module):
    """A layer, and logits from it by a given weight for each pixel."""

    def __init__(self, layer: nn.Module, weights: Tensor):
        super().__init__()
        self.layer, self.weights = layer, nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        maps, side = self.layer(images), len(self.weights)  # larger images are cut: their maps' sides say the stride
        seen = (maps[..., :side, :side] * self.weights).sum(dim=(1, 2, 3))
        return torch.stack((seen, 0 * seen + 1), dim=1)


def tapped(layer: nn.Module, weights: Tensor) -> Tapped:
    return Tapped(Readout(layer, weights.float()), ["layer"], ChannelMaxPool([1]))


def test_the_generators_are_the_derivatives_of_turns_and_shifts() -> None:
    """Of a Gaussian at (x, y): turned counter-clockwise on the screen its centre moves to (x + t y, y - t x)."""
    step = 1e-4
    turned = (blob(31, 3 - 2 * step, -2 - 3 * step, 4.0) - blob(31, 3 + 2 * step, -2 + 3 * step, 4.0)) / (2 * step)
    assert torch.allclose(turning(blob(31, 3, -2, 4.0)), turned, atol=0.03)
    assert turned.abs().max() > 0.4
    right = (blob(31, 3 + step, -2, 4.0) - blob(31, 3 - step, -2, 4.0)) / (2 * step)
    assert torch.allclose(shifting(-1)(blob(31, 3, -2, 4.0)), right, atol=0.01)
    down = (blob(31, 3, -2 + step, 4.0) - blob(31, 3, -2 - step, 4.0)) / (2 * step)
    assert torch.allclose(shifting(-2)(blob(31, 3, -2, 4.0)), down, atol=0.01)
    assert torch.allclose(shifting(-1)(blob(31, 3, -2, 4.0)), shifting(-2)(blob(31, -2, 3, 4.0)).mT)


def test_known_derivatives_of_a_weighted_sum() -> None:
    """f(x) = Σ u·x: a shift by one pixel to the right adds Σ x, one down nothing; a turn moves the centre by y·Σ x."""
    place = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
    image = torch.cat((blob(), 2 * blob(), 3 * blob(y=1.0)))
    mass = image.sum(dim=(1, 2, 3))
    found = local_errors(tapped(nn.Identity(), place.expand(SIDE, SIDE)), [image[:2], image[2:]])[LOGITS]
    centres = torch.tensor([-2.0, -2.0, 1.0], dtype=torch.float64)
    # dim = 2 logits, of which the second is constant; the translation is the mean over right and down
    assert found["translation"]["lee"] == pytest.approx(float(mass.square().mean() / 2 / 2), rel=1e-3)
    assert found["rotation"]["lee"] == pytest.approx(float((mass * centres).square().mean() / 2), rel=1e-2)


def test_a_constant_output_has_no_local_error() -> None:
    network = tapped(nn.Identity(), torch.zeros(SIDE, SIDE))
    found = local_errors(network, [torch.rand(2, 1, SIDE, SIDE)])
    for output in (LOGITS, PROBABILITIES):
        assert found[output]["rotation"] == {"lee": 0.0, "relative": 0.0}
        assert found[output]["translation"] == {"lee": 0.0, "relative": 0.0}


def test_probabilities_follow_their_softmax() -> None:
    """Two logits (z, 1): p' = ±p(1 - p) z', so that the mean square over both is that of one."""
    place = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
    found = local_errors(tapped(nn.Identity(), 0.05 * place.expand(SIDE, SIDE)), [blob()])
    z = float((0.05 * place * blob()).float().sum())
    p = 1 / (1 + math.exp(1 - z))
    slope = 2 * found[LOGITS]["rotation"]["lee"]
    assert found[PROBABILITIES]["rotation"]["lee"] == pytest.approx((p * (1 - p)) ** 2 * slope, rel=1e-3)


def test_a_convolution_commutes_with_small_shifts_and_a_blur_with_small_turns() -> None:
    """On a smooth image that is 0 at the border the slopes of a convolution are the convolution of the slopes."""
    image, zeros = blob(32, 2, -3, 3.0), torch.zeros(32, 32)
    shear = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    shear.weight.data = torch.tensor([[0.0, 0, 0], [-1, 0, 1], [0, 0, 0]])[None, None]
    found = local_errors(tapped(shear, zeros), [image.float()])["layer"]
    assert found["translation"]["relative"] < 1e-3
    assert found["rotation"]["relative"] > 0.5  # ∂/∂x is turned into ∂/∂y
    shear.weight.data = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None]
    found = local_errors(tapped(shear, zeros), [image.float()])["layer"]
    assert found["translation"]["relative"] < 1e-3
    assert found["rotation"]["relative"] < 0.02


def test_where_pixels_are_weighted_apart_shifts_are_seen() -> None:
    """f(x) = u·x moved along is u·x': the local error is that of ∂u/∂x · x, the image itself for one pixel."""

    class Ramp(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * torch.arange(images.shape[-1], dtype=images.dtype)

    found = local_errors(tapped(Ramp(), torch.zeros(32, 32)), [blob(32, 2, -3, 4.0)])["layer"]
    # u·∂x - ∂(u·x) is the image for a shift to the right, in central differences the mean of its two neighbours there;
    # and nothing for one down: lee = mean square over the disc, divided by 2
    image = blob(32, 2, -3, 4.0)[0, 0]
    between = (image.roll(1, -1) + image.roll(-1, -1)) / 2
    place = torch.arange(32, dtype=torch.float64) - 15.5
    disc = place**2 + place[:, None] ** 2 <= 14.5**2
    expected = float((between * disc).square().sum() / disc.sum() / 2)
    assert found["translation"]["lee"] == pytest.approx(expected, rel=1e-4)


def test_strides_are_seen_from_how_maps_grow() -> None:
    pool = ChannelMaxPool([4])
    network = BasicCNN(4, pool, 10).eval()
    strides = tap_strides(Tapped(network, network.taps, pool), torch.rand(2, 1, 28, 28))
    assert strides == dict(zip(network.taps, [1, 1, 2, 2, 4, 4], strict=True))


def test_a_shift_is_as_much_smaller_on_a_map_as_its_stride() -> None:
    """Averaging 2×2 blocks of a smooth image commutes with shifts, the map's by half a pixel for one of the image's."""
    found = local_errors(tapped(nn.AvgPool2d(2), torch.zeros(32, 32)), [blob(64, 2, -3, 8.0)])["layer"]
    assert found["translation"]["relative"] < 2e-3
    assert found["rotation"]["relative"] < 1e-2


@pytest.mark.parametrize("side", [1, 2])
def test_tiny_maps_have_no_inner_pixel(side: int) -> None:
    tiny = local_errors(tapped(nn.AvgPool2d(8 // side), torch.zeros(side, side)), [torch.rand(1, 1, 8, 8)])["layer"]
    assert tiny["rotation"] == tiny["translation"] == {"lee": None, "relative": None}


def test_a_network_that_takes_one_size_alone_has_no_strides_but_can_be_turned() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2 * 64, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.linear(self.conv(images).flatten(1))

    found = local_errors(Tapped(Fixed(), ["conv"], ChannelMaxPool([2])), [torch.rand(2, 1, 8, 8)])
    assert found["conv"]["translation"] == {"lee": None, "relative": None}
    assert found["conv"]["rotation"]["lee"] > 0
    assert found[LOGITS]["translation"]["lee"] > 0


def test_the_network_is_left_as_it_was() -> None:
    pool = ChannelMaxPool([4])
    network = BasicCNN(4, pool, 3).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    local_errors(Tapped(network, network.taps, pool), [torch.rand(2, 1, 28, 28)])
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


class Attentive(nn.Module):
    """A transformer's layer on the pixels of a map, as torch has it: fused in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(self.embed(images).flatten(2).transpose(1, 2)).mean(dim=1))


def test_fused_attention_is_measured_by_its_formula() -> None:
    """The derivative of the logits along a shift is that of central differences."""
    torch.manual_seed(0)
    model = Attentive().eval()
    tapped = Tapped(model, ["block"], 1, as_map=tokens_as_map)
    images = torch.rand(2, 1, 16, 16)
    found = local_errors(tapped, [images])[LOGITS]["translation"]["lee"]
    exact, step, sizes = model.double(), 1e-5, []
    for dim in (-1, -2):
        slope = shifting(dim)(images.double())
        change = (exact(images.double() + step * slope) - exact(images.double() - step * slope)) / (2 * step)
        sizes.append(float(change.detach().square().sum()) / 3 / 2)
    assert found == pytest.approx(sum(sizes) / 2, rel=1e-5)


class OneWay(torch.autograd.Function):
    """Has no derivative in forward mode."""

    @staticmethod
    def forward(_context: Any, maps: Tensor) -> Tensor:
        return maps * 2


def test_what_cannot_be_differentiated_forwards_is_told_as_unknown(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return OneWay.apply(self.layer(images)).mean(dim=(-2, -1))

    found = local_errors(Tapped(Odd().eval(), ["layer"], 1), [torch.rand(2, 1, 8, 8)])
    nothing = {motion: {"lee": None, "relative": None} for motion in ("rotation", "translation")}
    assert found == dict.fromkeys(("layer", LOGITS, PROBABILITIES), nothing)
    assert "local errors are not measurable" in caplog.text
