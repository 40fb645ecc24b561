"""How far is a network from commuting with a small turn or shift? (the local, or Lie-derivative, error)

    L_X f(x) = d/dt g(-t)·f(g(t)·x) at t = 0,     LEE = E_x ‖L_X f(x)‖² / dim f       (Gruver et al., arXiv 2210.02984)

By the chain rule L_X f(x) = J_f(x)·(X x) - X f(x), where X is the motion's generator on an image, and the second term
is left out for outputs that are to stay as they are (logits, probabilities). J_f·v is taken in forward mode, exactly,
in float64. The generators, with central differences for the slopes (the derivative of Catmull-Rom interpolation):

    rotation      -y ∂/∂x + x ∂/∂y about the centre, counter-clockwise on the screen, per radian
    translation   ∂/∂x and ∂/∂y, per pixel of the *image*; the mean of both is given

Outside the frame lie zeros. (Gruver et al. reflect there, interpolate bilinearly, take the probabilities, and shift by
halves of the image's side: multiply by ((S - 1)/2)² for their unit.) Maps are compared on the pixels within
(S - 1)/2 - 1 of the middle, all of whose neighbours are in the frame.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ien.report.activity import LOGITS
from ien.taps import Tapped

log = logging.getLogger("ien")

PROBABILITIES = "probabilities"
MOTIONS = ("rotation", "translation")
_AT_ONCE = 32  # images; derivatives in float64 take room
_LARGER = 64  # pixels: a multiple of every stride in use

Sums = dict[str, Tensor]  # output: (2, 2) float64: of each motion ‖L f‖² and ‖f‖², divided by the dimensions
Outputs = dict[str, Tensor]
Generator = Callable[[Tensor], Tensor]


def local_errors(tapped: Tapped, batches: Iterable[Tensor]) -> dict[str, dict[str, Any]]:
    """{output: {motion: {lee, relative}}} over images (B, C, S, S); outputs are the taps, `logits`, `probabilities`.

    `lee` is the definition above; `relative` is (E‖L f‖² / E‖f‖²)^½, blind to the scale of the features. Both are None
    where they cannot be measured: a map without an inner pixel, a shift where the tap's stride is not known, a network
    that torch cannot differentiate forwards; `relative` also where the output is zero. Call it in eval mode.
    """
    sums: Sums = {}
    images_seen, strides = 0, None
    for batch in batches:
        strides = strides or tap_strides(tapped, batch[:1])
        for images in batch.split(_AT_ONCE):
            images_seen += len(images)
            try:
                found = _local_sums(tapped, images.double(), strides)
            except NotImplementedError as error:
                log.warning("local errors are not measurable: %s", str(error).splitlines()[0])
                unknown = torch.full((2, 2), float("nan"))
                return {name: _figures(unknown, 1) for name in (*tapped.layers, LOGITS, PROBABILITIES)}
            for name, table in found.items():
                sums[name] = sums[name] + table if name in sums else table
    return {name: _figures(table, images_seen) for name, table in sums.items()}


def turning(maps: Tensor) -> Tensor:
    """The generator of counter-clockwise rotations on maps (B, C, S, S): d/dt of the turned maps, per radian."""
    offset = torch.arange(maps.shape[-1], dtype=maps.dtype, device=maps.device) - (maps.shape[-1] - 1) / 2
    return offset * _slope(maps, -2) - offset[:, None] * _slope(maps, -1)


def shifting(dim: int) -> Generator:
    """The generator of translations along dimension -1 (to the right) or -2 (down), per pixel."""
    return lambda maps: -_slope(maps, dim)


@torch.no_grad()
def tap_strides(tapped: Tapped, images: Tensor) -> dict[str, float | None]:
    """How many image pixels lie between two neighbouring pixels of each tap.

    Seen from how the maps grow with an image that is 64 pixels larger; None for a tap that does not grow along, or a
    network that takes one size alone.
    """
    here = {name: one.shape[-1] for name, one in tapped(images)[1].items()}
    try:
        larger = tapped(F.pad(images, (0, _LARGER, 0, _LARGER)))[1]
    except (RuntimeError, ValueError, AssertionError):
        return dict.fromkeys(tapped.layers)
    grown = {name: larger[name].shape[-1] - side for name, side in here.items()}
    return {name: _LARGER / pixels if pixels > 0 else None for name, pixels in grown.items()}


@torch.no_grad()
def _local_sums(tapped: Tapped, images: Tensor, strides: Mapping[str, float | None]) -> Sums:
    """The sums over float64 images, each divided by the output's dimensions."""
    weights = {
        name: value.double() if value.is_floating_point() else value
        for name, value in [*tapped.named_parameters(), *tapped.named_buffers()]
    }

    def outputs(seen: Tensor) -> Outputs:
        logits, maps = functional_call(tapped, weights, (seen,))
        return {**maps, LOGITS: logits, PROBABILITIES: logits.softmax(dim=-1)}

    rotation = _derivatives(outputs, images, turning, dict.fromkeys(tapped.layers, 1.0))
    per_pixel = {name: stride and 1 / stride for name, stride in strides.items()}
    right, down = (_derivatives(outputs, images, shifting(dim), per_pixel) for dim in (-1, -2))
    return {name: torch.stack((rotation[name], (right[name] + down[name]) / 2)) for name in rotation}


