"""Which state of the code is this?"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

RECORDED = ".revision.json"  # in a copy of the code, which is no working tree: what was true of the original
_ROOT = Path(__file__).resolve().parent.parent


def revision(root: Path = _ROOT) -> dict[str, Any] | None:
    """The commit of the working tree in `root` and whether it was clean; None outside of one.

    What lies in docs/ changes no run, and results are written there while others are still running.
    """
    if (root / RECORDED).exists():
        recorded: dict[str, Any] | None = json.loads((root / RECORDED).read_text())
        return recorded
    if not (root / ".git").exists():
        return None
    try:
        return {
            "commit": _git(root, "rev-parse", "HEAD"),
            "clean": not _git(root, "status", "--porcelain", "--", ".", ":!docs"),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
