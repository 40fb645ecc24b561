"""How is a data set written, so that it is either whole or not there?"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ien.data.prepared import FORMAT, open_prepared
from ien.errors import InputError

Block = tuple[np.ndarray, np.ndarray]  # images uint8 (b, C, S, S), labels int64 (b,)


@dataclass(frozen=True)
class Plan:
    """What a prepared set will hold, known before its first image is made.

    `blocks(split)` yields the images and labels of a split in order; they must add up to `counts[split]`. Equal recipes
    mean equal files. `notes` are told to the user and not written.
    """

    name: str
    recipe: dict[str, Any]
    classes: tuple[str, ...]
    counts: dict[str, int]
    side: int
    channels: int
    blocks: Callable[[str], Iterator[Block]]
    notes: tuple[str, ...] = field(default=())


def already_prepared(plan: Plan, root: Path, name: str) -> bool:
    """True if `<root>/<name>` is whole and of the same recipe; `InputError` if it is damaged or of another recipe."""
    folder = _folder(root, name)
    if not folder.exists():
        return False
    if not (folder / "meta.json").is_file():
        raise InputError(f"{folder} exists and is no prepared data set; remove it or choose another --name")
    open_prepared(root, name, val_split=0, seed=0)
    found = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["recipe"]
    wanted = json.loads(json.dumps(plan.recipe))
    if found == wanted:
        return True
    differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    raise InputError(
        f"{folder} is prepared with another recipe (differs in: {', '.join(differing)}); "
        f"choose another --name, or replace it with --force"
    )


def write_prepared(plan: Plan, root: Path, name: str, advance: Callable[[int], Any] = lambda images: None) -> dict:
    """Write the planned set aside, then rename it to `<root>/<name>`; an older set is removed after that.

    Returns what `meta.json` holds. `advance` is called with the number of images of every block written.
    Interrupted at any moment, this leaves the old set (or none) and perhaps a `.<name>.partial` folder, which the next
    call removes. Raises `InputError` if the disk is full or may not be written to.
    """
    folder = _folder(root, name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder), _partial(folder) as partial:
            meta = _write_files(plan, partial, name, advance)
            _put_in_place(partial, folder)
        return meta
    except OSError as error:
        at = error.filename or folder
        raise InputError(f"cannot write {at}: {error.strerror or error}; choose another --root or make room") from error


def _folder(root: Path, name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"--name {name!r} cannot be a folder's name; use letters, digits, '.', '_' and '-'")
    return Path(root) / name


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two commands preparing one set would write into the same partial folder; the second is told to wait."""
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder} is being prepared by another process; wait for it to end") from error
        yield


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    partial, replaced = _beside(folder, "partial"), _beside(folder, "replaced")
    if replaced.exists() and not folder.exists():  # killed between the two renames of `_put_in_place`
        replaced.rename(folder)
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _beside(folder: Path, what: str) -> Path:
    return folder.parent / f".{folder.name}.{what}"


def _write_files(plan: Plan, partial: Path, name: str, advance: Callable[[int], Any]) -> dict:
    digests: dict[str, str] = {}
    for split, count in plan.counts.items():
        digests |= _write_split(plan, split, count, partial, advance)
    meta = {
        "format": FORMAT,
        "name": name,
        "recipe": plan.recipe,
        "classes": list(plan.classes),
        "counts": plan.counts,
        "side": plan.side,
        "channels": plan.channels,
        "sha256": digests,
    }
    with (partial / "meta.json").open("w", encoding="utf-8") as file:
        json.dump(meta, file, indent=2)
        file.write("\n")
        _to_disk(file)
    return meta


def _write_split(plan: Plan, split: str, count: int, partial: Path, advance: Callable[[int], Any]) -> dict[str, str]:
    shape = (count, plan.channels, plan.side, plan.side)
    images = _ArrayFile(partial / f"{split}_images.npy", shape, np.uint8)
    labels = _ArrayFile(partial / f"{split}_labels.npy", (count,), np.int64)
    with images, labels:
        for some_images, some_labels in plan.blocks(split):
            images.append(some_images)
            labels.append(some_labels)
            advance(len(some_labels))
    return {array.path.name: array.digest.hexdigest() for array in (images, labels)}


def _put_in_place(partial: Path, folder: Path) -> None:
    replaced = _beside(folder, "replaced")
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    directory = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    shutil.rmtree(replaced, ignore_errors=True)


class _ArrayFile:
    """A .npy file written block by block. (A memory map would end in a bus error on a full disk; a write says so.)"""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.digest, self.rows = hashlib.sha256(), 0

    def __enter__(self) -> _ArrayFile:
        self.file = self.path.open("wb")
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": self.shape})
        self._write(header.getvalue())
        return self

    def append(self, block: np.ndarray) -> None:
        assert block.dtype == self.dtype, (self.path, block.dtype)
        assert block.shape[1:] == self.shape[1:], (self.path, block.shape)
        self.rows += len(block)
        self._write(np.ascontiguousarray(block).tobytes())

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self.file:
            if kind is None:
                assert self.rows == self.shape[0], (self.path, self.rows, self.shape)
                _to_disk(self.file)

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
