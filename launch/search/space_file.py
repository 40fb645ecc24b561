"""What does the `space:` of a sweep mean, and what can it not mean?

`max_lr: {uniform: [1e-3, 1e-2], when: {heterogeneous: false}}`: a key of `ien.config`, its values, and where it makes
sense only with another setting, that setting's. What no trial could have is refused before anything starts; only
settings that must fit together (`low_lr` below `max_lr`) show when a run's `Config` is made of a whole point.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from ien.config import SECTIONS, Config, flat
from ien.config.files import Setting, nested
from ien.config.problems import by_dotted_key, told
from ien.errors import InputError
from launch.search.axes import Axis, Choice, Range, exact, is_among, steps, written

_EXAMPLE = "beta_weight: {loguniform: [0.01, 10]}"
_NOT_SEARCHED = {
    "save_dir": "the sweep gives each trial a folder of its own; remove it",
    "run.root": "the sweep gives each trial a folder of its own; remove it",
    "run.test": "the test images are not there to choose settings by; remove it",
    "run.seed": "the best seed is only luck; write seeds: beside space:, whose trials are averaged",
    "training": "a trial trains; remove it",
}
# name → how it is written, whether it is even on a logarithmic scale, whether it has steps
_RANGES = {
    "uniform": ("[low, high]", False, False),
    "loguniform": ("[low, high]", True, False),
    "randint": ("[low, high] (both ends included)", False, True),
    "lograndint": ("[low, high] (both ends included)", True, True),
    "quniform": ("[low, high, step]", False, True),
}
_WHOLE = {"uniform": "randint", "loguniform": "lograndint"}
_BROUGHT = ("mode", "ratio", "mplc_kernel_size")  # by a preset's name
_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def read(given: Mapping[str, Any], base: Config, where: str) -> list[Axis]:
    """The axes that are `given`, each after those that it depends on; `where` begins each refusal.

    Raises `InputError` of one line.
    """
    if not isinstance(given, Mapping) or not given:
        raise InputError(f"{where}: names no setting to search; write one below it, as in {_EXAMPLE}")
    axes: dict[str, Axis] = {}
    for key, description in _dotted(given, where):
        if key in axes:
            raise InputError(f"{where}: {key}: is given twice; remove one")
        axes[key] = _axis(key, description, base, where)
    ordered = _in_order({key: _settled(one, axes, base, where) for key, one in axes.items()}, where)
    _refuse_the_unreachable(ordered, where)
    return ordered


def _dotted(given: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for key, description in given.items():
        if key not in SECTIONS:
            yield str(key), description
        elif isinstance(description, Mapping):
            yield from ((f"{key}.{inner}", value) for inner, value in description.items())
        else:
            raise InputError(f"{where}: {key}: is a section; write its settings below it, indented")


def _axis(key: str, description: Any, base: Config, where: str) -> Axis:
    place = f"{where}: {key}"
    if key in _NOT_SEARCHED:
        raise InputError(f"{place}: is not searched: {_NOT_SEARCHED[key]}")
    if key.startswith("launch."):
        raise InputError(f"{place}: is not searched: it says how a run is started, not what it learns; remove it")
    _refuse_unknown(key, base, where)
    if not isinstance(description, Mapping):
        raise InputError(f"{place}: is no range and no list of values; write it as in {_EXAMPLE}")
    names = [str(name) for name in description if name != "when"]
    if len(names) != 1:
        found = " and ".join(names) or "none"
        raise InputError(f"{place}: needs one distribution, and has {found}; write it as in {_EXAMPLE}")
    values = _values(names[0], description[names[0]], place, lambda value: _taken(key, value, base, where))
    if "when" not in description:
        return Axis(key, values)
    return Axis(key, values, dict(_conditions(description["when"], base, f"{place}: when")))


def _values(name: str, given: Any, place: str, checked: Callable[[Any], Any]) -> Choice | Range:
    """What a sweep means by `name: given`; `checked` gives back what the setting takes, and refuses the rest."""
    if name == "choice":
        return _choice(given, place, checked)
    if name not in _RANGES:
        known = ["choice", *_RANGES]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{place}: {name} is no distribution; write one of {', '.join(known)}{hint}")
    _, log, stepped = _RANGES[name]
    low, high, *step = _ends(name, given, f"{place}: {name}")
    if low >= high:
        advice = f"write choice: [{written(low)}], or a larger high" if low == high else "write the smaller end first"
        raise InputError(f"{place}: {name}: {_shown(given)} is an empty range; {advice}")
    if log and low <= 0:
        raise InputError(f"{place}: {name}: a logarithmic range cannot reach {written(low)}; write a low above 0")
    if not stepped:
        return _fractions(name, low, high, place, checked)
    if step:
        return _in_steps(low, high, step[0], f"{place}: {name}", checked)
    return Range(checked(low), checked(high), log, 1)


def _choice(given: Any, place: str, checked: Callable[[Any], Any]) -> Choice:
    if not isinstance(given, list | tuple) or not given:
        raise InputError(f"{place}: choice: {_shown(given)} is no list of values; write choice: [VALUE, VALUE]")
    options = tuple(checked(value) for value in given)
    for number, option in enumerate(options):
        if is_among(option, options[:number]):
            raise InputError(f"{place}: choice: {written(option)} stands there twice; remove one")
    return Choice(options)


def _ends(name: str, given: Any, place: str) -> list[Any]:
    form, whole = _RANGES[name][0], name.endswith("randint")
    count = form.count(",") + 1
    ends = [_number(value) for value in given] if isinstance(given, list | tuple) else []
    kind = int if whole else int | float
    if len(ends) != count or not all(isinstance(end, kind) and not isinstance(end, bool) for end in ends):
        numbers = "whole numbers" if whole else "numbers"
        raise InputError(f"{place}: {_shown(given)} is not {count} {numbers}; write {name}: {form}")
    if not all(abs(end) < 1e15 for end in ends):
        raise InputError(f"{place}: {_shown(given)} is out of reach; write finite numbers, below 1e15")
    return ends


def _fractions(name: str, low: float, high: float, place: str, checked: Callable[[Any], Any]) -> Range:
    try:
        return _within(Range(checked(float(low)), checked(float(high)), name == "loguniform"), checked)
    except InputError as refused:
        checked(low), checked(high)  # has its own words for what the setting does not take at all
        raise InputError(f"{refused} ({name} draws fractions; for whole numbers write {_WHOLE[name]})") from None


def _in_steps(low: float, high: float, step: float, place: str, checked: Callable[[Any], Any]) -> Range:
    kind = int if all(isinstance(number, int) for number in (low, high, step)) else float
    if step <= 0 or (high - low) / step > 1e9:
        raise InputError(f"{place}: the step {written(step)} does not lead to {written(high)}; write a larger one")
    if (rest := steps(low, high, step) % 1) != 0:
        before, after = exact(high) - rest * exact(step), exact(high) + (1 - rest) * exact(step)
        met = " or ".join(f"{float(number):.12g}" for number in (before, after) if number > exact(low))
        problem = f"from {written(low)}, steps of {written(step)} do not meet {written(high)}"
        raise InputError(f"{place}: {problem}; write a high of {met}, or another step")
    return _within(Range(checked(kind(low)), checked(kind(high)), False, kind(step)), checked)


def _within(values: Range, checked: Callable[[Any], Any]) -> Range:
    """Between two ends that a setting takes may lie what it does not: whole numbers alone from some value on."""
    checked(values.at(0.5))
    return values


def _conditions(when: Any, base: Config, place: str) -> Iterator[tuple[str, list[Any]]]:
    if not isinstance(when, Mapping) or not when:
        raise InputError(f"{place}: is no condition; write when: {{KEY: VALUE}} or when: {{KEY: [VALUE, VALUE]}}")
    for key, value in _dotted(when, place):
        _refuse_unknown(key, base, place)
        if value == []:
            raise InputError(f"{place}: {key}: is an empty list; write the values, or remove it")
        yield key, _wanted(key, value, base, place)


def _wanted(key: str, value: Any, base: Config, place: str) -> list[Any]:
    """A list means one of its values, unless the setting itself takes that list."""
    try:
        return [_taken(key, value, base, place)]
    except InputError:
        if not isinstance(value, list):
            raise
    return [_taken(key, one, base, place) for one in value]


def _settled(one: Axis, axes: Mapping[str, Axis], base: Config, where: str) -> Axis:
    """Without the conditions that `base` alone decides."""
    when, fixed = {}, flat(base)
    for key, wanted in one.when.items():
        place = f"{where}: {one.key}: when"
        if key in axes:
            if never := [value for value in wanted if not axes[key].values.can_be(value)]:
                problem = f"{key} is never exactly {written(never[0])} ({axes[key].values})"
                raise InputError(f"{place}: {problem}; write a value that it can have, or search it by choice")
            when[key] = wanted
        elif key in _BROUGHT and "heterogeneous" in axes:
            advice = "write that as the condition"
            raise InputError(f"{place}: {key} follows from heterogeneous, which is searched; {advice}")
        elif not is_among(fixed[key], wanted):
            problem = f"{key} is {written(fixed[key])} in all trials, so that {one.key} is never set"
            raise InputError(f"{place}: {problem}; write that value, or search {key} too")
    return Axis(one.key, one.values, when)


def _in_order(axes: Mapping[str, Axis], where: str) -> list[Axis]:
    """In the order given, but each after those that it depends on."""
    ordered: dict[str, Axis] = {}

    def visit(key: str, above: tuple[str, ...]) -> None:
        if key in above:
            circle = " → ".join((*above[above.index(key) :], key))
            raise InputError(f"{where}: when: goes in a circle ({circle}); remove one of these conditions")
        if key not in ordered:
            for other in axes[key].when:
                visit(other, (*above, key))
            ordered[key] = axes[key]

    for key in axes:
        visit(key, ())
    return list(ordered.values())


def _refuse_the_unreachable(ordered: list[Axis], where: str) -> None:
    """An axis is set only where all those above it are: together their conditions must leave a value for each."""
    needed: dict[str, dict[str, list[Any]]] = {}
    for one in ordered:
        together = dict(one.when)
        for above in one.when:
            for key, wanted in needed[above].items():
                left = [value for value in together.get(key, wanted) if is_among(value, wanted)]
                if not left:
                    problem = f"is never set, because {above} is set only where {key} is"
                    values = " or ".join(map(written, wanted))
                    raise InputError(f"{where}: {one.key}: when: {problem} {values}; write a condition that can hold")
                together[key] = left
        needed[one.key] = together


def _refuse_unknown(key: str, base: Config, where: str) -> None:
    if key not in flat(base):
        _checked(key, None, base, where)


def _taken(key: str, value: Any, base: Config, where: str) -> Any:
    """`value` as `key` takes it. Raises `InputError` in the config's words."""
    try:
        return _checked(key, value, base, where)
    except InputError:
        if _number(value) is value:
            raise
    return _checked(key, _number(value), base, where)


def _number(value: Any) -> Any:
    """PyYAML leaves `1e-3` as text."""
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value


def _checked(key: str, value: Any, base: Config, where: str) -> Any:
    """`value`, if `key` takes it. With which others it fits together is not asked: its partners may be searched too."""
    settings = {name: Setting(given, where) for name, given in flat(base).items()} | {key: Setting(value, where)}
    try:
        Config.model_validate(nested(settings, SECTIONS))
    except ValidationError as error:
        if any(problem["loc"] for problem in error.errors(include_url=False)):
            raise told(error, by_dotted_key(Config), {key: Setting(value, where)}, where) from None
    return value


def _shown(given: Any) -> str:
    text = json.dumps(given, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"
