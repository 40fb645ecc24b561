"""What became of one run? (its ledger, its lock, the queue and its figures, put together)

None of them knows all: a ledger does not hear of a kill, a lock not of a job that waits, the queue forgets, and
accounting is off on many clusters.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from ien import ledger, lock
from ien.ledger import Attempt, Event
from launch.slurm import Queued

WAITING = ("pending", "requeued")  # not started yet, and to be started again
ENDED = ("stopped", "failed", "lost", "cancelled", "finished")  # lost: no end in the ledger, and no trace of it
SILENT_S = 6 * lock.BEAT_S  # a live holder of the lock beats more often than that, also by a clock that is off
LOCAL = "local-"  # and the process id of the controller: a job of this machine
_NO_RUNS_IN = {"checkpoints", "jobs"}
Ask = Callable[[], Mapping[str, Queued] | None]


@dataclass(frozen=True)
class Story:
    """A run as far as it is known `now`; `queue` is None where nobody could be asked."""

    folder: Path
    events: list[Event]
    holder: dict[str, Any]  # of the lock: who has it, or did and died
    queue: Mapping[str, Queued] | None = None
    now: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    @cached_property
    def attempts(self) -> list[Attempt]:
        return ledger.attempts(self.events)

    @cached_property
    def current(self) -> Attempt | None:
        """The attempt that matters: the one that lives, the newest that is queued, or the newest."""
        holding = [attempt for attempt in self.attempts if self.beats and self._holds(attempt)]
        queued = [attempt for attempt in self.attempts if attempt.job in (self.queue or {})]
        return next(reversed(holding or queued or self.attempts), None)

    @property
    def job(self) -> str:
        return self.current.job if self.current else ""

    @property
    def queued(self) -> Queued | None:
        """What the queue says of the job; None also where it was not asked."""
        known = (self.queue or {}).get(self.job)
        return None if known and known.over else known

    @cached_property
    def silent_s(self) -> float | None:
        """Seconds since the lock's holder was last heard of; None where nobody holds it."""
        heard = moment(self.holder.get("time"))
        return max(0.0, (self.now - heard).total_seconds()) if heard else None

    @property
    def beats(self) -> bool:
        return self.silent_s is not None and self.silent_s < SILENT_S

    @property
    def alive(self) -> bool:
        """Something of it runs, or waits to."""
        return self.queued is not None or self.process is not None or self.beats

    @property
    def process(self) -> int | None:
        """The process of this machine that the run can be stopped by; of a job of SLURM there is none."""
        if self.job.startswith(LOCAL):
            return _controller(self.job.removeprefix(LOCAL), self.folder)
        by_hand = self.beats and not in_slurm(self.job) and self.holder.get("host") == socket.gethostname()
        return _number(self.holder.get("pid")) if by_hand else None

    @cached_property
    def state(self) -> str:
        """pending, running, requeued, stopped, failed, lost, cancelled or finished."""
        attempt = self.current
        if (self.folder / "summary.json").exists() or (attempt and attempt.outcome == "finished"):
            return "finished"
        if attempt is None:
            return "running" if self.beats else "stopped"
        start = (self.queued.start or 0.0) if self.queued and self.queued.running else 0.0
        if start > ledger.when(attempt.events[-1]).timestamp():
            return "running"  # it was started since, and has written nothing yet
        if attempt.last("cancelled"):
            return "cancelled"
        if self.queued and self.queued.waiting:
            return "requeued" if any(one.last("started") for one in self.attempts if one.job == self.job) else "pending"
        if attempt.last("requeued"):
            expected = self.alive or (self.queue is None and in_slurm(self.job))
            return "requeued" if expected else "lost"
        if attempt.outcome in ENDED:
            return attempt.outcome
        if self.alive:
            return "running"
        return "pending" if attempt.outcome == "submitted" and in_slurm(self.job) and self.queue is None else "lost"

    @property
    def step(self) -> int | None:
        """How far it came: as the lock says, or the newest line of the ledger that names a step."""
        told = self.holder or next((event for event in reversed(self.events) if "step" in event), {})
        return _number(told.get("step"))

    @property
    def of(self) -> int | None:
        """The steps of the whole run, where somebody said so."""
        told = [_number(each.get("of")) for each in (self.holder, *reversed(self.events))]
        return next(filter(None, told), self.step if self.state == "finished" else None)

    @property
    def seconds_left(self) -> float | None:
        """At the speed of this attempt so far; None where that is not known yet."""
        attempt, heard, step, of = self.current, moment(self.holder.get("time")), self.step, self.of
        begin = attempt.last("resumed", "started") if attempt else None
        if not (attempt and begin and heard and step and of) or self.state != "running":
            return None
        done, took = step - attempt.first_step, (heard - ledger.when(begin)).total_seconds()
        return (of - step) * took / done if done > 0 and took > 0 else None

    @property
    def starts(self) -> int:
        """How many attempts began."""
        return sum(1 for attempt in self.attempts if attempt.last("started"))

    @property
    def requeues(self) -> int:
        """How often a job of it was started again, or waits for that."""
        restarts: dict[str, int] = {}
        for attempt in self.attempts:
            restarts[attempt.job] = max(attempt.restart, restarts.get(attempt.job, 0))
        return sum(restarts.values()) + (self.state == "requeued")

    @property
    def newest(self) -> datetime | None:
        """The last sign of life."""
        times = [ledger.when(event) for event in self.events]
        heard = moment(self.holder.get("time"))
        return max([*times, heard] if heard else times, default=None)

    @property
    def cost(self) -> ledger.Cost:
        """Until now; of a run that ended without a word, until it was last heard of."""
        over = self.state != "running"
        return ledger.cost(self.events, self.newest if over else self.now, over)

    def heard(self, attempt: Attempt) -> datetime:
        """When this attempt was last alive: by its own lines, the lock, or what the next one found there."""
        later = self.attempts[self.attempts.index(attempt) + 1 :]
        begun = next(filter(None, (one.last("started") for one in later)), {})
        told = [moment(begun.get("previous_alive")), moment(self.holder.get("time")) if self._holds(attempt) else None]
        return max([ledger.when(attempt.events[-1]), *filter(None, told)])

    def submission(self, fact: str) -> Any:
        """What was noted when its job was submitted: log, command …; of an earlier job if this one's was not."""
        told = [event for event in self.events if event["event"] == "submitted" and fact in event]
        own = [event for event in told if event.get("job") == self.job]
        return next((event[fact] for event in reversed(own or told)), None)

    def _holds(self, attempt: Attempt | None) -> bool:
        mine = (attempt.job, attempt.restart) if attempt else None
        return mine == (self.holder.get("job"), self.holder.get("restart", 0))


