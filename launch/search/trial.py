"""How are the runs of a trial started, heard and ended?

A trial is one setting of what is searched; it has a run for each seed, and each run its processes on this machine. They
train at the same time and go from epoch to epoch together, so that what is compared is their mean. What they have left
on the disk is read first: a trial that was interrupted tells its old epochs again, at once, and then goes on.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ien.config import Config, run_dir
from ien.private import make_private
from ien.stopping import STOPPED
from ien.tracking import METRICS, scalars
from launch.search.process import GO, IN_USE, REFUSED

Metrics = dict[str, float]

PATIENCE_S = 60.0  # for a folder that the processes of a killed search still leave
LEAVE_S = 600.0  # for saving and leaving
HEARD_S = 15.0  # for the search to hear of a signal that a run has heard
OUTLIVE_S = 30.0  # for a process of whose run another has ended
_CHECKPOINT = Path("checkpoints/last.pt")  # as `ien.checkpoint` has it, which loads torch
_RENDEZVOUS = "IEN_RENDEZVOUS"  # as `ien.distributed` has it, which loads torch
_ROOT = Path(__file__).resolve().parent.parent.parent
_PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


class TrialFailedError(Exception):
    """A run of the trial ended before its time; the message says which and why."""

    def __init__(self, cause: str, again: bool):
        super().__init__(cause)
        self.again = again  # whether trying again can help


class InterruptedTrialError(Exception):
    """The search was asked to stop while the trial trained; its runs have saved and left."""


class Trial:
    """The runs of one trial, a config for each seed.

    `threads`: CPU threads of each process. `asked`: whether the search is to stop; looked at about once a second.
    """

    def __init__(self, settings: Sequence[Config], threads: int, asked: Callable[[], bool] = lambda: False):
        self.epochs = settings[0].tot_epochs
        self.epoch = 0  # the last one that was told
        gpus = _devices_of_each(settings)
        self._runs = [_Run(one, threads, visible, asked) for one, visible in zip(settings, gpus, strict=True)]

    def next(self) -> Metrics:
        """The metrics of the next epoch, means over the runs; after the last one the runs are finished.

        Raises `TrialFailedError`, `InterruptedTrialError`.
        """
        assert self.epoch < self.epochs
        wanted = self.epoch + 1
        try:
            self._together([run for run in self._runs if wanted not in run.known], lambda run: run.reach(wanted))
            if wanted == self.epochs:
                self._together([run for run in self._runs if not run.finished], _Run.finish)
        except BaseException:
            self.end()
            raise
        self.epoch = wanted
        return means([run.known[wanted] for run in self._runs])

    def save(self, folder: Path) -> None:
        """Leave in `folder` what another trial needs to go on from here."""
        for place, run in enumerate(self._runs):
            run.save(folder / str(place))

    def take(self, folder: Path) -> None:
        """Go on from what `save` left there, unless this trial has checkpoints of its own."""
        for place, run in enumerate(self._runs):
            run.take(folder / str(place))
        self.epoch = min(max(run.known, default=0) for run in self._runs)

    def _together(self, runs: Sequence[_Run], wait: Callable[[_Run], None]) -> None:
        for run in runs:
            run.start()
        for run in runs:
            wait(run)

    def end(self) -> None:
        """Stop what still trains, with everything saved."""
        for run in self._runs:
            run.ask_to_leave()
        for run in self._runs:
            run.leave()


@dataclass
class _Run:
    """One seed's run: its records by epoch, and its processes while they are there."""

    settings: Config
    threads: int
    visible: str | None  # CUDA_VISIBLE_DEVICES
    asked: Callable[[], bool]

    def __post_init__(self) -> None:
        self.folder = run_dir(self.settings)
        self.known = records(self.folder)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._waits = False  # for a word
        self._heard = b""
        self._log = self.folder
        self._waiting_since = 0.0  # since when the folder is another's

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    def start(self) -> None:
        """Let its processes train on, or start them."""
        if self._waits:
            self._go()
        elif not self._processes:
            self._begin()

    def reach(self, epoch: int) -> None:
        """Wait for the record of `epoch`; those before it, which a resumed run may tell again, are passed over."""
        while epoch not in self.known:
            try:
                record = self._record()
            except _LeftError:
                raise TrialFailedError(f"it ended before epoch {epoch} ({self._log})", again=True) from None
            self.known[record["epoch"]] = record
            if record["epoch"] < epoch:
                self._go()

    def finish(self) -> None:
        """After the last epoch: wait for the end."""
        while not self.finished:
            try:
                self._record()
                self._go()
            except _LeftError:
                break
        self.leave()

    def save(self, folder: Path) -> None:
        """Copy the newest checkpoint, and what was measured until then."""
        folder.mkdir(parents=True)
        for path in (self.folder / _CHECKPOINT, self.folder / METRICS):
            shutil.copy(path, folder / path.name)

    def take(self, folder: Path) -> None:
        """Begin with such copies, in a folder that has no checkpoint."""
        if not (self.folder / _CHECKPOINT).exists():
            make_private(self.folder)
            make_private(self.folder / _CHECKPOINT.parent)
            shutil.copy(folder / METRICS, self.folder / METRICS)
            shutil.copy(folder / _CHECKPOINT.name, self.folder / _CHECKPOINT)
        self.known = records(self.folder)

    def ask_to_leave(self) -> None:
        for process in self._processes:
            assert process.stdin
            with suppress(BrokenPipeError):
                process.stdin.close()

    def leave(self) -> None:
        """Wait until all processes have left, and kill those that do not."""
        self._exit_codes(LEAVE_S)

    def _begin(self) -> None:
        count, place = self.settings.launch.processes, self.folder / "jobs"
        make_private(self.folder)
        make_private(place)
        number = len(list(place.glob("trial-*-0.log")))
        self._heard, self._waits, self._log = b"", False, place / f"trial-{number}-0.log"
        for rank in range(count):
            with (place / f"trial-{number}-{rank}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-u", "-m", "launch.search.process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment(rank, count, place / f"rendezvous-trial-{number}.json"),
                    start_new_session=True,
                )
            self._processes.append(process)
            self._write(process, json.dumps(self.settings.model_dump(mode="json")))

    def _environment(self, rank: int, count: int, meeting: Path) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if name not in _PLACES}
        clean["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        clean["OMP_NUM_THREADS"] = str(self.threads)
        if self.visible is not None:
            clean["CUDA_VISIBLE_DEVICES"] = self.visible
        if count == 1:
            return clean
        meet = {"MASTER_ADDR": "127.0.0.1", _RENDEZVOUS: str(meeting)}
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        return clean | meet | ranks

    def _go(self) -> None:
        self._waits = False
        self._write(self._processes[0], GO)

    def _write(self, process: subprocess.Popen[bytes], line: str) -> None:
        assert process.stdin
        with suppress(BrokenPipeError):  # it has ended, which is seen where it is listened to
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()

    def _record(self) -> dict[str, Any]:
        """The next line of the first process. Raises what became of the run where none comes."""
        while b"\n" not in self._heard:
            if self.asked():
                raise InterruptedTrialError
            if (more := self._read()) is None:
                continue
            if not more:
                self._after_the_end()
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        self._waits = True
        return dict(json.loads(line))

    def _read(self) -> bytes | None:
        """What the first process has written; empty where a process has ended, None where nothing came for a while."""
        output = self._processes[0].stdout
        assert output
        if select.select([output], [], [], 1.0)[0]:
            return os.read(output.fileno(), 1 << 16)
        return b"" if any(process.poll() not in (None, 0, STOPPED) for process in self._processes) else None

    def _after_the_end(self) -> None:
        """The processes have ended, or one of them has: begin again where the folder was another's, or raise."""
        codes = self._exit_codes(OUTLIVE_S)
        if IN_USE in codes:
            self._waiting_since = self._waiting_since or time.monotonic()
            if time.monotonic() - self._waiting_since < PATIENCE_S:
                time.sleep(1.0)
                return self._begin()
        if set(codes) == {0}:
            raise _LeftError
        if STOPPED in codes and self._asked_soon():
            raise InterruptedTrialError
        if REFUSED in codes or IN_USE in codes:
            raise TrialFailedError(self._said("error: "), again=False)
        killed = [-code for code in codes if code < 0]
        named = f"killed by {signal.Signals(killed[0]).name}" if killed else f"status {max(codes)}"
        raise TrialFailedError(f"{named}: {self._said('')}", again=True)

    def _asked_soon(self) -> bool:
        """Whether the search is to stop as well: a scheduler signals every process of a job, and runs are quick."""
        until = time.monotonic() + HEARD_S
        while not self.asked() and time.monotonic() < until:
            time.sleep(0.2)
        return self.asked()

    def _exit_codes(self, seconds: float) -> list[int]:
        """Wait for all processes; one that takes longer is killed, and its status not counted."""
        until, codes = time.monotonic() + seconds, []
        for process in self._processes:
            try:
                codes.append(process.wait(max(0.1, until - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]
        self._processes, self._waits = [], False
        return codes

    def _said(self, beginning: str) -> str:
        """The last line of the log that begins so."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        said = [line.removeprefix(beginning) for line in lines if line.startswith(beginning)]
        return said[-1][:500] if said else f"nothing was said ({self._log})"


class _LeftError(Exception):
    """All processes have left in order."""


def records(folder: Path) -> dict[int, dict[str, Any]]:
    """The validation of each epoch that the run in `folder` has on the disk."""
    path = folder / METRICS
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):  # the last one, half written
            record = json.loads(line)
            if record["split"] == "val":
                found[record["epoch"]] = record
    return found


def means(told: Sequence[dict[str, Any]]) -> Metrics:
    """The mean of every metric that all of these records have; `kind/tap` is a metric too."""
    flat = [dict(scalars(record)) for record in told]
    return {name: sum(one[name] for one in flat) / len(flat) for name in flat[0] if all(name in one for one in flat)}


def _devices_of_each(settings: Sequence[Config]) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each run: GPUs of its own where there are enough for that."""
    visible, count = os.environ.get("CUDA_VISIBLE_DEVICES"), settings[0].launch.processes
    devices = visible.split(",") if visible else []
    if len(devices) < count * len(settings):
        return [visible] * len(settings)
    return [",".join(devices[place * count : (place + 1) * count]) for place in range(len(settings))]
