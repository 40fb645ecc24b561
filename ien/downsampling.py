"""How does a map lose pixels without aliasing, and without moving its middle? (a drop-in for strided layers)

A strided layer reads every s-th pixel, so that a shift or turn of its input changes what it sees. Zhang (*Making
Convolutional Networks Shift-Invariant Again*, ICML 2019, arXiv 1904.11486) lets the layer run with stride 1, smooths
what it gives with a binomial filter, and skips pixels only then.

Which filter keeps the middle where it is depends on the map: from L pixels to n = ⌈L/s⌉, a filter of f pixels does if
and only if f ≡ L - s(n - 1) mod 2 (`ien.alignment.rules`). With s = 2 that is an odd filter on odd sides and an even one
on even sides. So a `BlurPool2d` has both, [1 2 1] and [1 3 3 1], and takes the one that fits the map it is given: it
keeps exact quarter turns at *every* size, and gives as many pixels as the strided layer did.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ien.errors import InputError

Pair = tuple[int, int]


class BlurPool2d(nn.Module):
    """Smooth and keep every `stride`-th pixel: (B, C, H, W) → (B, C, ⌈H/stride⌉, ⌈W/stride⌉), for any H and W.

    The filter is binomial, of `size` or `size` + 1 pixels, whichever keeps the middle of the map (`size` 3 is Zhang's
    Triangle-3, and 4 where the side is even). Beyond the edge the map is continued by its outermost pixels, so that a
    constant stays one on maps of a single pixel too. There are no parameters, and nothing enters the `state_dict`.
    """

    def __init__(self, stride: int | Pair = 2, size: int = 3):
        super().__init__()
        self.stride, self.size = _pair(stride), size
        if min(self.stride) < 1 or size < 1:
            raise InputError(f"stride {stride} and size {size} must be whole numbers from 1 up")
        for number in (size, size + 1):
            taps = torch.tensor([math.comb(number - 1, place) for place in range(number)], dtype=torch.float64)
            self.register_buffer(f"taps{number}", (taps / taps.sum()).float(), persistent=False)

    def forward(self, maps: Tensor, sides: Pair | None = None) -> Tensor:
        """`sides`: pixels to give, where not ⌈H/stride⌉ and ⌈W/stride⌉ (as layers with `ceil_mode` have one more)."""
        lengths = (maps.shape[-2], maps.shape[-1])
        sides = sides or (-(-lengths[0] // self.stride[0]), -(-lengths[1] // self.stride[1]))
        (rows, top), (columns, left) = (self._filter(*axis) for axis in zip(lengths, sides, self.stride, strict=True))
        kernel = (rows[:, None] * columns[None, :]).to(maps.dtype).expand(maps.shape[1], 1, -1, -1)
        padded = F.pad(maps, (left, left, top, top), mode="replicate")
        return F.conv2d(padded, kernel, stride=self.stride, groups=maps.shape[1])

    def _filter(self, length: int, side: int, stride: int) -> tuple[Tensor, int]:
        """The filter along one axis, and the pixels to pad on both sides of the map."""
        rest = length - stride * (side - 1)
        if stride == 1 and rest == 1:
            return torch.ones_like(self.get_buffer(f"taps{self.size}")[:1]), 0
        number = self.size + (self.size - rest) % 2
        return self.get_buffer(f"taps{number}"), max(0, (number - rest) // 2)

    def extra_repr(self) -> str:
        return f"stride={self.stride}, size={self.size}"
