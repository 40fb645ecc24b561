"""Which operations does a network do with an image of one size, and which of them break exact quarter turns?

The network runs once on PyTorch's `meta` device, where shapes are computed and nothing else, and a `TorchDispatchMode`
sees every operation. That is the one place that all roads lead through: modules, functional calls, slices, operators
and scripted code arrive there under one canonical name, and under `inference_mode` not yet taken apart into smaller
ones. A stack kept by hooks says which layer an operation belongs to.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ien.alignment.calls import Call, Finding, tensors
from ien.alignment.layouts import MAP, Layout, Pair
from ien.alignment.operations import judge
from ien.alignment.rules import NEGLIGIBLE
from ien.errors import InputError


@dataclass
class Step:
    """An operation that reads a pixel's neighbours, resamples a map, or could not be judged.

    `before`, `after`: rows and columns of the map that it reads and gives. `shift`: how far its outputs' middle lies
    from its input's, in pixels of the input. `problem`: why it breaks exact quarter turns, `unjudged`: why that is not
    known; empty if not.
    """

    layer: str
    operation: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    shift: Pair
    problem: str = ""
    unjudged: str = ""


@dataclass
class Trace:
    """What a network does with an image of `side` pixels; `device` is where it could be traced."""

    side: int
    channels: int
    steps: list[Step]
    device: str = "meta"

    @property
    def broken(self) -> list[Step]:
        """The steps that break exact quarter turns."""
        return [step for step in self.steps if step.problem]

    @property
    def unjudged(self) -> list[Step]:
        return [step for step in self.steps if step.unjudged]


Kernel = Callable[[Tensor], Tensor]
Seen = Callable[[int, Tensor, Layout], Tensor]


def trace(model: nn.Module, side: int, channels: int = 3) -> Trace:
    """Every spatial operation on an image (1, channels, side, side), in the order of computation.

    The network is copied, without its weights, and stays as it is; what it cannot do on the `meta` device is done on
    the CPU. Raises `InputError` where the image does not fit through it.
    """
    try:
        return traced(without_weights(model), side, channels, "meta")
    except Exception:  # the network's own code may raise anything
        pass
    try:
        return traced(copy.deepcopy(model).cpu(), side, channels, "cpu")
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"images of {channels}×{side}×{side} do not fit through {type(model).__name__} ({reason}); "
            "try another --size or --channels"
        ) from error


def traced(model: nn.Module, side: int, channels: int, device: str) -> Trace:
    """`trace` of a network that lies on a device and may be put into eval mode."""
    with torch.device(device):
        steps, _ = run(model.eval(), torch.zeros(1, channels, side, side))
    return Trace(side, channels, steps, device)


def is_exact(model: nn.Module, side: int, channels: int, device: str) -> bool:
    """Whether nothing is broken at this size; the first thing that is ends the pass."""
    try:
        with torch.device(device):
            run(model.eval(), torch.zeros(1, channels, side, side), impatient=True)
    except Exception:  # broken, too small for the layers, or the network wants one size alone
        return False
    return True


def without_weights(model: nn.Module) -> nn.Module:
    """A copy on the `meta` device; the weights are not copied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def run(
    model: nn.Module, images: Tensor, kernel: Kernel | None = None, seen: Seen | None = None, impatient: bool = False
) -> tuple[list[Step], list[tuple[str, Tensor, Layout]]]:
    """One forward pass: its steps, and what comes out, by name, with what is known of it.

    `kernel` is given every spatial kernel that is learned, and gives the one to use; `seen` is given what each step
    gave, with its number, and gives what the network goes on with. `impatient`: `Broken` at the first problem.
    """
    tracer = Tracer(kernel, seen, impatient)
    with torch.inference_mode(), warnings.catch_warnings(), _layers(model, tracer.layers), _one_way():
        warnings.simplefilter("ignore")  # about the network's own ways
        images = images.clone()
        tracer.layouts[images] = MAP
        with tracer:
            output = model(images)
        outputs = [(name, tensor, tracer.left(tensor)) for name, tensor in _outputs(output) if tracer.known(tensor)]
    return tracer.steps, outputs


class Broken(Exception):  # noqa: N818
    """Something breaks exact quarter turns, and that is all that was asked."""


