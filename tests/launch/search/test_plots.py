"""Pictures are looked at by people; these tests hold that they are there, whole, and not blank."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.cbook import STEP_LOOKUP_MAP  # noqa: E402

from launch.search import plots, results  # noqa: E402
from launch.search.outcome import Outcome  # noqa: E402
from launch.search.results import Goals  # noqa: E402
from tests.launch.search.outcomes import trial  # noqa: E402

ONE: Goals = {"accuracy": "max"}
BOTH: Goals = {"accuracy": "max", "error": "min"}
SETTINGS = {
    "beta_weight": lambda draw: 10 ** draw.uniform(-2, 1),
    "heterogeneous": lambda draw: draw.choice([False, "R8-4-2-1", "R4-2-1"]),
    "ratio": lambda draw: draw.choice([[8, 2, 1], [4, 2, 1], None]),
    "cyc_size": lambda draw: draw.randint(2, 9),
    "constant": lambda draw: 3,
    "zero_or_more": lambda draw: draw.choice([0.0, 1e-5, 1.0]),
    "$\\frac$ odd": lambda draw: draw.choice(["$x", "\\y{", "$a$"]),
}


def sweep(count: int, settings: int, seed: int = 0, states: str = "finished") -> list[Outcome]:
    draw = random.Random(seed)
    outcomes = []
    for number in range(count):
        point = {key: value(draw) for key, value in list(SETTINGS.items())[:settings]}
        if number % 3 == 1:
            point.pop("cyc_size", None)
        curve = [{"accuracy": draw.random(), "error": 10 ** draw.gauss(0, 2)} for _ in range(draw.randint(1, 4))]
        state = draw.choice(states.split())
        if state == "failed":
            curve.append({"accuracy": math.nan, "error": math.inf})
        outcomes.append(
            trial(number, state=state, settings=point, curve=curve, spread={"accuracy": 0.01, "error": 9.0})
        )
    return outcomes


def drawn(folder: Path, outcomes: list[Outcome], goals: Goals) -> dict[str, np.ndarray]:
    """The pictures as (height, width, 3)."""
    best, front = results.best(outcomes, goals), results.pareto(outcomes, goals)
    names = plots.draw(folder, "s", outcomes, goals, best, front)
    assert sorted(names) == sorted(path.name for path in folder.glob("*.png"))
    return {name: np.asarray(Image.open(folder / name).convert("RGB")) for name in names}


def pixels(picture: np.ndarray, colour: str) -> int:
    """How many pixels have exactly this colour."""
    return int((picture == [int(colour[place : place + 2], 16) for place in (1, 3, 5)]).all(axis=-1).sum())


@pytest.mark.parametrize(("count", "settings"), [(0, 0), (5, 0), (1, 1), (1, 7), (40, 1), (40, 5)])
@pytest.mark.parametrize("goals", [ONE, BOTH], ids=["one", "both"])
def test_any_sweep_has_its_pictures(tmp_path: Path, count: int, settings: int, goals: Goals) -> None:
    pictures = drawn(tmp_path, sweep(count, settings, states="finished stopped failed unfinished"), goals)
    assert set(pictures) == {"parameters.png", "curves.png"} | ({"front.png"} if goals is BOTH else set())
    for picture in pictures.values():
        assert (picture[0] == 255).all(), "a light background"
        assert 0.002 < (picture < 250).any(axis=-1).mean() < 0.5, "something is drawn on it"


@pytest.mark.parametrize("state", ["failed", "unfinished", "stopped"])
def test_a_sweep_in_which_nothing_finished_has_its_pictures(tmp_path: Path, state: str) -> None:
    pictures = drawn(tmp_path, sweep(5, 3, states=state), BOTH)
    assert len(pictures) == 3
    assert pixels(pictures["parameters.png"], plots.ORANGE) == 0, "no best trial"


def test_more_trials_and_goals_than_usual(tmp_path: Path) -> None:
    goals: Goals = {"accuracy": "max", "error": "min", "epoch_s": "min"}
    assert set(drawn(tmp_path, sweep(200, 2), goals)) == {"parameters.png", "curves.png"}


def test_finished_trials_are_filled_others_hollow_and_failed_ones_ticks_at_the_border() -> None:
    states = ("finished", "stopped", "unfinished", "failed")
    outcomes = [trial(n, {"accuracy": 0.2 * n + 0.1}, state=state) for n, state in enumerate(states)]
    axes = plots._parameters("s", outcomes, ONE, None).axes[0]
    finished, stopped, unfinished, failed = (
        next(line for line in axes.lines if float(line.get_xdata()[0]) == one.settings["beta_weight"])
        for one in outcomes
    )
    assert finished.get_markerfacecolor() == plots.BLUE
    assert {stopped.get_markerfacecolor(), unfinished.get_markerfacecolor()} == {"none"}
    assert len({stopped.get_marker(), unfinished.get_marker(), failed.get_marker()}) == 3
    assert failed.get_transform().transform((0.4, 0))[1] == axes.transAxes.transform((0, 0))[1]


def test_wide_ranges_are_logarithmic_also_beside_a_zero_and_others_are_not() -> None:
    def scales(key: str, *values: Any) -> str:
        outcomes = [trial(n, {"accuracy": 0.5 + n}, settings={key: value}) for n, value in enumerate(values)]
        return plots._parameters("s", outcomes, ONE, None).axes[0].get_xscale()

    assert scales("a", 0.01, 1.0) == "log"
    assert scales("a", 0.5, 10.0) == "linear"
    assert scales("a", 0.0, 1.0, 100.0) == "symlog"
    assert scales("a", 0.0, 1.0, 10.0) == "linear"
    assert scales("a", -1.0, 1.0, 100.0) == "linear"


def test_each_setting_has_a_panel_for_each_metric() -> None:
    for settings, goals in ((1, ONE), (4, ONE), (5, BOTH), (7, BOTH)):
        axes = plots._parameters("s", sweep(20, settings), goals, None).axes
        assert len(axes) == settings * len(goals)
        assert {one.get_xlabel().split(" (")[0] for one in axes if one.get_xlabel()} == {
            plots._plain(key) for key in list(SETTINGS)[:settings]
        }


def test_points_stand_where_the_numbers_are() -> None:
    outcomes = [trial(n, {"accuracy": y}, settings={"x": x}) for n, (x, y) in enumerate([(1, 0.5), (2, 0.7), (3, 0.6)])]
    axes = plots._parameters("s", outcomes, ONE, outcomes[1]).axes[0]
    finished = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert list(zip(*finished.get_data(), strict=True)) == [(1, 0.5), (2, 0.7), (3, 0.6)]
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert [float(value[0]) for value in star.get_data()] == [2, 0.7]


def test_categories_are_columns_with_the_median_of_the_finished() -> None:
    values = [("R16", 0.1), ("R16", 0.2), ("R16", 0.9), ("R4", 0.5), (False, 0.7)]
    outcomes = [trial(n, {"accuracy": y}, settings={"g": x}) for n, (x, y) in enumerate(values)]
    outcomes.append(trial(9, {"accuracy": 0.99}, settings={"g": "R16"}, state="stopped"))
    axes = plots._parameters("s", outcomes, ONE, None).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["R4", "R16", "false"]
    medians = [line.get_ydata()[0] for line in axes.lines if line.get_color() == plots.MEDIAN["color"]]
    assert medians == [0.5, 0.2, 0.7]


@pytest.mark.parametrize("x_goal", ["max", "min"])
@pytest.mark.parametrize("y_goal", ["max", "min"])
def test_the_line_of_the_front_turns_where_the_dominated_begin(x_goal: Any, y_goal: Any) -> None:
    """Between two trials of a front it passes through the worse of their values in both goals."""
    ends = [(1.0, 1.0), (2.0, 2.0)] if x_goal != y_goal else [(1.0, 2.0), (2.0, 1.0)]
    outcomes, goals = [trial(n, {"x": x, "y": y}) for n, (x, y) in enumerate(ends)], {"x": x_goal, "y": y_goal}
    axes = plots._front("s", outcomes, goals, None, results.pareto(outcomes, goals)).axes[0]
    line = next(line for line in axes.lines if line.get_drawstyle() != "default")
    across, up = STEP_LOOKUP_MAP[line.get_drawstyle()](*line.get_data())
    worse = {"max": min, "min": max}
    assert (across[1], up[1]) == (worse[x_goal](1.0, 2.0), worse[y_goal](1.0, 2.0))


def test_the_front_is_numbered() -> None:
    outcomes = [trial(n, {"accuracy": n / 4, "error": n / 4}) for n in range(5)]
    axes = plots._front("s", outcomes, BOTH, None, results.pareto(outcomes, BOTH)).axes[0]
    assert {text.get_text() for text in axes.texts} == {"0", "1", "2", "3", "4"}
    crowded = [trial(n, {"accuracy": n / 200, "error": n / 200}) for n in range(200)]
    labels = plots._front("s", crowded, BOTH, None, results.pareto(crowded, BOTH)).axes[0].texts
    boxes = [label.get_window_extent() for label in labels]
    assert 5 < len(boxes) < 100
    assert not any(box.overlaps(other) for n, box in enumerate(boxes) for other in boxes[:n])


def test_the_curve_of_a_stopped_trial_ends_with_a_dot_where_it_was_stopped() -> None:
    curves = [[0.1, 0.2, 0.3], [0.1, 0.15, math.nan]]
    outcomes = [
        trial(n, curve=[{"accuracy": value} for value in curve], state=state)
        for n, (curve, state) in enumerate(zip(curves, ("finished", "stopped"), strict=True))
    ]
    finished, stopped = plots._curves("s", outcomes, ONE, None).axes[0].lines
    assert finished.get_marker() == "None"
    assert (stopped.get_marker(), stopped.get_markevery()) == ("o", [1])
    assert list(finished.get_xdata()) == [1, 2, 3]


def test_drawing_leaves_no_trace_in_matplotlib(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    drawn(tmp_path, sweep(5, 3), BOTH)
    assert dict(matplotlib.rcParams) == before


def test_interrupted_it_leaves_the_older_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(tmp_path, sweep(5, 1), ONE)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drawn(tmp_path, sweep(9, 1), ONE)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == before


@pytest.mark.parametrize("outcomes", [[], sweep(4, 2, states="failed"), sweep(1, 2)], ids=["none", "failed", "one"])
def test_a_sweep_s_end_writes_every_file(tmp_path: Path, outcomes: list[Outcome]) -> None:
    text = results.write(tmp_path, "s", outcomes, BOTH, lambda one: "a: 1\n", "go", epochs=4)
    files = {"results.csv", "results.json", "parameters.png", "curves.png", "front.png"}
    finished = any(one.state == "finished" for one in outcomes)
    assert {path.name for path in tmp_path.iterdir()} == files | ({"best.yaml"} if finished else set())
    assert all(file in text for file in files)
    assert "no pictures" not in text
