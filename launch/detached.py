"""How does work outlive the terminal that started it? (a session of its own)"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path


def detached(start: Callable[[], str]) -> str:
    """Call `start` in a session of its own, so that neither Ctrl-C nor the terminal's end reaches what it starts.

    Returns the number that it gives. submitit starts the local controller as an ordinary child: in this session it
    would be interrupted with us, and would keep our output open. Raises `RuntimeError` if it gives none.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        _start_and_exit(start, tell)
    os.close(tell)
    with os.fdopen(told) as answer:
        number = answer.read()
    os.waitpid(child, 0)
    if not number.isdecimal():
        raise RuntimeError(number or "the local controller did not start")
    return number


def alive(process: int) -> bool:
    """Whether a process runs; one that ended but was not collected by its parent does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")  # not on every system
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def _start_and_exit(start: Callable[[], str], tell: int) -> None:
    """In the forked child; the controller inherits its session, its output and its handling of SIGINT."""
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell has it ignored, and `kill -INT` stops the job
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        os.write(tell, start().encode())
    except Exception as error:
        os.write(tell, f"{error}".encode())
    finally:
        os._exit(0)
