"""What is one operation on tensors, and what was found out about it?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ien.alignment.layouts import UNKNOWN, Layout, Pair


@dataclass(frozen=True)
class Call:
    """One call: its name, its arguments by name, what it gave, and what is known of each tensor.

    `layout` gives None for a tensor that does not depend on the image.
    """

    name: str
    given: dict[str, Any]
    output: Any
    layout: Callable[[Any], Layout | None]

    @property
    def maps(self) -> list[Tensor]:
        """The tensors among its arguments that depend on the image."""
        return [tensor for tensor in tensors(self.given.values()) if self.layout(tensor) is not None]

    @property
    def constants(self) -> list[Tensor]:
        return [tensor for tensor in tensors(self.given.values()) if self.layout(tensor) is None]


@dataclass(frozen=True)
class Finding:
    """What a call does to rows and columns.

    `layout`: where they lie in what it gives. `text`: the operation in words; empty if it moves no pixel. `shift`: see
    `ien.alignment.rules`, of rows and of columns, in pixels of its input. `problem`: another reason why it breaks
    quarter turns. `unjudged`: why nothing can be said. `reads`: whether it reads all pixels, so that those must lie
    about the middle now. `pads`: whether it adds pixels to rows, to columns. `scale`: for what crops, pads or skips
    alone, the pixels of its input that one of its output is apart.
    """

    layout: Layout
    text: str = ""
    shift: Pair = (0.0, 0.0)
    problem: str = ""
    unjudged: str = ""
    reads: bool = False
    pads: tuple[bool, bool] = (False, False)
    scale: Pair | None = None


Judge = Callable[[Call], Finding]


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some values, those in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def unknown(call: Call, why: str) -> Finding:
    """Rows and columns are lost from here on."""
    return Finding(UNKNOWN, call.name, unjudged=why)


def times(sides: Iterable[int]) -> str:
    """`3×3`"""
    return "×".join(map(str, sides))
