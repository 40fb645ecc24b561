"""Which transformations are there, how does each act on a batch, what undoes it, where is it exact?

An element first turns an image counter-clockwise by `turns`/N of a full circle, then, if `mirrored`, flips it left to
right, then magnifies it by `scale`. The N turns form the cyclic group C_N; with their mirrored twins they form the
dihedral group D_N. Multiples of 90° and mirrors only move pixels about; every other angle is resampled about the
image's centre, with zeros outside, and so is every scale (`ien.scales`). Scales are no group, but a few members of one:
what undoes such an element, or two of them one after the other, need not be among them.

Shapes: images and feature maps are (B, C, S, S).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ien.errors import InputError
from ien.scales import rescaled
from ien.visible import visible, visible_pixels

INTERPOLATIONS = ("bilinear", "nearest")
SMALLEST, LARGEST = 0.25, 4.0  # scales


@dataclass(frozen=True)
class Element:
    """One transformation: a counter-clockwise turn by `turns`/`steps` of the circle, perhaps a mirror, then a scaling.

    `scale` below 1 makes what is seen smaller, above 1 larger.
    """

    turns: int
    steps: int
    mirrored: bool = False
    scale: float = 1.0

    @property
    def degrees(self) -> float:
        """The angle of the turn, counter-clockwise."""
        return 360.0 * self.turns / self.steps

    @property
    def exact(self) -> bool:
        """Whether the element maps the pixel grid onto itself (a multiple of 90°, not scaled)."""
        return self.scale == 1 and 4 * self.turns % self.steps == 0

    @property
    def unscaled(self) -> Element:
        """The same turn and mirror alone."""
        return self if self.scale == 1 else Element(self.turns, self.steps, self.mirrored)

    @property
    def shown(self) -> float:
        """The side of what both views show, as a share of the frame's: of the image, or of its moved copy."""
        return min(self.scale, 1 / self.scale)

    @property
    def quarter_turns(self) -> int:
        """The turn in steps of 90°; for exact elements only."""
        assert self.exact, self
        return 4 * self.turns // self.steps

    @property
    def inverse(self) -> Element:
        """The element that undoes this one: a mirrored turn undoes itself, a scale its reciprocal."""
        turns = self.turns if self.mirrored else -self.turns % self.steps
        return Element(turns, self.steps, self.mirrored, 1 / self.scale)

    def __str__(self) -> str:
        words = [f"{self.degrees:g}°"] if self.turns or self.mirrored or self.scale == 1 else []
        words += ["mirrored"] if self.mirrored else []
        words += [f"×{self.scale:g}"] if self.scale != 1 else []
        return " ".join(words)


Run = tuple[Element, int]  # an element, and how many consecutive images of a batch it acts on


