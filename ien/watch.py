"""Which process has gone silent? (a thread in each process; the first watches all, all watch the first)

A process that was killed, stopped or lost with its machine leaves the others in a collective that has no end, or in an
error that names nobody. The watch says who it was and where it stood, and ends this process, so that the launcher ends
the job. It needs no collective and no answer of the main thread.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

LOST = 71  # exit status of a process that left because another was gone (sysexits.h: EX_OSERR)


class Watch(threading.Thread):
    """Beats in `store` as process `rank`, and ends the process when another has not beaten for `timeout_s`."""

    def __init__(
        self, rank: int, count: int, store: dist.Store, timeout_s: float, lost: Callable[[str], None] | None = None
    ):
        super().__init__(name="watch", daemon=True)
        self.step = 0
        self._rank, self._count, self._store, self._timeout, self._lost = rank, count, store, timeout_s, lost
        self._pause = min(5.0, timeout_s / 8)
        self._ended = threading.Event()
        self._number = 0
        self._answered = time.monotonic()
        self._beat()

    def run(self) -> None:
        threading.Thread(target=self._guard, name="watch guard", daemon=True).start()
        watched = [rank for rank in range(self._count) if rank != self._rank] if self._rank == 0 else [0]
        seen = dict.fromkeys(watched, ("", time.monotonic()))
        while not self._ended.wait(self._pause):
            try:
                self._beat()
                silent = [line for rank in watched if (line := self._silence(rank, seen))]
                self._answered = time.monotonic()
            except RuntimeError as error:  # the store, which lives in the first process, does not answer
                silent = [f"process 0 is gone ({str(error).splitlines()[0][:120]})"]
            # An orderly end of the first process looks the same for a moment.
            if silent and not self._ended.wait(self._pause):
                self._leave("; ".join(silent))

    def end(self) -> None:
        """Watch no more."""
        self._ended.set()
        self.join()

    def _guard(self) -> None:
        """The store lives in the first process: when that is stopped, a question to it has no answer and no end."""
        woke = time.monotonic()
        while not self._ended.wait(self._pause):
            slept, woke = time.monotonic() - woke, time.monotonic()
            if slept > self._timeout / 2:
                self._answered = woke  # it was this process that was stopped
            silent = woke - self._answered
            if silent > self._timeout:
                self._leave(f"process 0 has not answered for {silent:.0f} s (this one is in step {self.step})")

    def _beat(self) -> None:
        self._number += 1
        self._store.set(str(self._rank), f"{self._number} {self.step} {socket.gethostname()}")

    def _silence(self, rank: int, seen: dict[int, tuple[str, float]]) -> str:
        beat = self._store.get(str(rank)).decode() if self._store.check([str(rank)]) else ""
        if beat != seen[rank][0]:
            seen[rank] = beat, time.monotonic()
        silent = time.monotonic() - seen[rank][1]
        if silent < self._timeout:
            return ""
        _, step, host = beat.split(" ", 2) if beat else ("", "0", "a host that never answered")
        return f"process {rank} on {host} has not answered for {silent:.0f} s (last seen in step {step})"

    def _leave(self, line: str) -> None:
        print(f"process {self._rank} on {socket.gethostname()}: {line}; leaving", file=sys.stderr, flush=True)
        try:
            if self._lost:
                self._lost(line)
        finally:
            os._exit(LOST)
