"""Where do the rows and columns of an image lie in a tensor, and is their middle still the image's?

Axes are counted from the end (-1 is the last), as broadcasting does. What reshapes, permutes or reduces a tensor either
keeps rows and columns apart, and then their new places follow, or it does not, and nothing is known from there on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

Pair = tuple[float, float]  # of rows, of columns


@dataclass(frozen=True)
class Layout:
    """What is known of a tensor that depends on the image.

    `rows`, `columns`: their axes, None where there is none (any more). `shift`: how far the map's middle lies from
    where it was before the steps `loose`, uneven padding or slices, in pixels of this map. They break nothing if the
    next operation that reads the map does so about the former middle, without padding more.
    """

    rows: int | None = -2
    columns: int | None = -1
    known: bool = True
    shift: Pair = (0.0, 0.0)
    loose: tuple[int, ...] = ()

    @property
    def flat(self) -> bool:
        """A vector: no rows, no columns, so that no turn of the image can move anything in it."""
        return self.known and self.rows is None and self.columns is None

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(axis for axis in (self.rows, self.columns) if axis is not None)

    def settled(self) -> Layout:
        """The same, with its middle taken for the image's."""
        return replace(self, shift=(0.0, 0.0), loose=())


MAP = Layout()
VECTOR = Layout(None, None)
UNKNOWN = Layout(None, None, known=False)


def reshaped(layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout | None:
    """After a view; None where it mixes rows or columns with something else."""
    places = []
    for axis in (layout.rows, layout.columns):
        place = None if axis is None or before[axis] == 1 else _place(axis, before, after)
        if axis is not None and before[axis] > 1 and place is None:
            return None
        places.append(place)
    return replace(layout, rows=places[0], columns=places[1])


def _place(axis: int, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Where an axis lies after a view: in the same place of the order of memory, with the same size."""
    ahead, size = math.prod(before[:axis]), before[axis]
    for place, length in enumerate(after):
        if length == size and math.prod(after[:place]) == ahead:
            return place - len(after)
    return None


def permuted(layout: Layout, order: Sequence[int]) -> Layout:
    """After `permute(order)`."""
    order = [axis - len(order) if axis >= 0 else axis for axis in order]
    rows, columns = (None if axis is None else order.index(axis) - len(order) for axis in (layout.rows, layout.columns))
    return replace(layout, rows=rows, columns=columns)


def reduced(layout: Layout, shape: Sequence[int], axes: Iterable[int], keepdim: bool) -> Layout | None:
    """After a sum, mean or maximum over `axes`; None where rows are reduced and columns are not, or the reverse."""
    gone = {axis - len(shape) if axis >= 0 else axis for axis in axes} or set(range(-len(shape), 0))
    long = [axis for axis in layout.axes if shape[axis] > 1]
    if any(axis in gone for axis in long):
        return replace(layout, rows=None, columns=None) if all(axis in gone for axis in long) else None
    if keepdim:
        return layout
    rows, columns = (
        None if axis is None or axis in gone else axis + sum(other > axis for other in gone)
        for axis in (layout.rows, layout.columns)
    )
    return replace(layout, rows=rows, columns=columns)


def mixes(layout: Layout, shape: Sequence[int], axis: int) -> bool:
    """Whether an operation along one axis mixes the pixels of a row or a column."""
    axis = axis - len(shape) if axis >= 0 else axis
    return axis in layout.axes and shape[axis] > 1
