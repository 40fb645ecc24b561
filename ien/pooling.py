"""How do the channels of a filter group become one?

By their maximum. Homogeneous: all groups hold k channels. Heterogeneous: the channels are dealt out in the shares
`ratio`, and each share is pooled in groups of its own size (arXiv 2111.14157, section on heterogeneous filter groups).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ien.errors import InputError

# name: (ratio, mplc_kernel_size), as published
PRESETS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "R8-4-2-1": ((32, 8, 2, 1), (8, 4, 2, 1)),
    "R8-4-2": ((8, 2, 1), (8, 4, 2)),
    "R4-2-1": ((8, 2, 1), (4, 2, 1)),
}


MOST_PLACES = 256  # in a byte


class ChannelMaxPool(nn.Module):
    """The maximum over each filter group: (B, C, ...) → (B, `width(C)`, ...), in the dtype that came in.

    `sizes[i]` is the number of channels in each filter group of share i, and the shares relate as `ratio`. The pool has
    no parameters, and its output is blind to the order of the channels inside a filter group.
    """

    def __init__(self, sizes: Sequence[int], ratio: Sequence[int] = (1,)):
        super().__init__()
        if not sizes or len(sizes) != len(ratio) or min(*sizes, *ratio) < 1:
            raise InputError(
                f"ratio {list(ratio)} and mplc_kernel_size {list(sizes)} must be equally many whole numbers from 1 up"
            )
        self.sizes, self.ratio = tuple(sizes), tuple(ratio)

    @classmethod
    def from_name(cls, name: str) -> ChannelMaxPool:
        """A preset of the paper (R8-4-2-1, R8-4-2, R4-2-1), or R<N>: filter groups of N channels."""
        if re.fullmatch(r"R[1-9][0-9]*", name):
            return cls([int(name[1:])])
        if name not in PRESETS:
            raise InputError(f"no filter groups are called {name!r}; take one of {', '.join(PRESETS)}, or R<N>")
        ratio, sizes = PRESETS[name]
        return cls(sizes, ratio)

    @classmethod
    def of(cls, pool: ChannelMaxPool | str | int) -> ChannelMaxPool:
        """The pool itself, the one of that name, or the one with filter groups of so many channels."""
        if isinstance(pool, str):
            return cls.from_name(pool)
        return cls([pool]) if isinstance(pool, int) else pool

    @property
    def multiple(self) -> int:
        """The number of channels must be a multiple of this, so that every share is made of whole filter groups."""
        parts = (size // math.gcd(size, share) for size, share in zip(self.sizes, self.ratio, strict=True))
        return sum(self.ratio) * math.lcm(*parts)

    def shares(self, channels: int) -> tuple[int, ...]:
        """How many channels each share gets."""
        if channels < 1 or channels % self.multiple:
            below = channels // self.multiple * self.multiple
            nearest = " or ".join(str(n) for n in (below, below + self.multiple) if n)
            shared = f"shared as {':'.join(map(str, self.ratio))}" if len(self.ratio) > 1 else "put"
            raise InputError(
                f"{channels} channels cannot be {shared} in filter groups of {', '.join(map(str, self.sizes))} "
                f"(they must be a multiple of {self.multiple}; nearest: {nearest})"
            )
        return tuple(channels // sum(self.ratio) * share for share in self.ratio)

    def width(self, channels: int) -> int:
        """How many channels come out."""
        return sum(share // size for share, size in zip(self.shares(channels), self.sizes, strict=True))

    def nearest(self, channels: float) -> int:
        """The number of channels that can be pooled and is closest to `channels` (the larger one of two)."""
        return max(1, math.floor(channels / self.multiple + 0.5)) * self.multiple

    def forward(self, maps: Tensor) -> Tensor:
        shares = maps.split(self.shares(maps.shape[1]), dim=1)
        pooled = [
            _maximum(share.unflatten(1, (-1, size))) if size > 1 else share
            for share, size in zip(shares, self.sizes, strict=True)
        ]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, ratio={self.ratio}"


def _maximum(groups: Tensor) -> Tensor:
    """(B, C', k, ...) → (B, C', ...); where channels are equal the first one has the gradient, and gives the slope."""
    # `max` and not `amax` where it is differentiated: the gradient goes to one channel, by its place. `amax` has it go
    # to all that equal the maximum, and where torch.compile recomputes the maps, rounding can leave none: 0/0.
    compiled = torch.compiler.is_compiling()
    if compiled or forward_ad.unpack_dual(groups).tangent is not None or groups.shape[2] > MOST_PLACES:
        return groups.max(dim=2).values
    if not (torch.is_grad_enabled() and groups.requires_grad):
        return groups.amax(dim=2)
    pooled: Tensor
    pooled, _ = _Maximum.apply(groups)
    return pooled


class _Maximum(torch.autograd.Function):
    """`groups.max(dim=2)` and its gradient, to the bit, but that the places are kept as bytes: torch keeps 8 each."""

    generate_vmap_rule = True

    @staticmethod
    def forward(groups: Tensor) -> tuple[Tensor, Tensor]:
        if groups.device.type == "cpu":  # there, to look for the maximum and its place at once takes twice the time
            maximum = groups.amax(dim=2)
            return maximum, _first_place(groups, maximum)
        maximum, places = groups.max(dim=2)
        return maximum, places.to(torch.uint8)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        (groups,), (_, places) = inputs, output
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(places)
        ctx.shape = groups.shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _places: Tensor) -> Tensor:
        (places,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).scatter_(2, places.long().unsqueeze(2), gradient.unsqueeze(2))


def _first_place(groups: Tensor, maximum: Tensor) -> Tensor:
    """Where each maximum stands first, (B, C', ...): so many channels of its group in a row are below it."""
    first, *others = groups.unbind(dim=2)[:-1]
    below = torch.ne(first, maximum).view(torch.uint8)
    places = below.clone()
    for channel in others:
        below &= torch.ne(channel, maximum).view(torch.uint8)
        places += below
    return places


def group_size(rotations: int, reflection: bool, scales: int = 0) -> int:
    """The channels of a homogeneous filter group: as many as there are elements; of D8 only 8, as published.

    `scales` are those besides 1.
    """
    turns = rotations * (2 if reflection else 1)
    return (8 if (rotations, reflection) == (8, True) else turns) * (1 + scales)
