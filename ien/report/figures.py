"""What is measured of a trained network? (one `Subject` → plain numbers, the same for every network)

Everything is measured in eval mode, in float32 with TF32 off, on one split in its stored order (fewer images than there
are: spread evenly over it), and over the whole orbit of the group, never over one random element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ien.engine import full_precision
from ien.groups import Element, Group
from ien.metrics import equivariance_sums, relative_errors
from ien.report.activity import LOGITS, activity
from ien.report.lie import PROBABILITIES, local_errors
from ien.report.orbit import Batch, circle, corner_power, orbit_figures, orbit_sums, scaled
from ien.taps import Tapped

MAP_IMAGES, LOCAL_IMAGES = 512, 64  # at most; per tap, and for the local error
ONE_CLASS = "one class"  # verdict on logits that vary, but never as much as to change the answer
CORNERS = 1e-3  # share of an image's power outside the disc from which the disc is measured too
Images = Callable[[int | None], Iterable[Batch]]  # a limit → batches on the device
Progress = Callable[[str, Iterable[Batch]], Iterator[Batch]]


@dataclass(frozen=True)
class Subject:
    """A tapped network in eval mode, and the images that it is shown: `total` of them, of these `classes`."""

    tapped: Tapped
    images: Images
    total: int
    classes: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """What is measured: by which group, on how many images, with mirrored copies or without."""

    group: Group
    images: int
    mirrored: bool

    @property
    def elements(self) -> tuple[Element, ...]:
        return circle(self.group, self.mirrored) + scaled(self.group)


def common_group(groups: Sequence[Group]) -> Group:
    """The smallest group that has every element of all of these; resampled bilinearly, compared inside the disc."""
    scales = tuple(scale for one in groups for scale in one.scales)
    return Group(math.lcm(*(one.rotations for one in groups)), any(one.reflection for one in groups), scales=scales)


def measured(subject: Subject, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Everything, as JSON holds it; `progress(what, batches)` passes the batches on."""
    with full_precision():
        orbit = _orbit(subject, plan, progress)
        maps = list(_images(progress("feature maps", subject.images(min(plan.images, MAP_IMAGES)))))
        active = activity(subject.tapped, maps)
        errors = relative_errors(equivariance_sums(subject.tapped, maps, plan.group), plan.group)
    local = local_errors(
        subject.tapped, _images(progress("local error", subject.images(min(plan.images, LOCAL_IMAGES))))
    )
    taps = {name: {**active[name], **_errors(errors[name], active[name]), "local": local[name]} for name in errors}
    logits = {**active[LOGITS], "local": local[LOGITS], "local_probabilities": local[PROBABILITIES]}
    if logits["verdict"] == "alive" and orbit["square"]["classes_predicted"] == 1:
        logits["verdict"] = ONE_CLASS
    return {**orbit, "taps": taps, "logits": logits}


def _orbit(subject: Subject, plan: Plan, progress: Progress) -> dict[str, Any]:
    """`square` and `disc`: `orbit.orbit_figures` of whole images, and of discs (None for images with empty corners)."""

    def frame(disc: bool) -> dict[str, Any]:
        what = f"{len(plan.elements)} elements" + (", inside the disc" if disc else "")
        batches = progress(what, subject.images(plan.images))
        sums = orbit_sums(
            lambda images: subject.tapped(images)[0], batches, plan.elements, plan.group, len(subject.classes), disc
        )
        return orbit_figures(sums, plan.elements, plan.group, subject.classes)

    corners = corner_power(subject.images(plan.images))
    return {"corner_power": corners, "square": frame(False), "disc": frame(True) if corners > CORNERS else None}


def _errors(elements: dict[str, dict[str, float | None]], active: dict[str, Any]) -> dict[str, Any]:
    """The errors of one tap by element, and their means; `error_of_varying` = error / √varying: what constant means of
    the channels add to ‖f(x)‖ makes no layer look better."""
    scale = active["varying"] ** 0.5
    rows = {
        name: {**one, "error_of_varying": one["error"] / scale if one["error"] is not None and scale else None}
        for name, one in elements.items()
    }
    return {"elements": rows} | {
        f"mean_{kind}": _mean(rows.values(), kind) for kind in ("error", "floor", "error_of_varying")
    }


def _mean(rows: Iterable[dict[str, float | None]], kind: str) -> float | None:
    known = [value for row in rows if (value := row[kind]) is not None]
    return sum(known) / len(known) if known else None


def _images(batches: Iterable[Batch]) -> Iterator[Tensor]:
    return (images for images, _ in batches)
