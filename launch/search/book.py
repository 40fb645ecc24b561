"""What was proposed, and what became of it?

`trials.jsonl` in the folder of a sweep has a line for each proposal and for each decision about it; the search alone
writes there, and `trials-<element>.jsonl` belongs to an element of an array. What a trial trained stands in its runs'
own folders. Both outlive a search that is killed between any two lines.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from ien import ledger
from ien.tracking import scalars
from launch.search.outcome import Outcome
from launch.search.space import Point
from launch.search.sweep import Sweep
from launch.search.trial import means, records

NAME = "trials"


@dataclass
class Entry:
    """A proposal and what was decided about it: its last decision counts."""

    number: int
    point: Point
    stopped_at: int | None = None  # by the scheduler, after that epoch
    failures: list[str] = field(default_factory=list)
    given_up: bool = False
    generation: int = 0  # how its settings were last changed on the way; names its run folders


class Book:
    """The lines of one search; `element`: of an array, None for a search of its own."""

    def __init__(self, folder: Path, element: int | None = None):
        self.path = folder / (f"{NAME}.jsonl" if element is None else f"{NAME}-{element}.jsonl")

    def proposed(self, number: int, point: Point) -> None:
        self._add("proposed", number, settings=point)

    def stopped(self, number: int, epoch: int) -> None:
        """The scheduler ended the trial after `epoch`."""
        self._add("stopped", number, epoch=epoch)

    def changed(self, number: int, point: Point, generation: int) -> None:
        """The scheduler gave the trial other settings on the way."""
        self._add("changed", number, settings=point, generation=generation)

    def failed(self, number: int, cause: str, given_up: bool) -> None:
        self._add("failed", number, cause=cause, given_up=given_up)

    def _add(self, event: str, number: int, **facts: Any) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, "trial": number, **facts}).encode() + b"\n"
        with self.path.open("ab+") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = b"\n" + line  # after half a line of a search that was killed as it wrote
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def read(folder: Path) -> dict[int, Entry]:
    """All proposals of a sweep by number."""
    entries: dict[int, Entry] = {}
    for path in sorted(folder.glob(f"{NAME}*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # half a line
            _apply(entries, event)
    return dict(sorted(entries.items()))


def _apply(entries: dict[int, Entry], event: dict[str, Any]) -> None:
    number = event["trial"]
    if event["event"] == "proposed":
        entries.setdefault(number, Entry(number, event["settings"]))
    elif event["event"] == "stopped":
        entries[number].stopped_at = event["epoch"]
    elif event["event"] == "changed":
        entries[number].point, entries[number].generation = event["settings"], event["generation"]
    else:
        entries[number].failures.append(event["cause"])
        entries[number].given_up = event["given_up"]


def outcomes(sweep: Sweep, entries: Sequence[Entry]) -> list[Outcome]:
    """What became of each proposal, from its runs' folders."""
    return [outcome(sweep, entry) for entry in entries]


def outcome(sweep: Sweep, entry: Entry) -> Outcome:
    """What became of one proposal."""
    folders = tuple(sweep.run_folder(entry.number, seed, entry.generation) for seed in sweep.seeds)
    told = [records(folder) for folder in folders]
    reached = min(max(one, default=0) for one in told)
    if entry.stopped_at is not None:
        reached = min(reached, entry.stopped_at)
    curve = [means([one[epoch] for one in told]) for epoch in range(1, reached + 1)]
    last = [dict(scalars(one[reached])) for one in told] if reached else []
    spread = {name: statistics.stdev([one[name] for one in last]) for name in curve[-1]} if len(last) > 1 else {}
    return Outcome(
        number=entry.number,
        settings=entry.point,
        state=_state(entry, folders),
        curve=curve,
        spread=spread,
        seconds=sum(_seconds(folder) for folder in folders),
        cause=entry.failures[-1] if entry.given_up else None,
        folders=folders,
    )


def _state(entry: Entry, folders: Sequence[Path]) -> Literal["finished", "stopped", "failed", "unfinished"]:
    if all((folder / "summary.json").exists() for folder in folders):
        return "finished"
    if entry.stopped_at is not None:
        return "stopped"
    return "failed" if entry.given_up else "unfinished"


def _seconds(folder: Path) -> float:
    """Wall time of the processes of a run, over all attempts."""
    attempts = [one for one in ledger.attempts(ledger.read(folder)) if one.last("started")] if folder.exists() else []
    spent = [
        ledger.spent(one, attempts[place + 1 :], now=ledger.when(one.events[-1]), over=True)
        for place, one in enumerate(attempts)
    ]
    return sum(seconds for seconds, _ in spent)
