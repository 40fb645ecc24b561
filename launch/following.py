"""How is a job watched until it ends? (its log on the screen, and how its run came out)"""

from __future__ import annotations

import time
from pathlib import Path

from ien import ledger
from ien.config import run_dir
from launch import slurm
from launch.detached import alive
from launch.handover import Submitted

_OVER = ("finished", "given up", "cancelled")
_ASK_SLURM_S = 5.0


def followed(job: Submitted) -> str:
    """Print the log until the run ends, across requeues; returns why it did not finish, or nothing."""
    screen, asked, over = LogOnScreen(job.log), time.monotonic(), False
    while not over:
        screen.show()
        time.sleep(0.3)
        if job.cluster == "local":
            over = not alive(int(job.number))
        elif _told(job) or time.monotonic() - asked > _ASK_SLURM_S:
            asked = time.monotonic()
            over = _told(job) or not _queued(job.number)
    time.sleep(0.3)
    screen.show()
    return outcome(job)


def outcome(job: Submitted) -> str:
    """Why the run that `job` was to train did not finish; nothing if it did."""
    folder = run_dir(job.run)
    if (folder / ("summary.json" if job.run.training else "evaluation.json")).exists():
        return ""
    mine = [one for one in ledger.attempts(ledger.read(folder)) if one.job == job.job]
    if not mine:
        return "ended without a word: was it killed?"
    last = mine[-1]
    given_up, failure = last.last("given up", "cancelled"), last.failure
    if given_up:
        return f"{given_up['event']}: {given_up.get('why', '')}"
    if failure:
        return f"process {failure.get('rank', 0)}: {failure['cause']}"
    if last.outcome == "stopped":
        return "stopped, with everything saved; the same command goes on"
    return "ended without a word: was it killed?"


class LogOnScreen:
    """A growing log, printed line by line without what submitit says itself."""

    def __init__(self, path: Path):
        self._path, self._position, self._hidden = path, 0, False

    def show(self) -> None:
        """Print the lines that came since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            whole = file.read().rpartition(b"\n")
        self._position += len(whole[0] + whole[1])
        for line in whole[0].decode(errors="replace").splitlines():
            # The traceback of an error follows; how the run came out is told apart.
            self._hidden = line.startswith("submitit ERROR") or (self._hidden and not line.startswith("submitit INFO"))
            if not self._hidden and not line.startswith("submitit "):
                print(line, flush=True)


def _told(job: Submitted) -> bool:
    """Whether the ledger says that the run's job is over, whatever SLURM still does."""
    mine = [event for event in ledger.read(run_dir(job.run)) if event.get("job") == job.job]
    return any(event["event"] in _OVER for event in mine)


def _queued(number: str) -> bool:
    known = slurm.job(number)
    return known is not None and not known.over
