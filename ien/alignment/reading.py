"""Which operations read a pixel's neighbours, or resample a map, and do they keep its middle? (the `READING` table)

Each entry judges one call from its arguments and shapes alone, by the rules of `ien.alignment.rules`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ien.alignment import rules
from ien.alignment.calls import Call, Finding, Judge, tensors, times
from ien.alignment.layouts import MAP, UNKNOWN, Layout, Pair

EDGES = (1, 1)  # what lies beyond the edge is made up, as by padding


def _any(padding: Pair) -> tuple[bool, bool]:
    return padding[0] > 0, padding[1] > 0


def _pair(value: Any) -> tuple[Any, Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return (values[0], values[-1])


def _sides(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]


def _input(call: Call) -> tuple[Tensor, Layout]:
    """The map that an operation on maps (B, C, S, S) reads, wherever it comes from."""
    tensor = call.given["input"] if "input" in call.given else call.given["self"]
    layout = call.layout(tensor) or MAP
    return tensor, layout if layout.known and layout.axes == (-2, -1) else MAP


def _reading(call: Call, text: str, shift: Pair, problem: str = "", padding: Pair = (0, 0)) -> Finding:
    tensor, layout = _input(call)
    before = call.layout(tensor)
    result = next(tensors([call.output]))
    if before is not None and before.flat and max(_sides(tensor)) > 1:
        return Finding(MAP, text, unjudged="reads a map that was made of a vector")
    if before is not None and before.known and not before.flat and before.axes != (-2, -1):
        return Finding(MAP, text, unjudged="reads rows and columns that do not come last")
    if tensor.ndim != 4:
        return Finding(UNKNOWN, text, unjudged=f"reads {tensor.ndim} dimensions, not (B, C, S, S)")
    if not problem and len(set(_sides(tensor))) > 1:
        problem = f"reads a map of {times(_sides(tensor))}, not square"
    if not problem and len(set(_sides(result))) > 1:
        problem = f"gives a map of {times(_sides(result))}, not square"
    return Finding(layout, text, shift, problem, reads=True, pads=_any(padding))


def _stencil_text(kernel: Pair, what: str, stride: Pair, dilation: Pair = (1, 1)) -> str:
    parts = [f"{times(map(int, kernel))} {what}"]
    parts += [f"stride {_short(stride)}"] if stride != (1, 1) else []
    parts += [f"dilation {_short(dilation)}"] if dilation != (1, 1) else []
    return ", ".join(parts)


def _short(pair: Pair) -> str:
    return f"{pair[0]}" if pair[0] == pair[1] else times(map(int, pair))


def _uneven(**pairs: Pair) -> str:
    """Why an operation treats rows and columns differently, if it does."""
    for name, pair in pairs.items():
        if pair[0] != pair[1]:
            return f"{name} {times(map(int, pair))} is not the same for rows and columns"
    return ""


def _convolution(call: Call) -> Finding:
    given, weight = call.given, call.given["weight"]
    transposed = call.name == "conv_transpose2d" or given.get("transposed", False)
    if call.layout(weight) is not None:
        return Finding(UNKNOWN, call.name, unjudged="its kernel depends on the image")
    kernel, stride, dilation = _sides(weight), _pair(given["stride"]), _pair(given["dilation"])
    padding = _before(given["padding"], kernel, dilation)
    rule = rules.transposed_shift if transposed else rules.stencil_shift
    sides = zip(_sides(_input(call)[0]), _sides(call.output), kernel, stride, dilation, padding, strict=True)
    rows, columns = (rule(*numbers) for numbers in sides)
    text = _stencil_text(kernel, "transposed convolution" if transposed else "convolution", stride, dilation)
    uneven = _uneven(kernel=kernel, stride=stride, dilation=dilation)
    return _reading(call, text, (rows, columns), uneven, EDGES if transposed or given["padding"] == "same" else padding)


def _before(padding: Any, kernel: Pair, dilation: Pair) -> tuple[int, int]:
    """The pixels padded in front; `same` puts the odd one at the end."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        rows, columns = (int(d * (k - 1)) // 2 for k, d in zip(kernel, dilation, strict=True))
        return rows, columns
    return _pair(padding)


