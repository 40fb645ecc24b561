"""Where does a run live? (its folder: settings, checkpoints, numbers; whether it may be opened)"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ien import config, environment
from ien.config import Config
from ien.errors import InputError
from ien.lock import Lock
from ien.private import make_private, refuse_shared
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
        refuse_shared(self.path)
        config.refuse_other_settings(settings)
        if not settings.training and not self.settings.exists():
            raise InputError(f"{self.path} holds no run to test; train it first with training=true")

    def open(self, settings: Config, device: torch.device, job: str, restart: int) -> Lock:
        """Make the folder, or go on in it; it is this process's until the lock that is returned is released.

        Raises `InputError` where another process has it, where it cannot be written, or where others can write it.
        """
        try:
            make_private(self.path)
            lock = Lock(self.path, job, restart)
            if not self.settings.exists():
                write_text(self.settings, config.resolved(settings))
            write_json(self.path / "environment.json", environment.describe(device))
            return lock
        except OSError as error:
            raise InputError(
                f"cannot write into {self.path}: {error.strerror}; mend that, or take another run.root"
            ) from error

    def result(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        content: dict[str, Any] = json.loads(self.summary.read_text())
        return content
