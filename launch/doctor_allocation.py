"""How does the doctor come to the nodes, and what do they say? (one Slurm job, or processes of this machine)"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ien.errors import InputError
from launch import slurm
from launch.doctor_node import MARK, SIGNALS
from launch.doctor_together import MEETING_S

Report = dict[str, Any]  # what one process told: the facts of `doctor_node`, by name

DEADLINE_S = 100.0  # for all checks, from the first word of a node
_UNSEEN_S = 15.0  # a process that has not seen a signal by then will not
_DEAF_S = 120.0  # a controller that is restarted answers before
# Reasons for which a job waits until its owner changes it, or the site its limits.
_NEVER = re.compile(r"^Partition\w*Limit|^Invalid|^BadConstraints|NotAllowed|^(Assoc|QOS)Max\w*PerJob")
_ROOT = Path(__file__).resolve().parent.parent
_LINE = re.compile(rf"{MARK} (\d+) (\d+) (\d+)/(\d+) (.*)$")  # not at a line's start: others may have left theirs open

_NOISE = re.compile(r"^frame #|\*\*\* STEP \S+ ON \S+ CANCELLED AT \S+ \*\*\*$")  # the latter: what SIGTERM is called


class Allocation(Protocol):
    """Processes that run `doctor_node` and write to one log."""

    @property
    def log(self) -> Path: ...

    def start(self) -> None:
        """Raises `InputError` where it is refused."""

    def state(self) -> tuple[str, str]:
        """waiting, running, over or unknown, and Slurm's words for it."""

    def signal(self, name: str) -> None:
        """Send it to all processes of the step, as the scheduler does: workers too."""

    def end(self) -> None:
        """Leave nothing behind, whatever the state."""


@dataclass
class SlurmJob:
    """One job of Slurm, in which srun starts `doctor_node`, after the set-up lines that a run's job has."""

    folder: Path
    nodes: int
    tasks_per_node: int
    minutes: int
    cpus_per_task: int | None = None
    gpus_per_node: int = 0
    partition: str | None = None
    account: str | None = None
    setup: Sequence[str] = ()
    python: str | None = None  # the command that starts it in a task; None: the Python that asks
    number: str | None = field(default=None, init=False)
    _sbatch: subprocess.Popen[str] | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def name(self) -> str:
        return f"ien-doctor-{self.folder.name.rpartition('-')[2]}"

    def start(self) -> None:
        environment = slurm.scrubbed(os.environ) | {"PYTHONPATH": _python_path()}
        # A session of its own: Ctrl-C must not end sbatch between the job's making and our knowing its number.
        self._sbatch = subprocess.Popen(
            self.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            told, refused = self._sbatch.communicate(self.script(), timeout=60)
        except subprocess.TimeoutExpired as error:
            raise InputError("sbatch did not answer within 60 s; see whether sinfo does") from error
        if self._sbatch.returncode:
            lines = (line.removeprefix("sbatch: ").removeprefix("error: ") for line in refused.splitlines())
            reason = "; ".join(dict.fromkeys(lines))
            raise InputError(f"sbatch refused {self.nodes} nodes: {reason}; ask for what sinfo and sacctmgr show")
        self.number = told.strip().partition(";")[0]  # ;cluster may follow

    def command(self) -> list[str]:
        """Options on the command line, where no shell reads them; the script comes on standard input."""
        given = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "time": self.minutes,
            "output": self.log,
            "open-mode": "append",
            "cpus-per-task": self.cpus_per_task,
            "gpus-per-node": self.gpus_per_node or None,
            "partition": self.partition,
            "account": self.account,
        }
        options = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return ["sbatch", "--parsable", "--no-requeue", *options]

    def script(self) -> str:
        """Set up as a run's job does, then srun; the log is brought to its disk meanwhile."""
        python, folder, log = (shlex.quote(str(word)) for word in (sys.executable, self.folder, self.log))
        free_port = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"
        cpus = f" --cpus-per-task={self.cpus_per_task}" if self.cpus_per_task else ""  # srun does not always inherit it
        lines = [
            "#!/bin/bash",
            *self.setup,
            'export MASTER_ADDR="${SLURMD_NODENAME:-$(hostname)}"',
            f'export MASTER_PORT="$({python} -c {shlex.quote(free_port)})"',
            # A network disk would keep the log to itself for half a minute.
            f"while sleep 1; do sync {log}; done 2> /dev/null &",
            f"srun --kill-on-bad-exit=0{cpus} {self.python or python} -u -m launch.doctor_node {folder}",
            "ended=$?; kill $!; exit $ended",
        ]
        return "\n".join(lines) + "\n"

    def state(self) -> tuple[str, str]:
        assert self.number
        try:
            job = slurm.job(self.number)
        except slurm.SlurmError as error:
            return "unknown", str(error)  # a busy controller answers later
        if job is None or job.over:
            return "over", job.state if job else "gone"
        return ("waiting" if job.waiting else "running"), job.reason or job.state

    def signal(self, name: str) -> None:
        self._scancel(f"--signal={name.removeprefix('SIG')}", f"{self.number}.0")  # the job's only step

    def end(self) -> None:
        if self._sbatch is None or self._sbatch.returncode:
            return  # there is no job
        if self.number is None:  # interrupted before we knew it
            with suppress(subprocess.TimeoutExpired):
                self._sbatch.wait(15)
            self._scancel(f"--name={self.name}", f"--user={os.getuid()}")
            return
        if self.state()[0] != "over" and (refused := self._scancel(self.number)):
            print(f"job {self.number} may go on: {refused}; type: scancel {self.number}", file=sys.stderr)
        until = time.monotonic() + 20
        while self.state()[0] in ("running", "waiting") and time.monotonic() < until:
            time.sleep(0.5)  # it may still write into its folder

    def _scancel(self, *words: str) -> str:
        """Returns why it was refused, or nothing."""
        return slurm.cancel(words)


