"""Small real inputs: IDX and .amat files, Tiny-ImageNet in its official layout, prepared sets."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ien.data.prepared import Rows, Split
from ien.data.writing import Plan

SIDE = 28


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """30 + 10 images in IDX files, gzipped; the k-th image of all is an off-centre block of brightness 100 + k."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, first, count in (("train", 0, 30), ("t10k", 30, 10)):
        images = np.zeros((count, SIDE, SIDE))
        images[:, 6:14, 12:24] = 100 + first + np.arange(count)[:, None, None]
        labels = (first + np.arange(count)) % 10
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return folder


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


def jpeg(colour: tuple[int, int, int] | int, size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(file, "JPEG", quality=95)
    return file.getvalue()


COLOURS = {"n01": (200, 20, 20), "n02": (20, 200, 20), "n03": 150}  # the third class is greyscale


@pytest.fixture
def tiny_files() -> dict[str, bytes]:
    """Tiny-ImageNet's official layout: three classes of one colour each, 6 train and 2 val images a class."""
    files: dict[str, bytes] = {"wnids.txt": b"n02\nn01\nn03\n", "words.txt": b""}
    annotations = []
    for name, colour in COLOURS.items():
        for k in range(6):
            files[f"train/{name}/images/{name}_{k}.JPEG"] = jpeg(colour)
        files[f"train/{name}/{name}_boxes.txt"] = b""
    for k, name in enumerate(("n03", "n01", "n02", "n01", "n02", "n03")):
        files[f"val/images/val_{k}.JPEG"] = jpeg(COLOURS[name])
        annotations.append(f"val_{k}.JPEG\t{name}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    return files


@pytest.fixture
def packed(tmp_path: Path) -> Callable[..., Path]:
    def pack(files: dict[str, bytes], name: str = "tiny-imagenet-200.zip", outer: str = "tiny-imagenet-200/") -> Path:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path, content in files.items():
                archive.writestr(outer + path, content)
        return tmp_path / name

    return pack


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[..., Path]:
    def unpack(files: dict[str, bytes], name: str = "tree") -> Path:
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return tmp_path / name

    return unpack


def numbered(count: int, side: int = 4, channels: int = 1) -> Split:
    """Image k is k everywhere, its label k % 10."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, channels, side, side))
    return Split(Rows(np.array(images)), np.arange(count, dtype=np.int64) % 10)


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
