"""Which code does a job run? (a copy, made when it is submitted, that no later edit changes)"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from ien.errors import InputError
from ien.revision import RECORDED, revision

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("ien", "launch")
_LARGEST = 10 << 20  # bytes; code is smaller


def code_of(folder: Path, make: bool = True, root: Path = _ROOT) -> Path:
    """The folder below `folder`, named after its content, that holds a copy of the code in `root`.

    What git tracks or would track is copied; without git, the packages. The same code is copied once; without `make`,
    not at all. Raises `InputError` where it cannot be written.
    """
    files = sorted(_listed(root))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file}\0{os.access(root / file, os.X_OK)}\0".encode())
        digest.update(hashlib.sha256((root / file).read_bytes()).digest())
    place = folder / digest.hexdigest()[:16]
    if make and not place.exists():
        try:
            _copy(root, files, place)
        except OSError as error:
            problem = f"cannot copy the code into {folder}: {error.strerror}"
            raise InputError(f"{problem}; mend that, or take another run.root") from error
    return place


def _copy(root: Path, files: list[Path], place: Path) -> None:
    fresh = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    for file in files:
        (fresh / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / file, fresh / file)
    (fresh / RECORDED).write_text(json.dumps(revision(root)))
    try:
        fresh.rename(place)
    except OSError:  # another submission was faster with the same code
        shutil.rmtree(fresh)
        if not place.exists():
            raise


def _listed(root: Path) -> Iterator[Path]:
    """Files of the code, relative to `root`; large ones are left out, and links that lead nowhere."""
    if (root / ".git").exists() and shutil.which("git"):
        asked = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(asked, capture_output=True, check=True).stdout
        names = listed.decode(errors="surrogateescape").split("\0")
        found = [Path(name) for name in names if name]
    else:
        found = [path.relative_to(root) for name in _PACKAGES for path in (root / name).rglob("*")]
    for path in found:
        whole = root / path
        if whole.is_file() and "__pycache__" not in path.parts and whole.stat().st_size <= _LARGEST:
            yield path
