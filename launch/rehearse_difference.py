"""In what do two checkpoints differ first? (bit by bit, but for what clocks say)"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ien import checkpoint

CLOCKS = ("seconds", "images_per_second")


def first_difference(one: Path, other: Path) -> str:
    """The name of the first tensor, or number, that differs, and by how much; empty if there is none.

    The weights come first, where a person looks first.
    """
    ours, theirs = (dict(_leaves(checkpoint.load(path))) for path in (one, other))
    for name in sorted({**ours, **theirs}, key=lambda name: not name.startswith("model.")):
        if name.rpartition(".")[2] in CLOCKS:
            continue
        if name not in ours or name not in theirs:
            return f"{name} is in one of the checkpoints alone"
        if words := _difference(ours[name], theirs[name]):
            return f"{name} {words}"
    return ""


def _leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(state, dict | list | tuple):
        yield name, state
        return
    for key, part in state.items() if isinstance(state, dict) else enumerate(state):
        yield from _leaves(part, f"{name}.{key}" if name else str(key))


def _difference(one: Any, other: Any) -> str:
    """In words; empty where both are the same."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return "" if repr(one) == repr(other) else f"is {one!r} in the one and {other!r} in the other"
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        kinds = [f"{tensor.dtype} of {tuple(tensor.shape)}" for tensor in (one, other)]
        return f"is {kinds[0]} in the one and {kinds[1]} in the other"
    # As bytes: -0 equals 0 and is none, and NaN does not even equal itself.
    bits, others = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    if torch.equal(bits, others):
        return ""
    apart = (one.double() - other.double()).abs()
    # In a NaN that is in one of them alone, the two differ as well.
    places = int((one.ne(other) & ~(one.isnan() & other.isnan())).sum())
    return f"differs by up to {apart.nan_to_num(0).max():.3g}, in {places} of {one.numel():,} places"
