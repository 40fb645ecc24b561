"""What the shapes say is what is measured, for everything that reads a pixel's neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ien.errors import InputError
from tests.alignment.verdicts import agreed, verdicts

SIDES = (9, 10, 12)


def exactly(side: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> bool:
    """The rule as people know it."""
    return (side + 2 * padding - dilation * (kernel - 1) - 1) % stride == 0


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_convolutions(kernel: int, dilation: int) -> None:
    for stride, padding, side in itertools.product((1, 2, 3), (0, 1, 2), SIDES):
        layer = nn.Conv2d(2, 2, kernel, stride, padding, dilation, groups=2 if padding else 1)
        assert agreed(layer, side) == exactly(side, kernel, stride, padding, dilation)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode: str) -> None:
    for stride, side in itertools.product((1, 2), SIDES):
        layer = nn.Conv2d(2, 2, 3, stride, padding=1, padding_mode=mode)
        assert agreed(layer, side) == exactly(side, 3, stride, 1)


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_padding_by_name(kernel: int) -> None:
    """`same` puts one pixel more at the end where the kernel is even."""
    assert agreed(nn.Conv2d(2, 2, kernel, padding="same"), 9) == (kernel % 2 == 1)
    assert agreed(nn.Conv2d(2, 2, kernel, padding="valid"), 9)
    shift = 0.0 if kernel % 2 else 0.5
    assert verdicts(nn.Conv2d(2, 2, kernel, padding="same"), 9)[0].steps[0].shift == (shift, shift)


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_pools(pool: Callable[..., nn.Module]) -> None:
    for kernel, stride, ceil, side in itertools.product((2, 3), (1, 2, 3), (False, True), SIDES):
        padding = kernel // 2 if side % 2 else 0
        layer = pool(kernel, stride, padding, ceil_mode=ceil)
        assert agreed(layer, side) == exactly(side, kernel, stride, padding)


def test_pools_of_other_kinds() -> None:
    assert agreed(nn.MaxPool2d(3, 2, padding=2 // 2, dilation=2), 10) == exactly(10, 3, 2, 1, 2)
    assert not agreed(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), 9)
    assert agreed(nn.LPPool2d(2, 2), 10)
    assert not agreed(nn.LPPool2d(2, 2), 9)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 13])
def test_adaptive_pools_are_exact_whatever_they_are_given(size: int) -> None:
    assert all(agreed(nn.AdaptiveAvgPool2d(size), side) for side in SIDES)
    assert agreed(nn.AdaptiveMaxPool2d(size), 10)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
def test_interpolation(mode: str) -> None:
    """To every size, or by a factor of which nothing is lost; nearest neighbours by whole factors alone."""
    for size in (5, 8, 18, 27):
        exact = agreed(lambda maps, size=size: F.interpolate(maps, size=size, mode=mode), 9)
        assert exact or "nearest" in mode
        assert exact or size % 9
    for factor in (2.0, 1.5, 0.5):
        exact = agreed(lambda maps, factor=factor: F.interpolate(maps, scale_factor=factor, mode=mode), 9)
        assert exact or "nearest" in mode or factor != 2.0
        assert not exact or mode in ("area", "nearest-exact") or factor == 2.0


def test_interpolation_of_other_kinds() -> None:
    assert agreed(lambda maps: F.interpolate(maps, scale_factor=1.7, mode="bilinear", align_corners=True), 9)
    assert not agreed(lambda maps: F.interpolate(maps, size=1, mode="bilinear", align_corners=True), 9)
    assert agreed(lambda maps: F.interpolate(maps, size=4, mode="bicubic", antialias=True), 9)
    assert agreed(lambda maps: F.interpolate(maps, scale_factor=1.5, mode="bilinear", recompute_scale_factor=True), 9)
    assert agreed(nn.Upsample(scale_factor=2), 9)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_convolutions_are_broken_by_their_output_padding(stride: int) -> None:
    for kernel, padding, more in itertools.product((1, 2, 3, 4), (0, 1), range(stride)):
        layer = nn.ConvTranspose2d(2, 2, kernel, stride, padding, output_padding=more)
        assert agreed(layer, 6) == (more == 0)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_uneven_padding_is_forgiven_where_it_is_not_read(mode: str) -> None:
    """TensorFlow's padding: a pixel at the end for even sides, which on odd ones no window reaches."""

    def padded(maps: Tensor) -> Tensor:
        return F.pad(maps, (0, 1, 0, 1), mode=mode)

    assert not agreed(padded, 9)
    assert not agreed(lambda maps: F.max_pool2d(padded(maps), 3, 2), 10)
    assert agreed(lambda maps: F.max_pool2d(padded(maps), 3, 2), 9)
    assert agreed(lambda maps: F.avg_pool2d(torch.tanh(padded(maps)), 3, 2), 9)
    assert agreed(lambda maps: padded(maps)[..., :-1, :-1], 9)
    assert not agreed(lambda maps: padded(maps[..., :-1, :-1]), 9)  # as large as before, but a row is lost
    assert not agreed(lambda maps: F.max_pool2d(padded(maps), 2, 2, 1), 8) or mode == "constant"


