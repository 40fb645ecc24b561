"""At which image sizes are a network's quarter turns exact, and what breaks them? (`python -m ien.alignment`)

from ien.alignment import exact_sizes, prove, trace

found = trace(model, side=224)          # shapes alone: what breaks exact quarter turns, by layer
[step.layer for step in found.broken]
exact_sizes(model, found)               # the nearest sizes at which nothing does
prove(model, found).error               # in float64, with kernels averaged over D4: 0 to rounding, or not
"""

from __future__ import annotations

from ien.alignment.proof import Proof, prove
from ien.alignment.sizes import exact_sizes
from ien.alignment.tracing import Step, Trace, trace

__all__ = ["Proof", "Step", "Trace", "exact_sizes", "prove", "trace"]