@dataclass(frozen=True)
class Group:
    """C_N, or D_N with `reflection`, acting on square images; with `scales`, each element also at each of them.

    `interpolation` is used for turns that are not multiples of 90°; `disc` says whether those are compared inside the
    inscribed disc alone (the corners leave the frame) or over the whole square, as the published code does. `scales`
    are factors from 0.25 to 4 other than 1, to six digits; scale 1 is always there. With scales, C_1 is allowed.
    """

    rotations: int
    reflection: bool = False
    interpolation: str = "bilinear"
    disc: bool = True
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", _distinct(self.scales))
        for scale in self.scales:
            if not SMALLEST <= scale <= LARGEST or scale == 1:
                raise InputError(f"scale {scale:g} is not allowed; take {SMALLEST:g} to {LARGEST:g}, but not 1")
        if self.rotations < 1 or (self.rotations == 1 and not self.scales):
            raise InputError(
                f"a group of {self.rotations} rotations has nothing to learn from; take 2 or more, or 1 with scales"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation {self.interpolation!r} is unknown; take one of {', '.join(INTERPOLATIONS)}"
            )

    @classmethod
    def from_name(
        cls,
        mode: str,
        reflection: bool = False,
        interpolation: str = "bilinear",
        disc: bool = True,
        scales: Sequence[float] = (),
    ) -> Group:
        """`R4`, `R8` or any `R<N>` with N ≥ 2, the names of the published code; `R1` with scales alone."""
        if not re.fullmatch(r"R[0-9]+", mode) or int(mode[1:]) < (1 if scales else 2):
            raise InputError(f"mode {mode!r} is no group; write R4, R8 or R<N> with N ≥ 2, or R1 with scales")
        return cls(int(mode[1:]), reflection, interpolation, disc, tuple(scales))

    @property
    def order(self) -> int:
        """How many elements there are, the identity included."""
        return self.rotations * (2 if self.reflection else 1) * (1 + len(self.scales))

    @property
    def name(self) -> str:
        return " ".join([f"{'D' if self.reflection else 'C'}{self.rotations}", *(f"×{s:g}" for s in self.scales)])

    @property
    def elements(self) -> tuple[Element, ...]:
        """All elements, the identity first."""
        mirrors = (False, True) if self.reflection else (False,)
        return tuple(
            Element(turns, self.rotations, mirrored, scale)
            for scale in (1.0, *self.scales)
            for mirrored in mirrors
            for turns in range(self.rotations)
        )

    @property
    def moves(self) -> tuple[Element, ...]:
        """The elements other than the identity: those exact on the grid first, then by what of a map is compared."""

        def place(element: Element) -> tuple[bool, bool, float]:
            return not element.exact, not element.unscaled.exact, element.shown

        return tuple(sorted(self.elements[1:], key=place))

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
        """The images (B, C, S, S) with each run of neighbours moved by its element (or moved back, if `inverse`).

        Exact turns are moved pixel by pixel; those that follow one another and need resampling share one call.
        Raises `InputError` where the images are not square.
        """
        square_side(images)
        assert sum(count for _, count in runs) == len(images), (runs, images.shape)
        if not runs:
            return images
        acting = [(element.inverse if inverse else element, count) for element, count in runs]
        turned = self._turned(images, [(element.unscaled, count) for element, count in acting])
        return rescaled(turned, [(element.scale, count) for element, count in acting])

    def together(self, reference: Tensor, moved: Tensor, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
        """What is compared of the maps f(x) and f(g·x), both (B, C, S, S): f(x) and g⁻¹·f(g·x).

        Where g scales it is g·f(x) and f(g·x) in the coarser of the two frames: as they are where g makes smaller, both
        brought back by g⁻¹ where g magnifies. They have then gone through the same resampling, so that maps that
        commute with g agree exactly, and what the coarser frame cannot hold is not compared.
        """
        if all(element.scale == 1 for element, _ in runs):
            return reference, self.act_in_runs(moved, runs, inverse=True)
        reference = self.act_in_runs(reference, _those(runs, lambda scale: scale != 1))
        reference = self.act_in_runs(reference, _those(runs, lambda scale: scale > 1), inverse=True)
        return reference, self.act_in_runs(moved, _those(runs, lambda scale: scale >= 1), inverse=True)

    def visible(self, element: Element, side: int, device: torch.device | str = "cpu") -> Tensor | None:
        """The pixels (side, side) on which a map is compared with its moved copy; None for all of them.

        For a resampled turn this is the inscribed disc, for a scale what both views show, in the coarser of the two
        frames; see `ien.visible`. On a 2×2 map either is all False.
        """
        if element.scale == 1 and not self._in_disc(element):
            return None
        return visible(side, self._in_disc(element), element.shown, torch.device(device))

    def visible_pixels(self, element: Element, side: int) -> int:
        """How many pixels of a side×side map are compared under this element."""
        return visible_pixels(side, self._in_disc(element), element.shown)

    def comparable(self, element: Element, side: int) -> bool:
        """Whether any pixel of a side×side map can be compared under this element."""
        return self.visible_pixels(element, side) > 0

    def _in_disc(self, element: Element) -> bool:
        return self.disc and not element.unscaled.exact

    def _turned(self, images: Tensor, runs: Sequence[Run]) -> Tensor:
        turned, spans = [], _spans(runs)
        for part, (exact, span) in zip(split(images, [sum(n for _, n in s) for _, s in spans]), spans, strict=True):
            if exact:
                turned += [_move(p, element) for p, (element, _) in _parts(part, span)]
            else:
                turned.append(self._resample(part, span, images.shape[-1]))
        return turned[0] if len(turned) == 1 else torch.cat(turned)

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


def _those(runs: Sequence[Run], wanted: Callable[[float], bool]) -> list[Run]:
    """The runs whose scale is wanted; in the place of every other one the identity."""
    return [(element if wanted(element.scale) else Element(0, element.steps), count) for element, count in runs]


def _spans(runs: Sequence[Run]) -> list[tuple[bool, list[Run]]]:
    """Neighbouring runs, put together as long as all of them are exact, or none is."""
    spans: list[tuple[bool, list[Run]]] = []
    for element, count in runs:
        if not spans or spans[-1][0] != element.exact:
            spans.append((element.exact, []))
        spans[-1][1].append((element, count))
    return spans


def split(images: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
    """The images (B, …) in parts of so many; as they are where there is one part.

    No slices: the gradient of each would be a tensor of zeros as large as the whole, that of a split is one `cat`.
    """
    return (images,) if len(counts) == 1 else images.split(list(counts)) if counts else ()


def _parts(images: Tensor, runs: Sequence[Run]) -> list[tuple[Tensor, Run]]:
    return list(zip(split(images, [count for _, count in runs]), runs, strict=True))


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


def _distinct(scales: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted({float(f"{scale:g}") for scale in scales}))