@dataclass
class LocalProcesses:
    """The same on this machine, without Slurm; each process has a group of its own, as a step's has."""

    folder: Path
    count: int
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = slurm.scrubbed(os.environ) | {"PYTHONPATH": _python_path(), "WORLD_SIZE": str(self.count)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-u", "-m", "launch.doctor_node", str(self.folder)]
        with self.log.open("ab") as log:
            for rank in range(self.count):
                own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                self._processes.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=own, start_new_session=True)
                )

    def state(self) -> tuple[str, str]:
        over = all(process.poll() is not None for process in self._processes)
        return ("over", "ended") if over else ("running", "")

    def signal(self, name: str) -> None:
        self._kill(getattr(signal, name))

    def end(self) -> None:
        self._kill(signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def _kill(self, number: int) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)


@dataclass
class Heard:
    """What came back: a report for each process that spoke, and why there are no more, if so."""

    reports: dict[int, Report]
    ended: str  # "" where all processes came to their end
    words: list[str]  # what others wrote into the log, its last lines

    @property
    def hitches(self) -> bool:
        """Whether the words may say more than the reports."""
        return bool(self.ended) or any("failed" in report for report in self.reports.values())


def hear(allocation: Allocation, count: int, wait_s: float, what: str, progress: Callable[[str], None]) -> Heard:
    """Wait for the processes, send them the signals, and collect what they tell. Ends the allocation in any case.

    `wait_s`: seconds until they must have begun. `what`: what is waited for, in words.
    """
    # Made here: a network disk could hide for a while that another machine has made it.
    allocation.log.touch(mode=0o600)
    try:
        allocation.start()
        ended = _waited(allocation, wait_s, what, progress)
        ended = ended or _attended(allocation, count, progress)
        text = _read(allocation.log)
    finally:
        allocation.end()
    words = [line for line in text.splitlines() if line.strip() and not _LINE.search(line) and not _NOISE.search(line)]
    return Heard(told(text), ended, words[-8:])


def told(log: str) -> dict[int, Report]:
    """The facts in a log, by process; pieces of several processes may stand in any order between other lines."""
    pieces: dict[tuple[int, int], dict[int, str]] = {}
    reports: dict[int, Report] = {}
    for line in log.split("\n"):
        if not (found := _LINE.search(line)):
            continue
        rank, number, part, parts = (int(found[group]) for group in range(1, 5))
        said = pieces.setdefault((rank, number), {})
        said[part] = found[5]
        if len(said) == parts:
            _add(reports.setdefault(rank, {}), "".join(said[number] for number in sorted(said)))
    return reports


