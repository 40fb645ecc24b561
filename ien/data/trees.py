"""Which image files does a folder or a zip hold, and what do they show?"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from ien.errors import InputError

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
_BLOCK = 256


@dataclass(frozen=True)
class Tree:
    """The files of a folder or a zip: relative paths with '/', sorted, and how to read one."""

    source: Path
    sizes: dict[str, int]  # path -> bytes
    read: Callable[[str], bytes]

    @property
    def paths(self) -> Iterable[str]:
        return self.sizes.keys()

    @property
    def images(self) -> list[str]:
        return [path for path in self.paths if is_image(path)]

    @property
    def fingerprint(self) -> str:
        """sha256 over every path and its size: says which tree this is without reading it."""
        listing = "\n".join(f"{path}\t{size}" for path, size in self.sizes.items())
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()

    def bytes_of(self, path: str) -> bytes:
        """The content of a file. Raises `InputError` naming it if it is missing or damaged."""
        if path not in self.sizes:
            raise InputError(f"{self.source} lacks {path}; it is incomplete, fetch it again")
        try:
            return self.read(path)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{self.source}: {path} cannot be read ({error}); fetch it again") from error


def open_tree(source: Path) -> Tree:
    """The files below a folder, or in a zip; a single folder around everything is left out of the paths.

    A zip is read in memory, a member at a time, and never unpacked. Raises `InputError` if the source does not exist,
    is damaged, or is a zip with a member that would leave its folder.
    """
    if not source.exists():
        raise InputError(f"--from {source} does not exist; give the folder or the zip that holds the images")
    tree = _folder_tree(source) if source.is_dir() else _zip_tree(source)
    return _without_outer_folder(tree)


def refuse_escaping(source: Path, members: Iterable[str]) -> None:
    """Raise `InputError` if a zip's member has an absolute path or one that leaves the folder it is unpacked to."""
    for member in members:
        path = member.replace("\\", "/")
        if path.startswith("/") or ".." in path.split("/") or path[1:2] == ":":
            raise InputError(f"{source} holds {member!r}, a path that leaves its folder; such a zip is not read")


def is_image(path: str) -> bool:
    """By its suffix; hidden files (`._cat.jpg`) are none."""
    pure = PurePosixPath(path)
    return pure.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in pure.parts)


def decoded(
    tree: Tree, paths: Sequence[str], workers: int, fit: Callable[[Image.Image, str], np.ndarray], grey: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of (images uint8 (b, C, S, S), their indices in `paths` (b,)), in order whatever the number of workers.

    `fit(image, path)` makes uint8 (S, S) or (S, S, C) of a decoded image. Workers are threads: Pillow decodes and
    resizes without Python's lock.
    """

    def one_block(indices: np.ndarray) -> np.ndarray:
        arrays = [fit(_image(tree, paths[i], grey), paths[i]) for i in indices]
        stacked = np.stack([array[:, :, None] if array.ndim == 2 else array for array in arrays])
        return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))

    blocks = [np.arange(at, min(at + _BLOCK, len(paths))) for at in range(0, len(paths), _BLOCK)]
    with ThreadPoolExecutor(workers) as pool:
        yield from zip(_in_order(pool, one_block, blocks, ahead=2 * workers), blocks, strict=True)


def image_size(tree: Tree, path: str) -> tuple[int, int]:
    """(width, height) of one image."""
    return _image(tree, path, grey=False).size


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[np.ndarray], np.ndarray], blocks: list[np.ndarray], ahead: int
) -> Iterator[np.ndarray]:
    """Like pool.map, but at most `ahead` results wait in memory, and an error cancels what has not begun."""
    waiting: deque[Future[np.ndarray]] = deque()
    try:
        for block in blocks:
            waiting.append(pool.submit(work, block))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _image(tree: Tree, path: str, grey: bool) -> Image.Image:
    content = tree.bytes_of(path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.mode.startswith(("I", "F")):  # convert() would clip these to white
                raise InputError(f"{tree.source}: {path} has more than 8 bits a channel; convert it to 8 bits first")
            return image.convert("L" if grey else "RGB")
    except InputError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        reason = "no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"{tree.source}: {path} cannot be decoded ({reason}); replace or remove it") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{tree.source}: {path} is too large to be decoded safely ({error})") from error


def _folder_tree(source: Path) -> Tree:
    sizes = {}
    for folder, _, names in os.walk(source, followlinks=True):
        for name in names:
            path = Path(folder) / name
            if path.is_file():
                sizes[path.relative_to(source).as_posix()] = path.stat().st_size
    return Tree(source, dict(sorted(sizes.items())), lambda path: (source / path).read_bytes())


def _zip_tree(source: Path) -> Tree:
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{source} is no zip, or a truncated one ({error}); fetch it again") from error
    refuse_escaping(source, archive.namelist())
    sizes = {member.filename: member.file_size for member in archive.infolist() if not member.is_dir()}
    return Tree(source, dict(sorted(sizes.items())), archive.read)


def _without_outer_folder(tree: Tree) -> Tree:
    visible = [path for path in tree.paths if not path.startswith(("__MACOSX/", "."))]
    outer = {path.split("/")[0] for path in visible}
    if len(outer) != 1 or not all("/" in path for path in visible):
        return tree
    prefix = f"{outer.pop()}/"
    sizes = {path.removeprefix(prefix): tree.sizes[path] for path in visible}
    return Tree(tree.source, sizes, lambda path: tree.read(prefix + path))
