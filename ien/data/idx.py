"""How are plain MNIST's IDX files read (magic number, sizes, bytes; gzipped or not)?"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from ien.errors import InputError

_MAGIC = {"images": 0x00000803, "labels": 0x00000801}  # unsigned bytes in 3 dimensions, in 1 dimension


def find_idx(folder: Path) -> dict[str, Path]:
    """The four MNIST files in `folder`, or in torchvision's `MNIST/raw` or `raw` below it; `{}` if there are none."""
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for place in (folder, folder / "MNIST" / "raw", folder / "raw"):
        found = {name: path for name in names if (path := _existing(place, name))}
        if found and len(found) < len(names):
            missing = ", ".join(name for name in names if name not in found)
            raise InputError(f"{place} holds only some of the MNIST files; missing: {missing} (or the same with .gz)")
        if found:
            return found
    return {}


def read_images(path: Path) -> np.ndarray:
    """uint8 (N, 28, 28). Raises `InputError` naming the file if it is no whole IDX file of square images."""
    content = _content(path)
    count, height, width = _sizes(path, content, "images", 3)
    if height != width:
        raise InputError(f"{path} holds images of {height}x{width} pixels; they must be square")
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width)


def read_labels(path: Path) -> np.ndarray:
    """int64 (N,), each 0..9. Raises `InputError` naming the file if it is no whole IDX file of labels."""
    content = _content(path)
    _sizes(path, content, "labels", 1)
    labels = np.frombuffer(content, np.uint8, offset=8).astype(np.int64)
    if len(labels) and labels.max() > 9:
        raise InputError(f"{path} holds the label {labels.max()}; allowed are 0 to 9")
    return labels


def read_both_parts(files: dict[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """All of MNIST from the files that `find_idx` gave: images uint8 (N, 1, 28, 28), labels int64 (N,).

    Raises `InputError` naming the file if one is damaged or the two of a part do not belong together.
    """
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(read_images(files[f"{part}-images-idx3-ubyte"]))
        labels.append(read_labels(files[f"{part}-labels-idx1-ubyte"]))
        if len(images[-1]) != len(labels[-1]):
            where = files[f"{part}-labels-idx1-ubyte"]
            raise InputError(f"{where} holds {len(labels[-1])} labels for {len(images[-1])} images; fetch both again")
    if images[0].shape[1:] != images[1].shape[1:]:
        raise InputError(f"MNIST's two parts differ in size: {images[0].shape[1:]} and {images[1].shape[1:]} pixels")
    return np.concatenate(images)[:, None], np.concatenate(labels)


def _existing(folder: Path, name: str) -> Path | None:
    # Also `train-images.idx3-ubyte`, as some mirrors spell it.
    spellings = (name, name.replace("-idx", ".idx"))
    candidates = (folder / f"{spelling}{suffix}" for spelling in spellings for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _content(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}; the file is truncated or damaged, fetch it again") from error


def _sizes(path: Path, content: bytes, kind: str, dimensions: int) -> tuple[int, ...]:
    start = 4 + 4 * dimensions
    if len(content) < start or struct.unpack(">I", content[:4])[0] != _MAGIC[kind]:
        raise InputError(f"{path} is no IDX file of {kind}: it must begin with the magic number {_MAGIC[kind]:#010x}")
    sizes = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) != start + int(np.prod(sizes, dtype=np.int64)):
        shape = "x".join(map(str, sizes))
        raise InputError(f"{path} says {shape} but holds {len(content) - start} bytes; it is damaged, fetch it again")
    return sizes
