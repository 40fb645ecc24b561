"""What can be trained on without any download: scikit-learn's handwritten digits, rotated."""

from __future__ import annotations

import argparse
import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ien.data.prepared import Dataset, Rows, Split, hold_out
from ien.data.turning import draws, rotated
from ien.data.writing import Plan

SUMMARY = "scikit-learn's handwritten digits, rotated; embedded, nothing to prepare"
VAL_SPLIT: float | int = 200
SIDE, _BOX = 28, 20  # as in MNIST, the digit fills a 20×20 box, so that a turned one does not leave the frame
TRAIN = 1_297  # of 1,797; the rest is the test set


def opened(
    *, root: Path, name: str | None, reflection: bool, val_split: float | int | None, seed: int, verify: bool
) -> Dataset:
    """See `ien.data.open_dataset`. Made in memory, always the same images; `seed` draws the held-out ones alone."""
    (train, test), fingerprint = _built()
    train, val = hold_out(train, VAL_SPLIT if val_split is None else val_split, seed)
    return Dataset("digits", tuple("0123456789"), train, val, test, dict(fingerprint))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`python -m ien.data digits` has no options."""


def plan_from(args: argparse.Namespace) -> Plan | None:
    """None: there is nothing to prepare."""
    return None


@lru_cache(maxsize=1)
def _built() -> tuple[tuple[Split, Split], dict[str, str]]:
    images, labels = _source()
    images = _enlarged(images)
    order = np.random.default_rng(0).permutation(len(labels))  # the source is sorted by writer
    train = _turned_split(images, labels, order[:TRAIN], "train")
    test = _turned_split(images, labels, order[TRAIN:], "test")
    arrays = {
        f"{split}_{kind}": array
        for split, part in (("train", train), ("test", test))
        for kind, array in (("images", part.images.stored), ("labels", part.labels))
    }
    return (train, test), {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


def _source() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: float64 (1797, 8, 8) of 0..16, and int64 labels.

    From its file where that lies as usual: the package takes over a second to import.
    """
    package = find_spec("sklearn")
    assert package is not None, "scikit-learn is a dependency"
    assert package.origin is not None
    if (file := Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz").exists():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # only now

    source = load_digits()
    return source.images, source.target.astype(np.int64)


def _enlarged(images: np.ndarray) -> np.ndarray:
    """(N, 8, 8) of 0..16 -> uint8 (N, 1, 28, 28)."""
    small = torch.from_numpy(images).float()[:, None] * (255 / 16)
    large = F.interpolate(small, size=(_BOX, _BOX), mode="bilinear", antialias=True, align_corners=False)
    margin = (SIDE - _BOX) // 2
    return F.pad(large, (margin,) * 4).round().to(torch.uint8).numpy()


def _turned_split(images: np.ndarray, labels: np.ndarray, rows: np.ndarray, split: str) -> Split:
    angles, _ = draws(0, split, np.arange(len(rows)))
    return Split(Rows(rotated(images[rows], angles)), labels[rows])
