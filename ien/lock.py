"""Is a run folder in use by a process that lives? (`.lock`: who has it, and a beat every few seconds)

The kernel's lock on the file ends with the process that holds it, and is enough on one machine and on most shared
disks. Where a disk does not carry locks from machine to machine, the beat tells whether the holder lives.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ien.errors import InputError

NAME = ".lock"
BEAT_S = 10.0
_WIDTH = 400
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class InUseError(InputError):
    """The folder is another process's, and may be free soon."""


class Lock:
    """The right to write into `folder`, held from construction to `release`; refused with an `InUseError` of one line.

    `job` and `restart`: the holder's job, and how often it was requeued. `previous_alive`: when a holder that did not
    release was last alive, None if the folder was free.
    """

    def __init__(self, folder: Path, job: str, restart: int):
        self.step, self.of = 0, 0
        self.previous_alive: str | None = None
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "restart": restart}
        # Not closed anywhere but in `release`: any close of this file in this process would end the kernel's lock.
        self._file = os.fdopen(os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o600), "r+")
        try:
            self._take(folder)
        except BaseException:
            self._file.close()
            raise
        self._ended = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def at(self, step: int, of: int) -> None:
        """Say how far the run is: steps, of all. Written with the next beat."""
        self.step, self.of = step, of

    def release(self) -> None:
        """Leave the folder to the next."""
        self._ended.set()
        self._thread.join()
        self._file.truncate(0)
        self._file.close()

    def _take(self, folder: Path) -> None:
        kernel = _locked(self._file.fileno())
        holder = read(folder, self._file)
        if kernel is False:
            raise InUseError(_in_use(folder, holder))
        if not holder:
            return
        here = holder.get("host") == self._me["host"]
        before = holder.get("job") == self._me["job"] and holder.get("restart", 0) < self._me["restart"]
        # Of its own job's earlier start, and (where the kernel keeps locks) of this machine, nobody can be alive.
        dead = before or (here and (kernel or not _runs(holder.get("pid", 0))))
        if not dead and _beats(folder, self._file):
            raise InUseError(_in_use(folder, holder))
        self.previous_alive = holder.get("time")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._write()
            except OSError:  # a full disk is told by what writes results
                continue

    def _write(self) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = json.dumps({**self._me, "step": self.step, "of": self.of, "time": now})
        os.pwrite(self._file.fileno(), line.ljust(_WIDTH).encode(), 0)  # over the one before, which is as long


def read(folder: Path, file: Any = None) -> dict[str, Any]:
    """Who holds the folder, or did and could not release it: host, pid, job, restart, step, of, time. Empty if free."""
    try:
        if file is None:
            text = (folder / NAME).read_text()
        else:
            file.seek(0)
            text = file.read()
        holder = json.loads(text)
    except (FileNotFoundError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _locked(file: int) -> bool | None:
    """Whether the kernel gave the lock; None where the disk knows of none."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _beats(folder: Path, file: Any) -> bool:
    """Whether a holder on another machine still writes; by its lines alone, so that no clocks are compared."""
    before, until = read(folder, file).get("time"), time.monotonic() + 3 * BEAT_S
    while time.monotonic() < until:
        now = read(folder, file)
        if not now:
            return False  # it has released
        if now.get("time") != before:
            return True
        time.sleep(BEAT_S / 10)
    return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _in_use(folder: Path, holder: dict[str, Any]) -> str:
    if not holder:
        return f"{folder} is in use by another process; wait for it, or take another save_dir"
    restarts = f" (restart {holder['restart']})" if holder.get("restart") else ""
    who = f"process {holder.get('pid')} on {holder.get('host')}, job {holder.get('job')}{restarts}"
    return f"{folder} is in use by {who}; wait for it, stop it, or take another save_dir"
