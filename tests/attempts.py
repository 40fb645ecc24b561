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

MOST = 30  # checkpoints, of an attempt that is killed; ten such attempts are fewer than a run of 20 epochs has


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


def saved(last: Path, seconds: float) -> float:
    """Wait for the next checkpoint, at the longest `seconds`; returns the seconds waited."""
    began, before = time.monotonic(), modified(last)
    while time.monotonic() - began < seconds and modified(last) == before:
        time.sleep(0.002)
    return time.monotonic() - began


def modified(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def main() -> None:
    path, kills, seed, *overrides = sys.argv[1:]
    last = config.run_dir(config.load(path, overrides)) / "checkpoints" / "last.pt"
    # Half of the attempts die on the way to their first checkpoint, half after up to MOST of them: counted, because
    # a fast machine would end the run before the last kill. The first attempt measures the time of both ways.
    moments, killed, start, between = random.Random(int(seed)), 0, 60.0, 60.0
    beyond = [number % 2 == 0 for number in range(int(kills))]
    moments.shuffle(beyond)
    for number in range(int(kills)):
        child = attempt(Path(path), overrides)
        if number == 0:
            start, between = saved(last, 60.0), saved(last, 60.0)
        else:
            for _ in range(moments.randint(1, MOST) if beyond[number] else 0):
                saved(last, 60.0)
            saved(last, moments.uniform(0.0, between if beyond[number] else start))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    status = os.waitstatus_to_exitcode(os.waitpid(attempt(Path(path), overrides), 0)[1])
    print(f"killed {killed}")
    sys.exit(status)


if __name__ == "__main__":
    main()
