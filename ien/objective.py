"""What is minimised, term by term?

    total = classification + beta · Σ_l w_l · term(f_l(x), g⁻¹ · f_l(g·x))          (arXiv 2111.14157)

`classification` is the mean cross-entropy over both views; f_l is the channel-max-pooled feature map of tap l; `term`
is the mean squared difference (as published) or a relative one. Resampled turns are compared in the inscribed disc,
scaled views where both show the same, in the coarser of their frames: `Group.together` says what is then compared.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ien.errors import InputError
from ien.groups import Element, Group, Run, split, square_side

log = logging.getLogger("ien")


@dataclass(frozen=True)
class Views:
    """Which images of a batch have a second view, and which element each takes.

    The first images of the batch have one, sorted into `runs` of equal elements; or each has several, of different
    elements, the batch being gone through again and again. A batch may be one share of a `whole` one, dealt out image
    by image to `shares` processes or accumulation steps; and then holds its part of every run.
    """

    images: int
    runs: tuple[Run, ...]
    whole_images: int
    whole_runs: tuple[Run, ...]
    shares: int = 1

    @classmethod
    def plan(
        cls,
        group: Group,
        images: int,
        second_views: float = 1.0,
        start: int = 0,
        share: int = 0,
        shares: int = 1,
        moves: Sequence[Element] | None = None,
    ) -> Views:
        """The views of share `share` of a batch of `images`, of which the part `second_views` is seen twice; 2, 3, …:
        so many second views of each image, all elements at most.

        `start` counts the second views of all batches before, so that the elements are dealt out evenly over a run;
        `moves` are the elements that are dealt out, without it all but the identity.
        """
        whole = group.in_turn(round(second_views * images), start, moves)
        return cls(_dealt(images, share, shares), _share_of(whole, share, shares), images, whole, shares)

    def alone(self) -> Views:
        """The same views, as if this share were the whole batch."""
        return Views(self.images, self.runs, self.images, self.runs)

    @property
    def second(self) -> int:
        """How many second views this share has."""
        return sum(count for _, count in self.runs)

    @property
    def whole_second(self) -> int:
        return sum(count for _, count in self.whole_runs)


@dataclass(frozen=True)
class Terms:
    """Every quantity of one batch under its own name, as a mean, and over how many images of the whole batch it is one.

    The means of a share are scaled so that their average over all shares is the mean over the whole batch. `total` is
    what is minimised: `task`, where there is one, and `penalty`, which beta weighs. Names: classification, accuracy,
    accuracy_second_view, equivariance, and for each tap equivariance/<tap> and power/<tap> (the mean square of the
    reference view's pooled features).
    """

    task: Tensor | None
    penalty: Tensor
    means: dict[str, Tensor]
    counts: dict[str, int]

    @cached_property
    def total(self) -> Tensor:
        return self.penalty if self.task is None else self.task + self.penalty


class EquivariantObjective:
    """The objective of implicit equivariance; in a loop of one's own `objective.terms(tapped, images, labels)`.

    `group` may be a name, as in `Group.from_name`; `loss` is `mse` (published) or `relative`; `tap_weights` gives the
    weight of taps that do not have weight 1; `stop_gradient` pulls the second view alone towards the first;
    `label_smoothing` is cross-entropy's (Szegedy et al. 2016, arXiv 1512.00567).
    """

    def __init__(
        self,
        group: Group | str,
        beta_weight: float = 1.0,
        loss: str = "mse",
        tap_weights: Mapping[str, float] | None = None,
        stop_gradient: bool = False,
        label_smoothing: float = 0.0,
    ):
        if loss not in TERMS:
            raise InputError(f"loss {loss!r} is unknown; take one of {', '.join(TERMS)}")
        self.group = Group.from_name(group) if isinstance(group, str) else group
        self.beta_weight, self.loss = beta_weight, loss
        self.tap_weights, self.stop_gradient = dict(tap_weights or {}), stop_gradient
        self.label_smoothing = label_smoothing
        self._told: set[str] = set()
        self._dealt = 0  # second views that `views` has planned

    def terms(
        self,
        network: Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]],
        images: Tensor,
        labels: Tensor,
        beta: float | None = None,
        second_views: float = 1.0,
    ) -> Terms:
        """One step's worth: plan the views, see both in one forward, take the terms; images (B, C, S, S), labels (B,).

        `network` is a `Tapped`, also in `torch.compile` or DistributedDataParallel; `second_views` the share of the
        images that is seen twice, or how often each is seen again. Raises `InputError` where the network gives no
        logits (B, K).
        """
        views = self.views(len(images), second_views)
        logits, maps = network(self.both_views(images, views))
        return self(logits, maps, labels, views, beta)

    def views(self, images: int, second_views: float = 1.0) -> Views:
        """`Views.plan` for the next batch: over all calls the elements are dealt out evenly."""
        views = Views.plan(self.group, images, second_views, self._dealt)
        self._dealt += views.second
        return views

    def both_views(self, images: Tensor, views: Views) -> Tensor:
        """[images; g·images]: (B, C, S, S) → (B + second, C, S, S)."""
        if not views.second:
            return images
        return torch.cat((images, self.group.act_in_runs(_seen_again(images, views.second), views.runs)))

    def __call__(
        self,
        logits: Tensor,
        maps: Mapping[str, Tensor],
        labels: Tensor,
        views: Views,
        beta: float | Tensor | None = None,
    ) -> Terms:
        """The terms of one pass over `both_views`: logits (B + second, K), maps (B + second, C, S, S), labels (B,).

        `beta` replaces `beta_weight` for this batch (a warm-up); a tensor () is taken for positive.
        """
        means, counts = _classification(logits, labels, views, self.label_smoothing)
        penalty = self.penalty(maps, views, beta)
        measured = _detached(means) | penalty.means
        return Terms(means["classification"], penalty.penalty, measured, counts | penalty.counts)

    def penalty(self, maps: Mapping[str, Tensor], views: Views, beta: float | Tensor | None = None) -> Terms:
        """The terms without the classification, for a task with a loss of its own: add their `total` to that."""
        beta = self.beta_weight if beta is None else beta
        weighs = isinstance(beta, Tensor) or beta > 0
        self.check_taps(maps)
        means: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        terms: list[Tensor] = []
        for name, tap in maps.items():
            means[f"power/{name}"] = tap[: views.images].detach().float().square().mean()
            counts[f"power/{name}"] = views.whole_images
            compared = self._compared(name, tap, views.whole_runs)
            if not compared:
                continue
            # A share may have no second view where the whole batch has some: its sum is 0.
            term = self._equivariance(tap if weighs else tap.detach(), views) * (views.shares / compared)
            means[f"equivariance/{name}"], counts[f"equivariance/{name}"] = term.detach(), compared
            weight = self.tap_weights.get(name, 1.0)
            terms.append(term if weight == 1 else weight * term)
        nothing = torch.zeros((), device=next((tap.device for tap in maps.values()), None))
        penalty = sum(terms[1:], terms[0]) if terms else nothing
        if views.whole_second:
            means["equivariance"], counts["equivariance"] = penalty.detach(), views.whole_second
        return Terms(None, beta * penalty if weighs else nothing, _detached(means), counts)

    def _equivariance(self, tap: Tensor, views: Views) -> Tensor:
        """The sum over this share's compared images of one tap's term."""
        alone = max(0, views.images - views.second)
        reference, *_, moved = split(tap, [views.images - alone, *([alone] if alone else []), views.second])
        if self.stop_gradient:
            reference = reference.detach()
        reference = _seen_again(reference, views.second)
        reference, back = self.group.together(reference, moved, views.runs)
        side, device = square_side(tap), tap.device
        parts = _by_visible(self.group, views.runs, side, device)
        counts = [count for _, count in parts]
        terms = [
            TERMS[self.loss](one, other, visible)
            for one, other, (visible, _) in zip(split(reference, counts), split(back, counts), parts, strict=True)
            if visible is None or visible.pixels
        ]
        return sum(terms[1:], terms[0]) if terms else torch.zeros((), device=device)

    def _compared(self, name: str, tap: Tensor, runs: tuple[Run, ...]) -> int:
        """How many images of the whole batch this tap can compare; says once which elements it cannot."""
        side = square_side(tap)
        left_out = [element for element, _ in runs if not self.group.comparable(element, side)]
        if left_out and name not in self._told:
            self._told.add(name)
            log.warning(
                "%s: its %d×%d maps are too small to be compared under %s; left out of the loss",
                name, side, side, _listed(left_out),
            )  # fmt: skip
        return sum(count for element, count in runs if self.group.comparable(element, side))

    def check_taps(self, taps: Iterable[str]) -> None:
        """Raises `InputError` if `tap_weights` names a tap that there is not."""
        taps = list(taps)
        for name in self.tap_weights:
            if name not in taps:
                near = difflib.get_close_matches(name, taps, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InputError(f"tap_weights names {name!r}, but the taps are {', '.join(taps)}{hint}")


@dataclass(frozen=True)
class Visible:
    """The pixels that are compared: a mask (S, S), and how many they are."""

    mask: Tensor
    pixels: int


def mean_square(reference: Tensor, back: Tensor, visible: Visible | None) -> Tensor:
    """Σ over images of the mean over channels and compared pixels of (reference - back)²; maps (B, C, S, S)."""
    square = (reference - back).float().square()
    if visible is None:
        return square.sum() / square[0].numel()
    return (square.sum(dim=1) * visible.mask).sum() / (square.shape[1] * visible.pixels)


def relative_square(reference: Tensor, back: Tensor, visible: Visible | None) -> Tensor:
    """Σ over images of ‖reference - back‖² / (½‖reference‖² + ½‖back‖²), over compared pixels: blind to scale.

    0 for maps that agree, 2 for maps that are orthogonal. The denominator has its gradient: the term cannot be lowered
    by shrinking the features.
    """

    def power(maps: Tensor) -> Tensor:
        square = maps.float().square().sum(dim=1)
        return (square if visible is None else square * visible.mask).sum(dim=(-2, -1))

    size = 0.5 * (power(reference) + power(back))
    return (power(reference - back) / (size + 1e-12)).sum()


TERMS: dict[str, Callable[[Tensor, Tensor, Visible | None], Tensor]] = {
    "mse": mean_square,
    "relative": relative_square,
}


def warmed_up(beta_weight: float, epochs: float, warmup_epochs: float) -> float:
    """Beta after `epochs` epochs: it rises linearly from 0 over the first `warmup_epochs`."""
    return beta_weight * min(1.0, epochs / warmup_epochs) if warmup_epochs else beta_weight


def _detached(means: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: mean.detach() for name, mean in means.items()}


def _classification(
    logits: Tensor, labels: Tensor, views: Views, smoothing: float
) -> tuple[dict[str, Tensor], dict[str, int]]:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the network gives {what}, no logits (B, K); build it without auxiliary outputs, or take `penalty` and a "
            "loss of your own"
        )
    both = torch.cat((labels, _seen_again(labels, views.second))) if views.second else labels
    right = (logits.detach().argmax(dim=1) == both).double()  # counts, exactly
    counts = {"classification": views.whole_images + views.whole_second, "accuracy": views.whole_images}
    sums = {
        "classification": F.cross_entropy(logits.float(), both, reduction="sum", label_smoothing=smoothing),
        "accuracy": right[: views.images].sum(),
    }
    if views.whole_second:
        counts["accuracy_second_view"] = views.whole_second
        sums["accuracy_second_view"] = right[views.images :].sum()
    return {name: total * (views.shares / counts[name]) for name, total in sums.items()}, counts


def _seen_again(first: Tensor, second: int) -> Tensor:
    """What belongs to `second` second views, of what belongs to the images: those in turn, as often as it takes."""
    if second == len(first):
        return first
    again, rest = divmod(second, len(first))
    return torch.cat([first] * again + [first[:rest]]) if again else first[:rest]


def _by_visible(
    group: Group, runs: tuple[Run, ...], side: int, device: torch.device
) -> list[tuple[Visible | None, int]]:
    """Neighbouring runs that are compared over the same pixels: (those pixels, how many images)."""
    parts: list[tuple[Visible | None, int]] = []
    masks: list[Tensor | None] = []
    for element, count in runs:
        mask = group.visible(element, side, device)
        if masks and masks[-1] is mask:  # one tensor for the same pixels, or None for all
            parts[-1] = (parts[-1][0], parts[-1][1] + count)
        else:
            parts.append((None if mask is None else Visible(mask, group.visible_pixels(element, side)), count))
            masks.append(mask)
    return parts


def _listed(elements: list[Element], most: int = 4) -> str:
    more = f" and {len(elements) - most} more" if len(elements) > most else ""
    return ", ".join(map(str, elements[:most])) + more


def _dealt(images: int, share: int, shares: int) -> int:
    """How many of the first `images` places fall to `share` when they are dealt out one by one."""
    return max(0, -((share - images) // shares))


def _share_of(runs: tuple[Run, ...], share: int, shares: int) -> tuple[Run, ...]:
    mine, start = [], 0
    for element, count in runs:
        dealt = _dealt(start + count, share, shares) - _dealt(start, share, shares)
        mine += [(element, dealt)] if dealt else []
        start += count
    return tuple(mine)
