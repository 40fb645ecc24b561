"""Which trial is next, and what is written down about each?

What is unfinished comes first, then what the sampler proposes. Of a sweep that was stopped, or killed, the book and the
run folders say the rest.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from typing import Any

from launch.search import book, sampling
from launch.search.book import Book, Entry
from launch.search.progress import Progress
from launch.search.sweep import Sweep
from launch.search.trial import Metrics


class Element:
    """Which share of the trials is this search's: those whose number leaves `index` when divided by `count`."""

    def __init__(self, index: int = 0, count: int = 1):
        self.index, self.count = index, count

    @property
    def book(self) -> int | None:
        return self.index if self.count > 1 else None

    def has(self, number: int) -> bool:
        return number % self.count == self.index


class Agenda:
    """The trials of one search: what is left of the sweep, or of an element's share of it."""

    def __init__(self, sweep: Sweep, element: Element, progress: Progress):
        self._sweep, self._element, self._progress = sweep, element, progress
        self._book = Book(sweep.folder, element.book)
        self._until = time.monotonic() + 3600 * (sweep.file.budget.hours or math.inf)
        directions = list(sweep.goals.values())
        self._sampler = sampling.sampler(sweep.file.sampler, sweep.space, sweep.file.seed, directions)
        self._entries = book.read(sweep.folder)
        self._settled: set[int] = set()
        self._queue: deque[Entry] = deque()
        self._next = 0
        self._take_up()

    def next(self) -> dict[str, Any] | None:
        """What the next trial needs to know; None if there is none."""
        entry = self._queue.popleft() if self._queue else self._new()
        if entry is None:
            return None
        return {
            "number": entry.number,
            "point": json.dumps(entry.point),
            "generation": entry.generation,
            "stopped_at": entry.stopped_at,
            "attempts_left": self._sweep.file.max_failures - len(entry.failures),
        }

    def heard(self, number: int, result: dict[str, Any]) -> None:
        """An epoch's `result` came: its metrics, failures on the way to it, whether settings were changed before it."""
        entry, causes = self._entries[number], result.get("failures") or []
        for place, cause in enumerate(causes, start=1):
            self._note_failure(entry, cause, result.get("end") == "failed" and place == len(causes))
        if result.get("generation", entry.generation) != entry.generation:
            entry.point, entry.generation = json.loads(result["point"]), result["generation"]
            self._book.changed(number, entry.point, entry.generation)
        if number not in self._settled and "epoch" in result:
            self._progress.epoch(entry, result)

    def over(self, number: int, result: dict[str, Any]) -> None:
        """The trial has ended with `result`; where that does not say so, the scheduler ended it."""
        if number in self._settled:
            return
        entry = self._entries[number]
        if result.get("end") is None:
            entry.stopped_at = int(result["epoch"])
            self._book.stopped(number, entry.stopped_at)
        self._settle(entry)

    def lost(self, number: int) -> None:
        """Its worker died, and as often as is allowed."""
        if number not in self._settled:
            self._note_failure(self._entries[number], "its worker process was lost", given_up=True)
            self._settle(self._entries[number])

    def _take_up(self) -> None:
        """Tell the sampler what there is."""
        again: list[Entry] = []
        for number, entry in self._entries.items():
            known = book.outcome(self._sweep, entry)
            if known.state == "unfinished" and not self._element.has(number):
                continue  # another element trains it
            if known.state == "unfinished":
                self._sampler.running(number, entry.point)
                again.append(entry)
                continue
            self._settled.add(number)
            self._tell(entry, known.metrics, known.state)
            # A scheduler compares with those that are over, so it sees them pass once more; nothing is trained.
            if self._sweep.file.scheduler == "asha" and known.state != "failed":
                self._queue.append(entry)
        self._queue.extend(again)
        self._progress.begin(self._sweep, len(self._settled))

    def _new(self) -> Entry | None:
        """The next trial of this search; its settings are drawn for the whole sweep, so that a share of it is one."""
        while self._next < self._limit and time.monotonic() < self._until:
            number, self._next = self._next, self._next + 1
            if number in self._entries or not self._element.has(number):
                continue
            point = self._sampler.propose(number)
            if point is None:
                return None
            entry = self._entries[number] = Entry(number, point)
            self._book.proposed(number, point)
            return entry
        return None

    @property
    def _limit(self) -> float:
        return math.inf if self._sweep.file.sampler == "grid" else self._sweep.file.budget.trials

    def _note_failure(self, entry: Entry, cause: str, given_up: bool) -> None:
        entry.failures.append(cause)
        entry.given_up = given_up
        self._book.failed(entry.number, cause, given_up)
        self._progress.failed(entry, cause, given_up)

    def _settle(self, entry: Entry) -> None:
        self._settled.add(entry.number)
        known = book.outcome(self._sweep, entry)
        self._tell(entry, known.metrics, known.state)
        self._progress.over(entry, known)

    def _tell(self, entry: Entry, metrics: Metrics, state: str) -> None:
        values = [metrics[metric] for metric in self._sweep.goals] if metrics and state != "failed" else None
        self._sampler.told(entry.number, entry.point, values, entry.stopped_at if state == "stopped" else None)
