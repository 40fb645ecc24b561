"""How does a map lose pixels without aliasing, and without moving its middle? (a drop-in for strided layers)

A strided layer reads every s-th pixel, so that a shift or turn of its input changes what it sees. Zhang (*Making
Convolutional Networks Shift-Invariant Again*, ICML 2019, arXiv 1904.11486) lets the layer run with stride 1, smooths
what it gives with a binomial filter, and skips pixels only then.

Which filter keeps the middle where it is depends on the map: from L pixels to n = ⌈L/s⌉, a filter of f pixels does if
and only if f ≡ L - s(n - 1) mod 2 (`ien.alignment.rules`). With s = 2 that is an odd filter on odd sides and an even
one on even sides. So a `BlurPool2d` has both, [1 2 1] and [1 3 3 1], and takes the one that fits the map it is given:
it keeps exact quarter turns at *every* size, and gives as many pixels as the strided layer did.
"""

from __future__ import annotations

import copy
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

    The filter is binomial, of `size` or `size` + 1 pixels, whichever keeps the middle of the map; `size` is
    2·stride - 1 unless given (with stride 2: Zhang's Triangle-3, and four pixels where the side is even). Beyond the
    edge the map is continued by its outermost pixels, so that a constant stays one, on maps of a single pixel too.
    There are no parameters, and nothing enters the `state_dict`.
    """

    def __init__(self, stride: int | Pair = 2, size: int | None = None):
        super().__init__()
        self.stride = _pair(stride)
        self.size = 2 * max(self.stride) - 1 if size is None else size
        if min(self.stride) < 1 or self.size < max(self.stride):
            raise InputError(f"a filter of {self.size} pixels leaves gaps at stride {stride}; take {stride} or more")
        for number in (self.size, self.size + 1):
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
        return self.get_buffer(f"taps{number}"), (number - rest) // 2

    def extra_repr(self) -> str:
        return f"stride={self.stride}, size={self.size}"


class AntialiasedConv2d(nn.Conv2d):
    """A strided convolution that reads every pixel and smooths before it skips any.

    It holds the weights of the layer that it stands for, under the same names. A 1×1 convolution commutes with the
    smoothing, and is done last, on fewer pixels.
    """

    def __init__(self, layer: nn.Conv2d, size: int | None = None):
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            _pair(layer.kernel_size),
            padding=layer.padding if isinstance(layer.padding, str) else _pair(layer.padding),
            dilation=_pair(layer.dilation),
            groups=layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.blur = BlurPool2d(_pair(layer.stride), size).to(layer.weight.device)

    def forward(self, maps: Tensor) -> Tensor:
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            return super().forward(self.blur(maps))
        return self.blur(super().forward(maps))


class AntialiasedPool2d(nn.Module):
    """A strided maximum or average, taken about every pixel and smoothed before any is skipped; as many come out."""

    def __init__(self, layer: nn.MaxPool2d | nn.AvgPool2d, size: int | None = None):
        super().__init__()
        self.stride = _pair(layer.kernel_size if layer.stride is None else layer.stride)
        self.pool = copy.copy(layer)
        self.pool.stride = 1
        self.ceil_mode, self.padding = layer.ceil_mode, _pair(layer.padding)
        self.blur = BlurPool2d(self.stride, size)

    def forward(self, maps: Tensor) -> Tensor:
        dense = self.pool(maps)
        if not self.ceil_mode:
            return self.blur(dense)
        return self.blur(dense, (self._side(maps, dense, 0), self._side(maps, dense, 1)))

    def _side(self, maps: Tensor, dense: Tensor, axis: int) -> int:
        """As `ceil_mode` counts: windows may reach beyond the end, but not start there."""
        stride, padding, length = self.stride[axis], self.padding[axis], maps.shape[axis - 2]
        side = -(-(dense.shape[axis - 2] - 1) // stride) + 1
        return side - 1 if (side - 1) * stride >= length + padding else side


def antialias(model: nn.Module, layers: Sequence[str] | None = None, size: int | None = None) -> nn.Module:
    """Put anti-aliased layers in the place of strided `nn.Conv2d`, `nn.MaxPool2d` and `nn.AvgPool2d`; returns `model`.

    All of them, or those of `layers` (names as in `model.named_modules()`); `size` is that of the filter. Weights stay
    the same objects under the same names, so that a `state_dict` fits before and after, and each layer gives as many
    pixels as it did. The smoothing follows the layer at once (Zhang puts it behind the activation). Strides in
    functional calls and in subclasses of these layers stay; `python -m ien.alignment` names them. Do it before taps.
    Raises `InputError` for a name that is no such layer, and if there is none.
    """
    found = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if _replaceable(layer)}
    for name in layers or ():
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "only strided nn.Conv2d, MaxPool2d and AvgPool2d can be"
            raise InputError(f"layer {name!r} cannot be anti-aliased; {hint}")
    chosen = {name: layer for name, layer in found.items() if layers is None or name in layers}
    if not chosen:
        raise InputError(f"{type(model).__name__} has no strided nn.Conv2d, MaxPool2d or AvgPool2d to anti-alias")
    made = {id(layer): _antialiased(layer, size) for layer in chosen.values()}  # a layer may stand in several places
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    for name, layer in chosen.items():
        if not name:
            return made[id(layer)]
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made[id(layer)].to(device))
    return model


def _antialiased(layer: nn.Module, size: int | None) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return AntialiasedConv2d(layer, size).train(layer.training)
    assert isinstance(layer, nn.MaxPool2d | nn.AvgPool2d)
    return AntialiasedPool2d(layer, size).train(layer.training)


def _replaceable(layer: nn.Module) -> bool:
    if type(layer) not in (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d) or getattr(layer, "return_indices", False):
        return False
    stride = layer.stride if layer.stride is not None else layer.kernel_size
    return max(_pair(stride)) > 1  # type: ignore[arg-type]


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
