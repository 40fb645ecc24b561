from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ien.groups import Element, Group
from ien.report.orbit import BINS, belongs, calibration_error, circle, corner_power, orbit_figures, orbit_sums, scaled

C4 = Group(4)
TURNS = tuple(Element(k, 4) for k in range(4))


def figures(network: nn.Module, images: Tensor, labels: Tensor, group: Group = C4, mirrored: bool = False) -> dict:
    elements = circle(group, mirrored)
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]  # a ragged second batch
    sums = orbit_sums(network, batches, elements, group, 2)
    return orbit_figures(sums, elements, group, ["a", "b"])


class WhichHalf(nn.Module):
    """Class 0 where the upper half of the image is brighter than the lower one, with logits ±their difference."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[-1] // 2
        more = images[..., :half, :].sum(dim=(1, 2, 3)) - images[..., half:, :].sum(dim=(1, 2, 3))
        return torch.stack((more, -more), dim=1)


def upper(images: int = 5, side: int = 8) -> Tensor:
    """A bright spot above the middle of each image: turned by more than 90° it lies below."""
    seen = torch.zeros(images, 1, side, side)
    seen[:, :, 1, 3:5] = 1
    return seen


def by_name(found: dict) -> dict:
    return {row["element"]: row for row in found["elements"]}


def test_the_circle_has_every_fifteen_degrees_and_the_groups_own_angles_once() -> None:
    assert [element.degrees for element in circle(Group(8), False)] == [15 * k for k in range(24)]
    sevenths = circle(Group(7), False)
    assert len(sevenths) == 24 + 6
    assert any(element.degrees == pytest.approx(360 / 7) for element in sevenths)
    assert sevenths[0].degrees == 0
    mirrored = circle(C4, True)
    assert len(mirrored) == 48
    assert [element.mirrored for element in mirrored] == [False] * 24 + [True] * 24
    assert [element.exact for element in circle(C4, False)].count(True) == 4


def test_which_elements_are_the_groups() -> None:
    assert [element.degrees for element in circle(Group(8), False) if belongs(element, Group(8))] == [
        45 * k for k in range(8)
    ]
    assert not belongs(Element(0, 1, True), C4)
    assert belongs(Element(0, 1, True), Group(4, True))


def test_scales_are_met_in_equal_steps_and_with_the_groups_turns() -> None:
    group = Group(4, scales=(0.5, 1.2))
    found = scaled(group)
    alone = [element.scale for element in found if not element.turns]
    assert alone == [0.5, 0.558, 0.622, 0.694, 0.775, 0.864, 0.964, 1.08, 1.2]
    assert [element for element in found if belongs(element, group)] == list(group.elements[4:])
    assert scaled(C4) == ()
    assert not belongs(Element(0, 1, scale=0.5), C4)


class HowWide(nn.Module):
    """Class 0 where more than 10 pixels shine, with logits ±1."""

    def forward(self, images: Tensor) -> Tensor:
        many = ((images > 0.5).sum(dim=(1, 2, 3)) > 10).float() * 2 - 1
        return torch.stack((many, -many), dim=1)


def test_accuracy_per_scale_of_a_network_with_a_known_answer() -> None:
    """A square of 16 pixels: 8 by 8 where it is doubled, 2 by 2 where it is halved; turns change nothing."""
    images = torch.zeros(2, 1, 16, 16)
    images[..., 6:10, 6:10] = 1
    group = Group(4, scales=(0.5, 2))
    elements = (*group.elements[:4], *scaled(group))
    sums = orbit_sums(HowWide(), [(images, torch.zeros(2, dtype=torch.long))], elements, group, 2)
    found = orbit_figures(sums, elements, group, ["a", "b"])
    rows = by_name(found)
    assert (rows["×2"]["accuracy"], rows["×0.5"]["accuracy"], rows["90° ×0.5"]["accuracy"]) == (1, 0, 0)
    assert found["over_orbit"]["accuracy"] == found["over_orbit"]["agreement"] == 1
    assert found["over_orbit"]["agreement_group"] == found["over_scales"]["agreement"] == 0
    upright = [row["accuracy"] for row in found["elements"] if row["degrees"] == 0]
    assert found["over_scales"]["accuracy"] == pytest.approx(sum(upright) / len(upright))
    assert found["over_scales"]["lowest_accuracy"] == 0


def test_accuracy_per_angle_of_a_network_with_a_known_answer() -> None:
    """Right while the spot is above the middle, wrong once it is below; 90° and 270° lie on the border."""
    found = by_name(figures(WhichHalf(), upper(), torch.zeros(5, dtype=torch.long)))
    for degrees in (0, 15, 30, 45, 60, 75, 285, 345):
        assert found[f"{degrees}°"]["accuracy"] == found[f"{degrees}°"]["agreement"] == 1
    for degrees in (105, 135, 180, 225, 255):
        assert found[f"{degrees}°"]["accuracy"] == found[f"{degrees}°"]["agreement"] == 0


def test_a_turn_that_turns_the_answer_round_changes_the_logits_twofold() -> None:
    found = figures(WhichHalf(), upper(), torch.zeros(5, dtype=torch.long))
    assert by_name(found)["180°"]["logit_error"] == pytest.approx(2)
    assert by_name(found)["0°"]["logit_error"] == 0
    assert found["over_orbit"]["agreement"] == found["over_orbit"]["agreement_group"] == 0


class SureAbove(WhichHalf):
    """Sure of class 0 where the spot is above the middle, and elsewhere a little more for class 1."""

    def forward(self, images: Tensor) -> Tensor:
        above = super().forward(images)[:, 0] > 1e-3
        return torch.stack((torch.where(above, 4.0, -0.2), torch.zeros(len(images))), dim=1)


def test_averaged_probabilities_answer_where_single_ones_are_outvoted() -> None:
    """Over C4 (0.98 + 3 · 0.45) / 4 = 0.58 for class 0, which three of four elements answer wrongly."""
    found = figures(SureAbove(), upper(), torch.zeros(5, dtype=torch.long))
    assert [by_name(found)[f"{angle}°"]["accuracy"] for angle in (0, 90, 180, 270)] == [1, 0, 0, 0]
    assert found["over_orbit"]["averaged_group"] == found["over_orbit"]["averaged"] == 1
    wrong = figures(SureAbove(), upper(), torch.ones(5, dtype=torch.long))
    assert wrong["over_orbit"]["averaged_group"] == wrong["over_orbit"]["averaged"] == 0


class Sharp(nn.Module):
    """Class 0 where a pixel is as bright as it was drawn."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack((images.amax(dim=(1, 2, 3)), torch.full((len(images),), 0.999)), dim=1)


