"""How is the end of a sweep told in a terminal of 100 columns?"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from ien.tracking import table
from launch.search.outcome import Outcome

COLUMNS, ROWS = 100, 20
_CAUSE = 28  # columns kept for the causes of failures
# Tried in turn until a table fits: longest head and longest text of a setting, significant digits of a number.
_WIDTHS = ((24, 24, 4), (16, 16, 4), (12, 12, 4), (9, 10, 3), (7, 8, 3))


def trials(outcomes: Sequence[Outcome], goals: Mapping[str, str], best: Outcome | None) -> str:
    """A table of the trials in the order given, best first; failed ones end with their cause."""
    if not outcomes:
        return "no trial has started"
    shown = outcomes[:ROWS]
    causes = [_one_line(trial.cause or "") for trial in shown]
    room = COLUMNS - (2 + min(_CAUSE, max(map(len, causes))) if any(causes) else 0)
    lines, left_out = _table(shown, goals, best, room, states=True)
    for place, cause in enumerate(causes, start=2):  # below the head and its rule
        if cause:
            lines[place] += f"  {_shortened(cause, COLUMNS - len(lines[place]) - 2)}"
    order = ", then ".join(f"{metric} ({goal})" for metric, goal in goals.items())
    return _told(f"by {order}" + ("; * the best" if best else ""), lines, len(outcomes) - len(shown), left_out)


def front(outcomes: Sequence[Outcome], goals: Mapping[str, str], best: Outcome | None) -> str:
    """The same for the Pareto front."""
    shown = outcomes[:ROWS]
    lines, left_out = _table(shown, goals, best, COLUMNS, states=False)
    caption = f"Pareto front: {len(outcomes)} trial{'s' * (len(outcomes) != 1)} that no other betters in every goal"
    return _told(caption, lines, len(outcomes) - len(shown), left_out)


def _told(caption: str, lines: Sequence[str], more: int, left_out: Sequence[str]) -> str:
    notes = [f"{more} more in results.csv"] if more else []
    notes += [f"no room for {_shortened(', '.join(left_out), 70)}: see results.csv"] if left_out else []
    return "\n".join([caption, *(line.rstrip() for line in lines), *notes])


def _table(
    trials: Sequence[Outcome], goals: Mapping[str, str], best: Outcome | None, room: int, states: bool
) -> tuple[list[str], list[str]]:
    """Its lines, none longer than `room`, and the settings that found no room."""
    columns = [["trial", *(f"{trial.number}{' *' if trial is best else ''}" for trial in trials)]]
    if states:
        columns.append(["state", *(trial.state for trial in trials)])
        columns.append(["epoch", *(str(trial.epoch) for trial in trials)])
    heads = _heads(list(dict.fromkeys(key for trial in trials for key in trial.settings)))
    for many in range(len(heads), -1, -1):
        for longest, text, digits in _WIDTHS:
            measured = [
                [_shortened(metric, longest + 3), *(_measured(trial, metric) for trial in trials)] for metric in goals
            ]
            searched = [
                [_shortened(head, longest), *(_setting(trial, key, text, digits) for trial in trials)]
                for key, head in list(heads.items())[:many]
            ]
            head, *rows = (list(row) for row in zip(*columns, *measured, *searched, strict=True))
            lines = table(head, rows).splitlines()
            if len(lines[0]) <= room:
                return lines, list(heads)[many:]
    return lines, list(heads)


def _heads(keys: Sequence[str]) -> dict[str, str]:
    """A dotted key is known by its last word where no other one ends with it."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: name if last[name := key.rpartition(".")[2]] == 1 else key for key in keys}


def _setting(trial: Outcome, key: str, longest: int, digits: int) -> str:
    """Text may be cut; a number keeps its first digits and its exponent."""
    value = trial.settings.get(key)
    if isinstance(value, float):
        return re.sub(r"e([-+])0*", r"e\1", f"{value:.{digits}g}").replace("e+", "e")
    text = _one_line(trial.written.get(key, ""))
    return text if isinstance(value, int) else _shortened(text, longest)


def _measured(trial: Outcome, metric: str) -> str:
    value, spread = trial.metrics.get(metric), trial.spread.get(metric)
    if value is None or not math.isfinite(value):
        return "" if value is None else "not finite"
    return f"{value:#.4g}".rstrip(".") + (f" ±{spread:.2g}" if spread is not None and math.isfinite(spread) else "")


def _one_line(text: str) -> str:
    """Without line ends, and without what would move a terminal's cursor."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: max(0, limit - 1)]}…"
