"""What is a search, from its first check to its report; and what is one as a job of SLURM?

The first process of a job searches, the others lend it their nodes. In an array each element searches its share of the
trials with a Ray of its own, on one node.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ien import ledger
from ien.errors import InputError
from ien.ledger import Ledger
from ien.lock import InUseError, Lock
from ien.private import make_private
from ien.stopping import JOB_END, SIGNALS, TASK_START, Stopped, hold_back
from ien.tracking import write_text
from launch import slurm
from launch.search import book, results, sweep
from launch.search.agenda import Element
from launch.search.sweep import Sweep

if TYPE_CHECKING:
    from launch.search.driver import StopFlag
    from launch.search.nodes import Place

MARGIN_S = 60.0  # before the job's end: for all trials to save, and Ray to end
_ROOT = Path(__file__).resolve().parent.parent.parent
_ELEMENTS = ".elements"
_BRIEF_S = 60.0  # for another element that looks whether it may begin, or writes the report


@dataclass(frozen=True)
class SweepJob:
    """A search as it travels to its processes: one on each node. `config` is a sweep file that nobody edits."""

    config: str
    words: tuple[str, ...] = ()
    command: str = ""  # what a person types to go on

    def __call__(self) -> dict[str, Any]:
        hold_back()
        os.environ.pop(TASK_START, None)  # a run counts its start from there
        # Ray's processes load this code, the job's copy, also where another one is installed.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        from launch.search.nodes import lend  # loads Ray

        wanted = sweep.load(Path(self.config), self.words)
        place, jobs = place_here(), wanted.folder / "jobs"
        make_private(wanted.folder)
        make_private(jobs)
        told = Ledger(wanted.folder, place.job, place.restart, rank=place.index)
        try:
            with told.failures(InputError, Stopped):
                if place.index:
                    lend(jobs, place)
                else:
                    self._search(wanted, place, told)
        except Stopped:
            return {"stopped": True}
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        return {}

    def _search(self, wanted: Sweep, place: Place, told: Ledger) -> None:
        from launch.search import driver, nodes

        wanted.refuse_other()
        index, count = element_here()
        refuse_sharing(wanted, count)
        cpus, gpus = nodes.allotted(os.environ)
        try_the_first(wanted, cpus, gpus)
        end = slurm.job_end(place.job)
        if end:
            os.environ[JOB_END] = str(end)
        stop, progress = driver.StopFlag(end - MARGIN_S if end else None), driver.Progress()
        told.add("started", nodes=list(place.nodes), processes=len(place.nodes), gpus=gpus * len(place.nodes) or None)
        if before := steps(wanted):
            told.add("resumed", step=before)
        element = Element(index, count)
        with (
            held(wanted, element.book, place.job, place.restart),
            self._stop_before(wanted, told, stop, end),
            nodes.ray_of_the_job(wanted.folder / "jobs", place),
        ):
            with stop.heeded(), _let_through():
                driver.search(wanted, element, stop, progress)
            if stop:
                self._note(wanted, told, stop, end)  # now: Ray takes a while to end, and a grace time may be short
                raise Stopped
        print(report(wanted) or "no trial of the sweep has begun", flush=True)
        told.add("finished", step=steps(wanted))

    @contextmanager
    def _stop_before(self, wanted: Sweep, told: Ledger, stop: StopFlag, end: float | None) -> Iterator[None]:
        """Where a stop is asked before the search has begun, write that down."""
        try:
            yield
        except Stopped:
            if not stop:  # before there was anybody to heed it
                stop.signal = _waiting()
                self._note(wanted, told, stop, end)
            raise

    def _note(self, wanted: Sweep, told: Ledger, stop: StopFlag, end: float | None) -> None:
        told.add("saved", step=steps(wanted))
        mine = next(one for one in reversed(ledger.attempts(ledger.read(wanted.folder))) if _is(one, told))
        if not mine.failure:  # another process that failed may be why all are told to leave
            remaining = None if end is None else round(end - time.time(), 1)
            told.add("stopped", signals=[stop.signal] if stop.signal else [], remaining_s=remaining)
        print(f"stopped by {stop.signal or 'the end of its job'}; it goes on with: {self.command}", flush=True)


def _is(attempt: ledger.Attempt, told: Ledger) -> bool:
    return (attempt.job, attempt.restart) == (told.job, told.restart)


@contextmanager
def _let_through() -> Iterator[None]:
    """Here, where a handler heeds them; what Ray has started has these signals blocked for good."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _waiting() -> str | None:
    waiting = signal.sigpending() & set(SIGNALS)
    return signal.Signals(min(waiting)).name if waiting else None


