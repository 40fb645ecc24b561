"""How is a map made smaller or larger about its centre?

Magnified by s, what stands at place p comes from place p/s, both measured from the centre; outside there are zeros.
Each pixel of the result is a weighted mean of the source's: the weights fall linearly from the place that it comes from
to nothing at a distance of max(1, 1/s) pixels, and add up to 1. For s > 1 this is bilinear interpolation; for s < 1 the
tent is wider, as the new pixels are larger: what the smaller image cannot hold is left out and does not come back as
another pattern. (Anti-aliasing; the filter of Pillow's and torch's antialiased bilinear resize, here with the centre
where it was for every s.)

Rows and columns do this one after the other: R · map · Rᵀ, with one matrix R per factor and side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def rescaled(maps: Tensor, runs: Sequence[tuple[float, int]]) -> Tensor:
    """Maps (B, C, S, S) with each run of neighbours, (factor, how many), magnified by its factor; same shape and dtype.

    Computed in float32, also under autocast. Runs of factor 1 stay as they are.
    """
    if all(factor == 1 for factor, _ in runs):
        return maps
    alike = _alike(runs)
    parts = maps.split([count for _, count in alike])
    made = [part if factor == 1 else _rescaled(part, factor) for part, (factor, _) in zip(parts, alike, strict=True)]
    return made[0] if len(made) == 1 else torch.cat(made)


def made_of(seen: Tensor, factor: float) -> Tensor:
    """The pixels (S, S) that are made, at this factor, of pixels of the mask `seen` (S, S) alone; on the CPU."""
    rows = _weights(factor, len(seen))
    return rows @ seen.double() @ rows.T > 1 - 1e-9


def _alike(runs: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """The runs, neighbours of one factor put together."""
    alike: list[tuple[float, int]] = []
    for factor, count in runs:
        before = alike.pop()[1] if alike and alike[-1][0] == factor else 0
        alike.append((factor, before + count))
    return alike


def _rescaled(maps: Tensor, factor: float) -> Tensor:
    rows = _matrix(factor, maps.shape[-1], maps.device)
    with torch.autocast(maps.device.type, enabled=False):
        return (rows @ maps.float() @ rows.T).to(maps.dtype)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a cached tensor must serve training too, whoever asked for it first
def _matrix(factor: float, side: int, device: torch.device) -> Tensor:
    return _weights(factor, side).float().to(device)


def _weights(factor: float, side: int) -> Tensor:
    """R (S, S) in float64. Rows whose filter leaves the frame add up to less than 1: outside there are zeros."""
    width = max(1.0, 1 / factor)
    reach = 2 * math.ceil(width)  # so far outside the frame lies the end of a filter that touches it
    place = torch.arange(-reach, side + reach, dtype=torch.float64) - (side - 1) / 2
    source = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / factor
    tent = (1 - (place[None, :] - source[:, None]).abs() / width).clamp(min=0)
    whole = tent.sum(dim=1, keepdim=True).clamp(min=0.5)  # 0 for filters beyond the frame, from 1 up for all others
    return tent[:, reach : reach + side] / whole
