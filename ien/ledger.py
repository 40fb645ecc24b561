"""What happened to a run, when, and how did each attempt at it end? (`ledger.jsonl`)

One JSON object a line, appended by whoever knows: the launcher (submitted, requeued), the run (started, resumed,
signal, saved, stopped, failed, finished). It needs the standard library alone, so that a batch script's Python reads it
too, and no accounting of the cluster.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

NAME = "ledger.jsonl"
EVENTS = (
    "submitted",  # by whom a job was made: job, log, snapshot, command
    "started",  # nodes, processes, gpus, seconds that it took to get there, when the attempt before was last alive
    "resumed",  # step, file
    "signal",  # which, and the seconds that remain until the job's end
    "saved",  # step, seconds it took, why
    "stopped",  # left before its end, everything saved: signals, ranks that had them, remaining_s
    # cause, host; kind: input (a person's to mend), interrupt (Ctrl-C), crash, killed (as the launcher saw it), lost
    # (the watch names a silent process) or peer (another process's failure as seen from here)
    "failed",
    "finished",  # step
    "requeued",  # why
    "given up",  # not requeued, and why
    "cancelled",  # by whom
)
ENDS = ("stopped", "failed", "finished", "cancelled")
Event = dict[str, Any]


def job_of(environment: Mapping[str, str]) -> tuple[str, int]:
    """The job that this process belongs to, as `squeue` prints it, and how often that was requeued.

    Outside of SLURM: what the launcher said (`IEN_JOB`), or this process on this host.
    """
    array = environment.get("SLURM_ARRAY_JOB_ID")
    number = f"{array}_{environment.get('SLURM_ARRAY_TASK_ID')}" if array else environment.get("SLURM_JOB_ID")
    own = environment.get("IEN_JOB") or f"{os.getpid()}@{socket.gethostname()}"
    return (number or own), int(environment.get("SLURM_RESTART_COUNT") or 0)


@dataclass
class Ledger:
    """The ledger of the run in `folder`; lines are added for `job` in its `restart`-th repetition."""

    folder: Path
    job: str = ""
    restart: int = 0
    rank: int | None = None
    step: int | None = None  # how far this process is; stands in the line of a failure

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def add(self, event: str, **facts: Any) -> None:
        """Append a line and bring it to the disk. Facts that are None are left out."""
        assert event in EVENTS, event
        known = {"job": self.job or None, "restart": self.restart, "rank": self.rank, **facts}
        content = {
            "time": _now(),
            "event": event,
            **{name: value for name, value in known.items() if value is not None},
        }
        line = json.dumps(content, ensure_ascii=False) + "\n"
        # One write on a file that only grows: lines of several processes do not mix.
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            _lock(file)
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = "\n" + line  # a full disk cut the last one off: this one is to be read
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)

    @contextmanager
    def failures(self, users: type[Exception], order: type[Exception]) -> Iterator[None]:
        """Write down what ends the block: `users` are mistakes to be mended by a person, `order` is no failure.

        Where the run's folder was not made yet there is nothing to write into.
        """
        try:
            yield
        except order:
            raise
        except BaseException as error:
            if self.folder.exists():
                with suppress(OSError):  # the disk may be what failed
                    self.add("failed", kind=_kind(error, users), cause=_cause(error), host=_host(), step=self.step)
            raise

    def lost(self, line: str) -> None:
        """Write down that another process has gone silent."""
        if self.folder.exists():
            self.add("failed", kind="lost", cause=line, host=_host(), step=self.step)


def read(folder: Path) -> list[Event]:
    """The events of the run in `folder`, oldest first; none where there is no ledger."""
    try:
        lines = (folder / NAME).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict) and {"time", "event"} <= event.keys():
            events.append(event)
    return events


@dataclass
class Attempt:
    """One job's one start: from its first line in the ledger to its last."""

    job: str
    restart: int
    events: list[Event] = field(default_factory=list)

    def last(self, *names: str) -> Event | None:
        """The newest event of one of these names."""
        return next((event for event in reversed(self.events) if event["event"] in names), None)

    @property
    def outcome(self) -> str:
        """submitted, running (or gone without a word), stopped, failed, cancelled or finished."""
        end = self.last(*ENDS)
        if end:
            return str(end["event"])
        return "running" if self.last("started") else "submitted"

    @property
    def failure(self) -> Event | None:
        """What failed first where it began: what other processes saw of it says less."""
        failures = [event for event in self.events if event["event"] == "failed"]
        told = [event for event in failures if event.get("kind") != "peer"]
        return next(iter(told or failures), None)

    @property
    def step(self) -> int | None:
        """The newest step that a line of this attempt names."""
        return next((event["step"] for event in reversed(self.events) if "step" in event), None)

    @property
    def first_step(self) -> int:
        """The step from which it went on."""
        resumed = self.last("resumed")
        return int(resumed["step"]) if resumed else 0

    @property
    def saved_step(self) -> int:
        """The step of its newest checkpoint."""
        saved = self.last("saved")
        return int(saved["step"]) if saved else self.first_step


