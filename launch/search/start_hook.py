"""What does `ray start` leave out? (Ray calls this before it starts anything, as RAY_START_HOOK tells it to)"""

from __future__ import annotations

from typing import Any


def called(parameters: Any, head: bool) -> None:
    """No server for clients elsewhere, for which the command line has no switch, and no autoscaler."""
    parameters.ray_client_server_port = None
    parameters.no_monitor = True
