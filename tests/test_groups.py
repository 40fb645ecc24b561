from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from ien.errors import InputError
from ien.groups import Element, Group

GROUPS = [Group(n, reflection) for n in (2, 3, 4, 5, 8, 16) for reflection in (False, True)]


def compose(first: Element, second: Element) -> Element:
    """The element that acts as `first`, then `second`, by the rule of the dihedral group: m·r = r⁻¹·m."""
    sign = -1 if first.mirrored else 1
    return Element((first.turns + sign * second.turns) % first.steps, first.steps, first.mirrored != second.mirrored)


def smooth(side: int) -> Tensor:
    """A smooth image without symmetry, (1, 1, side, side)."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    return (torch.exp(-4 * ((x - 0.3) ** 2 + (y + 0.2) ** 2)) + 0.5 * torch.exp(-9 * ((x + 0.4) ** 2 + y**2)))[
        None, None
    ]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_elements_are_a_group(group: Group) -> None:
    elements = set(group.elements)
    assert len(elements) == len(group.elements) == group.order
    identity = group.elements[0]
    for first in elements:
        assert compose(first, first.inverse) == compose(first.inverse, first) == identity
        assert {compose(first, second) for second in elements} == elements


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("group", [Group(2, True), Group(4), Group(4, True), Group(8, True)], ids=lambda g: g.name)
def test_exact_elements_act_as_the_group_composes(group: Group, side: int) -> None:
    images = torch.rand(2, 3, side, side)
    exact = [element for element in group.elements if element.exact]
    assert len(exact) == min(4, group.rotations) * (2 if group.reflection else 1)
    for first in exact:
        assert torch.equal(group.act(group.act(images, first), first.inverse), images)
        for second in exact:
            there = group.act(group.act(images, first), second)
            assert torch.equal(there, group.act(images, compose(first, second)))


def test_resampling_agrees_with_the_exact_quarter_turn() -> None:
    """The same angle by `rot90` and by the grid of `grid_sample`: direction, centre and mirror are one convention."""
    group = Group(8, reflection=True)
    for side in (8, 9):
        images = torch.rand(1, 2, side, side)
        for element in group.elements:
            if element.exact:
                runs = ((element, 1),)
                assert torch.allclose(group._resample(images, runs, side), group.act(images, element), atol=1e-5)


def test_known_answer_of_a_quarter_turn_and_a_mirror() -> None:
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    turned = Group(4).act(image, Element(1, 4))  # counter-clockwise: the right column comes to the top
    assert turned[0, 0].tolist() == [[2.0, 4.0], [1.0, 3.0]]
    assert Group(4, True).act(image, Element(1, 4, mirrored=True))[0, 0].tolist() == [[4.0, 2.0], [3.0, 1.0]]


def test_eight_turns_by_45_degrees_come_home() -> None:
    group, image = Group(8), smooth(65)
    moved = image
    for _ in range(8):
        moved = group.act(moved, Element(1, 8))
    disc = group.visible(Element(1, 8), 65)
    assert disc is not None
    error = ((moved - image) * disc).norm() / (image * disc).norm()
    assert error < 0.05
    against_wrong_way = group.act(image, Element(1, 8)) - group.act(image, Element(7, 8))
    assert (against_wrong_way * disc).norm() / (image * disc).norm() > 0.3


def test_round_trip_floor_is_the_measured_one() -> None:
    """45° and back on a smooth image: bilinear far below nearest, and both small inside the disc alone."""
    image, element = smooth(65), Element(1, 8)
    floors = {}
    for interpolation in ("bilinear", "nearest"):
        group = Group(8, interpolation=interpolation)
        back = group.act(group.act(image, element), element.inverse)
        disc = group.visible(element, 65)
        assert disc is not None
        floors[interpolation] = float(((back - image) * disc).norm() / (image * disc).norm())
    assert floors["bilinear"] < 0.02 < floors["nearest"] < 0.15


@pytest.mark.parametrize(("side", "pixels"), [(1, 1), (2, 0), (3, 5), (9, 49)])
def test_disc_of_known_sizes(side: int, pixels: int) -> None:
    group, element = Group(8), Element(1, 8)
    disc = group.visible(element, side)
    assert disc is not None
    assert int(disc.sum()) == group.visible_pixels(element, side) == pixels
    assert group.comparable(element, side) == (pixels > 0)
    assert group.visible(Element(2, 8), side) is None
    assert Group(8, disc=False).visible_pixels(element, side) == side * side


def test_pixels_in_the_disc_never_see_outside_the_frame() -> None:
    """Ones stay ones inside the disc whatever the angle; outside it some corner becomes dark."""
    for side in (3, 8, 9, 33):
        ones = torch.ones(1, 1, side, side)
        for element in Group(16).moves:
            disc = Group(16).visible(element, side)
            if disc is not None:
                moved = Group(16).act(ones, element)[0, 0]
                assert torch.allclose(moved[disc], torch.ones(()), atol=1e-5)
                assert float(moved.min()) < 0.99


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
@pytest.mark.parametrize("images", [1, 6, 32])
def test_every_element_but_the_identity_is_dealt_equally_often(group: Group, images: int) -> None:
    dealt: Counter[Element] = Counter()
    steps = len(group.moves)  # after so many batches every element has had its turn equally often
    for step in range(steps):
        runs = group.in_turn(images, step * images)
        assert sum(count for _, count in runs) == images
        for element, count in runs:
            dealt[element] += count
    assert set(dealt) == set(group.elements[1:])
    assert set(dealt.values()) == {images}


def test_elements_that_are_listed_are_dealt_alone() -> None:
    """Two of seven, evenly, and never another."""
    group = Group(8)
    moves = group.moves[3:5]
    dealt: Counter[Element] = Counter()
    for step in range(4):
        dealt += Counter(dict(group.in_turn(5, 5 * step, moves)))
    assert dealt == {moves[0]: 10, moves[1]: 10}


def test_runs_act_on_their_own_images_alone() -> None:
    group = Group(8, reflection=True)
    images = torch.rand(20, 2, 9, 9)
    runs = group.in_turn(20, start=4)
    moved, start = group.act_in_runs(images, runs), 0
    back = group.act_in_runs(moved, runs, inverse=True)
    for element, count in runs:
        part = slice(start, start + count)
        assert torch.allclose(moved[part], group.act(images[part], element), atol=1e-6)
        assert torch.allclose(back[part], group.act(moved[part], element.inverse), atol=1e-6)
        start += count


def test_bf16_stays_bf16() -> None:
    assert Group(8).act(torch.rand(1, 1, 9, 9).bfloat16(), Element(1, 8)).dtype == torch.bfloat16


def test_names() -> None:
    assert Group.from_name("R8", reflection=True) == Group(8, True)
    assert str(Element(1, 8, mirrored=True)) == "45° mirrored"
    assert math.isclose(Element(3, 5).degrees, 216)


@pytest.mark.parametrize("mode", ["R1", "R0", "R5x", "C4", "R", ""])
def test_unknown_groups_are_refused(mode: str) -> None:
    with pytest.raises(InputError, match="R4, R8 or R<N>"):
        Group.from_name(mode)


def test_maps_that_are_not_square_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 3, 4, 5\)"):
        Group(4).act(torch.rand(2, 3, 4, 5), Element(1, 4))