def test_agreement_is_with_the_image_as_it_is() -> None:
    """Resampling blurs one bright pixel: every slanted copy is answered in another way, and only those."""
    images = torch.zeros(5, 1, 8, 8)
    images[:, :, 1, 2] = 1
    found = figures(Sharp(), images, torch.ones(5, dtype=torch.long))
    for row in found["elements"]:
        assert row["agreement"] == row["exact"]
        assert row["accuracy"] == (not row["exact"])
    assert found["over_orbit"]["agreement_group"] == 1
    assert found["over_orbit"]["agreement"] == 0


def test_mirrored_copies_are_measured_too() -> None:
    """Mirrored left to right the spot stays above; turned by 180° and mirrored it is below."""
    found = by_name(figures(WhichHalf(), upper(), torch.zeros(5, dtype=torch.long), Group(4, True), mirrored=True))
    assert found["0° mirrored"]["accuracy"] == 1
    assert found["180° mirrored"]["accuracy"] == 0
    assert found["0° mirrored"]["in_group"]


def test_classes_are_told_apart() -> None:
    """Three images above and labelled so, two below and labelled as if above."""
    images = torch.cat((upper(3), upper(2).flip(-2)))
    found = figures(WhichHalf(), images, torch.tensor([0, 0, 0, 0, 1]))
    assert found["per_class"] == {"a": 3 / 4, "b": 1.0}
    assert found["accuracy"] == 4 / 5
    assert found["classes_predicted"] == 2
    absent = figures(WhichHalf(), upper(), torch.zeros(5, dtype=torch.long))
    assert absent["per_class"] == {"a": 1.0, "b": None}
    assert absent["classes_predicted"] == 1


class Sure(nn.Module):
    """Class 0 with the given probability, whatever is seen."""

    def __init__(self, probability: float):
        super().__init__()
        self.logit = math.log(probability / (1 - probability))

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([[self.logit, 0.0]]).expand(len(images), 2)


def test_calibration_of_made_logits() -> None:
    """Sure of class 0 to 0.9, right in 3 of 5: |0.6 - 0.9|; the likelihood is that of the formula."""
    found = figures(Sure(0.9), upper(), torch.tensor([0, 0, 0, 1, 1]))
    nll = -(3 * math.log(0.9) + 2 * math.log(0.1)) / 5
    for row in found["elements"]:
        assert row["ece"] == pytest.approx(0.3, abs=1e-6)
        assert row["nll"] == pytest.approx(nll, abs=1e-6)
    assert found["over_orbit"]["ece"] == pytest.approx(0.3, abs=1e-6)
    assert found["over_orbit"]["agreement"] == 1


def test_calibration_error_weighs_bins_by_their_images() -> None:
    bins = torch.zeros(BINS, 3, dtype=torch.float64)
    bins[7] = torch.tensor([3.0, 1.5, 3.0])  # three images, sure to 0.5 each, all right
    bins[14] = torch.tensor([1.0, 1.0, 1.0])
    assert calibration_error(bins) == pytest.approx((3 * 0.5 + 0) / 4)


def test_confidences_fall_into_the_bins_of_guo_et_al() -> None:
    """(i/15, (i+1)/15]: two thirds is the upper end of bin 9; certainty lies in the last bin."""
    for probability, place in ((0.51, 7), (0.66, 9), (0.7, 10), (1 - 1e-9, 14)):
        batch = [(upper(2), torch.zeros(2, dtype=torch.long))]
        sums = orbit_sums(Sure(probability), batch, TURNS, C4, 2)
        assert sums.bins[:, place, 0].tolist() == [2.0] * 4


class Corner(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        corner = images[..., 0, 0].mean(dim=1)
        return torch.stack((corner, 0.25 - corner), dim=1)


def test_inside_the_disc_no_angle_sees_a_corner() -> None:
    """A network that looks at the corner alone answers by the angle, but not where corners are always black."""
    batch = [(torch.ones(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))]
    elements = circle(C4, False)
    square = orbit_figures(orbit_sums(Corner(), batch, elements, C4, 2), elements, C4, ["a", "b"])
    disc = orbit_figures(orbit_sums(Corner(), batch, elements, C4, 2, disc=True), elements, C4, ["a", "b"])
    assert by_name(square)["90°"]["accuracy"] == 1
    assert by_name(square)["45°"]["accuracy"] == 0
    assert {row["accuracy"] for row in disc["elements"]} == {0.0}


def test_what_lies_in_the_corners() -> None:
    images, labels = torch.zeros(1, 1, 8, 8), torch.zeros(1)
    images[..., 0, 0] = 1
    images[..., 4, 4] = math.sqrt(3)
    assert corner_power([(images, labels)]) == pytest.approx(1 / 4)
    assert corner_power([(upper(), labels)]) == 0