def _derivatives(
    outputs: Callable[[Tensor], Outputs], images: Tensor, generator: Generator, scales: Mapping[str, float | None]
) -> dict[str, Tensor]:
    """{output: (2,): ‖L f‖² and ‖f‖² per dimension, summed over images}; NaN where it cannot be measured.

    `scales` is by how much less the maps of a tap move than the image.
    """
    values, slopes = _pushed_forward(outputs, images, generator(images))
    found = {}
    for name, value in values.items():
        if name in scales:
            mask, scale = _inner(value), scales[name]
            lie = slopes[name] - (float("nan") if scale is None else scale) * generator(value)
            found[name] = torch.stack([_power(part, mask) for part in (lie, value)])
        else:
            found[name] = torch.stack([part.square().sum() / part.shape[1] for part in (slopes[name], value)])
    return found


def _pushed_forward(
    outputs: Callable[[Tensor], Outputs], images: Tensor, slope: Tensor
) -> tuple[Outputs, dict[str, Tensor]]:
    """The outputs, and their derivatives along `slope`.

    Not by `torch.func.jvp`: it hides the storage of every tensor that is made inside, and escnn's modules look at that.
    """
    with warnings.catch_warnings(), _without_fused_attention(), forward_ad.dual_level():
        # The first time that torch differentiates forwards it calls what it has deprecated itself.
        warnings.filterwarnings("ignore", message=".*torch.jit.script")
        seen = outputs(forward_ad.make_dual(images, slope))
        pairs = {name: forward_ad.unpack_dual(output) for name, output in seen.items()}
        slopes = {name: torch.zeros_like(y) if dy is None else dy for name, (y, dy) in pairs.items()}
        return {name: y for name, (y, _) in pairs.items()}, slopes


@contextlib.contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Attention by its formula: the fused kernels cannot be differentiated forwards."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _power(maps: Tensor, mask: Tensor) -> Tensor:
    """Σ over images of the mean square over channels and the pixels of the mask; NaN for an empty one."""
    return torch.where(mask, maps.square(), 0.0).sum() / (maps.shape[1] * mask.sum())


def _slope(maps: Tensor, dim: int) -> Tensor:
    padded = F.pad(maps, (1, 1, 0, 0) if dim == -1 else (0, 0, 1, 1))
    return (padded.narrow(dim, 2, maps.shape[dim]) - padded.narrow(dim, 0, maps.shape[dim])) / 2


def _inner(maps: Tensor) -> Tensor:
    """The pixels (S, S) whose four neighbours lie in the frame, in a disc; none on maps of 1 or 2 pixels a side."""
    middle = (maps.shape[-1] - 1) / 2
    offset = torch.arange(maps.shape[-1], device=maps.device) - middle
    return (offset[:, None] ** 2 + offset**2 <= (middle - 1) ** 2) & (middle >= 1)


def _figures(table: Tensor, images: int) -> dict[str, Any]:
    return {
        motion: {
            "lee": None if math.isnan(lie) else lie / images,
            "relative": (lie / power) ** 0.5 if power > 0 and not math.isnan(lie) else None,
        }
        for motion, (lie, power) in zip(MOTIONS, table.tolist(), strict=True)
    }
