"""Where does a run live? (its folder: settings, checkpoints, numbers; whether it may be opened)"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from ien import config, environment
from ien.config import Config
from ien.errors import InputError
from ien.tracking import write_json, write_text


@dataclass(frozen=True)
class Folder:
    """`runs/<save_dir>` and what lies in it."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        return self.summary.exists()

    def check(self, settings: Config) -> None:
        """Raises `InputError` if the folder holds a run of other settings, or none where one is to be tested."""
        config.refuse_other_settings(settings)
        if not settings.training and not self.settings.exists():
            raise InputError(f"{self.path} holds no run to test; train it first with training=true")

    def open(self, settings: Config, device: torch.device) -> TextIO:
        """Make the folder, or go on in it; it is this process's until the file that is returned is closed.

        Raises `InputError` where another process has it, or where it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._locked()
            if not self.settings.exists():
                write_text(self.settings, config.resolved(settings))
            write_json(self.path / "environment.json", environment.describe(device))
            return lock
        except OSError as error:
            raise InputError(
                f"cannot write into {self.path}: {error.strerror}; mend that, or take another run.root"
            ) from error

    def _locked(self) -> TextIO:
        # A POSIX lock: it ends with this process, however that ends, and data-loader workers do not inherit it.
        lock = (self.path / ".lock").open("a+")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise InputError(f"{self.path} is in use by {holder}; wait for it, or take another save_dir") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        return lock

    def result(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        content: dict[str, Any] = json.loads(self.summary.read_text())
        return content
