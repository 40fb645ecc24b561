"""Are two runs the same to the bit?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ien import checkpoint

# what may differ between two runs of the same settings
CLOCK = ("images_per_second", "seconds")


def lines(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in records]


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [tensor for part in parts for tensor in tensors(part)]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Weights, optimizer, random states, figures and history, bit by bit."""
    for name in (checkpoint.LAST, checkpoint.BEST):
        first, second = (tensors(checkpoint.load(folder / "checkpoints" / name)) for folder in (one, other))
        assert len(first) == len(second) > 20
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert lines(one) == lines(other)
    results = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    assert all(results[0][name] == results[1][name] for name in results[0] if name not in CLOCK)
