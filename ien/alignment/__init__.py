"""At which image sizes are a network's quarter turns exact, and what breaks them? (`python -m ien.alignment`)"""

from __future__ import annotations

from ien.alignment.tracing import Step, Trace, trace

__all__ = ["Step", "Trace", "trace"]