class Tracer(TorchDispatchMode):
    """Sees every operation of a forward pass and notes those that matter; `run` says what it is given."""

    def __init__(self, kernel: Kernel | None, seen: Seen | None, impatient: bool):
        super().__init__()
        self.kernel, self.seen, self.impatient = kernel, seen, impatient
        self.layers: list[str] = []
        self.steps: list[Step] = []
        self.layouts = WeakTensorKeyDictionary()
        self.learned = WeakTensorKeyDictionary()  # made of parameters alone, as standardised kernels are

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2]
        if self.kernel and name in ("conv2d", "conv_transpose2d", "convolution") and self._is_learned(args[1]):
            args = (args[0], self.kernel(args[1]), *args[2:])
        output = func(*args, **kwargs)
        call = Call(name, _bound(func, args, kwargs), output, self.known)
        if call.maps and any(True for _ in tensors([output])):
            output = self._judged(call, torch.Tag.pointwise in func.tags)
        elif any(map(self._is_learned, call.constants)):
            for tensor in tensors([output]):
                self.learned[tensor] = True
        return output

    def known(self, tensor: Any) -> Layout | None:
        """What is known of a tensor; None if it does not depend on the image."""
        found: Layout | None = self.layouts.get(tensor)
        return found

    def _is_learned(self, tensor: Any) -> bool:
        return isinstance(tensor, nn.Parameter) or tensor in self.learned

    def left(self, tensor: Tensor) -> Layout:
        """What is known of an output: what was moved and not moved back is named now."""
        layout: Layout = self.layouts[tensor]
        self._settle(layout, layout.shift)
        return layout

    def _judged(self, call: Call, pointwise: bool) -> Any:
        found, number = judge(call, pointwise), len(self.steps)
        noted = bool(found.text) or bool(found.unjudged)
        if noted:
            self.steps.append(self._step(call, found))
        layout = self._after(found, number)
        output = call.output
        if noted and self.seen and isinstance(output, Tensor):
            output = self.seen(number, output, layout)
        for tensor in tensors([output]):
            self.layouts[tensor] = layout
        return output

    def _step(self, call: Call, found: Finding) -> Step:
        before, after = call.maps[0].shape[-2:], next(tensors([call.output])).shape[-2:]
        layer = self.layers[-1] if self.layers else ""
        return Step(
            layer, found.text or call.name, tuple(before), tuple(after), found.shift, found.problem, found.unjudged
        )

    def _after(self, found: Finding, number: int) -> Layout:
        layout = found.layout
        # Beyond the edges of a map that was padded or cropped unevenly lie different things.
        edge = (layout.shift[0] * found.pads[0], layout.shift[1] * found.pads[1])
        if _off(edge):
            self._settle(layout, edge)
            layout = layout.settled()
        total = (layout.shift[0] + found.shift[0], layout.shift[1] + found.shift[1])
        if found.scale:
            loose = (*layout.loose, number) if _off(found.shift) else layout.loose
            shift = (total[0] / found.scale[0], total[1] / found.scale[1])
            return replace(layout, shift=shift, loose=loose)
        if not found.reads:
            return layout
        self._settle(layout, total)
        if _off(total) and _off(found.shift) and not found.problem:
            self.steps[number].problem = _told(found.shift)
        if self.impatient and (found.problem or _off(total)):
            raise Broken
        return layout.settled()

    def _settle(self, layout: Layout, total: Pair) -> None:
        """Those that moved the map are named, if what comes next does not read it about the middle."""
        for number in layout.loose if _off(total) else ():
            self.steps[number].problem = _told(self.steps[number].shift)
        if self.impatient and layout.loose and _off(total):
            raise Broken


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with their defaults."""
    schema = func._schema.arguments
    given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return given | {argument.name: value for argument, value in zip(schema, args, strict=False)} | kwargs


def _off(shift: Pair) -> bool:
    return max(map(abs, shift)) > NEGLIGIBLE


def _told(shift: Pair) -> str:
    rows, columns = (f"{abs(one):.3g}" for one in shift)
    return f"its middle lies {rows if rows == columns else f'{rows} and {columns}'} pixels off"


def _outputs(output: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, list | tuple):
        for place, part in enumerate(output):
            yield from _outputs(part, f"{name}[{place}]")
    elif isinstance(output, dict):
        for key, part in output.items():
            yield from _outputs(part, f"{name}[{key!r}]")


@contextmanager
def _one_way() -> Iterator[None]:
    """Attention is computed the same way with weights and without."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _layers(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """While this is open, the layer that is being computed stands last on the stack."""

    def entered(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def left(*_: Any) -> None:
        stack.pop()

    hooks = []
    for name, layer in model.named_modules():
        hooks.append(layer.register_forward_pre_hook(entered(name or type(model).__name__)))
        hooks.append(layer.register_forward_hook(left, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
