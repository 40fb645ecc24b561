"""How channels permute: a representation of the group, transitive where it should be, and what cannot be."""

from __future__ import annotations

import itertools

import pytest
import torch

from ien.errors import InputError
from ien.groups import Element, Group
from ien.pooling import PRESETS, ChannelMaxPool
from ien.symmetry.representations import channel_origins, exact_generators

SIZES = {
    Group(4): (1, 2, 4, 8, 12),
    Group(8): (1, 2, 4, 8, 16),
    Group(3): (1, 3, 6),
    Group(6): (2, 3, 6),
    Group(2, True): (1, 2, 4, 8),
    Group(4, True): (1, 2, 4, 8, 16),
    Group(8, True): (1, 2, 4, 8, 16),
    Group(3, True): (1, 2, 3, 6),
    Group(6, True): (2, 3, 4, 6, 12),
}
CASES = [(group, size) for group, sizes in SIZES.items() for size in sizes]


def by_name(case: object) -> str:
    return case.name if isinstance(case, Group) else str(case)


def after(second: Element, first: Element) -> Element:
    """The element that moves as `first` does and then `second`."""
    turns = (-second.turns if first.mirrored else second.turns) + first.turns
    return Element(turns % first.steps, first.steps, first.mirrored != second.mirrored)


def origins(group: Group, element: Element, size: int) -> list[int]:
    return channel_origins(ChannelMaxPool([size]), group, element, size).tolist()


def test_the_product_of_elements_is_what_images_say() -> None:
    group, images = Group(4, True), torch.rand(1, 1, 5, 5)
    for first, second in itertools.product(group.elements, repeat=2):
        assert torch.equal(group.act(group.act(images, first), second), group.act(images, after(second, first)))


@pytest.mark.parametrize(("group", "size"), CASES, ids=by_name)
def test_moves_of_channels_multiply_as_the_elements_do(group: Group, size: int) -> None:
    assert origins(group, group.elements[0], size) == list(range(size))
    for first, second in itertools.product(group.elements, repeat=2):
        one, other = origins(group, first, size), origins(group, second, size)
        assert [one[place] for place in other] == origins(group, after(second, first), size)


@pytest.mark.parametrize(("group", "size"), CASES, ids=by_name)
def test_every_channel_of_a_filter_group_is_reached_from_every_other(group: Group, size: int) -> None:
    """Cosets: one orbit, unless the filter group has more channels than the group elements."""
    orbit = {origins(group, element, size)[0] for element in group.elements}
    assert len(orbit) == min(size, group.order)


def test_known_answers() -> None:
    """What stood in channel 0 stands, after a quarter turn, in the next of four channels, and in the third of eight."""
    quarter = {n: Element(n // 4, n) for n in (4, 8)}
    assert origins(Group(4), quarter[4], 4) == [3, 0, 1, 2]
    assert origins(Group(8), quarter[8], 8) == [6, 7, 0, 1, 2, 3, 4, 5]
    assert origins(Group(8), quarter[8], 4) == [2, 3, 0, 1]
    assert origins(Group(8), quarter[8], 2) == [0, 1]
    assert origins(Group(4, True), quarter[4], 8) == [3, 0, 1, 2, 7, 4, 5, 6]
    assert origins(Group(4, True), Element(0, 4, mirrored=True), 8) == [4, 7, 6, 5, 0, 3, 2, 1]
    assert origins(Group(8, True), Element(0, 8, mirrored=True), 8) == [0, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("group", [Group(4), Group(8), Group(4, True), Group(8, True)], ids=by_name)
def test_filter_groups_keep_their_channels(group: Group, preset: str) -> None:
    """The pool is blind to the permutation: pooled maps are scalar fields."""
    pool = ChannelMaxPool.from_name(preset)
    maps = torch.rand(1, 2 * pool.multiple, 1, 1)
    for element in group.elements:
        moved = maps[:, channel_origins(pool, group, element, 2 * pool.multiple)]
        assert torch.equal(pool(moved), pool(maps))


@pytest.mark.parametrize("group", [*SIZES, Group(2), Group(16), Group(5, True)], ids=by_name)
def test_products_of_the_generators_are_all_exact_elements(group: Group) -> None:
    if group == Group(3):
        with pytest.raises(InputError, match="R3 without reflection has no element that is exact"):
            exact_generators(group)
        return
    reached = [group.elements[0]]
    for generator in exact_generators(group):
        reached += [after(generator, element) for element in reached]
    exact = [element for element in group.elements if element.exact]
    assert len(reached) == len(exact)
    assert set(reached) == set(exact)


@pytest.mark.parametrize(
    ("group", "size", "allowed"),
    [(Group(4), 3, "a divisor or a multiple of 4"), (Group(4, True), 6, "twice a divisor or multiple")],
    ids=by_name,
)
def test_sizes_that_the_group_cannot_turn_are_refused(group: Group, size: int, allowed: str) -> None:
    with pytest.raises(InputError, match=f"filter groups of {size} channels cannot be turned by R4.*{allowed}"):
        origins(group, group.elements[0], size)
