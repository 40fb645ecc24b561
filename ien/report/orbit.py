"""How does a classifier answer while its images are moved? (accuracy, calibration, agreement, element by element)

What it sees: exact elements move pixels (`torch.rot90`, `flip`); every other angle is resampled bilinearly about the
image's centre, with zeros outside. So a network meets two artefacts at those angles alone: the blur of interpolation,
and black corners. The corners do no harm where images have empty ones (handwritten digits). For photographs `disc`
blackens everything outside the inscribed disc at *every* angle, the identity too: the corners then differ nowhere.
Scales are resampled with anti-aliasing about the centre (`ien.scales`), with zeros outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ien.groups import Element, Group, square_side

SCALES = 8  # steps of the logarithm from the smallest scale to the largest
BINS = 15  # of the calibration error: Guo et al. 2017, arXiv 1706.04599
Batch = tuple[Tensor, Tensor]  # images (B, C, S, S), labels (B,)
_BILINEAR = Group(2)  # moves by any element; its own are not asked for
_SLANTED = Element(1, 8)  # any element that resamples: its visible pixels are the disc


@dataclass
class OrbitSums:
    """What `orbit_figures` divides: float64 sums over images, on the device, for E elements and K classes."""

    right: Tensor  # (E, K) images of each class that are answered rightly
    of_class: Tensor  # (K,) images of each class
    nll: Tensor  # (E,) negative log-likelihood, in nats
    bins: Tensor  # (E, BINS, 3) images, confidence, right answers, by confidence
    agreeing: Tensor  # (E,) images whose prediction is that of the identity
    steady: Tensor  # (3,) images with one prediction over all turns and mirrors; over the group's elements; over scales
    averaged: (
        Tensor  # (2,) images that the mean probability answers rightly: over all turns and mirrors, over the group
    )
    change: Tensor  # (E,) squared change of the logits
    power: Tensor  # () squared logits at the identity
    answers: Tensor  # (K,) how often each class is predicted at the identity


def circle(group: Group, mirrored: bool, parts: int = 24) -> tuple[Element, ...]:
    """The turns by multiples of 1/`parts` of the circle (15°) and the group's own, in order, the identity first.

    With `mirrored` each of them follows once more, mirrored.
    """
    turns = sorted({Fraction(k, n) for n in (parts, group.rotations) for k in range(n)})
    return tuple(
        Element(turn.numerator, turn.denominator, flip)
        for flip in ((False, True) if mirrored else (False,))
        for turn in turns
    )


def scaled(group: Group) -> tuple[Element, ...]:
    """Scales alone, in equal steps from the group's smallest to its largest, and all its elements that scale, by scale.

    None where the group does not scale.
    """
    if not group.scales:
        return ()
    low, high = min(1.0, *group.scales), max(1.0, *group.scales)
    steps = {float(f"{low * (high / low) ** (step / SCALES):.3g}") for step in range(SCALES + 1)}
    alone = {Element(0, group.rotations, scale=scale) for scale in steps | {*group.scales}}
    found = alone | {*group.elements}
    return tuple(sorted((one for one in found if one.scale != 1), key=lambda e: (e.scale, e.mirrored, e.turns)))


def belongs(element: Element, group: Group) -> bool:
    """Whether the group has this element, whatever fraction it is written as."""
    has_scale = element.scale in (1, *group.scales)
    return (
        has_scale
        and group.rotations * element.turns % element.steps == 0
        and (group.reflection or not element.mirrored)
    )


def upright(element: Element) -> bool:
    """Whether it scales alone, or is the identity."""
    return not element.turns and not element.mirrored


@torch.no_grad()
def orbit_sums(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    elements: Sequence[Element],
    group: Group,
    classes: int,
    disc: bool = False,
) -> OrbitSums:
    """One pass over batches with every element: images (B, C, S, S) → logits (B, K).

    The first element is the identity. Call it in eval mode and in full precision; the host waits for nothing.
    """
    sums: OrbitSums | None = None
    kinds = [_whole(elements), [belongs(element, group) for element in elements], [upright(e) for e in elements]]
    for images, labels in batches:
        sums = sums or _zeros(len(elements), classes, images.device)
        mask = _disc(images) if disc else None
        seen = (_BILINEAR.act(images, element) for element in elements)
        logits = torch.stack([network(moved if mask is None else moved * mask).double() for moved in seen])
        _add(sums, logits, labels, kinds)
    assert sums is not None, "no images"
    return sums


def corner_power(batches: Iterable[Batch]) -> float:
    """The share of the images' squared values that lies outside the inscribed disc: 0 for empty corners."""
    total: Tensor | None = None
    for images, _ in batches:
        square = images.double().square()
        outside = square * ~_disc(images)
        here = torch.stack((outside.sum(), square.sum()))
        total = here if total is None else total + here
    assert total is not None, "no images"
    return float(total[0] / total[1].clamp_min(1e-300))


