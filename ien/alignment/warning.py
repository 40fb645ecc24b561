"""What is said at a run's start if its images have a size that breaks exact turns?"""

from __future__ import annotations

from torch import nn

from ien.alignment.calls import times
from ien.alignment.sizes import nearest_size
from ien.alignment.tracing import trace
from ien.groups import Group

REACH = 16  # pixels: so near a size is looked for, in a moment


def alignment_warning(model: nn.Module, side: int, channels: int, group: Group, subject: str) -> str | None:
    """One line that names the first operation that breaks exact turns of this group, and the nearest exact size; None
    if none does, or if the group has no turn that is exact on the grid.

    `subject`: what `python -m ien.alignment` is to be given. Shapes alone are computed; no random number is drawn.
    """
    exact = [element for element in group.moves if element.exact and element.quarter_turns]
    found = trace(model, side, channels) if exact else None
    if not found or not found.broken:
        return None
    first, others = found.broken[0], len(found.broken) - 1
    who = f"{first.layer} ({first.operation}, on a map of {times(first.before)})"
    who += f" and {others} more break" if others else " breaks"
    turns = "quarter turns" if any(element.quarter_turns % 2 for element in exact) else "half turns"
    near = nearest_size(model, found, REACH)
    advice = f"{near}×{near} is exact" if near else f"no size within {REACH} pixels is exact"
    return f"warning: at {side}×{side} {who} exact {turns}; {advice} (python -m ien.alignment {subject})"
