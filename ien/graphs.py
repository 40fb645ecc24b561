"""How is a step replayed on a GPU without its host? (CUDA graphs)

A step launches several hundred kernels, and on a fast GPU the host takes longer to launch them than the device to run
them. Captured once, they are launched as one. Shapes are fixed in training, but which images take which element may
alternate between a few plans, and each has a graph of its own; all share their memory, since one runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], None]  # images (B, C, S, S), labels (B,); what else it reads lies on the device


class Graphs:
    """Steps on batches of one shape, replayed from their third time on.

    A step must read everything that changes between its calls from tensors that stay where they are, and must not wait
    for the device. The first time it runs as it is, which also initialises what is initialised lazily.
    """

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._given: tuple[Tensor, Tensor] | None = None
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, key: Hashable, step: Step, images: Tensor, labels: Tensor) -> None:
        """One step on this batch; steps of equal `key` launch the same kernels."""
        if key not in self._seen:
            self._seen.add(key)
            step(images, labels)
            return
        if self._given is None:
            self._given = torch.empty_like(images), torch.empty_like(labels)
        for kept, given in zip(self._given, (images, labels), strict=True):
            kept.copy_(given)
        if key not in self._graphs:
            self._graphs[key] = self._captured(step)
        self._graphs[key].replay()

    def _captured(self, step: Step) -> torch.cuda.CUDAGraph:
        assert self._given
        graph = torch.cuda.CUDAGraph()
        # Only this thread: another one may be pinning the next batch meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step(*self._given)
        return graph
