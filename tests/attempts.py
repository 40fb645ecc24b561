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


def main() -> None:
    path, kills, seed, *overrides = sys.argv[1:]
    moments, killed, to_first_checkpoint = random.Random(int(seed)), 0, 0.0
    last = config.run_dir(config.load(path, overrides)) / "checkpoints" / "last.pt"
    for _ in range(int(kills)):
        began = time.monotonic()
        child = attempt(Path(path), overrides)
        if not to_first_checkpoint:  # how fast this machine is today
            while not last.exists():
                time.sleep(0.01)
            to_first_checkpoint = time.monotonic() - began
        else:
            time.sleep(moments.uniform(0.1, 2.0) * to_first_checkpoint)
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    status = os.waitstatus_to_exitcode(os.waitpid(attempt(Path(path), overrides), 0)[1])
    print(f"killed {killed}")
    sys.exit(status)


if __name__ == "__main__":
    main()
