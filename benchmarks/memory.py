"""How much memory does a training step take? (as torch's allocators count it, however busy a machine is)"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Side


@dataclass(frozen=True)
class Allocated:
    """Bytes: the most that were held at a time, and the sum of all that were asked for."""

    peak: int
    total: int


def peak_mib(make: Callable[[], Side], device: torch.device) -> float:
    """MiB that a call takes at most. On a GPU with what making it took (weights, optimizer), on a CPU without."""
    if device.type != "cuda":
        side = make()
        side()
        return on_cpu(side).peak / 2**20
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    side = make()
    side()
    torch.cuda.reset_peak_memory_stats(device)
    side()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def asked_for(call: Side, device: torch.device) -> int:
    """All bytes that a call allocates, one after the other: what it writes at least once, and mostly reads again."""
    if device.type != "cuda":
        return on_cpu(call).total
    before = torch.cuda.memory_stats(device)["allocated_bytes.all.allocated"]
    call()
    return torch.cuda.memory_stats(device)["allocated_bytes.all.allocated"] - before


def on_cpu(call: Side) -> Allocated:
    """What a call allocates there, tensors alone: not what its kernels take for themselves."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it says on stderr that there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    held = peak = total = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak, total = max(peak, held), total + max(event.nbytes(), 0)
    return Allocated(peak, total)