def place_here() -> Place:
    """This process among those of its job, as SLURM says."""
    from launch.handover import nodes_here
    from launch.search.nodes import Place

    index, nodes = nodes_here()
    return Place(index, nodes, *ledger.job_of(os.environ))


def element_here() -> tuple[int, int]:
    """Which element of how many this job is; outside of an array the only one."""
    first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
    index, count = int(os.environ.get("SLURM_ARRAY_TASK_ID", first)), int(os.environ.get("SLURM_ARRAY_TASK_COUNT", 1))
    return index - first, count


def refuse_sharing(wanted: Sweep, count: int) -> None:
    """Raises `InputError` for a search that cannot be shared out: its next trial depends on all others."""
    file = wanted.file
    if count > 1 and file.sampler == "tpe":
        raise InputError(
            f"{wanted.path}: sampler: tpe learns from all trials, and an element of an array sees its own; write "
            "sampler: random or grid, or launch.nodes=2 and no --array"
        )
    if count > 1 and file.scheduler == "pbt":
        raise InputError(
            f"{wanted.path}: scheduler: pbt copies from all trials, and an element of an array sees its own; write "
            "scheduler: none or asha, or launch.nodes=2 and no --array"
        )


def try_the_first(wanted: Sweep, cpus: float, gpus: float) -> None:
    """Open the data and build the network once: what no trial could use is refused before the first."""
    from ien import build

    wanted.refuse_too_large(cpus, gpus)
    settings = wanted.run(0, {}, wanted.seeds[0])
    data = build.open_data(settings)
    if not len(data.val):
        raise InputError(
            f"{wanted.path}: metrics: are measured on held-out images; write set: {{data: {{val_split: 0.1}}}}"
        )
    taps = build.make_network(settings, build.make_group(settings), data).layers
    for metric in wanted.goals:
        kind, slash, tap = metric.partition("/")
        if slash and tap not in taps:
            allowed = ", ".join(f"{kind}/{name}" for name in taps)
            raise InputError(f"{wanted.path}: metrics: {metric} is not measured; {settings.model} has {allowed}")


@contextmanager
def held(wanted: Sweep, element: int | None, job: str, restart: int) -> Iterator[None]:
    """The right to search the sweep, or an element's share of it; the folder is made, and says what is searched.

    Raises `InUseError` where another search has it.
    """
    make_private(wanted.folder.parent)
    make_private(wanted.folder)
    whole = _when_free(wanted.folder, job, restart, 0.0 if element is None else _BRIEF_S)
    parts: list[Lock] = []
    try:
        if not (wanted.folder / sweep.NAME).exists():
            write_text(wanted.folder / sweep.NAME, wanted.text)
        if element is not None:
            make_private(wanted.folder / _ELEMENTS / str(element))
        others = sorted((wanted.folder / _ELEMENTS).glob("*"))
        mine = [one for one in others if element is None or one.name == str(element)]
        parts += [Lock(one, job, restart) for one in mine]
        if element is not None:
            whole.release()
        yield
    finally:
        for part in parts:
            part.release()
        if element is None or not parts:
            whole.release()


def _when_free(folder: Path, job: str, restart: int, patience: float) -> Lock:
    until = time.monotonic() + patience
    while True:
        try:
            return Lock(folder, job, restart)
        except InUseError:
            if time.monotonic() > until:
                raise
        time.sleep(0.5)


def steps(wanted: Sweep) -> int:
    """How far this search is: the steps that the runs of its share have saved, all together."""
    index, count = element_here()
    mine = (run for run in wanted.folder.glob("[0-9]*/seed-*") if int(run.parent.name) % count == index)
    found = (ledger.attempts(ledger.read(run)) for run in mine)
    return sum(max((attempt.saved_step for attempt in attempts), default=0) for attempts in found)


def report(wanted: Sweep) -> str:
    """Write the results of what there is; the text for the screen, empty where there is no trial yet.

    Elements of an array end at the same time: one after the other looks at what all have done, so that the last one's
    results are whole.
    """
    with _in_turn(wanted.folder / ".report"):
        known = book.outcomes(wanted, list(book.read(wanted.folder).values()))
        if not known:
            return ""
        again = f"python launch/submit.py --config {wanted.folder}/best.yaml"
        best = lambda one: wanted.best(one.settings)  # noqa: E731
        return results.write(wanted.folder, wanted.name, known, wanted.goals, best, again, wanted.epochs)


@contextmanager
def _in_turn(path: Path) -> Iterator[None]:
    """Nobody else is in this block at the same time; on a disk without locks, perhaps."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + _BRIEF_S
    try:
        while time.monotonic() < until:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                time.sleep(0.1)
            except OSError:  # no locks here
                break
            else:
                break
        yield
    finally:
        os.close(file)
