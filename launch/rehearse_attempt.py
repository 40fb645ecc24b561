"""How is one attempt of a rehearsal started, watched, hit and ended?

Its processes are on this machine, each in a session of its own, as those of a job's step are.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from ien import ledger
from ien.ledger import Event
from ien.stopping import LAST_STEP, STOPPED
from launch import slurm

Pause = Callable[[float], None]  # sleeps, and is broken off where the rehearsal is

LINGER_S = 10.0  # data-loader workers look every 5 s whether their process lives
_ROOT = Path(__file__).resolve().parent.parent
_PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Failed(Exception):  # noqa: N818 what failed is the run
    """The run did not survive. `words` are the last ones of its processes."""

    def __init__(self, problem: str, words: list[str] | None = None):
        super().__init__(problem)
        self.words = words or []


@dataclass
class Orders:
    """What is rehearsed, and where: `steps` steps of these settings on `processes` processes, below `folder`.

    `threads`: for each process; None leaves it to torch. `timeout_s`: how long a process may outlive the others.
    """

    config: Path
    overrides: list[str]
    processes: int
    steps: int
    folder: Path
    timeout_s: float
    pause: Pause
    threads: int | None = None
    _attempts: int = field(default=0, init=False)

    @property
    def late(self) -> int:
        """Several processes agree one step after they were asked."""
        return int(self.processes > 1)

    @contextmanager
    def attempt(self, name: str, apart_s: float) -> Iterator[Attempt]:
        """Start, or go on with, the run `name`, with a checkpoint every `apart_s` seconds; nothing of it stays."""
        self._attempts += 1
        attempt = Attempt(self, name, apart_s, self._attempts)
        try:
            attempt.start()
            yield attempt
        finally:
            attempt.end()

    def settings(self, name: str, apart_s: float = 1.0) -> list[str]:
        """What is set in place of the user's settings; none of it reaches a weight."""
        return [
            f"run.root={json.dumps(str(self.folder))}",
            f"save_dir={name}",
            f"run.checkpoint_minutes={apart_s / 60:.9f}",
            "launch.nodes=1",
            f"launch.tasks_per_node={self.processes}",
        ]


