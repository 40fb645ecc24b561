"""Which process is this, and how do the processes agree?

One value, `Processes`, is made once and handed down; torch.distributed is imported here and in `ien.watch` alone. The
variables of the environment are torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); without them there
is one process. A launcher whose processes share a disk says IEN_RENDEZVOUS, a file, instead of MASTER_PORT: the first
process takes a port that is free and writes it there, so that no two jobs can ever want the same.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ien.errors import InputError
from ien.watch import Watch

RENDEZVOUS = "IEN_RENDEZVOUS"


@dataclass(frozen=True)
class Processes:
    """This process among all: its number, how many there are, and its device.

    `hosts` are the processes as seen from the CPU: where they agree, no device is waited for.
    """

    rank: int
    count: int
    device: torch.device
    hosts: dist.ProcessGroup | None = None
    watch: Watch | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over all processes."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def min(self, values: Tensor) -> Tensor:
        """The elementwise minimum over all processes."""
        return self._reduced(values, dist.ReduceOp.MIN)

    def any(self, here: bool) -> bool:
        """Whether any process says yes; all must ask at the same place."""
        said = torch.tensor([int(here)])
        if self.count > 1:
            dist.all_reduce(said, dist.ReduceOp.MAX, group=self.hosts)
        return bool(said)

    def gather(self, values: Tensor) -> list[Tensor]:
        """The same-shaped tensor of every process, in the order of ranks."""
        if self.count == 1:
            return [values]
        here = values.to(self.device)
        everyone = [torch.empty_like(here) for _ in range(self.count)]
        dist.all_gather(everyone, here)
        return [one.to(values.device) for one in everyone]

    def told(self, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """What every process says of itself, in the order of ranks."""
        everyone: list[Any] = [facts] * self.count
        if self.count > 1:
            dist.all_gather_object(everyone, facts, group=self.hosts)
        return everyone

    def agree(self, text: str) -> str:
        """What the first process says."""
        said = [text]
        if self.count > 1:
            dist.broadcast_object_list(said, src=0, group=self.hosts)
        return said[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.sum(torch.zeros(1, device=self.device)).item()  # NCCL alone would order the streams and not the hosts

    def at(self, step: int) -> None:
        """Say how far this process is, for those who watch it."""
        if self.watch:
            self.watch.step = step

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
            module = synchronised(module)
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.count == 1:
            return values
        total = values.to(self.device, copy=True)
        dist.all_reduce(total, operation)
        return total.to(values.device)


def synchronised(module: nn.Module) -> nn.Module:
    """The module with its BatchNorms replaced by SyncBatchNorms of the same weights and statistics.

    Hooks on those layers are lost. Raises `InputError` for a layer derived from BatchNorm (timm has some that activate
    too): torch would take it for a plain one, and the network for another.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and type(layer) not in _PLAIN_NORMS:
            raise InputError(
                f"run.sync_batchnorm: layer {name} is a {type(layer).__name__}, which torch cannot synchronise; write "
                "run.sync_batchnorm=false"
            )
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Agreement:
    """Which of several questions any process answers with yes, one step late.

    The answers travel while the next step is computed; neither a device nor, as a rule, a host waits for them.
    """

    def __init__(self, processes: Processes, questions: int):
        self._processes = processes
        self._said = torch.zeros(questions, dtype=torch.int32)
        self._under_way: Any = None

    def heard(self, *here: bool) -> list[bool]:
        """Answer for this step; what all together answered in the step before. Alone, this step's own answers."""
        if self._processes.count == 1:
            return list(here)
        answer = self.end()
        self._said = torch.tensor(here, dtype=torch.int32)
        self._under_way = dist.all_reduce(self._said, dist.ReduceOp.MAX, group=self._processes.hosts, async_op=True)
        return answer

    def end(self) -> list[bool]:
        """The answers that are still under way."""
        if self._under_way is None:
            return [False] * len(self._said)
        self._under_way.wait()
        self._under_way = None
        return [bool(answer) for answer in self._said.tolist()]


@contextmanager
def processes(
    device: str = "auto", timeout_s: float = 600.0, lost: Callable[[str], None] | None = None
) -> Iterator[Processes]:
    """Join the processes that were started together; `device` is auto, cpu or cuda.

    A process that does not answer for `timeout_s` ends the others; `lost` is told which, in one of them, before that.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    mine = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    if count == 1:
        yield Processes(rank, count, mine)
        return
    # The watch is the faster one, because it knows who is missing; a collective only knows that somebody is.
    timeout = timedelta(seconds=timeout_s)
    cuda = mine.type == "cuda"
    store = _met(Path(os.environ[RENDEZVOUS]), rank, timeout) if RENDEZVOUS in os.environ else None
    place: dict[str, Any] = {"store": store, "rank": rank, "world_size": count} if store else {}
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout, device_id=mine if cuda else None, **place)
    hosts: Any = dist.new_group(backend="gloo", timeout=timeout)
    watch = Watch(rank, count, _watched_through(rank, timeout, hosts), 0.75 * timeout_s, lost)
    watch.start()
    yield Processes(rank, count, mine, hosts, watch)
    # Not in a `finally`: a process that fails must not wait here for the others.
    dist.barrier(group=hosts)
    watch.end()
    dist.barrier(group=hosts)  # the first process holds the store: nobody looks into it any more
    dist.destroy_process_group()


def _met(place: Path, rank: int, timeout: timedelta) -> dist.Store:
    """The store of these processes alone: others that ask at the same port know no key of it."""
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if rank == 0:
        server = dist.TCPStore(address, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        said: dict[str, Any] = {"port": server.port, "token": secrets.token_hex(16)}
        fresh = place.with_name(f".{place.name}.new")
        fresh.write_text(json.dumps(said))
        fresh.replace(place)
        return dist.PrefixStore(said["token"], server)
    said = _read_when_there(place, timeout)
    client = dist.TCPStore(address, said["port"], is_master=False, timeout=timeout, wait_for_workers=False)
    return dist.PrefixStore(said["token"], client)


def _read_when_there(place: Path, timeout: timedelta) -> dict[str, Any]:
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        try:
            said: dict[str, Any] = json.loads(place.read_text())
        except FileNotFoundError:
            time.sleep(0.1)
        else:
            return said
    raise TimeoutError(
        f"the first process did not write {place} within {timeout.total_seconds():g} s; is that folder on a disk "
        "that all nodes share?"
    )


def _watched_through(rank: int, timeout: timedelta, hosts: dist.ProcessGroup) -> dist.Store:
    """A store apart, with a connection of this process's own: the watch waits in no queue behind a collective."""
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    said: list[Any] = [None]
    server = None
    if rank == 0:
        server = dist.TCPStore(address, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        said = [server.port]
    dist.broadcast_object_list(said, src=0, group=hosts)
    return server or dist.TCPStore(address, said[0], is_master=False, timeout=timeout, wait_for_workers=False)


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
