"""What did a run print? (the logs of its jobs, read and followed)"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from ien.errors import InputError
from launch.history import ENDED, Story

_POLL_S, _LOOK_S = 0.3, 2.0  # at the log, and at what became of the run


def log_of(story: Story, rank: int = 0) -> Path | None:
    """The newest log of a process of the run; None where no job of it was submitted."""
    told = story.submission("log")
    if not told:
        logs = (story.folder / "jobs").glob(f"*_{rank}_log.out")
        return max(logs, key=lambda path: path.stat().st_mtime, default=None)
    path = Path(of_rank(str(told), rank))
    moved = story.folder / "jobs" / path.name  # where a run folder that was renamed has it
    return moved if moved.exists() and not path.exists() else path


def of_rank(log: str, rank: int) -> str:
    """The log of another process, from the first one's or from a template."""
    if "{rank}" in log:
        return log.replace("{rank}", str(rank))
    head, found, tail = log.rpartition("_0_log.")
    return f"{head}_{rank}_log.{tail}" if found else log


def show(story: Story, rank: int, screen: TextIO | None = None) -> None:
    """Print the newest log. Raises `InputError` where there is none."""
    path = log_of(story, rank)
    if path is None:
        raise InputError(
            f"{story.folder}: no job of this run noted a log: what it said went to the terminal it was started in"
        )
    if not path.exists():
        hint = f"process {rank} wrote no log" if rank else f"nothing was printed yet ({story.state})"
        raise InputError(f"{story.folder}: {hint}; type: python -m launch.jobs status {story.folder}")
    _Tail(path, screen or sys.stdout).more()


def follow(look: Callable[[], Story], rank: int, screen: TextIO | None = None) -> bool:
    """Print the newest log until the run has ended, through requeues and new jobs; whether it finished.

    `look` tells what is known of the run now.
    """
    out = screen or sys.stdout
    story, looked = look(), time.monotonic()
    tail: _Tail | None = None
    while True:
        path = log_of(story, rank)
        if path and (tail is None or path != tail.path):
            if tail:
                tail.more()
                print(f"==> {path} <==", file=out, flush=True)
            tail = _Tail(path, out)
        if tail:
            tail.more()
        if story.state in ENDED and (story.state == "finished" or not story.alive):
            time.sleep(_POLL_S)  # its last words
            if tail:
                tail.more()
            return story.state == "finished"
        time.sleep(_POLL_S)
        if time.monotonic() - looked > _LOOK_S:
            story, looked = look(), time.monotonic()


class _Tail:
    """A file that grows, printed from its beginning."""

    def __init__(self, path: Path, screen: TextIO):
        self.path, self._screen, self._position = path, screen, 0

    def more(self) -> None:
        """Print what is new."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                while block := file.read(1 << 20):
                    self._position += len(block)
                    self._screen.write(block.decode(errors="replace"))
        except FileNotFoundError:
            return
        self._screen.flush()
