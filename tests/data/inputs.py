"""Small inputs in the real formats: IDX files, JPEG, Tiny-ImageNet's official layout, as zip and as tree."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from ien.data.prepared import Rows, Split

SIDE = 28


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path) -> Path:
    """30 + 10 images in IDX files, gzipped; the k-th image of all is an off-centre block of brightness 100 + k."""
    folder.mkdir()
    for part, first, count in (("train", 0, 30), ("t10k", 30, 10)):
        images = np.zeros((count, SIDE, SIDE))
        images[:, 6:14, 12:24] = 100 + first + np.arange(count)[:, None, None]
        labels = (first + np.arange(count)) % 10
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return folder


def jpeg(colour: tuple[int, int, int] | int, size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(file, "JPEG", quality=95)
    return file.getvalue()


COLOURS = {"n01": (200, 20, 20), "n02": (20, 200, 20), "n03": 150}  # the third class is greyscale


def tiny_imagenet() -> dict[str, bytes]:
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


def write_zip(path: Path, files: dict[str, bytes], outer: str = "tiny-imagenet-200/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(outer + name, content)
    return path


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def numbered(count: int, side: int = 4, channels: int = 1) -> Split:
    """Image k is k everywhere, its label k % 10."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, channels, side, side))
    return Split(Rows(np.array(images)), np.arange(count, dtype=np.int64) % 10)
