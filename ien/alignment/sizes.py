"""At which image sizes near a given one does no operation of a network break exact quarter turns?"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import islice

from torch import nn

from ien.alignment.tracing import Trace, is_exact, without_weights

REACH = 64  # pixels


def exact_sizes(model: nn.Module, trace: Trace, reach: int = REACH, count: int = 2) -> list[int]:
    """The `count` nearest sizes below and above that of `trace` at which nothing is broken, at most `reach` away.

    A size at which the image does not fit through the network is none, nor is one below a quarter of the given one.
    Operations that could not be judged are not counted: `prove` decides.
    """
    below = range(trace.side - 1, _least(trace, reach) - 1, -1)
    above = range(trace.side + 1, trace.side + reach + 1)
    bare = _bare(model, trace)
    return sorted(_first(bare, trace, below, count) + _first(bare, trace, above, count))


def nearest_size(model: nn.Module, trace: Trace, reach: int) -> int | None:
    """The nearest such size (the larger one of two), None if there is none."""
    around = [side for away in range(1, reach + 1) for side in (trace.side + away, trace.side - away)]
    found = _first(_bare(model, trace), trace, [side for side in around if side >= _least(trace, reach)], 1)
    return found[0] if found else None


def _least(trace: Trace, reach: int) -> int:
    return max(trace.side - reach, trace.side // 4, 1)


def _bare(model: nn.Module, trace: Trace) -> nn.Module:
    return without_weights(model) if trace.device == "meta" else copy.deepcopy(model).cpu()


def _first(bare: nn.Module, trace: Trace, sides: Iterable[int], count: int) -> list[int]:
    exact = (side for side in sides if is_exact(bare, side, trace.channels, trace.device))
    return list(islice(exact, count))