def _pool(call: Call) -> Finding:
    given = call.given
    kernel, padding, dilation = _pair(given["kernel_size"]), _pair(given["padding"]), _pair(given.get("dilation", 1))
    stride = _pair(given["stride"] or kernel)
    result = next(tensors([call.output]))
    sides = zip(_sides(_input(call)[0]), _sides(result), kernel, stride, dilation, padding, strict=True)
    rows, columns = (rules.stencil_shift(*numbers) for numbers in sides)
    what = "max-pool" if call.name.startswith("max") else "average pool"
    text = _stencil_text(kernel, what, stride, dilation) + (", ceil_mode" if given["ceil_mode"] else "")
    return _reading(call, text, (rows, columns), _uneven(kernel=kernel, stride=stride, dilation=dilation), padding)


def _adaptive_pool(call: Call) -> Finding:
    """Region i reaches from ⌊iS/n⌋ to ⌈(i + 1)S/n⌉: mirrored it is region n - 1 - i, whatever S and n are."""
    result = next(tensors([call.output]))
    found = _reading(call, f"adaptive pool to {times(_sides(result))}", (0.0, 0.0))
    layout = call.layout(_input(call)[0])
    if max(_sides(result)) > 1 or not (layout and layout.known):
        return found
    return replace(found, layout=replace(found.layout, rows=None, columns=None))


def _interpolation(call: Call) -> Finding:
    given, (tensor, _) = call.given, _input(call)
    factors = given.get("scale_factors")
    scales = _pair(factors) if factors else (given.get("scales_h"), given.get("scales_w"))
    nearest = "nearest" in call.name
    rows, columns = (
        rules.nearest_shift(before, after, scale, "exact" in call.name)
        if nearest
        else rules.linear_shift(before, after, scale, given["align_corners"])
        for before, after, scale in zip(_sides(tensor), _sides(call.output), scales, strict=True)
    )
    mode = "nearest" if nearest else "bicubic" if "bicubic" in call.name else "bilinear"
    return _reading(call, f"{mode} interpolation", (rows, columns), padding=EDGES)


def _padding(call: Call) -> Finding:
    tensor, layout = call.given["self"], call.layout(call.given["self"]) or MAP
    amounts = list(call.given["pad"] if "pad" in call.given else call.given["padding"])
    pairs = {-1 - place: tuple(amounts[2 * place : 2 * place + 2]) for place in range(len(amounts) // 2)}
    if not layout.known or not set(layout.axes) <= set(range(-tensor.ndim, 0)):
        return Finding(UNKNOWN)
    if not any(pairs.get(axis, (0, 0)) != (0, 0) for axis in layout.axes):
        return Finding(layout)
    rows, columns = (pairs.get(axis, (0, 0)) if axis is not None else (0, 0) for axis in (layout.rows, layout.columns))
    text = f"padding {rows[0]}+{rows[1]}" + (f", {columns[0]}+{columns[1]}" if columns != rows else "")
    shift = ((rows[1] - rows[0]) / 2, (columns[1] - columns[0]) / 2)
    return Finding(layout, text, shift, pads=_any((max(rows), max(columns))), scale=(1.0, 1.0))


def _slice(call: Call) -> Finding:
    tensor, layout, given = call.given["self"], call.layout(call.given["self"]) or MAP, call.given
    axis = given["dim"] - tensor.ndim if given["dim"] >= 0 else given["dim"]
    before, after, step = tensor.shape[axis], call.output.shape[axis], given.get("step", 1)
    if not layout.known or axis not in layout.axes or before == after:
        return Finding(layout)
    start = int(given["start"] or 0)
    start = max(start + before, 0) if start < 0 else start
    shift = rules.stencil_shift(before, after, 1, step, 1, -start)
    where, text = ("rows", "slice of rows") if axis == layout.rows else ("columns", "slice of columns")
    text += f", step {step}" if step > 1 else ""
    pair, scale = ((shift, 0.0), (float(step), 1.0)) if where == "rows" else ((0.0, shift), (1.0, float(step)))
    return Finding(layout, text, pair, scale=scale)


READING: dict[str, Judge] = {
    "conv2d": _convolution,
    "conv_transpose2d": _convolution,
    "convolution": _convolution,
    "max_pool2d": _pool,
    "max_pool2d_with_indices": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_pool,
    "upsample_nearest2d": _interpolation,
    "_upsample_nearest_exact2d": _interpolation,
    "upsample_bilinear2d": _interpolation,
    "upsample_bicubic2d": _interpolation,
    "_upsample_bilinear2d_aa": _interpolation,
    "_upsample_bicubic2d_aa": _interpolation,
    "pad": _padding,
    "constant_pad_nd": _padding,
    "reflection_pad2d": _padding,
    "replication_pad2d": _padding,
    "slice": _slice,
    "narrow": _slice,
}
