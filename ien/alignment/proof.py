"""How large is the error that each operation makes under a quarter turn or mirror, when every kernel is symmetric?

A layer whose kernels are their own mean over the group D4 commutes with it wherever the grid allows that. So a copy of
the network gets random weights and norm statistics, in float64, every learned spatial kernel is averaged over D4 as it
is used, and an image is shown with its moved copies. What a map f then loses,

    ‖f(g·x) - g·f(x)‖ / ‖f(x)‖,

is the grid's doing, or that of parameters which depend on the position; exact means zero to rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ien.alignment.layouts import Layout
from ien.alignment.tracing import Trace, run
from ien.errors import InputError
from ien.groups import Element, Group

D4 = Group(4, reflection=True)
MOVES = (Element(1, 4), Element(2, 4), Element(3, 4), Element(0, 4, mirrored=True))
EXACT = 1e-9  # of a relative error in float64: rounding stays far below, an error of the grid far above

Errors = dict[str, float | None]  # element: relative error; None where a map has no rows and columns, or is not square


@dataclass(frozen=True)
class Proof:
    """Relative errors by element, `so_far` and `alone` of each step of a trace, and of what comes out.

    `so_far` holds what all steps up to this one lose. `alone`: the same, but what the steps before that break quarter
    turns lost is given back. None for a step whose map cannot be turned.
    """

    so_far: tuple[Errors | None, ...]
    alone: tuple[Errors | None, ...]
    outputs: dict[str, Errors]

    @property
    def error(self) -> float:
        """The largest error of a map or an output; infinite where one is not square, or not finite."""
        maps = (errors for errors in self.so_far if errors is not None)
        return max(largest(errors) for errors in (*maps, *self.outputs.values(), {}))

    @property
    def exact(self) -> bool:
        """Whether every map, and what comes out, moves as the image does, to rounding."""
        return self.error < EXACT and bool(self.outputs)


def largest(errors: Errors) -> float:
    """Over all elements; infinite where one could not be compared."""
    return max((math.inf if error is None else error for error in errors.values()), default=0.0)


def prove(model: nn.Module, trace: Trace, seed: int = 0) -> Proof:
    """Measure a traced network at the size of its trace. The network is copied and stays as it is.

    Raises `InputError` for one whose operations depend on what the image shows.
    """
    model = copy.deepcopy(model).cpu()
    with _double(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = randomised(model.double()).eval()
        image = torch.rand(1, trace.channels, trace.side, trace.side)
        images = torch.cat([image, *(D4.act(image, element) for element in MOVES)])
        so_far, outputs = _measured(model, images, trace, frozenset())
        broken = frozenset(number for number, step in enumerate(trace.steps) if step.problem)
        alone = _measured(model, images, trace, broken)[0] if broken else so_far
    return Proof(so_far, alone, outputs)


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Fill all weights and norm statistics with random numbers, so that none is trivially symmetric or zero."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.ndim > 1:
            fan_in = max(parameter[0].numel(), 1)
            parameter.normal_(0, (2 / fan_in) ** 0.5)
        elif parameter.is_floating_point():
            low = -0.5 if name.endswith("bias") else 0.5
            parameter.uniform_(low, low + 1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.5, 0.5)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def averaged(kernel: Tensor) -> Tensor:
    """Kernels (…, k, l) averaged over D4, or over half turns and mirrors if k ≠ l, at their former norm."""
    mean = (kernel + kernel.rot90(2, (-2, -1))) / 2
    if kernel.shape[-1] == kernel.shape[-2]:
        mean = (mean + mean.rot90(1, (-2, -1))) / 2
    mean = (mean + mean.flip(-1)) / 2
    return mean * (kernel.norm() / mean.norm().clamp_min(torch.finfo(mean.dtype).tiny))


def _measured(
    model: nn.Module, images: Tensor, trace: Trace, mended: frozenset[int]
) -> tuple[tuple[Errors | None, ...], dict[str, Errors]]:
    """One pass: the errors of all steps and outputs. After a step that is `mended` the moved copies are exact."""
    errors: dict[int, Errors] = {}
    between: set[int] = set()

    def seen(number: int, maps: Tensor, layout: Layout) -> Tensor:
        if not layout.known or len(layout.axes) < 2:
            return maps
        square = maps.shape[layout.axes[0]] == maps.shape[layout.axes[1]]
        errors[number] = _errors(maps, layout)
        if layout.shift != (0.0, 0.0) or not square:
            between.add(number)
        return _mended(maps, layout) if number in mended and square else maps

    steps, outputs = run(model, images, averaged, seen)
    if [step.operation for step in steps] != [step.operation for step in trace.steps]:
        raise InputError(
            f"{type(model).__name__} does something else with other images ({len(steps)} operations on pixels, not "
            f"{len(trace.steps)}); it cannot be measured: take out what depends on the image"
        )
    # What was padded or cut and is not read yet lies off the middle, or has rows alone: that is no error yet.
    kept = [errors.get(n) if step.problem or n not in between else None for n, step in enumerate(steps)]
    return tuple(kept), {name: _errors(output, layout) for name, output, layout in outputs}


def _errors(maps: Tensor, layout: Layout) -> Errors:
    """How far each moved copy is from the first one, moved; a vector is not moved."""
    return {str(element): _error(copy, expected) for element, copy, expected in _copies(maps, layout)}


def _error(found: Tensor, expected: Tensor) -> float | None:
    if found.shape != expected.shape:
        return None
    size = expected.norm()
    error = float((found - expected).norm() / size) if size > 0 else 0.0
    return error if math.isfinite(error) else None


def _mended(maps: Tensor, layout: Layout) -> Tensor:
    return torch.cat([maps[: len(maps) // (1 + len(MOVES))], *(expected for _, _, expected in _copies(maps, layout))])


def _copies(maps: Tensor, layout: Layout) -> Iterable[tuple[Element, Tensor, Tensor]]:
    """Each element with the map of its image, and the map that this should be."""
    share = len(maps) // (1 + len(MOVES))
    first, *others = maps.split(share) if share else (maps,)
    rows_last = layout.axes if len(layout.axes) == 2 else None
    for element, found in zip(MOVES, others, strict=False):
        yield element, found, first if rows_last is None else _moved(first, element, rows_last)


def _moved(maps: Tensor, element: Element, axes: tuple[int, ...]) -> Tensor:
    turned = torch.rot90(maps, element.quarter_turns, axes)
    return turned.flip(axes[1]) if element.mirrored else turned


@contextmanager
def _double() -> Iterator[None]:
    """What a network makes on the way is float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
