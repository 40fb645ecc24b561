"""How do several runs compare? (runs of equal settings but for the seed are one row: mean ± standard deviation)"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
OVER_SCALES = "accuracy over scales"  # a figure of groups that scale alone
_KIND = ("beta_weight", "objective.augment", "run.seed")  # what the name of a row says already, or must not


def compared(runs: Sequence[Row]) -> list[Row]:
    """Rows of {label, runs (their names), n, figures: {figure: {mean, std}}}; std is None for one seed.

    A run is what a report holds; those of one label are together. The standard deviation is that of a sample (n - 1).
    """
    scaled = any(run["square"].get("over_scales") for run in runs)
    shown = {name: figure for name, figure in FIGURES.items() if scaled or name != OVER_SCALES}
    together: dict[str, list[Row]] = {}
    for run in runs:
        together.setdefault(run["label"], []).append(run)
    return [
        {
            "label": label,
            "runs": [run["name"] for run in some],
            "n": len(some),
            "figures": {name: _spread([figure(run) for run in some]) for name, figure in shown.items()},
        }
        for label, some in together.items()
    ]


def labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each run is: IEN with its beta, augmented or plain, and whatever else distinguishes it from the others."""
    keys = sorted({key for one in settings for key in one if key not in _KIND})
    apart = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
    return [", ".join([_kind(one), *(f"{key}={_said(one.get(key))}" for key in apart)]) for one in settings]


def _kind(settings: Mapping[str, Any]) -> str:
    if settings.get("beta_weight", 0) > 0:
        return f"IEN, beta {settings['beta_weight']:g}"
    return "plain" if settings.get("objective.augment") == "none" else "augmented"


def _said(value: Any) -> str:
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "std": None}
    return {"mean": statistics.fmean(known), "std": statistics.stdev(known) if len(known) > 1 else None}


def _over_scales(run: Row) -> float | None:
    found = run["square"].get("over_scales")
    return found and found["accuracy"]


def _layers_mean(kind: str) -> Callable[[Row], float | None]:
    """The mean over the taps that are alive and can be measured."""

    def mean(run: Row) -> float | None:
        alive = [tap[kind] for tap in run["taps"].values() if tap["verdict"] == "alive" and tap[kind] is not None]
        return statistics.fmean(alive) if alive else None

    return mean


def _group_mean(kind: str) -> Callable[[Row], float | None]:
    """The mean over the group's elements but the identity."""

    def mean(run: Row) -> float | None:
        rows = [row[kind] for row in run["square"]["elements"][1:] if row["in_group"]]
        return None if None in rows else statistics.fmean(rows)

    return mean


FIGURES: dict[str, Callable[[Row], float | None]] = {
    "accuracy": lambda run: run["square"]["accuracy"],
    "accuracy over the orbit": lambda run: run["square"]["over_orbit"]["accuracy"],
    "lowest accuracy": lambda run: run["square"]["over_orbit"]["lowest_accuracy"],
    OVER_SCALES: _over_scales,
    "averaged over the group": lambda run: run["square"]["over_orbit"]["averaged_group"],
    "agreement over the group": lambda run: run["square"]["over_orbit"]["agreement_group"],
    "calibration error": lambda run: run["square"]["over_orbit"]["ece"],
    "error of living layers": _layers_mean("mean_error"),
    "error of logits": _group_mean("logit_error"),
    "collapsed layers": lambda run: float(sum(tap["verdict"] == "collapsed" for tap in run["taps"].values())),
}
