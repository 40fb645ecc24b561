"""Which options do all prepared sets share on the command line, and what may be typed there?"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_common(parser: argparse.ArgumentParser, workers: bool = False) -> None:
    """--root, --name, --seed, --force, and --workers where images are decoded."""
    parser.add_argument("--root", type=Path, default=Path("data"), metavar="DIR", help="(default %(default)s)")
    parser.add_argument("--name", metavar="NAME", help="folder under the root (default: the data set's own)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of every random draw (default %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace the set that is already there")
    if workers:
        parser.add_argument(
            "--workers", type=count, default=os.cpu_count() or 1, metavar="N", help="threads (default: all cores)"
        )


def whole(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def share(text: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1")
    return value


def source_path(text: str) -> Path:
    """A path, `~` allowed."""
    return Path(text).expanduser()
