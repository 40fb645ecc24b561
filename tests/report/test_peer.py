"""escnn's networks by the measure of this project, and its measure on a network of this project.

Skipped where there is no escnn; where IEN_TEST_PEER is set they fail instead (`make test-peer`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ien import config, evaluate, train
from ien.errors import InputError
from ien.groups import Group
from ien.metrics import equivariance_sums, relative_errors
from ien.pooling import ChannelMaxPool
from ien.report.peer import SteerableCNN, steerable
from ien.taps import Tapped
from tests.finished_run import finished_run

if "IEN_TEST_PEER" not in os.environ:
    pytest.importorskip("escnn", reason="escnn has an environment of its own: make test-peer")
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


def test_the_report_has_the_steerable_network_beside_the_run(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    evaluate.main([str(run), "--peer", "escnn", "--images", "8", "--device", "cpu", "--no-pictures"])
    ours, theirs = json.loads((run / "report" / "report.json").read_text())["runs"]
    assert "escnn" in theirs["name"]
    errors = [[one["error"] for one in run["taps"]["block1"]["elements"].values()] for run in (ours, theirs)]
    assert min(errors[0]) > 0.05
    assert max(errors[1]) < 2e-6  # quarter turns of an even side are exact


def test_a_steerable_network_is_trained_like_any_other(tmp_path: Path) -> None:
    """BasicCNN's channels and sides; exact for quarter turns before and after, which the trainer measures."""
    (tmp_path / "run.yaml").write_text(
        """
dataset: digits
model: ien.report.peer:SteerableCNN
network: {arguments: {width: 8}}
data: {image_size: 28}
objective: {augment: none}
beta_weight: 0
tot_epochs: 2
cyc_size: 2
batch_size: 64
run: {equivariance_images: 16, device: cpu}
"""
    )
    result = train.run(config.load(tmp_path / "run.yaml", [f"run.root={tmp_path}", "save_dir=run"]))
    assert result["accuracy"] > 0.5
    for measured in ("relative_equivariance_error", "relative_equivariance_error_before"):
        assert len(result[measured]) == 6
        assert max(result[measured].values()) < 1e-5
    evaluate.main([str(tmp_path / "run"), "--images", "8", "--no-pictures"])  # its weights fit a network made anew
    assert len(json.loads((tmp_path / "run/report/report.json").read_text())["runs"][0]["taps"]) == 6
    network = SteerableCNN(10, 1, width=8)
    assert network.state_dict().keys() == network.eval().state_dict().keys() == network.train().state_dict().keys()
    filters = 8 * 7 * 7  # what the first layer of a network that is not steerable has
    assert sum(p.numel() for p in SteerableCNN(10, 1, width=8).block1.parameters()) < filters // 2
    with pytest.raises(InputError, match="width: 12 is not a multiple of 8; write 8"):
        SteerableCNN(10, 1, width=12)
