"""What does a sweep look like?

    parameters.png   each setting that was searched against each metric
    curves.png       the first metric over the epochs
    front.png        for two goals: the finished trials and their Pareto front

The colours are those of Okabe and Ito, which the colour-blind tell apart (https://jfly.uni-koeln.de/color/); what a
colour says, a shape says too.
"""

from __future__ import annotations

import io
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from launch.search.outcome import Outcome

BLUE, GREEN, VERMILLION, ORANGE, GREY = "#0072B2", "#009E73", "#D55E00", "#E69F00", "#777777"
MARKS: dict[str, dict[str, Any]] = {
    "finished": {"marker": "o", "markersize": 4.5, "color": BLUE, "markeredgewidth": 0, "alpha": 0.75},
    "stopped": {"marker": "o", "markersize": 4, "color": GREY, "markerfacecolor": "none", "markeredgewidth": 0.8},
    "unfinished": {"marker": "s", "markersize": 4, "color": GREEN, "markerfacecolor": "none", "markeredgewidth": 0.8},
    "failed": {"marker": "|", "markersize": 9, "color": VERMILLION, "markeredgewidth": 1.2},
}
LINES: dict[str, dict[str, Any]] = {
    "finished": {"color": BLUE, "linewidth": 0.8, "alpha": 0.6},
    "stopped": {"color": GREY, "linewidth": 0.8, "alpha": 0.8, "zorder": 2.1, "marker": "o", "markersize": 3},
    "unfinished": {"color": GREEN, "linewidth": 0.8, "linestyle": "--", "zorder": 2.2},
    "failed": {"color": VERMILLION, "linewidth": 0.8, "zorder": 2.3, "marker": "x", "markersize": 4},
}
BEST: dict[str, Any] = {
    "marker": "*",
    "markersize": 12,
    "color": ORANGE,
    "markeredgecolor": "black",
    "clip_on": False,
    "zorder": 5,
}
BEST_LINE: dict[str, Any] = {"color": ORANGE, "linewidth": 2.4, "zorder": 5}
MEDIAN: dict[str, Any] = {"color": "black", "linewidth": 1.4, "zorder": 4}
FRONT: dict[str, Any] = {"color": VERMILLION, "linewidth": 1.2, "marker": "o", "markersize": 4.5, "zorder": 3}
BARS: dict[str, Any] = {"ecolor": GREY, "elinewidth": 0.7, "zorder": 1}
_STYLE = {
    "font.size": 8,
    "figure.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_ACROSS = 4  # panels side by side
_LABEL = 30  # signs beside a panel: the end of a name says most
_DECADES = 1.5  # values that span more have a logarithmic axis


def draw(
    folder: Path,
    name: str,
    outcomes: Sequence[Outcome],
    goals: Mapping[str, str],
    best: Outcome | None,
    front: Sequence[Outcome],
) -> list[str]:
    """Write the pictures of the sweep `name` into its folder, each whole or not at all; returns their names."""
    with style.context(["default", _STYLE]):  # whatever a matplotlibrc says
        figures = {
            "parameters.png": _parameters(name, outcomes, goals, best),
            "curves.png": _curves(name, outcomes, goals, best),
        }
        if len(goals) == 2:
            figures["front.png"] = _front(name, outcomes, goals, best, front)
        for file, figure in figures.items():
            _write(figure, folder / file)
    return list(figures)


def _parameters(name: str, outcomes: Sequence[Outcome], goals: Mapping[str, str], best: Outcome | None) -> Figure:
    """Blocks of at most four settings; in each block a row for every metric."""
    keys = list(dict.fromkeys(key for trial in outcomes for key in trial.settings))
    if not keys:
        return _without(name, outcomes, "no setting was searched" if outcomes else "no trial has started")
    blocks = math.ceil(len(keys) / _ACROSS)
    across, down = math.ceil(len(keys) / blocks), blocks * len(goals)
    figure = _figure(name, outcomes, max(5.0, 0.8 + 2.5 * across), 1.0 + 2.3 * down)
    spec = figure.add_gridspec(down, across)
    first: dict[str, Axes] = {}  # of each metric, whose vertical axis the others share
    for place, key in enumerate(keys):
        block, column = divmod(place, across)
        top: Axes | None = None
        for row, (metric, goal) in enumerate(goals.items()):
            axes = figure.add_subplot(spec[block * len(goals) + row, column], sharex=top, sharey=first.get(metric))
            top = top or axes
            first.setdefault(metric, axes)
            _panel(axes, key, metric, outcomes, best)
            axes.tick_params(labelleft=column == 0, labelbottom=row == len(goals) - 1)
            axes.set_ylabel(_aimed(metric[-_LABEL:], goal) if column == 0 else "")
        axes.set_xlabel(_searched(key, outcomes))
    handles = _states(outcomes, MARKS, best, BEST)
    if best and any(_categories(outcomes, key) for key in keys):
        handles.append(Line2D([], [], label="median of the finished", **MEDIAN))
    _legend(figure, handles)
    return figure


def _panel(axes: Axes, key: str, metric: str, outcomes: Sequence[Outcome], best: Outcome | None) -> None:
    """One setting against one metric; failed trials stand at the lower border, whatever they had reached."""
    trials, categories = [trial for trial in outcomes if key in trial.settings], _categories(outcomes, key)
    if categories:
        _name_columns(axes, categories)
    else:
        _scale(axes, "x", [trial.settings[key] for trial in trials])
    _scale(axes, "y", [_value(trial, metric) for trial in outcomes if trial.state != "failed"])

    def across(some: Iterable[Outcome]) -> list[float]:
        return [categories.index(trial.written[key]) if categories else trial.settings[key] for trial in some]

    for state in ("stopped", "unfinished", "finished"):
        there = [trial for trial in trials if trial.state == state]
        _points(axes, across(there), there, metric, _thinned(MARKS[state], len(there)))
    if failed := [trial for trial in trials if trial.state == "failed"]:
        border = axes.get_xaxis_transform()
        axes.plot(across(failed), [0] * len(failed), ls="", transform=border, clip_on=False, **MARKS["failed"])
    for column, category in enumerate(categories):
        ended = [trial for trial in trials if trial.state == "finished" and trial.written[key] == category]
        values = [value for trial in ended if math.isfinite(value := _value(trial, metric))]
        if values:
            axes.plot([column - 0.28, column + 0.28], [statistics.median(values)] * 2, **MEDIAN)
    if best and key in best.settings:
        axes.plot(across([best]), [_value(best, metric)], ls="", **BEST)


def _points(
    axes: Axes, across: Sequence[float], trials: Sequence[Outcome], metric: str, looks: Mapping[str, Any]
) -> None:
    values, spreads = [_value(trial, metric) for trial in trials], [_spread(trial, metric) for trial in trials]
    axes.plot(across, values, ls="", **looks)
    if any(spreads):
        axes.errorbar(across, values, spreads, ls="", **BARS)


def _curves(name: str, outcomes: Sequence[Outcome], goals: Mapping[str, str], best: Outcome | None) -> Figure:
    """A line for each trial; that of one which did not finish ends with a sign."""
    metric, goal = next(iter(goals.items()))
    curves = [[_finite(epoch.get(metric)) for epoch in trial.curve] for trial in outcomes]
    known = [value for curve in curves for value in curve if math.isfinite(value)]
    if not known:
        return _without(name, outcomes, f"no trial has ended an epoch with {metric}")
    figure = _figure(name, outcomes, 6.4, 4.2)
    axes = figure.add_subplot()
    _scale(axes, "y", known)
    counts = Counter(trial.state for trial in outcomes)
    for trial, curve in zip(outcomes, curves, strict=True):
        there = [epoch for epoch, value in enumerate(curve) if math.isfinite(value)]
        looks = dict(BEST_LINE) if trial is best else _thinned(LINES[trial.state], counts[trial.state])
        if len(there) == 1:  # no line, but a point
            looks.setdefault("marker", "o")
        axes.plot(range(1, len(curve) + 1), curve, markevery=there[-1:], **looks)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(_aimed(metric, goal))
    _legend(figure, _states(outcomes, LINES, best, BEST_LINE))
    return figure


def _front(
    name: str, outcomes: Sequence[Outcome], goals: Mapping[str, str], best: Outcome | None, front: Sequence[Outcome]
) -> Figure:
    """What is behind the line is bettered in both metrics by a trial on it."""
    if not front:
        return _without(name, outcomes, "no trial has finished")
    (x, x_goal), (y, y_goal) = goals.items()
    finished = [trial for trial in outcomes if trial.state == "finished"]
    figure = _figure(name, outcomes, 6.4, 5.0)
    axes = figure.add_subplot()
    _scale(axes, "x", [_value(trial, x) for trial in finished])
    _scale(axes, "y", [_value(trial, y) for trial in finished])
    _points(axes, [_value(trial, x) for trial in finished], finished, y, _thinned(MARKS["finished"], len(finished)))
    bars = [_spread(trial, x) for trial in finished]
    if any(bars):
        axes.errorbar(
            [_value(trial, x) for trial in finished], [_value(trial, y) for trial in finished], xerr=bars, ls="", **BARS
        )
    corners = sorted((_value(trial, x), _value(trial, y)) for trial in front)
    stairs = "steps-pre" if x_goal == "max" else "steps-post"
    axes.plot(*zip(*corners, strict=True), drawstyle=stairs, **FRONT)
    if best:
        axes.plot([_value(best, x)], [_value(best, y)], ls="", **BEST)
    axes.set_xlabel(_aimed(x, x_goal))
    axes.set_ylabel(_aimed(y, y_goal))
    handles = _states(finished, MARKS, best, BEST)
    _legend(figure, [*handles, Line2D([], [], label="Pareto front", **FRONT)])
    _number(figure, axes, [(trial.number, _value(trial, x), _value(trial, y)) for trial in front], x_goal, y_goal)
    return figure


def _number(figure: Figure, axes: Axes, points: Sequence[tuple[int, float, float]], x_goal: str, y_goal: str) -> None:
    """Each trial's number on its ideal side, where no trial lies; those that would cover another are left out."""
    figure.draw_without_rendering()  # settles where the points are
    right, up = x_goal == "max", y_goal == "max"
    places = axes.transData.transform([(x, y) for _, x, y in points])
    taken: list[Bbox] = []
    for (number, x, y), place in zip(points, places, strict=True):
        label = axes.annotate(
            str(number),
            (x, y),
            (5 if right else -5, 5 if up else -5),
            textcoords="offset points",
            ha="left" if right else "right",
            va="bottom" if up else "top",
            fontsize=7,
        )
        box = label.get_window_extent()
        others = [other for other in places if tuple(other) != tuple(place)]
        if box.count_overlaps(taken) or box.count_contains(others):
            label.remove()
        else:
            taken.append(box)


def _figure(name: str, outcomes: Sequence[Outcome], width: float, height: float) -> Figure:
    figure = Figure((width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(_plain(f"{name}: {len(outcomes)} trial{'s' * (len(outcomes) != 1)}"))
    return figure


def _without(name: str, outcomes: Sequence[Outcome], why: str) -> Figure:
    """Nothing can be drawn, and the picture says why."""
    figure = _figure(name, outcomes, 5.0, 2.0)
    figure.text(0.5, 0.45, _plain(why), ha="center", va="center", fontsize=10, color=GREY)
    return figure


def _states(
    outcomes: Sequence[Outcome],
    looks: Mapping[str, Mapping[str, Any]],
    best: Outcome | None,
    winning: Mapping[str, Any],
) -> list[Line2D]:
    """What the legend says of the trials."""
    line = "" if looks is MARKS else "-"
    counts = {state: sum(trial.state == state for trial in outcomes) for state in looks}
    handles = [
        Line2D([], [], **{"linestyle": line, **looks[state]}, label=f"{state} ({count})")
        for state, count in counts.items()
        if count
    ]
    return handles + (
        [Line2D([], [], **{"linestyle": line, **winning}, label=f"best: trial {best.number}")] if best else []
    )


def _thinned(looks: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The more there are, the more one sees through each."""
    return {**looks, "alpha": min(looks.get("alpha", 1.0), 0.15 + 30 / max(1, count))}


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if len(handles) > 4 else max(1, len(handles)))


def _categories(outcomes: Sequence[Outcome], key: str) -> list[str]:
    """The values of a setting that is not a number everywhere, in order (R4 before R16); [] for one that is."""
    values = [trial.settings[key] for trial in outcomes if key in trial.settings]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return []
    named = {trial.written[key] for trial in outcomes if key in trial.settings}
    return sorted(
        named, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    )


def _name_columns(axes: Axes, categories: Sequence[str]) -> None:
    names = [_plain(name if len(name) <= 18 else f"{name[:17]}…") for name in categories]
    angle = 90 if len(names) > 8 else 40 if sum(len(name) + 2 for name in names) > 34 else 0
    axes.set_xticks(range(len(names)), names, rotation=angle, ha="right" if angle == 40 else "center")
    axes.tick_params(axis="x", labelsize=8 if len(names) <= 8 else 6)
    axes.set_xlim(-0.5, len(names) - 0.5)


def _scale(axes: Axes, which: Literal["x", "y"], values: Iterable[float]) -> None:
    """A logarithmic axis for values that span many decades, with ticks at 1, 10, 100 or at 1, 3, 10; 0 has its place
    beside the smallest of them."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5 if which == "x" else 7, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(_tick))
    known = {value for value in values if math.isfinite(value)}
    if len(known) < 2:
        axis.set_major_locator(FixedLocator(list(known)))
    positive = sorted(known - {0})
    if not positive or positive[0] < 0 or math.log10(positive[-1] / positive[0]) <= _DECADES:
        return
    scaled = axes.set_xscale if which == "x" else axes.set_yscale
    few = math.log10(positive[-1] / positive[0]) < 2.5
    if 0 in known:
        scaled("symlog", linthresh=positive[0], linscale=0.5)
        decades = range(math.floor(math.log10(positive[0])), math.ceil(math.log10(positive[-1])) + 1)
        ticks = [part * 10.0**decade for decade in decades for part in ((1, 3) if few else (1,))]
        axis.set_major_locator(FixedLocator([0, *(tick for tick in ticks if positive[0] <= tick <= positive[-1])]))
    else:
        scaled("log")
        axis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,)))
    axis.set_major_formatter(FuncFormatter(_tick))
    axis.set_minor_formatter(NullFormatter())


def _tick(value: float, _: object) -> str:
    """`0.003`, `2e-5`, `1e6`."""
    return re.sub(r"e([-+])0*", r"e\1", f"{value:g}").replace("e+", "e")


def _searched(key: str, outcomes: Sequence[Outcome]) -> str:
    having = sum(key in trial.settings for trial in outcomes)
    return _plain(key[-_LABEL:]) + (f" ({having} of {len(outcomes)})" if having < len(outcomes) else "")


def _aimed(metric: str, goal: str) -> str:
    return _plain(f"{metric} {'↑' if goal == 'max' else '↓'}")


def _plain(text: str) -> str:
    """Not read as a formula."""
    return text.replace("$", r"\$")


def _value(trial: Outcome, metric: str) -> float:
    return _finite(trial.metrics.get(metric))


def _spread(trial: Outcome, metric: str) -> float:
    spread = trial.spread.get(metric, 0.0)
    return spread if math.isfinite(spread) else 0.0


def _finite(value: float | None) -> float:
    """NaN, which is not drawn, for what is not a number or missing."""
    return value if value is not None and math.isfinite(value) else math.nan


def _write(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(picture.getvalue())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
