"""The small inputs as fixtures, and prepared sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ien.data.writing import Plan
from tests.data.inputs import SIDE, numbered, tiny_imagenet, write_mnist, write_tree, write_zip


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    return write_mnist(tmp_path / "mnist")


def amat_text(images: np.ndarray, labels: np.ndarray) -> str:
    rows = np.concatenate([images.reshape(len(images), -1) / 255, labels[:, None]], axis=1)
    return "".join("   ".join(f"{value:.8e}" for value in row) + " \n" for row in rows)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The two official .amat files with 12 + 8 rows, in a folder; row k is black but for pixel k, which is 20 k."""
    folder = tmp_path / "official"
    folder.mkdir()
    for ending, count in (("train_valid", 12), ("test", 8)):
        images = np.zeros((count, SIDE * SIDE))
        images[np.arange(count), np.arange(count)] = 20 * np.arange(count)
        text = amat_text(images, np.arange(count) % 10)
        (folder / f"mnist_all_rotation_normalized_float_{ending}.amat").write_text(text)
    return folder


@pytest.fixture
def tiny_files() -> dict[str, bytes]:
    return tiny_imagenet()


@pytest.fixture
def packed(tmp_path: Path) -> Callable[..., Path]:
    def pack(files: dict[str, bytes], name: str = "tiny-imagenet-200.zip", outer: str = "tiny-imagenet-200/") -> Path:
        return write_zip(tmp_path / name, files, outer)

    return pack


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[..., Path]:
    def unpack(files: dict[str, bytes], name: str = "tree") -> Path:
        return write_tree(tmp_path / name, files)

    return unpack


@pytest.fixture
def plan_of() -> Callable[..., Plan]:
    """A plan for numbered images, in blocks of 4; `seed` stands in the recipe alone."""

    def plan(seed: int = 0, **counts: int) -> Plan:
        counts = counts or {"train": 10, "test": 6}
        splits = {split: numbered(count) for split, count in counts.items()}

        def blocks(split: str):  # type: ignore[no-untyped-def]
            for at in range(0, counts[split], 4):
                yield splits[split].images[at : at + 4], splits[split].labels[at : at + 4]

        return Plan("numbers", {"seed": seed}, tuple("0123456789"), counts, 4, 1, blocks)

    return plan
