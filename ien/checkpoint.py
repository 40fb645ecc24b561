"""How does a run outlive its process?

A checkpoint is a file that `torch.load(path, weights_only=True)` reads. It is written beside its place, synced to the
disk, and renamed; the SHA-256 of its content stands in the comment of the zip archive that it is, so that one file is
either whole and verified, or refused. The one before it stays as `previous.pt`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from ien.errors import InputError

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64


class DamagedError(Exception):
    """A checkpoint file that is truncated, altered, or none at all."""


def save_last(folder: Path, state: dict[str, Any]) -> None:
    """Write `last.pt`; the one before becomes `previous.pt`. At every moment one of them is whole."""
    fresh = _write_aside(folder, LAST, state)
    with contextlib.suppress(FileNotFoundError):
        (folder / LAST).replace(folder / PREVIOUS)
    _put(fresh, folder / LAST)


def save_best(folder: Path, state: dict[str, Any]) -> None:
    """Write `best.pt` in place of an earlier one."""
    _put(_write_aside(folder, BEST, state), folder / BEST)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint to go on from, and a line for each file that was passed over.

    A damaged `last.pt` is set aside as `last.pt.damaged`, so that the next save does not put it in the place of the
    whole one. `InputError` where there are files but none of them is whole.
    """
    passed: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if path.exists():
            try:
                verify(path)
                if passed:
                    (folder / LAST).replace(folder / f"{LAST}.damaged")
                return path, passed
            except DamagedError as damage:
                passed.append(f"{path}: {damage}")
    if passed:
        raise InputError(
            f"no checkpoint can be read ({'; '.join(passed)}); remove {folder.parent} to start again from nothing"
        )
    return None, passed


def load(path: Path) -> dict[str, Any]:
    """The verified content of a checkpoint, on the CPU. Raises `DamagedError`."""
    verify(path)
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def verify(path: Path) -> None:
    """Compare a file with the SHA-256 that it carries. Raises `DamagedError`."""
    size = path.stat().st_size - _COMMENT
    if size < 22:
        raise DamagedError("truncated")
    with path.open("rb") as file:
        digest = _digest(file, size - 2)
        file.seek(size - 2)
        comment = file.read()
    head = _COMMENT.to_bytes(2, "little") + _MARK
    if not comment.startswith(head):
        raise DamagedError("truncated, or not a checkpoint of this program")
    if comment[len(head) :] != digest:
        raise DamagedError("its content does not match its checksum")


def _write_aside(folder: Path, name: str, state: dict[str, Any]) -> Path:
    fresh = folder / f".{name}.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, fresh)
        _seal(fresh)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {folder / name}: {_first_line(error)}; the checkpoints before it are untouched: "
            "make room (or mend the permission) and give the same command again"
        ) from error
    return fresh


def _seal(path: Path) -> None:
    """Put the checksum of everything else into the archive's comment, and the file onto the disk."""
    assert zipfile.is_zipfile(path), path
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        digest = _digest(file, size - 2)  # the last two bytes are the comment's length
        file.seek(size - 2)
        file.write(_COMMENT.to_bytes(2, "little") + _MARK + digest)
        file.flush()
        os.fsync(file.fileno())


def _digest(file: Any, size: int) -> bytes:
    file.seek(0)
    content = hashlib.sha256()
    while size > 0:
        block = file.read(min(size, 1 << 20))
        if not block:
            raise DamagedError("truncated")
        content.update(block)
        size -= len(block)
    return content.hexdigest().encode()


def _put(fresh: Path, place: Path) -> None:
    fresh.replace(place)
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
