"""On which pixels is a map compared with its moved copy?

Turned by an angle that is resampled: inside the inscribed disc, the pixel centres within (side - 1)/2 of the middle,
whose neighbours lie in the frame whatever the angle. Scaled: on the pixels of the coarser frame that are made of pixels
of the finer one alone, and not of the zeros outside; turned as well, of pixels of its disc.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ien.scales import made_of


# One tensor for all elements that are compared over the same pixels: the objective tells them apart by identity.
@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a cached tensor must serve training too, whoever asked for it first
def visible(side: int, disc: bool, shown: float, device: torch.device) -> Tensor:
    """The mask (side, side), inside the disc or not; `shown` is the side of what both views show, as a share of it."""
    seen = _disc(side) if disc else torch.ones(side, side, dtype=torch.bool)
    return (seen if shown == 1 else made_of(seen, shown)).to(device)


@lru_cache(maxsize=256)
def visible_pixels(side: int, disc: bool, shown: float) -> int:
    """How many pixels that are."""
    return int(visible(side, disc, shown, torch.device("cpu")).sum())


def _disc(side: int) -> Tensor:
    offset = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return offset[:, None] ** 2 + offset[None, :] ** 2 <= ((side - 1) / 2) ** 2
