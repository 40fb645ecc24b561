"""How does accuracy stand against equivariance? (one point a variant, with its spread over seeds)"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.reproduce.cells import Content
from ien.report.plots import BLUE, GREY, STYLE, VERMILLION, canvas, png

EXACT = 1e-4  # errors below are rounding: they stand at the left edge


def draw(title: str, rows: Mapping[str, Sequence[Content]]) -> bytes | None:
    """PNG of the test error over the mean relative equivariance error of the layers; None without a row.

    Points have a number, and the legend its name; those that no other beats in both are of another colour, those whose
    error is over other elements than most have another shape.
    """
    measured = {label: some for label, some in rows.items() if _measured(some)}
    if not measured:
        return None
    points = [(label, *_point(some)) for label, some in measured.items()]
    groups = [some[0]["measured"]["group"] for some in measured.values()]
    usual = statistics.mode(groups)
    with style.context(["default", STYLE]):
        figure = canvas(title, 8.6, 0.105 * len(points) + 5.6)
        axes = figure.subplots()
        front = _front([(x, y) for _, x, _, y, _ in points])
        for number, (label, x, x_spread, y, y_spread) in enumerate(points, start=1):
            colour = VERMILLION if number - 1 in front else BLUE
            left = min(x_spread, x - EXACT) if x > EXACT else 0.0
            axes.errorbar(
                x, y, xerr=[[max(left, 0)], [x_spread if x > EXACT else 0]], yerr=y_spread, color=colour,
                fmt="o" if groups[number - 1] == usual else "s", markersize=4, elinewidth=0.8,
                label=f"{number}  {label}{'' if groups[number - 1] == usual else f' ({groups[number - 1]})'}",
            )  # fmt: skip
        axes.set_xscale("log")
        heights = [y for _, _, _, y, _ in points]
        if max(heights) > 4 * min(heights) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(EXACT / 2, 2)
        ticks = [EXACT, 1e-3, 1e-2, 1e-1, 1]
        axes.set_xticks(ticks, [f"≤ {EXACT:g}\n(rounding)", "0.001", "0.01", "0.1", "1"])
        axes.set_xlabel(f"relative equivariance error, mean over layers and elements of {usual}")
        axes.set_ylabel("test error (%)")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower left", fontsize=7.5, ncols=2 if len(points) > 4 else 1,
            title="red: no other is better in both. Bars: standard deviation over seeds."
            + (" Squares: error over another group." if len(set(groups)) > 1 else ""),
            title_fontsize=7.5,
            alignment="left", labelcolor=GREY,
        )  # fmt: skip
        figure.draw_without_rendering()  # only now do points have their places
        _number(axes, [(x, y) for _, x, _, y, _ in points], front)
        return png(figure)


def _number(axes: Axes, points: Sequence[tuple[float, float]], front: set[int]) -> None:
    """A number beside each point, at the nearest place where it covers no point and no other number."""
    places = [tuple(axes.transData.transform(point)) for point in points]
    size = axes.figure.dpi / 72  # pixels a typographic point
    taken = [(x - 3 * size, y - 3 * size, x + 3 * size, y + 3 * size) for x, y in places]
    for number, (x, y) in enumerate(places):
        wide, high = 4 * len(str(number + 1)) * size, 4 * size  # half of the text's
        boxes = [
            (cx - wide * 0.6, cy - high, cx + wide * 0.6, cy + high)
            for away in (8, 13, 19, 26)
            for angle in range(30, 390, 30)
            for cx, cy in [
                (x + away * size * math.cos(math.radians(angle)), y + away * size * math.sin(math.radians(angle)))
            ]
        ]
        box = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), boxes[0])
        taken.append(box)
        colour = VERMILLION if number in front else BLUE
        middle = ((box[0] + box[2]) / 2 - x) / size, ((box[1] + box[3]) / 2 - y) / size
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "shrinkA": 1, "shrinkB": 2}
        axes.annotate(
            str(number + 1), points[number], middle, textcoords="offset points", ha="center", va="center", fontsize=7.5,
            color=colour, weight="bold",
            arrowprops=line if math.hypot(*middle) > 10 else None,
        )  # fmt: skip


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _measured(some: Sequence[Content]) -> bool:
    return bool(some) and all(cell["figures"]["error of living layers"] is not None for cell in some)


def _point(some: Sequence[Content]) -> tuple[float, float, float, float]:
    errors = [cell["figures"]["error of living layers"] for cell in some]
    wrong = [100 * (1 - cell["test"]["accuracy"]) for cell in some]
    return max(statistics.fmean(errors), EXACT), _spread(errors), statistics.fmean(wrong), _spread(wrong)


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _front(points: Sequence[tuple[float, float]]) -> set[int]:
    """The places of the points that no other beats, or equals in one and beats in the other."""
    return {
        place
        for place, (x, y) in enumerate(points)
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    }
