"""Which settings won, and by how much?

The files of a sweep's end, each written whole or not at all:

    results.csv    one row per trial
    results.json   the same with every curve; the best, the Pareto front, and whether early epochs ranked rightly
    best.yaml      the settings of the best trial, for launch/submit.py
    *.png          see `plots`
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ien.tracking import write_json, write_text
from launch.search import standings
from launch.search.outcome import Outcome, State

Goals = dict[str, Literal["max", "min"]]  # metric → where it is to go; the first one is the one that schedulers follow
STATES: tuple[State, ...] = ("finished", "stopped", "unfinished", "failed")  # the order of a table
_FEWEST = 4  # trials below which a rank correlation says nothing


def write(
    folder: Path,
    name: str,
    outcomes: Sequence[Outcome],
    goals: Goals,
    best_settings: Callable[[Outcome], str],
    command: str,
    epochs: int,
) -> str:
    """Write the files of the sweep `name` into its folder, which exists; returns the text for the screen.

    `best_settings` gives the YAML of a trial, `command` repeats the best one; `epochs` are those of a whole trial. With
    no finished trial there is no `best.yaml`, also none of an earlier call.
    """
    winner, front = best(outcomes, goals), pareto(outcomes, goals)
    written = ["results.csv", "results.json"]
    write_text(folder / "results.csv", _csv(outcomes, goals))
    write_json(folder / "results.json", _json(name, outcomes, goals, winner, front, command, epochs))
    if winner:
        write_text(folder / "best.yaml", best_settings(winner))
        written.append("best.yaml")
    else:
        (folder / "best.yaml").unlink(missing_ok=True)
    pictures, trouble = _pictures(folder, name, outcomes, goals, winner, front)
    trained, whole = _epochs(outcomes, epochs)
    parts = [
        f"{name}: {_counted(outcomes)}; {trained} of {whole} epochs trained",
        standings.trials(ranked(outcomes, goals), goals, winner),
        standings.front(front, goals, winner) if len(goals) > 1 and front else "",
        f"the best run again: {command}" if winner else "no trial finished: there is no best.yaml",
        f"{folder}: {', '.join(written + pictures)}",
        trouble,
    ]
    return "\n".join(part for part in parts if part)


def best(outcomes: Sequence[Outcome], goals: Goals) -> Outcome | None:
    """For one goal the best finished trial, of equal ones the first that was tried; None if nothing finished.

    For several the knee of the Pareto front: each goal is scaled to the front's range, 0 the best that any of its
    trials reached and 1 the worst, and the trial nearest to the corner where all are 0 is taken (Euclidean distance; of
    equally near ones the one that is better by the first goal). Of two goals the ends of the front are at a distance of
    1, so that a trial between them is taken wherever the front bends towards the corner.
    """
    front = pareto(outcomes, goals)
    if not front:
        return None
    losses = np.array([_losses(trial, goals) for trial in front])
    low, high = losses.min(axis=0), losses.max(axis=0)
    scaled = (losses - low) / np.where(high > low, high - low, 1)
    return front[int(np.argmin(np.sqrt((scaled**2).sum(axis=1))))]


def pareto(outcomes: Sequence[Outcome], goals: Goals) -> list[Outcome]:
    """The finished trials that no other one equals in every goal and betters in one; best by the first goal first.

    Equal ones stay together. A trial with a metric that is missing or not finite is none of them.
    """
    front: list[Outcome] = []
    for trial in ranked([trial for trial in outcomes if _competes(trial, goals)], goals):
        # In this order a trial is dominated by an earlier one or by none, and if by one, then by one of the front.
        if not any(_dominates(other, trial, goals) for other in front):
            front.append(trial)
    return front


def ranked(outcomes: Sequence[Outcome], goals: Goals) -> list[Outcome]:
    """Best first: finished, stopped (later ones are better), unfinished, failed; by the goals in their order."""

    def place(trial: Outcome) -> tuple[Any, ...]:
        reached = 0 if trial.state == "finished" else trial.epoch
        losses = [loss if math.isfinite(loss) else math.inf for loss in _losses(trial, goals)]
        return STATES.index(trial.state), -reached, losses, trial.number

    return sorted(outcomes, key=place)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Correlation of the ranks, equal values at the mean of theirs; None where one of them is all equal."""
    if len(a) < 2:
        return None
    x, y = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else None


def rank_correlation(outcomes: Sequence[Outcome], goals: Goals) -> list[dict[str, Any]] | None:
    """Would a stop at epoch e have ranked rightly? For each epoch, over the finished trials, by the first metric.

    `spearman` between the metric at that epoch and at the last one; whether the trial that is the best at the last
    epoch was in the upper half (which one with fewer than half of the trials before it is). None where fewer than four
    trials finished. What a scheduler stopped is not among them: to judge stopping, look at a sweep without it.
    """
    metric, goal = next(iter(goals.items()))
    trials = ranked([trial for trial in outcomes if _competes(trial, {metric: goal})], {metric: goal})
    if len(trials) < _FEWEST:
        return None
    last = [_losses(trial, {metric: goal})[0] for trial in trials]
    lines: list[dict[str, Any]] = []
    for epoch in range(1, min(trial.epoch for trial in trials) + 1):
        then = [_loss(trial.curve[epoch - 1], metric, goal) for trial in trials]
        known = [pair for pair in zip(then, last, strict=True) if math.isfinite(pair[0])]
        before = sum(value < then[0] for value, _ in known)
        lines.append(
            {
                "epoch": epoch,
                "trials": len(known),
                "spearman": spearman(*zip(*known, strict=True)) if len(known) >= _FEWEST else None,
                "best_in_upper_half": math.isfinite(then[0]) and before < len(known) / 2,
            }
        )
    return lines


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _losses(trial: Outcome, goals: Goals) -> tuple[float, ...]:
    """Its goals with their signs, so that smaller is better."""
    return tuple(_loss(trial.metrics, metric, goal) for metric, goal in goals.items())


