"""When is a run to stop before its end? (signals, and the end of its job)

SLURM and people send USR1, USR2 or TERM and mean: stop soon. The handler sets a flag and nothing else; the run looks at
it between two steps, where all processes agree, save and leave.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
JOB_END = "IEN_JOB_END"  # the launcher says when the job will be ended, in seconds of the Unix clock
TASK_START = "IEN_TASK_START"  # when this process began, in the same seconds
LAST_STEP = "IEN_LAST_STEP"  # a rehearsal stops there
STOPPED = 75  # exit status of a command that was stopped and can be given again (sysexits.h: EX_TEMPFAIL)


class Stopped(Exception):  # noqa: N818 nothing went wrong
    """The run was asked to stop, and has saved what can be saved; the same command goes on with it."""


class StopRequest:
    """Whether this process was asked to stop: by a signal, or by the approaching end of its job."""

    def __init__(self, job_end: float | None = None, last_step: int | None = None):
        self.job_end, self.last_step = job_end, last_step
        self.margin = 30.0  # seconds that saving and leaving may take before the job's end
        self.signal: str | None = None
        self._owner = os.getpid()

    def asked(self, step: int = 0) -> bool:
        """Asked to stop, after `step` steps of the run?"""
        remaining = self.remaining()
        late = remaining is not None and remaining < self.margin
        return self.signal is not None or late or (self.last_step is not None and step >= self.last_step)

    def remaining(self) -> float | None:
        """Seconds until the job is ended, None where nobody said."""
        return None if self.job_end is None else self.job_end - time.time()

    def why(self) -> str:
        """What asked, in words."""
        remaining = self.remaining()
        left = "" if remaining is None else f"{max(0, remaining):.0f} s before the job's end"
        if self.signal:
            return f"{self.signal}, {left}" if left else self.signal
        return left if self.asked() else "as another process was asked to, or at the last step of a rehearsal"

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if os.getpid() == self._owner:
            self.signal = signal.Signals(number).name
        elif number == signal.SIGTERM:
            # A forked child of another kind than a data-loader worker (those have these signals blocked).
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def hold_back() -> None:
    """At a program's start: these signals wait until a run heeds them, and end nothing after it.

    One that comes while libraries are loaded would end the process unheard; one that comes again while it leaves would
    spoil its exit status.
    """
    for number in (*SIGNALS, signal.SIGCONT):
        signal.signal(number, _nothing)  # ignoring them would drop those that wait
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


@contextmanager
def heeded() -> Iterator[StopRequest]:
    """Let USR1, USR2 and TERM ask for a stop, instead of what they did before. In a thread there are no signals."""
    end, last = os.environ.get(JOB_END), os.environ.get(LAST_STEP)
    request = StopRequest(float(end) if end else None, int(last) if last else None)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    # A launcher may have blocked them until somebody listens.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
