"""Which operations of PyTorch keep a turned map turned? (the `OPERATIONS` table)

Besides those that read a pixel's neighbours (`ien.alignment.reading`) there are those that move no pixel, as long as
rows and columns are not among the axes they work on. What is neither in the table nor pointwise is never passed: it is
named as not judged.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ien.alignment.calls import Call, Finding, Judge, tensors, times, unknown
from ien.alignment.layouts import MAP, UNKNOWN, VECTOR, Layout, mixes, permuted, reduced, reshaped
from ien.alignment.reading import READING


def judge(call: Call, pointwise: bool) -> Finding:
    """What one call does; `pointwise`: PyTorch says that it treats every element alike."""
    known = OPERATIONS.get(call.name) or (_pointwise if pointwise else None)
    if known in SPATIAL:
        return known(call)
    layouts = [call.layout(tensor) for tensor in call.maps]
    if not all(layout.known for layout in layouts if layout):
        return Finding(UNKNOWN, unjudged=_of_tokens(call))
    if all(layout.flat for layout in layouts if layout) and not _extended(call):
        return Finding(VECTOR)
    return known(call) if known else unknown(call, "is not known to keep rows and columns apart")


def _of_tokens(call: Call) -> str:
    """What a person should hear of, among the operations on pixels that were already lost sight of."""
    if call.name in ("scaled_dot_product_attention", "softmax", "_softmax"):
        return "attention"
    own = [tensor for tensor in call.constants if isinstance(tensor, torch.nn.Parameter) and tensor.ndim > 2]
    return f"adds a parameter of shape {tuple(own[0].shape)}" if own and call.name in ("add", "add_") else ""


def _extended(call: Call) -> bool:
    """Whether a vector was made into something with rows and columns, other than by repeating it."""
    if call.name in ("expand", "expand_as"):
        return False
    before = {tensor.shape[-2:] for tensor in call.maps}
    shapes = [tensor.shape for tensor in tensors([call.output])]
    return any(len(shape) == 4 and max(shape[-2:]) > 1 and shape[-2:] not in before for shape in shapes)


def _pointwise(call: Call) -> Finding:
    """Element by element, with broadcasting: all maps must lie alike, and nothing else may depend on the position."""
    layouts = [layout for layout in (call.layout(tensor) for tensor in call.maps) if layout and not layout.flat]
    if not layouts:
        return Finding(VECTOR) if not _extended(call) else unknown(call, "makes a map of a vector")
    first = layouts[0]
    if any(layout.axes != first.axes for layout in layouts):
        return unknown(call, "combines maps whose rows and columns lie apart")
    fixed = [c for c in call.constants if any(-axis <= c.ndim and c.shape[axis] > 1 for axis in first.axes)]
    if fixed:
        shape = tuple(fixed[0].shape)
        return Finding(first, call.name, unjudged=f"a parameter of shape {shape} depends on the position")
    if any(layout.shift != first.shift for layout in layouts):
        loose = tuple(step for layout in layouts for step in layout.loose)
        lying = replace(first, shift=(math.inf, math.inf), loose=loose)
        return Finding(lying, call.name, problem="combines maps whose middles lie apart", reads=True)
    return Finding(replace(first, loose=tuple(dict.fromkeys(step for layout in layouts for step in layout.loose))))


def _one(call: Call) -> tuple[Tensor, Layout]:
    """The one map that an operation works on."""
    tensor = call.maps[0]
    return tensor, call.layout(tensor) or MAP


def _unchanged(call: Call) -> Finding:
    """Also norms whose statistics run over all pixels, and whatever has weights by channel."""
    return Finding(_one(call)[1])


def _reshape(call: Call) -> Finding:
    tensor, layout = _one(call)
    after = reshaped(layout, tensor.shape, call.output.shape)
    return Finding(after) if after else unknown(call, f"makes one axis of the {times(_long(tensor, layout))} pixels")


def _long(tensor: Tensor, layout: Layout) -> list[int]:
    return [tensor.shape[axis] for axis in layout.axes]


def _permute(call: Call) -> Finding:
    tensor, layout = _one(call)
    order = list(range(tensor.ndim))
    if call.name == "permute":
        order = [axis % tensor.ndim for axis in call.given["dims"]]
    else:
        one, other = call.given["dim0"] % tensor.ndim, call.given["dim1"] % tensor.ndim
        order[one], order[other] = other, one
    return Finding(permuted(layout, order))


def _reduction(call: Call) -> Finding:
    if "other" in call.given:  # the larger one of two maps
        return _pointwise(call)
    tensor, layout = _one(call)
    axes = call.given.get("dim")
    axes = [] if axes is None else [axes] if isinstance(axes, int) else axes
    after = reduced(layout, tensor.shape, axes, bool(call.given.get("keepdim")))
    if after is None:
        return unknown(call, "reduces rows or columns alone")
    return Finding(after, reads=after.flat)


def _layer_norm(call: Call) -> Finding:
    tensor, layout = _one(call)
    over = range(-len(call.given["normalized_shape"]), 0)
    inside = [axis for axis in layout.axes if axis in over and tensor.shape[axis] > 1]
    if len(inside) == 1:
        return unknown(call, "normalises rows or columns alone")
    if inside and call.given.get("weight") is not None:
        shape = tuple(call.given["weight"].shape)
        return Finding(layout, call.name, unjudged=f"its weights of shape {shape} depend on the position")
    return Finding(layout)


def _along(call: Call) -> Finding:
    """An operation along one axis: fine for channels."""
    tensor, layout = _one(call)
    if mixes(layout, tensor.shape, call.given.get("dim", -1)):
        return unknown(call, "works along rows or columns")
    return Finding(layout)


def _cat(call: Call) -> Finding:
    found = _pointwise(replace(call, given={"tensors": call.given["tensors"]}))
    if found.layout.known and mixes(found.layout, call.output.shape, call.given.get("dim", 0)):
        return unknown(call, "puts maps side by side")
    return found


def _stack(call: Call) -> Finding:
    found, axis = _pointwise(call), call.given.get("dim", 0)
    axis = axis - call.output.ndim if axis >= 0 else axis
    rows, columns = (None if a is None else a - (a <= axis) for a in (found.layout.rows, found.layout.columns))
    return replace(found, layout=replace(found.layout, rows=rows, columns=columns))


def _unbind(call: Call) -> Finding:
    """One index of an axis, or every one of it: the axis is gone."""
    tensor, layout = _one(call)
    axis = call.given.get("dim", 0)
    if mixes(layout, tensor.shape, axis):
        return unknown(call, "takes one row or column")
    return Finding(reduced(layout, tensor.shape, [axis], keepdim=False) or UNKNOWN)


def _linear(call: Call) -> Finding:
    tensor, layout = call.given["input"], call.layout(call.given["input"])
    if layout is None or mixes(layout, tensor.shape, -1):
        return unknown(call, "mixes the pixels of a row")
    return Finding(layout)


SPATIAL = frozenset(READING.values())
OPERATIONS: dict[str, Judge] = {
    **READING,
    **dict.fromkeys(["batch_norm", "instance_norm", "group_norm", "channel_shuffle", "prelu"], _unchanged),
    **dict.fromkeys(["dropout", "dropout_", "feature_dropout", "expand", "expand_as"], _unchanged),
    **dict.fromkeys(["contiguous", "to", "_to_copy", "detach", "alias", "type_as"], _unchanged),
    **dict.fromkeys(["zeros_like", "ones_like", "fill_", "zero_"], _unchanged),
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"], _reshape),
    **dict.fromkeys(["permute", "transpose"], _permute),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean"], _reduction),
    **dict.fromkeys(["logsumexp", "linalg_vector_norm", "norm"], _reduction),
    **dict.fromkeys(["layer_norm", "rms_norm"], _layer_norm),
    **dict.fromkeys(["softmax", "log_softmax", "glu", "chunk", "split", "split_with_sizes"], _along),
    **dict.fromkeys(["hardswish", "hardswish_", "masked_fill", "copy_", "where", "rrelu"], _pointwise),
    **dict.fromkeys(["cat", "concat", "concatenate"], _cat),
    "stack": _stack,
    **dict.fromkeys(["select", "unbind"], _unbind),
    "linear": _linear,
}