def test_slices() -> None:
    assert agreed(lambda maps: maps[:, :, ::2, ::2], 9)
    assert not agreed(lambda maps: maps[:, :, ::2, ::2], 10)
    assert agreed(lambda maps: maps[:, :, 1::2, 1::2], 9)
    assert agreed(lambda maps: maps[:, :, 2:-2, 2:-2], 9)
    assert not agreed(lambda maps: maps[:, :, 1:, 1:], 9)
    assert agreed(lambda maps: F.avg_pool2d(maps[:, :, 1:, 1:], 2), 10)  # the first row is cut, the last not read
    assert not agreed(lambda maps: maps[:, :, 1:] + maps[:, :, :-1], 9)
    assert not agreed(lambda maps: maps[:, :, 1:-1, 1:-1] + maps[:, :, 2:, 2:], 9)
    assert agreed(lambda maps: maps[:, 1:], 9)
    assert agreed(lambda maps: F.max_pool2d(maps.permute(0, 2, 3, 1).mean(-1)[:, None], 2), 8)
    assert agreed(lambda maps: maps.narrow(2, 1, 7).narrow(3, 1, 7), 9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, (1, 3), padding=(0, 1)),
        nn.Conv2d(2, 2, 3, stride=(1, 2), padding=1),
        nn.AvgPool2d((3, 1), 1),
        nn.AdaptiveAvgPool2d((3, 5)),
        nn.ZeroPad2d((1, 1, 0, 0)),
        nn.Sequential(nn.ZeroPad2d((1, 1, 0, 0)), nn.AdaptiveAvgPool2d(4)),
    ],
)
def test_what_treats_rows_and_columns_differently_breaks_quarter_turns(layer: nn.Module) -> None:
    found, proof = verdicts(nn.Sequential(layer, nn.Conv2d(2, 2, 1)), 9)
    assert found.broken
    assert not proof.exact


def test_half_turns_survive_a_kernel_that_is_not_square() -> None:
    _, proof = verdicts(nn.Conv2d(2, 2, (1, 3), padding=(0, 1)), 9)
    errors = proof.outputs["output"]
    assert max(errors[name] or 0.0 for name in ("180°", "0° mirrored")) < 1e-12
    assert (errors["90°"] or 0.0) > 0.1


def test_no_stack_of_layers_passes_that_is_not_exact() -> None:
    """Two or three layers drawn at random, a hundred times: what one breaks no other hides."""
    draw = torch.Generator().manual_seed(1)

    def one_of(choice: list[Callable[[], nn.Module]]) -> nn.Module:
        return choice[int(torch.randint(len(choice), (), generator=draw))]()

    layers: list[Callable[[], nn.Module]] = [
        lambda: nn.ZeroPad2d((0, 1, 0, 1)),
        lambda: nn.ZeroPad2d((1, 0, 1, 0)),
        lambda: nn.ReplicationPad2d((0, 1, 0, 1)),
        lambda: nn.ZeroPad2d((0, -1, 0, -1)),
        lambda: nn.Conv2d(2, 2, 2, padding=1),
        lambda: nn.Conv2d(2, 2, 2, stride=2),
        lambda: nn.Conv2d(2, 2, 3, stride=2, padding=1),
        lambda: nn.Conv2d(2, 2, 2, padding="same"),
        lambda: nn.MaxPool2d(2, 2, 1),
        lambda: nn.MaxPool2d(3, 2),
        lambda: nn.ConvTranspose2d(2, 2, 2, 2),
        lambda: nn.Conv2d(2, 2, 3, padding=1),
        lambda: nn.MaxPool2d(3, 1, 1),
        lambda: nn.BatchNorm2d(2),
    ]
    exact = 0
    for number in range(100):
        network = nn.Sequential(*(one_of(layers) for _ in range(2 + number % 2)))
        found, proof = verdicts(network, 11 + number // 2 % 2)
        assert proof.exact or found.broken, network
        exact += proof.exact
    assert 10 <= exact <= 90


def test_an_image_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"images of 2×3×3 do not fit through Conv2d \(.*; try another --size"):
        verdicts(nn.Conv2d(2, 2, 5), 3)
