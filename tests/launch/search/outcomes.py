"""Trials as a sweep leaves them, made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.search.outcome import Outcome


def trial(number: int, metrics: dict[str, float] | None = None, **given: Any) -> Outcome:
    """A finished trial of two epochs that ended with `metrics`; `settings`, `state`, `curve` … as given."""
    usual: dict[str, Any] = {
        "settings": {"beta_weight": 0.1 * (number + 1)},
        "state": "finished",
        "curve": [metrics, metrics] if metrics else [],
        "spread": {},
        "seconds": 10.0,
        "cause": None,
        "folders": (Path(f"runs/sweeps/s/{number:03}"),),
    }
    return Outcome(number, **(usual | given))
