"""Starts one run again and again, kills it with SIGKILL at random moments, and lets the last attempt end.

`python -m tests.attempts CONFIG KILLS SEED [key=value …]` prints how many attempts were killed in flight.
They are forked from a process that has imported everything, so that most of them die in training and not in imports.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch.utils.tensorboard  # noqa: F401
from sklearn import datasets  # noqa: F401

from ien import config, train
from ien.errors import told_in_one_line


def attempt(path: Path, overrides: list[str]) -> int:
    """Start the run in a process of its own; returns its number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with contextlib.redirect_stderr(sys.stdout), told_in_one_line():
                train.run(config.load(path, overrides))
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child


def first_save(last: Path, wait: float, leave_then: bool = False) -> float:
    """Wait, at the longest until the first checkpoint if `leave_then`; returns when that came (60 s: not yet)."""
    began, before, came = time.monotonic(), modified(last), 60.0
    while (now := time.monotonic() - began) < wait and not (leave_then and came < 60.0):
        if came == 60.0 and modified(last) != before:
            came = now
        time.sleep(0.005)
    return came


def modified(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def main() -> None:
    path, kills, seed, *overrides = sys.argv[1:]
    moments, killed, fastest = random.Random(int(seed)), 0, 60.0  # fastest: the way to a checkpoint on this machine
    last = config.run_dir(config.load(path, overrides)) / "checkpoints" / "last.pt"
    for number in range(int(kills)):
        child = attempt(Path(path), overrides)
        wait = moments.uniform(0.1, 4.0) * fastest if number else 60.0
        fastest = min(fastest, first_save(last, wait, leave_then=number == 0))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    status = os.waitstatus_to_exitcode(os.waitpid(attempt(Path(path), overrides), 0)[1])
    print(f"killed {killed}")
    sys.exit(status)


if __name__ == "__main__":
    main()
