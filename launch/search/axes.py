"""Which values may one setting have, and how is one of them drawn?

A range, to which both ends belong, or a list. Random draws and Optuna's mean the same distributions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ien.config.files import from_command_line

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

Point = dict[str, Any]  # dotted key → value, of the settings that are active


@dataclass(frozen=True)
class Choice:
    """One of `options`, all equally likely."""

    options: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """The value below which lies `share` (0 ≤ share < 1) of all draws."""
        return self.options[int(share * len(self.options))]

    def beside(self, value: Any, up: bool) -> Any:
        """The option after, or before, `value`; at an end `value` itself."""
        place = next(place for place, option in enumerate(self.options) if same(option, value))
        return self.options[min(max(place + (1 if up else -1), 0), len(self.options) - 1)]

    def can_be(self, value: Any) -> bool:
        return is_among(value, self.options)

    def suggested(self, trial: Trial, key: str) -> Any:
        names = self._names()
        return self.options[names.index(trial.suggest_categorical(key, names))]

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self._names())

    def parameter(self, value: Any) -> str:
        """`value` as Optuna has it."""
        return next(name for name, option in zip(self._names(), self.options, strict=True) if same(option, value))

    def _names(self) -> list[str]:  # Optuna's categories cannot be lists
        return [json.dumps(option) for option in self.options]

    def __str__(self) -> str:
        return ", ".join(written(option) for option in self.options)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, in steps of `step` or (None) all between; `log`: even on a logarithmic scale."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def at(self, share: float) -> float:
        """The value below which lies `share` (0 ≤ share < 1) of all draws."""
        if self.step is None:
            low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
            between = low * (1 - share) + high * share
            return min(max(math.exp(between) if self.log else between, self.low), self.high)
        if self.log:  # each whole number has its half on both sides, as in Optuna
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return min(max(round(math.exp(low + share * (high - low))), self.low), self.high)
        return self._after(int(share * int(steps(self.low, self.high, self.step) + 1)))

    def beside(self, value: float, up: bool) -> float:
        """A fifth more, or less, than `value`, and never beyond the ends."""
        near = value * (1.2 if up else 0.8)
        if self.step is not None:
            count = max(1, round(abs(near - value) / self.step))
            near = self._after(round((value - self.low) / self.step) + (count if up else -count))
        return min(max(near, self.low), self.high)

    def can_be(self, value: Any) -> bool:
        """Never, without steps: a draw hits no value exactly."""
        if self.step is None or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and steps(self.low, value, self.step) % 1 == 0

    def suggested(self, trial: Trial, key: str) -> float:
        if isinstance(self.step, int):
            return trial.suggest_int(key, int(self.low), int(self.high), step=self.step, log=self.log)
        value = trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)
        return value if self.step is None else self._after(round((value - self.low) / self.step))

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.step, int):
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=self.step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def parameter(self, value: float) -> float:
        """`value` as Optuna has it."""
        return value

    def _after(self, count: int) -> float:
        """Free of rounding: 0.3, not 0.30000000000000004, lies two steps of 0.1 after 0.1."""
        assert self.step is not None
        return type(self.low)(exact(self.low) + count * exact(self.step))

    def __str__(self) -> str:
        ends = f"{self.low:.12g} … {self.high:.12g}"
        whole = ", whole numbers" if isinstance(self.step, int) and self.step == 1 else ""
        if self.step is not None and not whole:
            return f"{ends} in steps of {self.step:.12g}"
        return f"{ends}{whole}{', log-uniform' if self.log else ', uniform'}"


@dataclass(frozen=True)
class Axis:
    """A setting and its values; it is active where each key of `when` has one of the values listed there."""

    key: str
    values: Choice | Range
    when: Mapping[str, list[Any]] = field(default_factory=dict)

    def active(self, point: Point) -> bool:
        return all(key in point and is_among(point[key], wanted) for key, wanted in self.when.items())

    def __str__(self) -> str:
        conditions = (f"{key} is {' or '.join(map(written, wanted))}" for key, wanted in self.when.items())
        return f"{self.key}: {self.values}" + (f"; where {' and '.join(conditions)}" if self.when else "")


def same(a: Any, b: Any) -> bool:
    """As a setting: 1 and 1.0 are, and so are a list and a tuple (as which the config holds it)."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def is_among(value: Any, values: Iterable[Any]) -> bool:
    return any(same(value, other) for other in values)


def written(value: Any) -> str:
    """As `key=VALUE` and a settings file have it: reads back as `value`."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9._/-]*", value)
    if plain and from_command_line([f"it={value}"], ())["it"].value == value:
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def exact(number: float) -> Decimal:
    """The number as it is written: 0.1 is a tenth."""
    return Decimal(repr(number))


def steps(low: float, high: float, step: float) -> Decimal:
    """From `low` to `high`; not whole where they do not meet `high`."""
    return (exact(high) - exact(low)) / exact(step)
