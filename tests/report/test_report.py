"""What is measured of any network, without a run: photographs, logits that never change the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ien.groups import Group
from ien.pooling import ChannelMaxPool
from ien.report.comparison import compared
from ien.report.figures import Plan, Subject, common_group, measured
from ien.report.orbit import Batch
from ien.report.page import page
from ien.taps import Tapped


def passed(_what: str, batches: Iterable[Batch]) -> Iterator[Batch]:
    return iter(batches)


class Small(nn.Module):
    def __init__(self, bias: float):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)
        self.linear.bias.data = torch.tensor([bias, 0.0])

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.conv(images).relu().mean(dim=(-2, -1)))


def of(images: Tensor, bias: float = 0.0, mirrored: bool = False) -> dict[str, Any]:
    tapped = Tapped(Small(bias).eval(), ["conv"], ChannelMaxPool([2]))
    batches = [(images, torch.arange(len(images)) % 2)]
    subject = Subject(tapped, lambda limit: [(x[:limit], y[:limit]) for x, y in batches], len(images), ("a", "b"))
    return measured(subject, Plan(Group(4), len(images), mirrored), passed)


def test_photographs_are_measured_inside_the_disc_too() -> None:
    found = of(torch.rand(4, 3, 12, 12))
    assert found["corner_power"] > 0.1
    assert len(found["disc"]["elements"]) == len(found["square"]["elements"]) == 24
    run = {"name": "n", "label": "l", **found}
    made = {"device": "d", "packages": {}, "time": "t"}
    what = {"dataset": "s", "split": "val", "images": 4, "of": 4, "map_images": 4, "local_images": 4, "group": "C4"}
    told = page({"runs": [run], "comparison": compared([run]), "made": made, "measured": what}, {})
    assert "<th>in the disc</th>" in told
    assert "all 4 held-out images" in told


def test_empty_corners_need_no_disc() -> None:
    images = torch.zeros(4, 3, 12, 12)
    images[..., 4:8, 4:8] = torch.rand(4, 3, 4, 4)
    assert of(images)["disc"] is None


def test_logits_that_never_change_the_answer() -> None:
    images = torch.rand(4, 3, 12, 12) * torch.tensor([0.0, 1.0, 2.0, 4.0])[:, None, None, None]
    found = of(images, bias=5.0)
    assert found["square"]["classes_predicted"] == 1
    assert found["logits"]["verdict"] == "one class"
    assert of(images, bias=1e6)["logits"]["verdict"] == "collapsed"


def test_the_smallest_group_that_holds_them_all() -> None:
    assert common_group([Group(4), Group(4)]) == Group(4)
    assert common_group([Group(4, interpolation="nearest", disc=False)]) == Group(4)
    assert common_group([Group(4), Group(6, True)]) == Group(12, True)
    assert common_group([Group(1, scales=(0.5, 2)), Group(4, scales=(0.5,))]) == Group(4, scales=(0.5, 2))


def test_full_precision_is_given_back() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        of(torch.rand(2, 3, 12, 12))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
