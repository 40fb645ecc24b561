"""What do the figures of a report look like? (curves and bars, from plain numbers)

    accuracy.png     the accuracy over the angle, around the circle
    agreement.png    agreement, calibration error and likelihood over the angle
    scales.png       accuracy and agreement over the scale, where the group scales
    layers.png       the relative equivariance error of every layer, with the interpolation floor

The colours are those of Okabe and Ito, which the colour-blind tell apart (https://jfly.uni-koeln.de/color/); what a
colour says, a line's dashes or a bar's place says too. matplotlib is imported here and in `plots_images`.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, GREY = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#666666",
)  # fmt: skip
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
STYLE = {
    "font.size": 9,
    "figure.titlesize": 11,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.facecolor": "white",
}
CAPTIONS = {
    "accuracy.png": "Accuracy while the images are turned counter-clockwise, 0° at the top. A circle is a network to "
    "which the angle is all the same.",
    "agreement.png": "How many images keep the answer that they get at 0°, how far confidence is from accuracy, and "
    "the negative log-likelihood. Bands are the standard deviation over seeds.",
    "scales.png": "Accuracy and agreement while the images are made smaller (left) and larger (right) about their "
    "centre. Dotted lines are the scales that the group has.",
    "layers.png": "0: the layer commutes with the group. A black line is the interpolation floor, below which nothing "
    "can be told apart; a hatched layer is equivariant only because it says nothing.",
}
_UNSEEN = 1e-3  # an error that is told in figures, because its bar would have no height
MOST = len(COLOURS)  # rows that a picture can tell apart
Row = Mapping[str, Any]  # of `comparison.compared`
Run = Mapping[str, Any]  # of a report


def curves(rows: Sequence[Row], runs: Mapping[str, Run], measured: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures of a report, by file name: PNG. `runs` by name; a row is the mean over its runs.

    `measured` is what the report says of it: on which images, and by which group.
    """
    with style.context(["default", STYLE]):  # whatever a matplotlibrc says
        shown = rows[:MOST]
        of = [[runs[name] for name in row["runs"]] for row in shown]
        names = [label(row) for row in shown]
        learnt = sum(not some[0].get("untrained") for some in of)  # those that are not stand last, and answer nothing
        what = f"{measured['images']:,} {'test' if measured['split'] == 'test' else 'held-out'} images"
        figures = {
            "accuracy.png": _accuracy(names[:learnt], of[:learnt], what),
            "agreement.png": _over_the_angle(names[:learnt], of[:learnt], what),
            "layers.png": _layers(names, of, measured["group"]),
        }
        if any(row["scale"] != 1 for row in of[0][0]["square"]["elements"]):
            figures["scales.png"] = _over_scales(names[:learnt], of[:learnt], what)
        return {name: png(figure) for name, figure in figures.items()}


def label(row: Row) -> str:
    """`IEN, beta 1 (3 seeds)`"""
    return f"{row['label']} ({row['n']} seeds)" if row["n"] > 1 else row["label"]


def png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def canvas(title: str, width: float, height: float) -> Figure:
    """An empty figure of so many inches, 150 dots in each."""
    figure = Figure((width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure


def _accuracy(names: Sequence[str], of: Sequence[Sequence[Run]], what: str) -> Figure:
    """One circle; with mirrored copies a second one beside it, of the same radial axis."""
    flips = [False, True] if any(row["mirrored"] for row in of[0][0]["square"]["elements"]) else [False]
    figure = canvas(f"Accuracy over the angle ({what})", 5.6 * len(flips) if len(flips) == 1 else 9.6, 5.6)
    low = _radius([value for some in of for run in some for value in _accuracies(run)])
    for place, flip in enumerate(flips):
        axes = figure.add_subplot(1, len(flips), place + 1, projection="polar")
        _dial(axes, low, "turned, then mirrored" if flip else "turned")
        for number, some in enumerate(of):
            angles, means, _ = _at(some, "accuracy", partial(_by_angle, flip=flip))
            around = [math.radians(angle) for angle in [*angles, 360]]
            axes.plot(around, [100 * v for v in (*means, means[0])], **_line(number), marker="o", markersize=2.5)
    _legend(figure, _handles(names))
    return figure


def _dial(axes: Axes, low: float, title: str) -> None:
    """0° at the top, counter-clockwise as images turn; the radial axis starts at `low` per cent."""
    axes.set_theta_zero_location("N")  # type: ignore[attr-defined]
    axes.set_rlim(low, 100)  # type: ignore[attr-defined]
    axes.set_xticks([math.radians(angle) for angle in range(0, 360, 45)])
    axes.set_rlabel_position(22.5)  # type: ignore[attr-defined]
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "" if value >= 100 else f"{value:g} %"))
    axes.tick_params(axis="y", labelsize=7.5, labelcolor=GREY)
    axes.grid(color="#d8d8d8")
    axes.set_title(f"{title}; from {low:g} % in the centre to 100 % on the rim", color=GREY, fontsize=8.5, pad=14)


