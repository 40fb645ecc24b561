"""What is seen? The data sets by name, how one is opened, and how its batches are made.

A data set is a module with a few names (`DatasetModule`) and one line in `DATASETS`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Protocol

from ien.data import digits, image_folder, rot_mnist, rot_tim, scale_mnist
from ien.data.loader import Batches, InOrder, fits
from ien.data.prepared import Dataset, Split
from ien.data.writing import Plan
from ien.errors import InputError

__all__ = ["DATASETS", "Batches", "Dataset", "DatasetModule", "InOrder", "Split", "fits", "open_dataset"]


class DatasetModule(Protocol):
    """What a data set's module offers."""

    SUMMARY: str  # one line for --help
    VAL_SPLIT: float | int  # held out where the user does not say

    def opened(
        self, *, root: Path, name: str | None, reflection: bool, val_split: float | int | None, seed: int, verify: bool
    ) -> Dataset: ...

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def plan_from(self, args: argparse.Namespace) -> Plan | None: ...


DATASETS: dict[str, DatasetModule] = {
    "digits": digits,
    "rot_mnist": rot_mnist,
    "scale_mnist": scale_mnist,
    "rot_tim": rot_tim,
    "image_folder": image_folder,
}


def open_dataset(
    dataset: str,
    *,
    root: Path,
    name: str | None = None,
    reflection: bool = False,
    val_split: float | int | None = None,
    seed: int = 0,
    verify: bool = True,
) -> Dataset:
    """Open the data set `dataset` (a key of `DATASETS`), prepared under `<root>/<name>`.

    `name` defaults to the data set's folder (rot_tim: "rot_tim", with `reflection` "r2_tim"); image_folder has none.
    `val_split`: training images that are held out for validation: a number of images, a share in (0, 1), 0 for none,
    None for the data set's default (digits 200, rot_mnist and scale_mnist 2,000, others a tenth). Which ones depends on
    `seed` and their number alone. A set with validation images of its own uses those instead (0 leaves them out).
    `verify`: compare every file with the sha256 written at its preparation (about a second per gigabyte).
    Raises `InputError` for an unknown, unprepared or damaged set, and for a `val_split` that cannot be.
    """
    if dataset not in DATASETS:
        raise InputError(f"dataset: {dataset!r} is unknown; allowed are {', '.join(DATASETS)}")
    return DATASETS[dataset].opened(
        root=Path(root), name=name, reflection=reflection, val_split=val_split, seed=seed, verify=verify
    )