def _loss(metrics: dict[str, float], metric: str, goal: str) -> float:
    value = metrics.get(metric, math.nan)
    return value if goal == "min" else -value


def _competes(trial: Outcome, goals: Goals) -> bool:
    return trial.state == "finished" and all(math.isfinite(loss) for loss in _losses(trial, goals))


def _dominates(one: Outcome, other: Outcome, goals: Goals) -> bool:
    mine, its = _losses(one, goals), _losses(other, goals)
    return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))


def _epochs(outcomes: Sequence[Outcome], epochs: int) -> tuple[int, int]:
    """Those that were trained, and those of running every trial to the end; each seed counts."""
    return sum(trial.epochs_trained for trial in outcomes), sum(epochs * trial.seeds for trial in outcomes)


def _counted(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(trial.state for trial in outcomes)
    some = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{len(outcomes)} trial{'s' * (len(outcomes) != 1)}" + (f" ({some})" if some else "")


def _csv(outcomes: Sequence[Outcome], goals: Goals) -> str:
    keys = list(dict.fromkeys(key for trial in outcomes for key in trial.settings))
    metrics = list(dict.fromkeys([*goals, *(metric for trial in outcomes for metric in trial.metrics)]))
    spreads = [metric for metric in metrics if any(metric in trial.spread for trial in outcomes)]
    text = io.StringIO()
    rows = csv.writer(text)
    stds = [f"{metric}_std" for metric in spreads]
    rows.writerow(["number", "state", *keys, "epoch", *metrics, *stds, "seconds", "epochs_trained", "cause", "folders"])
    for trial in sorted(outcomes, key=lambda trial: trial.number):
        tried = [trial.written.get(key, "") for key in keys]
        measured = [_cell(trial.metrics.get(metric)) for metric in metrics]
        measured += [_cell(trial.spread.get(metric)) for metric in spreads]
        took = [_cell(trial.seconds), trial.epochs_trained]
        folders = ";".join(map(str, trial.folders))
        rows.writerow([trial.number, trial.state, *tried, trial.epoch, *measured, *took, trial.cause or "", folders])
    return text.getvalue().encode("utf-8", "replace").decode("utf-8")  # half a character, as a cut log may end


def _cell(value: float | None) -> str:
    return str(float(value)) if value is not None and math.isfinite(value) else ""


def _json(
    name: str,
    outcomes: Sequence[Outcome],
    goals: Goals,
    winner: Outcome | None,
    front: list[Outcome],
    command: str,
    epochs: int,
) -> Any:
    counts = Counter(trial.state for trial in outcomes)
    trained, whole = _epochs(outcomes, epochs)
    content = {
        "name": name,
        "goals": goals,
        "counts": {state: counts[state] for state in STATES},
        "best": _described(winner) if winner else None,
        "command": command if winner else None,
        "front": [_described(trial) for trial in front],
        "epochs": {"trained": trained, "of_running_all": whole},
        "rank_correlation": rank_correlation(outcomes, goals),
        "trials": [
            _described(trial)
            | {"epochs_trained": trial.epochs_trained, "seconds": trial.seconds}
            | {"cause": trial.cause, "curve": trial.curve}
            for trial in sorted(outcomes, key=lambda trial: trial.number)
        ],
    }
    return _storable(content)


def _described(trial: Outcome) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state,
        "settings": trial.settings,
        "epoch": trial.epoch,
        "metrics": trial.metrics,
        "spread": trial.spread,
        "folders": trial.folders,
    }


def _storable(value: Any) -> Any:
    """The same in what JSON has: no NaN, no numpy, no paths."""
    if isinstance(value, dict):
        return {key: _storable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(inner) for inner in value]
    if isinstance(value, np.generic):
        return _storable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _pictures(
    folder: Path, name: str, outcomes: Sequence[Outcome], goals: Goals, winner: Outcome | None, front: list[Outcome]
) -> tuple[list[str], str]:
    """Names of the pictures that were drawn, and why there are none."""
    try:
        from launch.search import plots  # imports matplotlib, which may be missing and takes a second

        return plots.draw(folder, name, outcomes, goals, winner, front), ""
    except ImportError as error:
        return [], f"no pictures ({error}); pip install 'ien[tune]' has what draws them"
    except Exception as error:  # a week of training has its table, whatever a picture may lack
        return [], f"no pictures ({type(error).__name__}: {error})"
