"""Which settings may a trial have?

Each point is one trial's: a value for every setting that is searched and makes sense with the others. Points are
listed (grid), drawn at random, or suggested by Optuna.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ien.config import Config
from ien.errors import InputError
from launch.search.axes import Axis, Point, Range, written
from launch.search.space_file import read

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

_LARGEST = 10_000


@dataclass(frozen=True)
class Space:
    """Every axis, after those that it depends on."""

    axes: tuple[Axis, ...]
    where: str = "space"  # begins each refusal

    @classmethod
    def read(cls, given: Mapping[str, Any], base: Config, where: str) -> Space:
        """The space that a sweep's `space:` describes, over the settings of `base`; `where` begins each refusal.

        Raises `InputError` of one line for what no trial could have.
        """
        return cls(tuple(read(given, base, where)), where)

    def points(self) -> list[Point]:
        """The grid: every point, the last axis changing fastest. Raises `InputError` for a range."""
        grid: list[Point] = [{}]
        for one in self.axes:
            if isinstance(one.values, Range):
                advice = "write choice: [VALUE, VALUE], or sampler: random"
                raise InputError(f"{self.where}: {one.key}: is a range, and grid tries lists; {advice}")
            options = one.values.options
            grid = [
                longer
                for point in grid
                for longer in ([point | {one.key: option} for option in options] if one.active(point) else [point])
            ]
            if len(grid) > _LARGEST:
                advice = "write fewer values, or sampler: random"
                raise InputError(f"{self.where}: the grid has more than {_LARGEST} points; {advice}")
        return grid

    def drawn(self, seed: int, number: int, attempt: int = 0) -> Point:
        """The `number`-th random draw (another one for each `attempt`): the same in each process and whatever other
        axes there are."""
        point: Point = {}
        for one in self.axes:
            if one.active(point):
                point[one.key] = one.values.at(_share(f"{seed} {number} {attempt} {one.key}"))
        return point

    def perturbed(self, point: Point, shares: Iterator[float]) -> Point:
        """`point` with every setting moved a little, or (one in four) drawn anew (population based training, arXiv
        1711.09846); `shares` are random numbers from 0 to 1."""
        moved = dict(point)
        for one in self.axes:
            if one.key in point:
                anew, share = next(shares) < 0.25, next(shares)
                moved[one.key] = one.values.at(share) if anew else one.values.beside(point[one.key], up=share < 0.5)
        return moved

    def suggested(self, trial: Trial) -> Point:
        """The point that an Optuna trial has."""
        point: Point = {}
        for one in self.axes:
            if one.active(point):
                point[one.key] = one.values.suggested(trial, one.key)
        return point

    def as_trial(self, point: Point) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """`params` and `distributions` of the Optuna trial that has this point, for `optuna.trial.create_trial`."""
        active = [one for one in self.axes if one.key in point]
        params = {one.key: one.values.parameter(point[one.key]) for one in active}
        return params, {one.key: one.values.distribution() for one in active}

    def described(self) -> list[str]:
        """A line for each axis: `max_lr: 0.001 … 0.01, uniform; where heterogeneous is false`."""
        return [str(one) for one in self.axes]


def overrides(point: Point) -> list[str]:
    """`key=value` for `ien.config.load`, which reads back exactly these values."""
    return [f"{key}={written(value)}" for key, value in point.items()]


def identity(point: Point) -> str:
    """Equal for points of equal settings, whatever their order."""
    return json.dumps(point, sort_keys=True)


def _share(name: str) -> float:
    """A number from 0 to 1 (excluded), evenly spread over all names: its own stream for each axis and draw."""
    return (int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 11) / 2**53