def attempts(events: list[Event]) -> list[Attempt]:
    """The events by attempt, in the order in which the attempts appear."""
    found: dict[tuple[str, int], Attempt] = {}
    for event in events:
        key = str(event.get("job", "")), int(event.get("restart", 0))
        found.setdefault(key, Attempt(*key)).events.append(event)
    return list(found.values())


@dataclass(frozen=True)
class Cost:
    """What a run took: hours of its devices (GPUs; without them, processes), and how many of them came to nothing."""

    device: str
    hours: float
    lost_hours: float
    attempts: int

    def __str__(self) -> str:
        return f"{self.device}-hours {self.hours:.2f}, of which {self.lost_hours:.2f} lost to restarts"


def cost(events: list[Event], now: datetime | None = None, over: bool = False) -> Cost:
    """Sum over attempts of duration × devices.

    Lost is what came after an attempt's last checkpoint, if it did not end in order, and what a restart took until it
    went on. An attempt that is running ends `now`; with `over`, it is known to be gone since then. Of one that ended
    without a word, the next says when it was last alive.
    """
    started = [attempt for attempt in attempts(events) if attempt.last("started")]
    hours = lost = 0.0
    gpus = False
    for number, attempt in enumerate(started):
        begin = attempt.last("started") or {}
        gpus = gpus or bool(begin.get("gpus"))
        devices = (begin.get("gpus") or begin.get("processes") or 1) / 3600
        seconds, in_vain = spent(attempt, started[number + 1 :], now, over)
        hours, lost = hours + devices * seconds, lost + devices * in_vain
    return Cost("GPU" if gpus else "process", hours, lost, len(started))


def spent(
    attempt: Attempt, later: list[Attempt], now: datetime | None = None, over: bool = False
) -> tuple[float, float]:
    """Seconds that an attempt which started took, and how many of them came to nothing; `later` began after it."""
    start = attempt.last("started") or attempt.events[0]
    began = when(start) - timedelta(seconds=start.get("startup_s", 0.0))
    end = _end(attempt, later, now)
    resumed, saved = attempt.last("resumed"), attempt.last("saved")
    kept = when(saved) if saved else when(resumed) if resumed else began
    lost = (when(resumed) - began).total_seconds() if resumed else 0.0
    runs = attempt.outcome == "running" and not later and not over
    if not (attempt.last("stopped", "finished") or runs):
        lost += max(0.0, (end - kept).total_seconds())
    return (end - began).total_seconds(), lost


def when(event: Event) -> datetime:
    """The time of an event."""
    return datetime.fromisoformat(event["time"])


def _end(attempt: Attempt, later: list[Attempt], now: datetime | None) -> datetime:
    # Cancelled is what somebody asked for; what the run did then tells more.
    end = attempt.last("stopped", "failed", "finished") or attempt.last("cancelled")
    if end:
        return when(end)
    newest = max(when(event) for event in attempt.events)
    if later:
        begin = later[0].last("started") or {}
        alive = begin.get("previous_alive")
        return max(newest, datetime.fromisoformat(alive)) if alive else newest
    return max(newest, now or datetime.now(timezone.utc)) if attempt.outcome == "running" else newest


def _lock(file: int) -> None:
    """Have the file alone until it is closed: on a shared disk, appending can overwrite what another node wrote.

    For a second at the longest: a line that may be lost is better than a process that waits for ever.
    """
    for _ in range(50):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            time.sleep(0.02)
        except OSError:  # a disk without locks
            return
        else:
            return


def _kind(error: BaseException, users: type[Exception]) -> str:
    if isinstance(error, users):
        return "input"
    if isinstance(error, KeyboardInterrupt):
        return "interrupt"
    # What torch.distributed raises where another process is gone, by its words: older versions have no class for it.
    gone = ("closed by peer", "reset by peer", "Broken pipe", "Timed out waiting", "Connection refused", "NCCL")
    return "peer" if any(words in str(error) for words in gone) else "crash"


def _cause(error: BaseException) -> str:
    """The error in one line, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    words = " ".join(str(error).split())[:500]
    return words if type(error).__name__ == "InputError" else f"{type(error).__name__}: {words}{place}"


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
