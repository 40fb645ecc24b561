from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ien.groups import Group
from ien.metrics import equivariance_sums, mean_errors, relative_errors
from ien.pooling import ChannelMaxPool
from ien.taps import Tapped
from tests.symmetry.symmetric import average_kernels


def convolution(kernel: list[list[float]]) -> Tapped:
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    layer.weight.data = torch.tensor(kernel, dtype=torch.float32)[None, None]
    return Tapped(nn.Sequential(layer), ["0"], ChannelMaxPool([1]))


def test_known_answer_of_a_horizontal_difference() -> None:
    """d/dx turned by 180° is -d/dx: ‖f(gx) - g·f(x)‖ = 2 ‖f(x)‖. By 90° it is d/dy."""
    tapped = convolution([[0, 0, 0], [-1, 0, 1], [0, 0, 0]])
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1  # its responses to d/dx and d/dy do not overlap
    errors = relative_errors(equivariance_sums(tapped, [image], Group(4)), Group(4))["0"]
    known = {element: one["error"] for element, one in errors.items()}
    assert known["180°"] == pytest.approx(2.0)
    assert known["90°"] == known["270°"] == pytest.approx(math.sqrt(2))
    assert all(one["floor"] == 0 for one in errors.values())


def test_batches_are_one_set_of_images() -> None:
    """Sums over batches are those of all images together: exact for a ragged last batch."""
    group, images = Group(8, True), torch.rand(7, 1, 9, 9)
    tapped = convolution([[1, 2, 0], [0, 1, -1], [3, 0, 0]])
    whole = equivariance_sums(tapped, [images], group)["0"]
    parts = equivariance_sums(tapped, images.split(3), group)["0"]
    assert torch.allclose(whole, parts, rtol=1e-6)


def test_floor_stands_beside_resampled_elements_and_bounds_a_perfect_layer() -> None:
    """A Gaussian commutes with every angle but for the grid: its error at 45° is of the size of the floor, not more."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 65)] * 2, indexing="ij")
    image = torch.exp(-6 * ((x - 0.2) ** 2 + 2 * (y + 0.1) ** 2))[None, None]
    kernel = [[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]
    errors = relative_errors(equivariance_sums(convolution(kernel), [image], Group(8)), Group(8))["0"]
    for element, one in errors.items():
        assert one["error"] is not None
        assert one["floor"] is not None
        if element in ("90°", "180°", "270°"):
            assert one["error"] < 1e-6
        else:
            assert 0 < one["floor"] < 0.01
            assert one["error"] < 3 * one["floor"]


def test_what_cannot_be_measured_is_said() -> None:
    """Dead maps, and maps without a disc, have no relative error; they do not pass for equivariant ones."""
    dead = convolution([[0.0] * 3] * 3)
    errors = relative_errors(equivariance_sums(dead, [torch.rand(2, 1, 9, 9)], Group(4)), Group(4))
    assert mean_errors(errors) == {"0": None}
    tiny = relative_errors(
        equivariance_sums(convolution([[1.0] * 3] * 3), [torch.rand(2, 1, 2, 2)], Group(8)), Group(8)
    )
    assert tiny["0"]["45°"]["error"] is None
    assert tiny["0"]["90°"]["error"] == pytest.approx(0, abs=1e-6)
    assert mean_errors(tiny)["0"] == pytest.approx(0, abs=1e-6)


def test_averaged_random_kernel_is_equivariant_and_the_random_one_is_not() -> None:
    group, images = Group(4, True), [torch.rand(4, 1, 12, 12)]
    tapped = convolution(torch.randn(3, 3).tolist())
    before = mean_errors(relative_errors(equivariance_sums(tapped, images, group), group))["0"]
    average_kernels(tapped, group)
    after = mean_errors(relative_errors(equivariance_sums(tapped, images, group), group))["0"]
    assert before is not None
    assert after is not None
    assert before > 0.1
    assert after < 1e-6
