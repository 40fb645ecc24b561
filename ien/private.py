"""Is a folder its owner's alone? (what is read back from it decides what the owner's next process does)"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ien.errors import InputError


def make_private(folder: Path) -> None:
    """Make a folder that nobody else can read or write (0700). Raises `InputError` as `refuse_shared` does."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    refuse_shared(folder)


def refuse_shared(folder: Path) -> None:
    """Raises `InputError` for a folder that other users can write to, or that is another user's."""
    if not folder.exists():
        return
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(f"{folder} can be written by other users (mode {mode:04o}); type: chmod go-w {folder}")
    if status.st_uid != os.geteuid():
        raise InputError(
            f"{folder} belongs to another user (number {status.st_uid}); take another run.root or save_dir"
        )