def story(folder: Path, ask: Ask) -> Story:
    """The run in `folder`. `ask` is called for the queue if that can know of it: not for a run that is finished."""
    events = ledger.read(folder)
    known = not (folder / "summary.json").exists() and any(in_slurm(str(event.get("job", ""))) for event in events)
    return Story(folder, events, lock.read(folder), ask() if known else None)


def found(root: Path) -> list[Path]:
    """The folders of all runs below `root`, the one with the newest sign of life first."""
    newest = {}
    for folder, _, names in _walked(root):
        times = [(Path(folder) / name).stat().st_mtime for name in (ledger.NAME, lock.NAME) if name in names]
        if times or {"config.yaml", "environment.json"} <= set(names):
            newest[Path(folder)] = max(times, default=Path(folder).stat().st_mtime)
    return sorted(newest, key=lambda folder: newest[folder], reverse=True)


def _walked(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for folder, inside, names in os.walk(root):
        inside[:] = [name for name in inside if name not in _NO_RUNS_IN and not name.startswith(".")]
        yield folder, inside, names


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (ledger.NAME, lock.NAME, "config.yaml"))


def last_epoch(folder: Path) -> int | None:
    """The epoch of the newest figures."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().decode(errors="replace").splitlines()
        return int(json.loads(lines[-1])["epoch"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def in_slurm(job: str) -> bool:
    return re.fullmatch(r"\d+(_\d+)?", job) is not None


def moment(told: Any) -> datetime | None:
    """A time that was written down, None if it was not."""
    try:
        when = datetime.fromisoformat(told)
    except (TypeError, ValueError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=timezone.utc)


def _controller(number: str, folder: Path) -> int | None:
    """The process of this number, if it is the controller of this run's job: numbers are given away again."""
    try:
        command = Path(f"/proc/{number}/cmdline").read_bytes()  # empty of one that ended and was not collected
    except OSError:
        return _answers(int(number)) if number.isdecimal() and not Path("/proc/self").exists() else None
    return int(number) if b"submitit" in command and f"{folder.name}/jobs".encode() in command else None


def _answers(process: int) -> int | None:
    """On a system without /proc: whether there is a process of this user that has the number."""
    try:
        os.kill(process, 0)
    except OSError:
        return None
    return process


def _number(told: Any) -> int | None:
    return int(told) if isinstance(told, int | float) else None