class Attempt:
    """The processes of one attempt, and what they write into the run's ledger."""

    def __init__(self, orders: Orders, name: str, apart_s: float, number: int):
        self.orders, self.name, self.apart_s, self.number = orders, name, apart_s, number
        self.folder = orders.folder / name
        self.sent_at: datetime | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sent = self._ended = 0.0
        self._before, self._seen, self._events = len(ledger.read(self.folder)), -1, list[Event]()

    def start(self) -> None:
        overrides = self.orders.overrides + self.orders.settings(self.name, self.apart_s)
        command = [sys.executable, "-m", "ien.train", "--config", str(self.orders.config), *overrides]
        for rank in range(self.orders.processes):
            with self._log(rank).open("wb") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment(rank),
                    start_new_session=True,
                )
            self._processes.append(process)

    def runs(self) -> bool:
        """Whether any of the processes does."""
        running = [process.poll() is None for process in self._processes]
        if not any(running) and not self._ended:
            self._ended = time.monotonic()
        return any(running)

    def wait(self) -> None:
        while self.runs():
            self.orders.pause(0.02)

    def end(self) -> None:
        """Kill what still runs. What those leave behind has time to see it, then it is killed too."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        until = time.monotonic() + LINGER_S
        left = [process.pid for process in self._processes]
        while (left := [group for group in left if _signalled(group, 0)]) and time.monotonic() < until:
            time.sleep(0.05)
        for group in left:
            _signalled(group, signal.SIGKILL)

    def send(self, name: str, rank: int) -> None:
        """USR2 to everything, as SLURM does it; any other signal to one process."""
        number = signal.Signals[f"SIG{name}"]
        self.sent_at, self._sent = datetime.now(timezone.utc), time.monotonic()
        if name == "USR2":
            for process in self._processes:
                _signalled(process.pid, number)
        else:
            with suppress(ProcessLookupError):
                os.kill(self._processes[rank].pid, number)

    def came(self, name: str, rank: int) -> bool:
        """Whether the signal that was sent is what ended the attempt."""
        if name == "KILL":
            return self.codes[rank] == -signal.SIGKILL
        stopped = next((event for event in self.events() if event["event"] == "stopped"), None)
        return stopped is not None and f"SIG{name}" in stopped["signals"]

    @property
    def outlived_s(self) -> float:
        """Seconds from the signal to the last process's end, or to now."""
        return (self._ended or time.monotonic()) - self._sent

    @property
    def codes(self) -> list[int | None]:
        """The exit status of each process; minus the signal that killed it; None where it runs."""
        return [process.returncode for process in self._processes]

    @property
    def in_order(self) -> bool:
        """Whether all processes left with everything saved, at the end of the run or before."""
        return set(self.codes) in ({STOPPED}, {0})

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return set(self.codes) == {0}

    @property
    def first(self) -> int:
        """The step from which it went on."""
        return next((event["step"] for event in self.events() if event["event"] == "resumed"), 0)

    @property
    def saves(self) -> list[Event]:
        return [event for event in self.events() if event["event"] == "saved"]

    @property
    def saved(self) -> int:
        """The step of its newest checkpoint, its own or the one that it went on from."""
        return self.saves[-1]["step"] if self.saves else self.first

    def events(self) -> list[Event]:
        """What the ledger says of this attempt."""
        with suppress(FileNotFoundError):
            if (size := (self.folder / ledger.NAME).stat().st_size) != self._seen:
                self._events, self._seen = ledger.read(self.folder)[self._before :], size
        return self._events

    def refusal(self) -> str:
        """What a process that refused its settings said."""
        for rank, code in enumerate(self.codes):
            for line in self._said(rank) if code == 2 else []:
                if line.startswith("error: "):
                    return line.removeprefix("error: ")
        return f"the run refused its settings: {' '.join(self._words())}"

    def failed(self, problem: str) -> Failed:
        """The failure to raise, with how each process ended and its last words."""
        ends = ", ".join(f"process {rank}: {_told(code)}" for rank, code in enumerate(self.codes))
        return Failed(f"{problem} ({ends})", self._words())

    def _environment(self, rank: int) -> dict[str, str]:
        from ien.distributed import RENDEZVOUS  # only now: it loads torch

        orders = self.orders
        inherited = slurm.scrubbed(os.environ).items()
        clean = {name: value for name, value in inherited if name not in _PLACES and not name.startswith("IEN_")}
        clean |= {LAST_STEP: str(orders.steps - orders.late), "IEN_JOB": f"rehearsal-{self.number}"}
        # They find these packages as this one did, also where they are not installed.
        clean["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        if orders.threads:
            clean.setdefault("OMP_NUM_THREADS", str(orders.threads))
        if orders.processes == 1:
            return clean
        count = str(orders.processes)
        meet = {"MASTER_ADDR": "127.0.0.1", RENDEZVOUS: str(orders.folder / f"rendezvous-{self.number}.json")}
        numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        return clean | meet | numbers

    def _log(self, rank: int) -> Path:
        return self.orders.folder / f"{self.name}-{self.number}-{rank}.log"

    def _said(self, rank: int) -> list[str]:
        return [line for line in self._log(rank).read_text(errors="replace").splitlines() if line.strip()]

    def _words(self) -> list[str]:
        unwell = [rank for rank, code in enumerate(self.codes) if code not in (0, STOPPED, -signal.SIGKILL)]
        return [f"process {rank} | {line}" for rank in unwell for line in self._said(rank)[-6:]]


def _signalled(group: int, number: int) -> bool:
    """Send a signal to a group of processes; whether there is any."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _told(code: int | None) -> str:
    if code is None:
        return "still runs"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"status {code}"
