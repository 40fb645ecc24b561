"""How is it told what breaks exact quarter turns, how much, and at which sizes nothing does?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ien.alignment.calls import times
from ien.alignment.proof import EXACT, Errors, Proof, largest
from ien.alignment.tracing import Trace


@dataclass(frozen=True)
class Report:
    """What was found about a network at one size; `sizes`: exact ones nearby, with the error measured at the nearest
    below and above, None where it was not measured."""

    name: str
    trace: Trace
    proof: Proof
    sizes: Mapping[int, float | None]

    @property
    def aligned(self) -> bool:
        return self.proof.exact

    def as_json(self) -> dict[str, Any]:
        """Plain values; every step with its errors by element."""
        steps = zip(self.trace.steps, self.proof.so_far, self.proof.alone, strict=True)
        return {
            "model": self.name,
            "size": self.trace.side,
            "channels": self.trace.channels,
            "aligned": self.aligned,
            "error": _finite(self.proof.error),
            "outputs": self.proof.outputs,
            "steps": [asdict(step) | {"error_alone": alone, "error_so_far": so_far} for step, so_far, alone in steps],
            "exact_sizes": [{"size": size, "error": _finite(error)} for size, error in self.sizes.items()],
        }

    def as_text(self, every: bool = False) -> str:
        """For the screen: what is in question, or with `every` all operations on pixels."""
        shown = [self._row(n) for n, step in enumerate(self.trace.steps) if every or step.problem or step.unjudged]
        head = ["layer", "operation", "map", "error alone", "error so far", "why"]
        parts = [self._headline(), *([_columns(head, shown, (3, 4))] if shown else []), self._outputs()]
        return "\n\n".join([*parts, "\n".join(self._advice())])

    def _headline(self) -> str:
        broken, unjudged = len(self.trace.broken), len(self.trace.unjudged)
        size = f"{self.name} at {times([self.trace.side] * 2)}"
        counted = [f"{_several(broken, 'operation breaks', 'operations break')} exact quarter turns"] if broken else []
        counted += [f"{_several(unjudged, 'operation was', 'operations were')} not judged"] if unjudged else []
        if self.aligned:
            return f"{size}: quarter turns and mirrors are exact" + (f" ({'; '.join(counted)})" if counted else "")
        return f"{size}: {'; '.join(counted) or 'nothing on the way was found, but quarter turns are not exact'}"

    def _row(self, number: int) -> list[str]:
        step = self.trace.steps[number]
        sides = f"{_side(step.before)} → {_side(step.after)}"
        errors = [_error(errors[number]) for errors in (self.proof.alone, self.proof.so_far)]
        why = step.problem or (f"not judged: {step.unjudged}" if step.unjudged else "")
        return [step.layer, step.operation, sides, *errors, why]

    def _outputs(self) -> str:
        rows = [
            [name, *("not comparable" if error is None else f"{error:.2g}" for error in errors.values())]
            for name, errors in self.proof.outputs.items()
        ]
        elements = next(iter(self.proof.outputs.values()), {})
        return _columns(["relative error of", *map(_called, elements)], rows, range(1, 1 + len(elements)))

    def _advice(self) -> list[str]:
        if self.aligned:
            return [f"exact to rounding: at most {self.proof.error:.1e} (float64, kernels averaged over D4)"]
        if not self.trace.broken:
            return ["what breaks them is what was not judged"]
        if not self.sizes:
            return ["at no other size nearby are they exact; ien.downsampling.antialias makes strided layers so at any"]
        lines = [f"nothing breaks them at {', '.join(times([size] * 2) for size in self.sizes)}"]
        measured = {size: error for size, error in self.sizes.items() if error is not None}
        lines += [
            f"measured at {times([size] * 2)}: {'exact' if error < EXACT else 'not exact'}, {error:.1e}"
            for size, error in measured.items()
        ]
        if not any(error < EXACT for error in measured.values()):
            lines.append("so what was not judged breaks them at every size")
        return lines


def _several(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _side(sides: tuple[int, ...]) -> str:
    return str(sides[0]) if len(set(sides)) == 1 else times(sides)


def _error(errors: Errors | None) -> str:
    if errors is None:
        return "-"
    error = largest(errors)
    return "not square" if math.isinf(error) else "0" if error < EXACT else f"{error:.2g}"


def _called(element: str) -> str:
    return "mirror" if element == "0° mirrored" else element


def _finite(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None


def _columns(head: list[str], rows: list[list[str]], numbers: Sequence[int]) -> str:
    """Columns of text, those of numbers flush right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)
