"""Does an operation along one axis keep the middle of the map in the middle?

A turn or mirror of a map of S pixels takes pixel i to S - 1 - i. An operation commutes with it, given kernels that are
symmetric, if and only if the positions that its outputs read lie symmetrically about the middle of its input,
(S - 1)/2. Output i of a convolution of kernel k, dilation d, stride s, with `before` pixels padded in front, reads
around

    -before + d(k - 1)/2 + s·i,    i = 0 … n - 1.

`shift` is the mean of these minus (S - 1)/2, in pixels of the input: zero if and only if the grid is kept. With p
pixels of padding on both sides, and n as PyTorch computes it, that is (S + 2p - d(k - 1) - 1) mod s = 0. (The one
exception: a kernel that reads padding alone keeps every grid.)
"""

from __future__ import annotations

import math

NEGLIGIBLE = 1e-6  # pixels: scale factors are not exact in binary


def stencil_shift(inputs: int, outputs: int, kernel: int, stride: int, dilation: int, before: int) -> float:
    """The shift of a convolution or pool from `inputs` to `outputs` pixels; also of a slice (kernel 1, before -start).

    It asks for the outputs that there are, so that it is right for uneven padding and for `ceil_mode` too.
    """
    return -before + (dilation * (kernel - 1) + stride * (outputs - 1) - (inputs - 1)) / 2


def transposed_shift(inputs: int, outputs: int, kernel: int, stride: int, dilation: int, before: int) -> float:
    """The same for a transposed convolution, whose input i writes around s·i - before + d(k - 1)/2 of its output."""
    written = -before + (dilation * (kernel - 1) + stride * (inputs - 1)) / 2
    return ((outputs - 1) / 2 - written) / stride


def linear_shift(inputs: int, outputs: int, scale: float | None, align_corners: bool) -> float:
    """The same for linear and cubic interpolation; `scale` is the factor that was given, if one was.

    With `align_corners` the outer pixels meet; without, output i reads at (i + ½)/scale - ½. A given factor is used as
    it is, though n = ⌊S·scale⌋ may have lost a part of the map.
    """
    if align_corners:
        return 0.0 if outputs > 1 else -(inputs - 1) / 2
    return (outputs * _step(inputs, outputs, scale) - inputs) / 2


def nearest_shift(inputs: int, outputs: int, scale: float | None, exact: bool) -> float:
    """The same for nearest neighbours (`exact`: PyTorch's `nearest-exact`): the largest distance of a pair of outputs
    that should read mirrored pixels from doing so, halved as the shift of a whole grid would be."""
    step, half = _step(inputs, outputs, scale), 0.5 if exact else 0.0
    reads = [min(math.floor((i + half) * step), inputs - 1) for i in range(outputs)]
    off = [(one + other - (inputs - 1)) / 2 for one, other in zip(reads, reversed(reads), strict=True)]
    return max(off, key=abs)


def _step(inputs: int, outputs: int, scale: float | None) -> float:
    return 1 / scale if scale else inputs / outputs
