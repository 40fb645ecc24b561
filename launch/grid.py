"""Which runs are meant by `--seeds 0-4` and `--grid beta_weight=0,0.1,1`?"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from ien.errors import InputError

_LARGEST = 10_000


def overrides(seeds: str | None, grid: Sequence[str], save_dir: str) -> list[list[str]]:
    """For each run the `key=value` that set it apart, its folder below `save_dir` among them; [[]] for a single run.

    Raises `InputError` for what cannot be read.
    """
    axes = [_axis(text) for text in grid]
    if seeds is not None:
        axes.append(("run.seed", [str(seed) for seed in numbers(seeds)]))
    keys = [key for key, _ in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"--grid: {key} is given twice; write its values once, with commas between them")
    if not axes:
        return [[]]
    runs = list(itertools.product(*(values for _, values in axes)))
    if len(runs) > _LARGEST:
        raise InputError(f"--grid: these are {len(runs)} runs; write a grid of at most {_LARGEST}")
    return [
        [*(f"{key}={value}" for key, value in zip(keys, run, strict=True)), f"save_dir={save_dir}/{_name(keys, run)}"]
        for run in runs
    ]


def _axis(text: str) -> tuple[str, list[str]]:
    key, sign, values = text.partition("=")
    listed = _split(values)
    if not sign or not key or not all(listed):
        raise InputError(f"--grid {text}: write KEY=VALUE,VALUE…, as in --grid beta_weight=0,0.1,1")
    if key in ("save_dir", "run.root") or key.startswith("launch."):
        raise InputError(f"--grid {text}: {key} says where a run lies or how it is started; write another setting")
    if len(set(listed)) < len(listed):
        raise InputError(f"--grid {text}: a value stands there twice; remove one")
    return key, listed


def _split(values: str) -> list[str]:
    """At the commas outside of brackets: `[8,2,1],[4,2,1]` are two values."""
    parts, depth = [""], 0
    for sign in values:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def numbers(text: str, name: str = "--seeds") -> list[int]:
    """`0-4` and `0,3,7-9` as numbers, smallest first. Raises `InputError`, which says `name`."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first >= _LARGEST:
            raise InputError(f"{name} {text}: write numbers and ranges, as in {name} 0-4 or {name} 0,3,7-9")
        found |= set(range(first, last + 1))
    return sorted(found)


def _name(keys: Sequence[str], values: Sequence[str]) -> str:
    words = [f"{key.rpartition('.')[2]}_{value}" for key, value in zip(keys, values, strict=True)]
    return "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-") for word in words)
