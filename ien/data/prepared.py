"""What does a data set look like once it is prepared, and can it still be trusted?

A prepared set is one folder, the same for every data set:

    <root>/<name>/
      train_images.npy   uint8 (N, C, S, S)        train_labels.npy   int64 (N,)
      test_images.npy    …                         test_labels.npy    …
      val_images.npy     only where the source has a validation set of its own
      meta.json          recipe, classes, counts, side, channels, sha256 of every .npy file
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ien.errors import InputError

FORMAT = 1
SPLITS = ("train", "val", "test")
_HOLD_OUT = 0x5EED  # keeps the draw of the held-out images apart from every other draw of the same seed


class Rows:
    """Chosen rows of a stored array, in a chosen order, read when they are asked for.

    Behaves like an array along its first axis: `len`, `shape`, `dtype`, `nbytes`, `rows[3]`, `rows[2:9]`,
    `rows[indices]`, `np.asarray(rows)`. A memory-mapped file stays on the disk, also on its way to another process.
    """

    def __init__(self, stored: np.ndarray, chosen: np.ndarray | None = None) -> None:
        self.stored = stored
        self.chosen = np.arange(len(stored)) if chosen is None else chosen
        self.shape = (len(self.chosen), *stored.shape[1:])
        self.dtype = stored.dtype
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * stored.dtype.itemsize

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(self.stored[self.chosen[key]])  # a copy: torch wants memory it may write to

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def __reduce__(self) -> tuple:
        if isinstance(self.stored, np.memmap):  # numpy would pickle every image of the file
            return _reopened, (str(self.stored.filename), self.chosen)
        return Rows, (self.stored, self.chosen)


@dataclass(frozen=True)
class Split:
    """One part of a data set: `images` uint8 (N, C, S, S), `labels` int64 (N,)."""

    images: Rows
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Split:
        """The split of these rows, in this order; no image is read."""
        return Split(Rows(self.images.stored, self.images.chosen[rows]), self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """Three splits, the names of the classes, and a sha256 per array (`fingerprint`) that says which data these are."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: dict[str, str]

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def side(self) -> int:
        return self.train.images.shape[2]


def open_prepared(
    root: Path, name: str, val_split: float | int, seed: int, verify: bool = True, command: str | None = None
) -> Dataset:
    """Open `<root>/<name>` without reading its images into memory.

    Where the set has no validation images of its own, `val_split` of the training images are held out (see `hold_out`).
    `verify` compares the sha256 of every file with `meta.json`. `command` is what prepares the set, for the message.
    Raises `InputError` if the set is not prepared, damaged, or of another format.
    """
    folder = Path(root) / name
    if not (folder / "meta.json").is_file():
        raise InputError(
            f"data set {name!r} is not prepared: {folder} has no meta.json; run: {command or _ANY_COMMAND}"
        )
    meta = _read_meta(folder / "meta.json")
    splits = {split: _open_split(folder, split, meta, verify) for split in SPLITS if split in meta["counts"]}
    train, val = _with_validation(splits, val_split, seed, name)
    return Dataset(name, tuple(meta["classes"]), train, val, splits["test"], dict(meta["sha256"]))


def hold_out(split: Split, val_split: float | int, seed: int) -> tuple[Split, Split]:
    """Part `split` into (what stays, what is held out).

    An int is that many images, a float in (0, 1) that share, 0 none. The held-out images are the first of a uniform
    permutation that depends on the seed and the number of images alone; both parts keep the stored order.
    """
    held = _held_count(len(split), val_split)
    order = np.random.default_rng([seed, 0, _HOLD_OUT]).permutation(len(split))
    return split.take(np.sort(order[held:])), split.take(np.sort(order[:held]))


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_ANY_COMMAND = "python -m ien.data --help"
_META_KEYS = {"name", "recipe", "classes", "counts", "side", "channels", "sha256"}


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"cannot be read ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise InputError(
            f"{path} has format {found!r}, this version reads {FORMAT}; prepare the set again with --force"
        )
    if missing := sorted(_META_KEYS - meta.keys()):
        raise _damaged(path, f"lacks {', '.join(missing)}")
    if not {"train", "test"} <= meta["counts"].keys():
        raise _damaged(path, "counts no train or no test images")
    return meta


def _open_split(folder: Path, split: str, meta: dict[str, Any], verify: bool) -> Split:
    count, side = meta["counts"][split], meta["side"]
    images = _open_array(folder / f"{split}_images.npy", (count, meta["channels"], side, side), np.uint8)
    labels = _open_array(folder / f"{split}_labels.npy", (count,), np.int64)
    if verify:
        for path in (folder / f"{split}_images.npy", folder / f"{split}_labels.npy"):
            if sha256_of(path) != meta["sha256"].get(path.name):
                raise _damaged(path, "was altered (its sha256 is not the one in meta.json)")
    labels = np.array(labels)
    if count and not 0 <= labels.min() <= labels.max() < len(meta["classes"]):
        raise _damaged(folder / f"{split}_labels.npy", f"has labels outside 0..{len(meta['classes']) - 1}")
    return Split(Rows(images), labels)


def _open_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    try:
        # A file of zero images has nothing to map.
        array = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, f"is missing, truncated or no .npy file ({error})") from error
    if array.shape != shape or array.dtype != dtype:
        raise _damaged(path, f"holds {array.dtype} {array.shape}, meta.json says {np.dtype(dtype)} {shape}")
    return array


def _with_validation(splits: dict[str, Split], val_split: float | int, seed: int, name: str) -> tuple[Split, Split]:
    train, own = splits["train"], splits.get("val")
    if own is None:
        return hold_out(train, val_split, seed)
    # The set brings its own validation images: a share of the training images makes no sense, `0` leaves them unused.
    return train, (own if val_split else own.take(np.arange(0)))


def _held_count(count: int, val_split: float | int) -> int:
    whole = isinstance(val_split, int) and not isinstance(val_split, bool)
    allowed = f"allowed are 0 (none), a number of images below {count}, or a share between 0 and 1"
    if not whole and not (isinstance(val_split, float) and 0 <= val_split < 1):
        raise InputError(f"val_split: {val_split!r} is no number of images and no share; {allowed}")
    held = int(val_split) if whole else round(val_split * count)
    if not 0 <= held < count:
        raise InputError(f"val_split: {val_split} of {count} training images cannot be held out; {allowed}")
    return held


def _reopened(filename: str, chosen: np.ndarray) -> Rows:
    return Rows(np.load(filename, mmap_mode="r", allow_pickle=False), chosen)


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path} {what}; prepare the set again with --force")