def _radius(values: Sequence[float]) -> float:
    """A round number of per cent below all of them, so that curves near 100 % are told apart; 0 for poor ones."""
    lowest = 100 * min(values)
    room = 100 - lowest
    step = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100) if room <= 2 * step or step == 100)
    return max(0.0, math.floor((lowest - 0.15 * room) / step) * step)


def _over_the_angle(names: Sequence[str], of: Sequence[Sequence[Run]], what: str) -> Figure:
    figure = canvas(f"Predictions over the angle ({what}, turned)", 7.2, 6.2)
    panels = figure.subplots(3, 1, sharex=True)
    kinds = (
        ("agreement", 100, "same prediction\nas at 0° (%)"),
        ("ece", 100, "calibration\nerror (%)"),
        ("nll", 1, "negative log-\nlikelihood (nats)"),
    )
    for axes, (kind, scale, title) in zip(panels, kinds, strict=True):
        for number, some in enumerate(of):
            angles, means, spreads = _at(some, kind, partial(_by_angle, flip=False))
            values = [scale * value for value in (*means, means[0])]
            _band(axes, number, [*angles, 360], values, [scale * value for value in (*spreads, spreads[0])])
        axes.set_ylabel(title)
        if kind != "agreement":
            axes.set_ylim(bottom=0)
    panels[-1].set_xticks(range(0, 361, 45))
    panels[-1].set_xlim(0, 360)
    panels[-1].set_xlabel("turned counter-clockwise by (°)")
    figure.align_ylabels()
    _legend(figure, _handles(names))
    return figure


def _over_scales(names: Sequence[str], of: Sequence[Sequence[Run]], what: str) -> Figure:
    """Both panels share the scale, by its logarithm; bands as over the angle."""
    figure = canvas(f"Predictions over the scale ({what}, not turned)", 7.2, 4.6)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, kind, title in zip(
        panels, ("accuracy", "agreement"), ("accuracy (%)", "same prediction\nas at ×1 (%)"), strict=True
    ):
        for number, some in enumerate(of):
            scales, means, spreads = _at(some, kind, _by_scale)
            _band(axes, number, scales, [100 * value for value in means], [100 * value for value in spreads])
        axes.set_ylabel(title)
        axes.set_xscale("log")
    own = [row["scale"] for row in _by_scale(of[0][0]) if row["in_group"]]
    for axes in panels:
        for scale in own:
            axes.axvline(scale, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="x", visible=False)
    panels[-1].set_xticks(own, [f"×{scale:g}" for scale in own])
    panels[-1].set_xlabel("magnified by")
    figure.align_ylabels()
    _legend(figure, _handles(names))
    return figure


def _band(axes: Axes, number: int, places: Sequence[float], values: Sequence[float], spreads: Sequence[float]) -> None:
    """One row's line, and its standard deviation over seeds, if it has some."""
    axes.plot(places, values, **_line(number), marker="o", markersize=2.5)
    if any(spreads):
        pairs = list(zip(values, spreads, strict=True))
        edges = [v - b for v, b in pairs], [v + b for v, b in pairs]
        axes.fill_between(places, *edges, color=COLOURS[number], alpha=0.15, linewidth=0)


