"""How accurate and how equivariant is a model?

The relative equivariance error of a tap f under an element g is ‖f(g·x) - g·f(x)‖ / ‖f(x)‖ over the pixels that are
visible in both, taken over a set of images. For elements that resample, the floor ‖g⁻¹·g·f(x) - f(x)‖ / ‖f(x)‖ stands
beside it: what interpolation alone costs.

Scaled views are measured in the coarser of their frames. Where g magnifies, the difference is brought back there:
‖g⁻¹·(f(g·x) - g·f(x))‖ / ‖f(x)‖, with the same floor. Where g makes smaller, that frame is the moved one, and the map
that all is measured by is c = g·f(x): ‖f(g·x) - c‖ / ‖c‖, with the floor ‖g·g⁻¹·c - c‖ / ‖c‖.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ien.groups import Element, Group, square_side
from ien.taps import Tapped

Sums = dict[str, Tensor]  # tap: (elements, 3) float64: squared difference, squared reference, squared round trip


@torch.no_grad()
def equivariance_sums(tapped: Tapped, batches: Iterable[Tensor], group: Group) -> Sums:
    """The sums that `relative_errors` divides, over images (B, C, S, S); added up over processes they stay sums.

    Call it in eval mode and in full precision.
    """
    sums: Sums = {}
    for images in batches:
        _, maps = tapped(images)
        for place, element in enumerate(group.moves):
            _, moved = tapped(group.act(images, element))
            for name, reference in maps.items():
                empty = torch.zeros(len(group.moves), 3, dtype=torch.float64, device=images.device)
                sums.setdefault(name, empty)[place] += squares(group, element, reference.float(), moved[name].float())
    return sums


def relative_errors(sums: Sums, group: Group) -> dict[str, dict[str, dict[str, float | None]]]:
    """{tap: {element: {"error": …, "floor": …}}}; None where the map is too small, or all zero."""
    return {
        name: {
            str(element): {"error": _ratio(difference, reference), "floor": _ratio(floor, reference)}
            for element, (difference, reference, floor) in zip(group.moves, table.tolist(), strict=True)
        }
        for name, table in sums.items()
    }


def mean_errors(errors: dict[str, dict[str, dict[str, float | None]]]) -> dict[str, float | None]:
    """{tap: the relative error, averaged over the elements under which it can be measured}."""
    means: dict[str, float | None] = {}
    for name, elements in errors.items():
        known = [one["error"] for one in elements.values() if one["error"] is not None]
        means[name] = sum(known) / len(known) if known else None
    return means


def add_up(sums: Sums, reduce: Callable[[Tensor], Tensor]) -> Sums:
    """The sums over all processes, with the collective that the caller has."""
    return {name: reduce(table) for name, table in sums.items()}


def squares(group: Group, element: Element, reference: Tensor, moved: Tensor) -> Tensor:
    """(3,) float64: squared difference, squared reference and squared round trip of maps f(x) and f(g·x)."""
    expected = group.act(reference, element)
    difference = moved - expected
    if element.scale > 1:
        difference = group.act(difference, element.inverse)
    if element.scale < 1:
        reference, expected, element = expected, group.act(expected, element.inverse), element.inverse
    mask = group.visible(element, square_side(reference), reference.device)

    def power(maps: Tensor) -> Tensor:
        square = maps.square().sum(dim=(0, 1), dtype=torch.float64)
        return (square if mask is None else square * mask).sum()

    round_trip = group.act(expected, element.inverse) - reference
    return torch.stack((power(difference), power(reference), power(round_trip)))


def _ratio(part: float, whole: float) -> float | None:
    return math.sqrt(part / whole) if whole > 0 else None
