"""Which process is this, and how do the processes agree?

One value, `Processes`, is made once and handed down; torch.distributed is imported here alone. The variables of the
environment are torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); without them there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ien.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process among all: its number, how many there are, and its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over all processes."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def min(self, values: Tensor) -> Tensor:
        """The elementwise minimum over all processes."""
        return self._reduced(values, dist.ReduceOp.MIN)

    def gather(self, values: Tensor) -> list[Tensor]:
        """The same-shaped tensor of every process, in the order of ranks."""
        if self.count == 1:
            return [values]
        here = values.to(self.device)
        everyone = [torch.empty_like(here) for _ in range(self.count)]
        dist.all_gather(everyone, here)
        return [one.to(values.device) for one in everyone]

    def agree(self, text: str) -> str:
        """What the first process says."""
        said = [text]
        if self.count > 1:
            dist.broadcast_object_list(said, src=0, device=self.device)
        return said[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.sum(torch.zeros(1, device=self.device)).item()  # NCCL alone would order the streams and not the hosts

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers (running statistics), so that all evaluate the same network."""
        if self.count > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, module: nn.Module, sync_batchnorm: bool) -> nn.Module:
        """The module whose gradients are averaged over the processes; alone, the module itself."""
        if self.count == 1:
            return module
        if sync_batchnorm and self.device.type != "cuda":
            raise InputError("run.sync_batchnorm: torch has it on GPUs alone; write run.sync_batchnorm=false")
        if sync_batchnorm:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.count == 1:
            return values
        total = values.to(self.device, copy=True)
        dist.all_reduce(total, operation)
        return total.to(values.device)


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that were started together; `device` is auto, cpu or cuda."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    mine = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    if count > 1:
        backend = "nccl" if mine.type == "cuda" else "gloo"
        dist.init_process_group(backend, device_id=mine if mine.type == "cuda" else None)
    yield Processes(rank, count, mine)
    # Not in a `finally`: a process that fails must not wait here for the others.
    if count > 1:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("run.device is cuda, but torch sees no GPU here; write run.device=cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    here, seen = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if 1 < seen < here:
        raise InputError(f"{here} processes on this machine have {seen} GPUs; start at most one process for each")
    # A scheduler may show each process its own GPU alone: then that one is number 0 for all.
    return torch.device("cuda", local_rank if torch.cuda.device_count() > 1 else 0)