def _layers(names: Sequence[str], of: Sequence[Sequence[Run]], group: str) -> Figure:
    """Bars by layer; a collapsed layer's bar is hatched, and the interpolation floor is a black line across."""
    layers = list(dict.fromkeys(tap for some in of for run in some for tap in run["taps"]))
    figure = canvas("Relative equivariance error of each layer", max(5.6, 1.6 + 0.9 * (len(layers) + 1)), 4.4)
    axes = figure.add_subplot()
    wide = 0.8 / len(of)
    for number, some in enumerate(of):
        for column, layer in enumerate([*layers, "logits"]):
            place = column + (number - (len(of) - 1) / 2) * wide
            found = [_of_layer(run, layer) for run in some if layer == "logits" or layer in run["taps"]]
            _bar(axes, place, wide, COLOURS[number], found)
    axes.set_xticks(range(len(layers) + 1), [*layers, "logits"], rotation=0 if len(layers) < 9 else 45)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.6, len(layers) + 0.6)  # also where there is no bar
    axes.set_ylabel("‖f(g·x) − g·f(x)‖ / ‖f(x)‖")
    axes.set_xlabel(f"layer, from the image on; mean over the elements of {group} but the identity")
    handles: list[Any] = [Patch(color=COLOURS[number], label=name) for number, name in enumerate(names)]
    found = [_of_layer(run, layer) for some in of for run in some for layer in run["taps"]]
    if any(one["floor"] for one in found):
        handles.append(Line2D([], [], color="black", linewidth=1.6, label="floor: interpolation alone"))
    if any(one["verdict"] != "alive" for one in found):
        handles.append(Patch(facecolor="white", edgecolor=GREY, hatch="////", label="collapsed or flat: no merit"))
    _legend(figure, handles)
    return figure


def _bar(axes: Axes, place: float, wide: float, colour: str, found: Sequence[Mapping[str, Any]]) -> None:
    """One layer of one row: its mean, the standard deviation over seeds, and the floor."""
    errors = [one["error"] for one in found if one["error"] is not None]
    dead = any(one["verdict"] != "alive" for one in found)
    looks: dict[str, Any] = {"color": "white", "edgecolor": colour, "hatch": "////"} if dead else {"color": colour}
    if not errors or statistics.fmean(errors) < _UNSEEN:  # nothing that a bar could show; no layer, no word
        number = f"{statistics.fmean(errors):.0e}".replace("e-0", "e−") if errors else "n/a"
        _above(axes, place, "" if not found else found[0]["verdict"] if dead else number)
        return
    spread = statistics.stdev(errors) if len(errors) > 1 else None
    axes.bar(place, statistics.fmean(errors), 0.92 * wide, yerr=spread, ecolor=GREY, **looks)
    floors = [one["floor"] for one in found if one["floor"]]
    if floors:
        axes.plot([place - 0.46 * wide, place + 0.46 * wide], [statistics.fmean(floors)] * 2, color="black", lw=1.6)


def _above(axes: Axes, place: float, told: str) -> None:
    axes.annotate(
        told, (place, 0), (0, 2), textcoords="offset points", ha="center", fontsize=7, color=GREY, rotation=90
    )


def _of_layer(run: Run, layer: str) -> dict[str, Any]:
    if layer == "logits":
        rows = [row["logit_error"] for row in run["square"]["elements"][1:] if row["in_group"]]
        error = None if None in rows else statistics.fmean(rows)
        return {"error": error, "floor": None, "verdict": run["logits"]["verdict"]}
    tap = run["taps"][layer]
    return {"error": tap["mean_error"], "floor": tap["mean_floor"], "verdict": tap["verdict"]}


def _by_angle(run: Run, flip: bool) -> list[Row]:
    """What was measured at each angle, mirrored or not; nothing of it is scaled."""
    return [row for row in run["square"]["elements"] if row["mirrored"] == flip and row["scale"] == 1]


def _by_scale(run: Run) -> list[Row]:
    """What was measured at each scale, the identity among them."""
    rows = [row for row in run["square"]["elements"] if not row["mirrored"] and not row["degrees"]]
    return sorted(rows, key=lambda row: row["scale"])


def _accuracies(run: Run) -> list[float]:
    return [row["accuracy"] for row in run["square"]["elements"] if row["scale"] == 1]


def _at(
    some: Sequence[Run], kind: str, rows: Callable[[Run], list[Row]]
) -> tuple[list[float], list[float], list[float]]:
    """Angles (or scales, where rows differ in them), means and standard deviations over the runs of one row."""
    first = rows(some[0])
    places = [row["scale"] if any(one["scale"] != 1 for one in first) else row["degrees"] for row in first]
    values = list(zip(*([row[kind] for row in rows(run)] for run in some), strict=True))
    spreads = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
    return places, [statistics.fmean(v) for v in values], spreads


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Below the figure; long names stand under one another."""
    longest = max(len(handle.get_label()) for handle in handles)
    figure.legend(handles=handles, loc="outside lower center", ncols=1 if longest > 36 else min(3, len(handles)))


def _line(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number], "linestyle": DASHES[number], "linewidth": 1.6}


def _handles(names: Sequence[str]) -> list[Line2D]:
    return [Line2D([], [], label=name, **_line(number)) for number, name in enumerate(names)]
