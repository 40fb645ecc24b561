"""How are the official Rot-MNIST files read (text: 784 floats in [0, 1] and the label per row)?"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from ien.data.trees import refuse_escaping
from ien.errors import InputError

ENDINGS = {"train": "_train_valid.amat", "test": "_test.amat"}
SIDE = 28
COLUMNS = SIDE * SIDE + 1
_BLOCK_BYTES = 8 << 20


def has_amat(source: Path) -> bool:
    """Is `source` a zip, or a folder with .amat files?"""
    return source.suffix.lower() == ".zip" or (source.is_dir() and any(source.glob("*.amat")))


def read_rows(source: Path, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of (images uint8 (b, 1, 28, 28), labels int64 (b,)) of a split of the zip or folder, in the file's order.

    Rows are reshaped as they stand, as the published code does; values are rounded to the nearest of 256 levels.
    Raises `InputError` naming the file, and the row where a row is wrong.
    """
    with _opened(source, split) as (file, path):
        row = 0
        for text in _whole_lines(file, path):
            block = _numbers(text, path, row)
            _check(block, path, row)
            row += len(block)
            images = np.rint(block[:, :-1] * 255).astype(np.uint8).reshape(-1, 1, SIDE, SIDE)
            yield images, block[:, -1].astype(np.int64)


def amat_files(source: Path) -> list[Path]:
    """The files that `read_rows` would read (the zip itself for a zip)."""
    return [source] if source.is_file() else [_only(sorted(source.glob("*.amat")), source, s) for s in ENDINGS]


@contextmanager
def _opened(source: Path, split: str) -> Iterator[tuple[IO[bytes], Path]]:
    if source.is_dir():
        path = _only(sorted(source.glob("*.amat")), source, split)
        with path.open("rb") as file:
            yield file, path
        return
    try:
        with zipfile.ZipFile(source) as archive:
            refuse_escaping(source, archive.namelist())
            member = _only([Path(name) for name in archive.namelist()], source, split)
            with archive.open(member.as_posix()) as file:
                yield file, source / member
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{source} is damaged or truncated ({error}); fetch it again") from error


def _only(paths: list[Path], source: Path, split: str) -> Path:
    found = [path for path in paths if path.name.endswith(ENDINGS[split])]
    if len(found) != 1:
        raise InputError(f"{source} holds {len(found)} files that end in {ENDINGS[split]}; one is needed")
    return found[0]


def _whole_lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    rest = b""
    while block := file.read(_BLOCK_BYTES):
        head, _, tail = (rest + block).rpartition(b"\n")
        if head.strip():
            yield head
        rest = tail
    if rest.strip():
        yield rest


def _numbers(text: bytes, path: Path, row: int) -> np.ndarray:
    """float64 (rows, 785). np.fromstring reads text many times faster than np.loadtxt."""
    lines = [line for line in text.decode("ascii", "replace").split("\n") if line.strip()]
    rows = np.empty((len(lines), COLUMNS))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how numpy says "here the numbers end"
        for number, line in enumerate(lines):
            try:
                rows[number] = np.fromstring(line, sep=" ").reshape(COLUMNS)
            except (ValueError, DeprecationWarning) as error:
                raise InputError(
                    f"{path} row {row + number + 1} is no row of {COLUMNS} numbers (784 pixels and the label); "
                    f"the file is truncated or damaged, fetch it again"
                ) from error
    return rows


def _check(block: np.ndarray, path: Path, row: int) -> None:
    pixels, labels = block[:, :-1], block[:, -1]
    fit = ((pixels >= 0) & (pixels <= 1)).all(1) & np.isin(labels, np.arange(10))
    if not fit.all():
        raise InputError(
            f"{path} row {row + int(np.argmin(fit)) + 1}: {COLUMNS - 1} values in [0, 1] and a label 0..9 are "
            f"expected; the file is damaged, fetch it again"
        )
