"""How long do several things take side by side? (interleaved repetitions, medians with their quartiles)"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Content = dict[str, Any]
Side = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How much is put into a figure: repetitions of each side, each of at least `seconds`, after `warm_up` calls.

    `published` is the folder of a clone of the published code, where there is one.
    """

    repetitions: int = 15
    seconds: float = 0.3
    warm_up: int = 4
    published: Path | None = None


# On a device; a small one (True) tries the harness, and its figures mean nothing.
Measure = Callable[[torch.device, Effort, bool], Content]


def interleaved(sides: Mapping[str, Side], device: torch.device, effort: Effort) -> dict[str, list[float]]:
    """Seconds per call of each side, one figure a repetition.

    The sides take turns within a repetition, so that whatever else a machine does falls on all of them; the k-th
    figures of two sides are a pair.
    """
    calls = {}
    for name, side in sides.items():
        for _ in range(effort.warm_up):
            side()
        once = _seconds(side, 1, device)
        calls[name] = max(1, round(effort.seconds / max(once, 1e-9)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(effort.repetitions):
        for name, side in sides.items():
            found[name].append(_seconds(side, calls[name], device) / calls[name])
    return found


def spread(values: list[float], digits: int = 4) -> dict[str, Any]:
    """Median and quartiles, to so many significant digits."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    numbers = {"median": statistics.median(values), "low": low, "high": high}
    return {name: float(f"{value:.{digits}g}") for name, value in numbers.items()} | {"n": len(values)}


def ratios(of: list[float], over: list[float]) -> dict[str, Any]:
    """The spread of the ratios of pairs."""
    return spread([one / other for one, other in zip(of, over, strict=True)])


def _seconds(side: Side, calls: int, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(calls):
        side()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