def _add(report: Report, text: str) -> None:
    try:
        facts = json.loads(text)
    except json.JSONDecodeError:
        return
    failed = report.get("failed", {}) | facts.get("failed", {})
    report |= facts
    if failed:
        report["failed"] = failed


def _waited(allocation: Allocation, wait_s: float, what: str, progress: Callable[[str], None]) -> str:
    """Until a process has spoken; returns why none did, or nothing."""
    began, state, why, shown, next_word, next_question = time.monotonic(), "unknown", "", "", 0.0, 1.0
    answered = 0.0
    while not told(_read(allocation.log)):
        passed = time.monotonic() - began
        if passed >= next_question:
            before, (state, why) = state, allocation.state()
            next_question = passed + 3
            wait_s = passed + DEADLINE_S if state == "running" != before else wait_s
            answered = answered if state == "unknown" else passed
        if state == "over":
            time.sleep(1)  # the log may come later than the job's end
            return "" if told(_read(allocation.log)) else f"the job ended before a process spoke ({why})"
        if passed > wait_s and state == "running":
            return f"the job runs, but no process spoke within {DEADLINE_S:.0f} s"
        if passed - answered > _DEAF_S:
            return f"Slurm answers no more ({why})"
        if state == "waiting" and _NEVER.search(why):
            return f"no job can have {what} ({why}); ask for what sinfo shows"
        if passed > wait_s:
            return f"no nodes within {wait_s / 60:.3g} min ({why}); ask for fewer, or wait longer with --wait-min"
        if why != shown or passed > next_word:
            progress(f"waiting for {what}, {passed:.0f} s{f' ({why})' if why else ''}")
            shown, next_word = why, passed + 15
        time.sleep(0.2)
    return ""


def _attended(allocation: Allocation, count: int, progress: Callable[[str], None]) -> str:
    """Until every process is through; returns why not, or nothing."""
    began, to_send, doing, next_question, sent = time.monotonic(), list(SIGNALS), "", 5.0, math.inf
    while (passed := time.monotonic() - began) < DEADLINE_S:
        reports = told(_read(allocation.log))
        # Of processes that have not spoken for so long, nothing will come.
        here = len(reports) if passed > MEETING_S + 10 else count
        if _through(reports, here):
            return "" if here == count else "they ended without a word, or never began"
        if (stages := _stages(reports)) != doing:
            doing = stages
            progress(f"checking: {doing}")
        if to_send and (_ready(reports, here, to_send) or passed > sent + _UNSEEN_S):
            allocation.signal(to_send.pop(0))
            sent = passed
        if passed > next_question:
            state, why = allocation.state()
            next_question = passed + 5
            if state in ("over", "waiting"):
                time.sleep(1)  # the log may come later than the job's end
                return "" if _through(told(_read(allocation.log)), count) else f"the job ended too early ({why})"
        time.sleep(0.2)
    return f"not all processes came to their end within {DEADLINE_S:.0f} s (the last was at: {doing})"


def _through(reports: dict[int, Report], count: int) -> bool:
    return len(reports) == count and all("done" in report for report in reports.values())


def _stages(reports: dict[int, Report]) -> str:
    return ", ".join(
        dict.fromkeys(report["stage"] for report in reports.values() if "stage" in report and "done" not in report)
    )


def _ready(reports: dict[int, Report], count: int, to_send: list[str]) -> bool:
    """Whether all processes that still run wait for the next signal: one that came too early would end them."""
    waited_for = {"ready", *SIGNALS[: len(SIGNALS) - len(to_send)]}
    alive = [report for report in reports.values() if "done" not in report]
    return len(reports) == count and bool(alive) and all(waited_for <= report.keys() for report in alive)


def _read(log: Path) -> str:
    return log.read_text(errors="replace")


def _python_path() -> str:
    """The nodes' Python finds these packages as this one did, also where they are not installed."""
    return os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
