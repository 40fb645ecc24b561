"""What does one image look like through the orbit, and what do the first filters look like? (arrays, to be drawn)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ien.groups import Element, Group, square_side
from ien.metrics import squares
from ien.taps import Tapped

COLUMNS, TAPS = 8, 3  # at most, in one picture
_SMALLEST = 4  # pixels a side of a map that is worth drawing


@dataclass(frozen=True)
class View:
    """One pooled channel of a tap through the orbit, in the frame of the unmoved image.

    `maps` (E, S, S): g⁻¹·f(g·x), NaN where it is not visible; `errors` (E,): the relative equivariance error
    (`ien.metrics`) of this image over all channels, None where it cannot be measured.
    """

    tap: str
    channel: int
    maps: np.ndarray
    errors: tuple[float | None, ...]


@dataclass(frozen=True)
class Stabilised:
    """An image through the orbit: `images` (E, S, S) or (E, S, S, 3) in [0, 1], and the views of some taps."""

    elements: tuple[Element, ...]
    images: np.ndarray
    views: tuple[View, ...]


@torch.no_grad()
def stabilised(tapped: Tapped, image: Tensor, group: Group) -> Stabilised:
    """The stabilised view of one image (1, C, S, S), for up to 8 elements and 3 taps. Call it in eval mode.

    Of each tap the pooled channel is shown that varies most over the unturned image's map.
    """
    elements = _some_elements(group.elements)
    moved = torch.cat([group.act(image, element) for element in elements])
    _, maps = tapped(moved)
    drawable = [name for name, tap in maps.items() if square_side(tap) >= _SMALLEST]
    names = _some_taps(drawable)
    return Stabilised(elements, _shown(moved), tuple(_view(name, maps[name], elements, group) for name in names))


def first_filters(tapped: Tapped) -> np.ndarray | None:
    """The kernels of the first convolution, by filter group: (groups, members, k, k), or (…, k, k, 3) for colours.

    Filter groups of unequal sizes are filled up with NaN; for other than 1 or 3 input channels their mean is taken.
    None where the network has no convolution with a kernel to be seen, or its channels are in no filter groups.
    """
    convolutions = (one for one in tapped.model.modules() if isinstance(one, nn.Conv2d))
    first = next(convolutions, None)
    if first is None or min(first.kernel_size) < 2 or first.out_channels % tapped.pool.multiple:
        return None
    weight = first.weight.detach().float().cpu().numpy()
    kernels = weight.transpose(0, 2, 3, 1) if weight.shape[1] == 3 else weight.mean(axis=1)
    widest, rows, at = max(tapped.pool.sizes), [], 0
    for share, size in zip(tapped.pool.shares(first.out_channels), tapped.pool.sizes, strict=True):
        for start in range(at, at + share, size):
            row = np.full((widest, *kernels.shape[1:]), np.nan, dtype=np.float32)
            row[:size] = kernels[start : start + size]
            rows.append(row)
        at += share
    return np.stack(rows)


def _view(name: str, tap: Tensor, elements: Sequence[Element], group: Group) -> View:
    """Maps (E, C, S, S) of the moved images, the identity's first."""
    channel = int(tap[0].std(dim=(-2, -1)).argmax())
    maps, errors = [], []
    for element, there in zip(elements, tap.split(1), strict=True):
        # What was made smaller is whole when it is brought back.
        mask = group.visible(element if element.scale > 1 else element.unscaled, square_side(tap), tap.device)
        back = group.act(there, element.inverse)[0, channel]
        maps.append(back if mask is None else back.masked_fill(~mask, float("nan")))
        difference, whole, _ = squares(group, element, tap[:1], there).tolist()
        errors.append((difference / whole) ** 0.5 if whole else None)
    return View(name, channel, torch.stack(maps).cpu().numpy(), tuple(errors))


def _shown(images: Tensor) -> np.ndarray:
    """(E, C, S, S) → (E, S, S) or (E, S, S, 3) in [0, 1]."""
    seen = images.clamp(0, 1).cpu().numpy()
    return seen.transpose(0, 2, 3, 1) if seen.shape[1] == 3 else seen.mean(axis=1)


def _some_elements(elements: Sequence[Element]) -> tuple[Element, ...]:
    """At most `COLUMNS` of them, evenly; of many every second one moved by one: not only multiples of 90°."""
    count = len(elements)
    if count <= COLUMNS:
        return tuple(elements)
    beside = 1 if count >= 2 * COLUMNS else 0
    return tuple(elements[place * count // COLUMNS + place % 2 * beside] for place in range(COLUMNS))


def _some_taps(names: Sequence[str]) -> tuple[str, ...]:
    """At most `TAPS` of them, evenly, the first and the last included."""
    if len(names) <= TAPS:
        return tuple(names)
    return tuple(names[round(place * (len(names) - 1) / (TAPS - 1))] for place in range(TAPS))