def orbit_figures(sums: OrbitSums, elements: Sequence[Element], group: Group, classes: Sequence[str]) -> dict[str, Any]:
    """The figures of a pass, as plain numbers.

    `elements`: for each one accuracy, nll (nats), ece, agreement with the identity, logit_error ‖z(gx) - z(x)‖/‖z(x)‖;
    `accuracy`, `per_class`: at the identity; `over_orbit`: the mean accuracy and nll over all turns and mirrors, the
    calibration error of all their answers together, the share of images with one prediction over them (`agreement`) and
    over all elements of the group (`agreement_group`); `over_scales`: the same over the scales alone, None where there
    are none; `classes_predicted`: how many at the identity. `averaged` and `averaged_group` are the accuracy with
    test-time averaging: of the mean probabilities over all turns and mirrors, and over the group, at as many forwards.
    """
    images = float(sums.of_class.sum())
    right = sums.right.sum(dim=1) / images
    logit_error = (sums.change / sums.power.clamp_min(1e-300)).sqrt()
    columns = zip(
        elements,
        right.tolist(),
        (sums.nll / images).tolist(),
        [calibration_error(bins) for bins in sums.bins.cpu()],
        (sums.agreeing / images).tolist(),
        logit_error.tolist() if float(sums.power) else [None] * len(elements),
        strict=True,
    )
    steady, (averaged, averaged_group) = (sums.steady / images).tolist(), (sums.averaged / images).tolist()
    return {
        "accuracy": float(right[0]),
        "per_class": dict(zip(classes, _shares(sums.right[0], sums.of_class), strict=True)),
        "classes_predicted": int((sums.answers > 0).sum()),
        "over_orbit": {
            **_over(sums, _whole(elements), steady[0]),
            "agreement_group": steady[1],
            "averaged": averaged,
            "averaged_group": averaged_group,
        },
        "over_scales": None if all(_whole(elements)) else _over(sums, [upright(e) for e in elements], steady[2]),
        "elements": [_row(element, group, *numbers) for element, *numbers in columns],
    }


def _whole(elements: Sequence[Element]) -> list[bool]:
    """Which of them are turns and mirrors without a scale."""
    return [element.scale == 1 for element in elements]


def _over(sums: OrbitSums, which: Sequence[bool], agreement: float) -> dict[str, float]:
    """The figures over some elements together."""
    some = torch.tensor(which, device=sums.nll.device)
    images = float(sums.of_class.sum())
    right = sums.right[some].sum(dim=1) / images
    return {
        "accuracy": float(right.mean()),
        "lowest_accuracy": float(right.min()),
        "nll": float(sums.nll[some].mean() / images),
        "ece": calibration_error(sums.bins[some].sum(dim=0).cpu()),
        "agreement": agreement,
    }


def calibration_error(bins: Tensor) -> float:
    """The expected calibration error Σ_b |B_b|/n · |accuracy(B_b) - confidence(B_b)| of (BINS, 3) sums.

    Bins of equal width by the largest probability, (i/15, (i+1)/15]: Guo et al. 2017, arXiv 1706.04599, eq. 3.
    """
    count, confidence, right = bins.unbind(dim=-1)
    return float((right - confidence).abs().sum() / count.sum())


def _row(
    element: Element,
    group: Group,
    accuracy: float,
    nll: float,
    ece: float,
    agreement: float,
    logit_error: float | None,
) -> dict[str, Any]:
    return {
        "element": str(element),
        "degrees": element.degrees,
        "mirrored": element.mirrored,
        "scale": element.scale,
        "exact": element.exact,
        "in_group": belongs(element, group),
        "accuracy": accuracy,
        "nll": nll,
        "ece": ece,
        "agreement": agreement,
        "logit_error": logit_error,
    }


def _zeros(elements: int, classes: int, device: torch.device) -> OrbitSums:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    return OrbitSums(
        right=zeros(elements, classes),
        of_class=zeros(classes),
        nll=zeros(elements),
        bins=zeros(elements, BINS, 3),
        agreeing=zeros(elements),
        steady=zeros(3),
        averaged=zeros(2),
        change=zeros(elements),
        power=zeros(),
        answers=zeros(classes),
    )


def _add(sums: OrbitSums, logits: Tensor, labels: Tensor, kinds: Sequence[Sequence[bool]]) -> None:
    """Logits (E, B, K) float64 of one batch, labels (B,); `kinds`: over which elements an answer may be steady."""
    elements, _, classes = logits.shape
    log_probability = F.log_softmax(logits, dim=-1)
    probability = log_probability.exp()
    confidence, predicted = probability.max(dim=-1)  # (E, B)
    right = (predicted == labels).double()
    same = predicted == predicted[0]
    member = _one_hot(labels, classes)  # (B, K)
    sums.right += right @ member
    sums.of_class += member.sum(dim=0)
    sums.nll -= log_probability.gather(-1, labels.expand(elements, -1)[..., None]).sum(dim=(1, 2))
    place = _one_hot((confidence * BINS).ceil().long() - 1, BINS)  # (E, B, BINS)
    sums.bins += place.mT @ torch.stack((torch.ones_like(right), confidence, right), dim=-1)
    sums.agreeing += same.sum(dim=1)
    sums.steady += torch.stack([same[kind].all(dim=0).sum() for kind in kinds])
    together = torch.stack([probability[kind].mean(dim=0).argmax(dim=-1) for kind in kinds[:2]])  # (2, B)
    sums.averaged += (together == labels).sum(dim=1)
    sums.change += (logits - logits[0]).square().sum(dim=(1, 2))
    sums.power += logits[0].square().sum()
    sums.answers += _one_hot(predicted[0], classes).sum(dim=0)


def _one_hot(places: Tensor, size: int) -> Tensor:
    """(…) whole numbers → (…, size) float64. (`bincount` makes the host wait, `index_add_` sums in any order.)"""
    return (places.clamp(0, size - 1)[..., None] == torch.arange(size, device=places.device)).double()


def _disc(images: Tensor) -> Tensor:
    mask = _BILINEAR.visible(_SLANTED, square_side(images), images.device)
    assert mask is not None
    return mask


def _shares(part: Tensor, whole: Tensor) -> list[float | None]:
    return [some / all_ if all_ else None for some, all_ in zip(part.tolist(), whole.tolist(), strict=True)]
