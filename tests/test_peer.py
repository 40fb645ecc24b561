"""escnn's networks by the measure of this project, and its measure on a network of this project."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ien.groups import Group
from ien.metrics import equivariance_sums, relative_errors
from ien.peer import steerable
from ien.pooling import ChannelMaxPool
from ien.taps import Tapped

escnn = pytest.importorskip("escnn", reason="escnn is no dependency of this project; see ien/peer.py")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("group", [Group(4), Group(4, True), Group(8)], ids=lambda group: group.name)
def test_a_steerable_network_is_equivariant_where_the_grid_is(group: Group) -> None:
    network = steerable(group, 10, 1).eval()
    errors = relative_errors(equivariance_sums(network, [torch.rand(2, 1, 28, 28)], group), group)
    for tap in errors.values():
        for element in group.moves:
            found = tap[str(element)]
            assert found["error"] is not None
            assert found["floor"] is not None
            assert found["error"] < (2e-6 if element.exact else 3 * found["floor"])


def test_a_random_network_reports_what_escnns_own_check_would() -> None:
    """‖f(g·x) - g·f(x)‖ / ‖f(x)‖ with escnn's `transform`, for each turn and mirror of D4 as escnn makes them."""
    from escnn import gspaces
    from escnn import nn as enn

    layer = nn.Conv2d(1, 6, 3, padding=1)
    space = gspaces.flipRot2dOnR2(4)
    before, after = (enn.FieldType(space, n * [space.trivial_repr]) for n in (1, 6))
    images, group = torch.rand(3, 1, 9, 9), Group(4, True)
    errors = relative_errors(
        equivariance_sums(Tapped(nn.Sequential(layer), ["0"], ChannelMaxPool([1])), [images], group), group
    )

    def checked(element: Any) -> float:
        def moved(maps: Tensor, kind: Any) -> Tensor:
            return enn.GeometricTensor(maps, kind).transform(element).tensor

        with torch.no_grad():
            difference = layer(moved(images, before)) - moved(layer(images), after)
            return float(difference.norm() / layer(images).norm())

    theirs = sorted(checked(element) for element in space.testing_elements)[1:]  # the identity's is 0
    ours = sorted(one["error"] or 0.0 for one in errors["0"].values())
    assert ours == pytest.approx(theirs, rel=1e-5)
