"""How does a person see a search go on?"""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from launch.search.book import Entry
from launch.search.outcome import Outcome
from launch.search.sweep import Sweep

_EVERY_S = 1.0  # between drawings of the table


class Progress:
    """In a terminal a table of what trains now, redrawn; elsewhere a line for each trial that begins or is over."""

    def __init__(self, screen: TextIO | None = None):
        self._screen = screen or sys.stderr
        self._live = self._screen.isatty()
        self._training: dict[int, str] = {}
        self._lines = self._over = 0
        self._of = ""
        self._began = self._drawn = time.monotonic()

    def begin(self, sweep: Sweep, over: int) -> None:
        """A search of `sweep` begins, of which `over` trials are over."""
        grid = sweep.file.sampler == "grid"
        self._of = str(len(sweep.space.points()) if grid else sweep.file.budget.trials)
        self._epochs, self._goals, self._over = sweep.epochs, list(sweep.goals), over
        if over:
            self._say(f"{over} of {self._of} trials are over; going on with the others")

    def epoch(self, entry: Entry, result: dict[str, Any]) -> None:
        """A trial has ended an epoch."""
        measured = "  ".join(f"{metric} {result[metric]:.4g}" for metric in self._goals if metric in result)
        begins = entry.number not in self._training
        self._training[entry.number] = f"{_name(entry)}  epoch {result['epoch']:>3}/{self._epochs}  {measured}"
        if self._live:
            self._draw()
        elif begins:
            self._say(self._training[entry.number])

    def over(self, entry: Entry, outcome: Outcome) -> None:
        """A trial is over."""
        self._training.pop(entry.number, None)
        self._over += 1
        measured = "  ".join(f"{m} {outcome.metrics[m]:.4g}" for m in self._goals if m in outcome.metrics)
        place = f"{self._over}/{self._of} over, {_clock(time.monotonic() - self._began)}"
        self._say(f"{_name(entry)}  {outcome.state} at epoch {outcome.epoch}  {measured}  ({place})")

    def failed(self, entry: Entry, cause: str, given_up: bool) -> None:
        """A trial has failed."""
        self._say(f"{_name(entry)}  failed{'' if given_up else ', and is begun again'}: {cause}")

    def end(self) -> None:
        """Leave the screen as it is to what comes after."""
        self._erase()

    def _say(self, line: str) -> None:
        self._erase()
        print(line, file=self._screen, flush=True)
        if self._live:
            self._draw(now=True)

    def _draw(self, now: bool = False) -> None:
        if not now and time.monotonic() - self._drawn < _EVERY_S:
            return
        self._erase()
        for _, line in sorted(self._training.items()):
            print(f"  {line}"[:120], file=self._screen)
        self._lines, self._drawn = len(self._training), time.monotonic()
        self._screen.flush()

    def _erase(self) -> None:
        if self._lines:
            print(f"\x1b[{self._lines}F\x1b[J", end="", file=self._screen, flush=True)
        self._lines = 0


def _name(entry: Entry) -> str:
    shown = (f"{key.rpartition('.')[2]} {_short(value)}" for key, value in entry.point.items())
    return f"trial {entry.number:03} ({', '.join(shown)})"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
