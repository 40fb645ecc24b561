"""Which settings are tried next?

A sampler proposes a point for each trial's number. It keeps nothing that it is not told: a new one in another process
that hears of the same trials, in any order, proposes the same points. No point is proposed twice, because the same
settings make the same run.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from ien.errors import InputError
from launch.search.axes import Point
from launch.search.space import Space, identity

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_STARTUP = 10  # finished trials that TPE learns from before it proposes anything; Optuna's default
_ATTEMPTS = 1000  # random draws without a new point, after which a space is taken for exhausted
_ASKED = 16  # TPE's likewise, after which it draws at random


class Sampler(Protocol):
    """Points for trials, by number."""

    def propose(self, number: int) -> Point | None:
        """The point of trial `number`; None: nothing is left to try."""

    def running(self, number: int, point: Point) -> None:
        """Trial `number` has this point already: a process that has died proposed it, and it is run again."""

    def told(self, number: int, point: Point, values: list[float] | None, stopped_at: int | None = None) -> None:
        """What came of a trial: `values` of the metrics in order (None: it failed), `stopped_at` the epoch at which a
        scheduler stopped it."""


def sampler(
    name: Literal["grid", "random", "tpe"], space: Space, seed: int, directions: Sequence[Literal["max", "min"]]
) -> Sampler:
    """The sampler of that name. Raises `InputError` where the space does not suit it or Optuna is missing."""
    if name == "grid":
        return Grid(space)
    if name == "random":
        return Random(space, seed)
    return TreeParzen(space, seed, directions)


class Grid:
    """Every point of the space, in order."""

    def __init__(self, space: Space) -> None:
        self._points = space.points()

    def propose(self, number: int) -> Point | None:
        return dict(self._points[number]) if number < len(self._points) else None

    def running(self, number: int, point: Point) -> None:
        pass

    def told(self, number: int, point: Point, values: list[float] | None, stopped_at: int | None = None) -> None:
        pass


class Random:
    """Independent draws, those left out that have been drawn for a lower number."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed
        self._drawn: list[Point | None] = []

    def propose(self, number: int) -> Point | None:
        while len(self._drawn) <= number:
            before = [point for point in self._drawn if point is not None]
            self._drawn.append(_new_draw(self._space, self._seed, len(self._drawn), before))
        point = self._drawn[number]
        return None if point is None else dict(point)

    def running(self, number: int, point: Point) -> None:
        pass

    def told(self, number: int, point: Point, values: list[float] | None, stopped_at: int | None = None) -> None:
        pass


class TreeParzen:
    """Optuna's TPE (https://arxiv.org/abs/2304.11127) after as many random draws as it needs to begin.

    Each proposal is made by a fresh study of all trials told so far, in the order of their numbers: it depends on
    (seed, number) and on these trials, not on the order in which they were told, nor on how often the sweep was
    interrupted. Trials that run count as bad ones (`constant_liar`), so that those beside them look elsewhere.
    A failed trial teaches TPE nothing. One that a scheduler stopped ranks after all complete ones, the earlier the
    worse; with several metrics Optuna knows no such rank, and values of an early epoch are no match for final ones:
    it is left out.
    """

    def __init__(self, space: Space, seed: int, directions: Sequence[Literal["max", "min"]]) -> None:
        try:
            import optuna
        except ImportError:
            advice = 'type pip install -e ".[optuna]", or write sampler: random'
            raise InputError(f"sampler: tpe needs Optuna, which is not installed; {advice}") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._seed, self._directions = space, seed, list(directions)
        self._points: dict[int, Point] = {}
        self._ended: dict[int, FrozenTrial | None] = {}  # None: nothing can be learnt from it

    def propose(self, number: int) -> Point | None:
        if number not in self._points:
            point = self._new(number)
            if point is None:
                return None
            self._points[number] = point
        return dict(self._points[number])

    def running(self, number: int, point: Point) -> None:
        self._points[number] = dict(point)
        self._ended.pop(number, None)

    def told(self, number: int, point: Point, values: list[float] | None, stopped_at: int | None = None) -> None:
        self._points[number] = dict(point)
        self._ended[number] = self._lesson(point, values, stopped_at)

    def _lesson(self, point: Point, values: list[float] | None, stopped_at: int | None) -> FrozenTrial | None:
        from optuna.trial import TrialState, create_trial

        if values is None or not all(map(math.isfinite, values)):
            return None
        assert len(values) == len(self._directions)
        params, distributions = self._space.as_trial(point)
        if stopped_at is None:
            return create_trial(values=values, params=params, distributions=distributions)
        if len(values) > 1:
            return None
        seen = {stopped_at: values[0]}
        return create_trial(
            state=TrialState.PRUNED, intermediate_values=seen, params=params, distributions=distributions
        )

    def _new(self, number: int) -> Point | None:
        known = self._points.values()
        if sum(lesson is not None for lesson in self._ended.values()) >= _STARTUP:
            study = self._study(number)
            # What was asked before stays in the study as a running trial, from which it turns away.
            if point := _first_new((self._space.suggested(study.ask()) for _ in range(_ASKED)), known):
                return point
        return _new_draw(self._space, self._seed, number, known)

    def _study(self, number: int) -> Study:
        from optuna import create_study
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState, create_trial

        seed = int.from_bytes(hashlib.sha256(f"{self._seed} {number} tpe".encode()).digest()[:4], "big")
        single = len(self._directions) == 1  # jointly over all axes only then, as Optuna itself does
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # group: joint sampling where axes have conditions
            tpe = TPESampler(
                seed=seed, n_startup_trials=_STARTUP, multivariate=single, group=single, constant_liar=True
            )
        words: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}
        study = create_study(directions=[words[direction] for direction in self._directions], sampler=tpe)
        for other, point in sorted(self._points.items()):
            if other not in self._ended:
                params, distributions = self._space.as_trial(point)
                study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
            elif lesson := self._ended[other]:
                study.add_trial(lesson)
        return study


def _new_draw(space: Space, seed: int, number: int, known: Iterable[Point]) -> Point | None:
    return _first_new((space.drawn(seed, number, attempt) for attempt in range(_ATTEMPTS)), known)


def _first_new(candidates: Iterable[Point], known: Iterable[Point]) -> Point | None:
    taken = set(map(identity, known))
    return next((point for point in candidates if identity(point) not in taken), None)
