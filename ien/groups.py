"""Which transformations are there, how does each act on a batch, what undoes it, where is it exact?

An element first turns an image counter-clockwise by `turns`/N of a full circle, then, if `mirrored`, flips it left to
right. The N turns form the cyclic group C_N; with their mirrored twins they form the dihedral group D_N. Multiples of
90° and mirrors only move pixels about; every other angle is resampled about the image's centre, with zeros outside.

Shapes: images and feature maps are (B, C, S, S).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ien.errors import InputError

INTERPOLATIONS = ("bilinear", "nearest")


@dataclass(frozen=True)
class Element:
    """One transformation: a counter-clockwise turn by `turns`/`steps` of the circle, perhaps then a mirror."""

    turns: int
    steps: int
    mirrored: bool = False

    @property
    def degrees(self) -> float:
        """The angle of the turn, counter-clockwise."""
        return 360.0 * self.turns / self.steps

    @property
    def exact(self) -> bool:
        """Whether the element maps the pixel grid onto itself (a multiple of 90°)."""
        return 4 * self.turns % self.steps == 0

    @property
    def quarter_turns(self) -> int:
        """The turn in steps of 90°; for exact elements only."""
        assert self.exact, self
        return 4 * self.turns // self.steps

    @property
    def inverse(self) -> Element:
        """The element that undoes this one: a mirrored turn undoes itself."""
        return self if self.mirrored else Element(-self.turns % self.steps, self.steps)

    def __str__(self) -> str:
        return f"{self.degrees:g}°" + (" mirrored" if self.mirrored else "")


Run = tuple[Element, int]  # an element, and how many consecutive images of a batch it acts on


@dataclass(frozen=True)
class Group:
    """C_N, or D_N with `reflection`, acting on square images.

    `interpolation` is used for turns that are not multiples of 90°; `disc` says whether those are compared inside the
    inscribed disc alone (the corners leave the frame) or over the whole square, as the published code does.
    """

    rotations: int
    reflection: bool = False
    interpolation: str = "bilinear"
    disc: bool = True

    def __post_init__(self) -> None:
        if self.rotations < 2:
            raise InputError(f"a group of {self.rotations} rotations has nothing to learn from; take 2 or more")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation {self.interpolation!r} is unknown; take one of {', '.join(INTERPOLATIONS)}"
            )

    @classmethod
    def from_name(
        cls, mode: str, reflection: bool = False, interpolation: str = "bilinear", disc: bool = True
    ) -> Group:
        """`R4`, `R8` or any `R<N>` with N ≥ 2, the names of the published code."""
        if not re.fullmatch(r"R[0-9]+", mode) or int(mode[1:]) < 2:
            raise InputError(f"mode {mode!r} is no group; write R4, R8 or R<N> with N ≥ 2")
        return cls(int(mode[1:]), reflection, interpolation, disc)

    @property
    def order(self) -> int:
        """How many elements there are, the identity included."""
        return self.rotations * (2 if self.reflection else 1)

    @property
    def name(self) -> str:
        return f"{'D' if self.reflection else 'C'}{self.rotations}"

    @property
    def elements(self) -> tuple[Element, ...]:
        """All elements, the identity first."""
        mirrors = (False, True) if self.reflection else (False,)
        return tuple(
            Element(turns, self.rotations, mirrored) for mirrored in mirrors for turns in range(self.rotations)
        )

    @property
    def moves(self) -> tuple[Element, ...]:
        """The elements other than the identity, those exact on the grid first."""
        return tuple(sorted(self.elements[1:], key=lambda element: not element.exact))

    def in_turn(self, images: int, start: int = 0, moves: Sequence[Element] | None = None) -> tuple[Run, ...]:
        """Which element each of `images` consecutive images takes, as runs of neighbours.

        The elements other than the identity, or those of them that `moves` lists, are dealt out in turn, `start` being
        how many were dealt before, and the images of a batch are then sorted by element. Over a shuffled stream every
        image therefore meets every element equally often, no index is drawn, and nothing is gathered.
        """
        dealt = self.moves if moves is None else moves
        deal = [0] * len(dealt)
        whole, rest = divmod(images, len(dealt))
        for place in range(rest):
            deal[(start + place) % len(dealt)] += 1
        return tuple((move, whole + extra) for move, extra in zip(dealt, deal, strict=True) if whole + extra)

    def act(self, images: Tensor, element: Element) -> Tensor:
        """The images (B, C, S, S) moved by one element."""
        return self.act_in_runs(images, ((element, len(images)),))

    def act_in_runs(self, images: Tensor, runs: Sequence[Run], inverse: bool = False) -> Tensor:
        """The images (B, C, S, S) with each run of neighbours moved by its element (or turned back, if `inverse`).

        Exact elements are moved pixel by pixel; those that follow one another and need resampling share one call.
        Raises `InputError` where the images are not square.
        """
        side = square_side(images)
        assert sum(count for _, count in runs) == len(images), (runs, images.shape)
        if not runs:
            return images
        moved, start = [], 0
        for exact, span in _spans(runs):
            count = sum(n for _, n in span)
            part = images[start : start + count]
            if exact:
                moved += [_move(p, e.inverse if inverse else e) for p, (e, _) in _parts(part, span)]
            else:
                angles = tuple((e.inverse if inverse else e, n) for e, n in span)
                moved.append(self._resample(part, angles, side))
            start += count
        return moved[0] if len(moved) == 1 else torch.cat(moved)

    def visible(self, element: Element, side: int, device: torch.device | str = "cpu") -> Tensor | None:
        """The pixels (side, side) on which a map is compared with its moved copy; None for all of them.

        For a resampled element this is the inscribed disc: the pixel centres within (side - 1)/2 of the middle, whose
        neighbours lie in the frame whatever the angle. It is all False on a 2×2 map.
        """
        if element.exact or not self.disc:
            return None
        return _disc(side, torch.device(device))

    def visible_pixels(self, element: Element, side: int) -> int:
        """How many pixels of a side×side map are compared under this element."""
        return side * side if element.exact or not self.disc else _disc_pixels(side)

    def comparable(self, element: Element, side: int) -> bool:
        """Whether any pixel of a side×side map can be compared under this element."""
        return self.visible_pixels(element, side) > 0

    def _resample(self, images: Tensor, runs: Sequence[Run], side: int) -> Tensor:
        grids = [_grid(element, side, images.device).expand(count, -1, -1, -1) for element, count in runs]
        turned = F.grid_sample(
            images.float(),
            torch.cat(grids),
            mode=self.interpolation,
            padding_mode="zeros",
            align_corners=False,
        )
        return turned.to(images.dtype)


def square_side(maps: Tensor) -> int:
    """The side S of maps (B, C, S, S); `InputError` for anything else."""
    if maps.ndim != 4 or maps.shape[-1] != maps.shape[-2]:
        raise InputError(
            f"maps of shape {tuple(maps.shape)} cannot be turned; they must be (B, C, S, S): crop or pad the images"
        )
    return maps.shape[-1]


def _spans(runs: Sequence[Run]) -> list[tuple[bool, list[Run]]]:
    """Neighbouring runs, put together as long as all of them are exact, or none is."""
    spans: list[tuple[bool, list[Run]]] = []
    for element, count in runs:
        if not spans or spans[-1][0] != element.exact:
            spans.append((element.exact, []))
        spans[-1][1].append((element, count))
    return spans


def _parts(images: Tensor, runs: Sequence[Run]) -> list[tuple[Tensor, Run]]:
    return list(zip(images.split([count for _, count in runs]), runs, strict=True))


def _move(images: Tensor, element: Element) -> Tensor:
    turned = torch.rot90(images, element.quarter_turns, (-2, -1)) if element.quarter_turns % 4 else images
    return turned.flip(-1) if element.mirrored else turned


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a cached tensor must serve training too, whoever asked for it first
def _grid(element: Element, side: int, device: torch.device) -> Tensor:
    """Where each pixel of the moved image comes from, (side, side, 2) as x, y, in the coordinates of `grid_sample`."""
    angle = math.radians(element.degrees)
    place = (2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1
    y, x = torch.meshgrid(place, place, indexing="ij")
    if element.mirrored:
        x = -x
    # y points down: content that turns counter-clockwise is looked up clockwise.
    source = torch.stack((math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y), dim=-1)
    return source.float().to(device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _disc(side: int, device: torch.device) -> Tensor:
    offset = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return (offset[:, None] ** 2 + offset[None, :] ** 2 <= ((side - 1) / 2) ** 2).to(device)


@lru_cache(maxsize=256)
def _disc_pixels(side: int) -> int:
    return int(_disc(side, torch.device("cpu")).sum())
