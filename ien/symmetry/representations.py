"""How do the channels of a filter group change places when the image moves?

In an equivariant network the channels of a filter group stand for orientations, and a move of the image permutes them.
Each filter group carries a permutation representation of C_N or D_N: the action of the group on the cosets of one of
its subgroups. With r the turn by 1/N of the circle and m the mirror, k channels carry

    C_N   k divides N          the cosets of ⟨r^k⟩: r takes channel c to c + 1 mod k (k = N: regular; k = 1: trivial)
          k a multiple of N    k/N copies of the regular one, as C_k has it: r takes c to c + k/N mod k
    D_N   k divides N          the cosets of ⟨r^k, m⟩: r takes c to c + 1, m takes c to -c mod k
          k = 2j               the cosets of ⟨r^j⟩, j dividing N or a multiple of it (k = 2N: regular): the first j
                               channels and the last j are each turned as above, m swaps (c, half) with (-c, other half)

The first row that fits is taken. For all of them the turns of D_N move the channels as those of C_N do.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ien.errors import InputError
from ien.groups import Element, Group
from ien.pooling import ChannelMaxPool


def channel_origins(pool: ChannelMaxPool, group: Group, element: Element, channels: int) -> Tensor:
    """Where each channel comes from: (C,) int64; channel c of the moved features is the moved channel `origins[c]`.

    The channels lie in filter groups as `pool` has them, whose maximum is blind to this permutation. Raises
    `InputError` if they cannot be shared, or if the group has no representation of a filter group's size.
    """
    parts, start = [], 0
    for share, size in zip(pool.shares(channels), pool.sizes, strict=True):
        places = torch.tensor(_origins(group.rotations, group.reflection, element, size))
        first = start + size * torch.arange(share // size)
        parts.append((first[:, None] + places).flatten())
        start += share
    return torch.cat(parts)


def exact_generators(group: Group) -> tuple[Element, ...]:
    """Elements g_1, g_2 … that are exact on the grid, such that the products of some of them, in this order, are all
    exact elements, each once: the half turn, the quarter turn, the mirror, as far as the group has them.

    The mean over all exact elements is therefore (1 + g_n)/2 ⋯ (1 + g_1)/2. Raises `InputError` if there are none.
    """
    n = group.rotations
    turns = [Element(n // parts, n) for parts in (2, 4) if n % parts == 0]
    found = (*turns, Element(0, n, mirrored=True)) if group.reflection else tuple(turns)
    if not found:
        raise InputError(
            f"R{n} without reflection has no element that is exact on the pixel grid; take an even number of rotations "
            "or reflection=true, or leave symmetry out"
        )
    return found


@lru_cache(maxsize=256)
def _origins(rotations: int, reflection: bool, element: Element, size: int) -> tuple[int, ...]:
    halves = _halves(rotations, reflection, size)
    cycle = size // halves
    step = max(1, cycle // rotations)
    origins = [0] * size
    for half in range(halves):
        for place in range(cycle):
            turned = place + element.turns * step
            target = (-turned if element.mirrored else turned) % cycle
            origins[target + cycle * ((half + element.mirrored) % halves)] = place + cycle * half
    return tuple(origins)


def _halves(rotations: int, reflection: bool, size: int) -> int:
    """Into how many cycles that a turn goes through a filter group is divided: one, or two that mirrors swap."""
    if rotations % size == 0 or (not reflection and size % rotations == 0):
        return 1
    cycle = size // 2
    if reflection and size % 2 == 0 and (rotations % cycle == 0 or cycle % rotations == 0):
        return 2
    allowed = f"a divisor of {rotations}, or twice a divisor or multiple of it" if reflection else (
        f"a divisor or a multiple of {rotations}"
    )  # fmt: skip
    name = f"R{rotations} with reflections" if reflection else f"R{rotations}"
    raise InputError(f"filter groups of {size} channels cannot be turned by {name}; take {allowed}")
