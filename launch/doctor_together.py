"""What do the processes of an allocation see only together? (ports, clocks, a shared disk, a sum over all)"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

MIB = 64
SEEN_WITHIN_S = 20.0  # what one node writes must be seen by the others
MEETING_S = 60.0
_PORT_S = 5.0


@dataclass(frozen=True)
class Place:
    """This process among all of the allocation. One process of each node speaks for it."""

    rank: int
    count: int
    local: int
    node: str
    host: str  # where the first process listens
    port: int

    @property
    def speaks(self) -> bool:
        return self.local == 0

    @classmethod
    def here(cls, variables: Mapping[str, str]) -> Place:
        """From srun's variables, or torchrun's, which the doctor sets where there is no Slurm."""
        slurm = "SLURM_PROCID" in variables
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID") if slurm else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, count, local = (int(variables[name]) for name in names)
        node = variables.get("SLURMD_NODENAME") or socket.gethostname()
        return cls(rank, count, local, node, variables["MASTER_ADDR"], int(variables["MASTER_PORT"]))


class Meeting:
    """The processes of the allocation, by a store that the first of them keeps."""

    def __init__(self, place: Place):
        import torch.distributed as dist

        self.place = place
        limit = timedelta(seconds=MEETING_S)
        try:
            self.store = dist.TCPStore(place.host, place.port, None, place.rank == 0, limit, wait_for_workers=False)
            self.set(f"node/{place.rank}", [place.node, place.local])
        except RuntimeError as error:
            raise RuntimeError(f"cannot reach {place.host}:{place.port} within {MEETING_S:.0f} s") from error
        self.speakers = self._speakers() if place.speaks else []

    def _speakers(self) -> list[int]:
        """The processes that speak for a node, once all processes are here."""
        found = []
        for rank in range(self.place.count):
            try:
                _, local = self.get(f"node/{rank}")
            except RuntimeError as error:
                where = f"{self.place.host}:{self.place.port}"
                raise RuntimeError(f"process {rank} did not come to {where} within {MEETING_S:.0f} s") from error
            found += [rank] if local == 0 else []
        return found

    def set(self, key: str, value: Any) -> None:
        self.store.set(key, json.dumps(value))

    def get(self, key: str) -> Any:
        """The value, once somebody has set it. Raises `RuntimeError` where nobody does in time."""
        return json.loads(self.store.get(key))

    def speakers_say(self, topic: str, value: Any) -> list[Any]:
        """What the speakers of all nodes said, in the order of their ranks, once all have."""
        self.set(f"{topic}/{self.place.rank}", value)
        return [self.get(f"{topic}/{rank}") for rank in self.speakers]

    def wait(self, topic: str) -> None:
        """Until every process is here."""
        if self.store.add(topic, 1) == self.place.count:
            self.set(f"{topic}/all", True)
        self.get(f"{topic}/all")


def unreached(place: Place, meeting: Meeting) -> list[str]:
    """The nodes on which a port that was just opened cannot be reached from here."""
    with socket.create_server(("", 0), backlog=1024) as listening:  # the kernel answers; nobody need accept
        mine = (place.node if "SLURM_JOB_ID" in os.environ else "127.0.0.1", listening.getsockname()[1])
        others = [tuple(address) for address in meeting.speakers_say("port", mine) if tuple(address) != mine]
        with ThreadPoolExecutor(16) as pool:
            failed = [failure for failure in pool.map(_refusal, others) if failure]
        meeting.speakers_say("reached", True)
    return failed


def _refusal(address: tuple[str, int]) -> str | None:
    try:
        socket.create_connection(address, timeout=_PORT_S).close()
    except OSError as error:
        return f"{address[0]} ({error.strerror or error})"
    return None


def clock_ms(place: Place, meeting: Meeting, tries: int = 8) -> float:
    """How far the first node's clock is ahead of this one's, from the quickest of some questions."""
    if place.rank == 0:
        for rank in meeting.speakers[1:]:
            for number in range(tries):
                meeting.get(f"what time/{rank}/{number}")
                meeting.set(f"time/{rank}/{number}", time.time())
        return 0.0
    answers = []
    for number in range(tries):
        asked = time.time()
        meeting.set(f"what time/{place.rank}/{number}", True)
        there = meeting.get(f"time/{place.rank}/{number}")
        answered = time.time()
        answers.append((answered - asked, 1000 * (there - (asked + answered) / 2)))
    return min(answers)[1]


def shared(place: Place, meeting: Meeting, folder: Path) -> dict[str, Any]:
    """How long until this node sees a file that another made, and one that another replaced."""
    slowest, missing = 0.0, set()
    files = {rank: folder / f"from-{rank}" for rank in meeting.speakers}
    for content in (b"made", b"replaced"):
        for path in files.values():
            _content(path)  # a network disk may remember what it has seen, also that there was nothing
        meeting.speakers_say(f"looked/{content!r}", True)
        write_durably(folder / f"new-{place.rank}", content)
        (folder / f"new-{place.rank}").replace(files[place.rank])
        meeting.speakers_say(f"written/{content!r}", True)
        began, waiting = time.monotonic(), set(files)
        while waiting and time.monotonic() - began < SEEN_WITHIN_S:
            waiting = {rank for rank in waiting if _content(files[rank]) != content}
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.02 if waiting else 0)
        missing |= waiting
    nodes = dict(zip(meeting.speakers, meeting.speakers_say("name", place.node), strict=True))
    return {"seconds": slowest, "missing": sorted(nodes[rank] for rank in missing)}


def lock(place: Place, meeting: Meeting, path: Path) -> str:
    """Does the disk carry a lock from the first node to this one? held (by the first), kept, lost, or the error."""
    with path.open("a") as file:
        found = "kept"
        if place.rank == 0:
            found = _locked(file.fileno()) or "held"
        meeting.speakers_say("locked", True)
        if place.rank != 0:
            refused = _locked(file.fileno())
            found = "lost" if refused is None else "kept" if refused == "refused" else refused
        meeting.speakers_say("tried", True)
    return found


def _locked(file: int) -> str | None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return "refused"
    except OSError as error:
        return error.strerror
    return None


def all_reduce(place: Place, meeting: Meeting, folder: Path) -> dict[str, Any]:
    """Sum 64 MiB over all processes, as the gradients are: is it right, and how long does it take?"""
    import torch

    from ien.distributed import RENDEZVOUS, processes

    meeting.wait("all-reduce")  # before the limit of a process group begins to count
    variables = {"RANK": place.rank, "WORLD_SIZE": place.count, "LOCAL_RANK": place.local}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ[RENDEZVOUS] = str(folder / "rendezvous")
    with processes(timeout_s=MEETING_S) as group:
        # Small whole numbers: float32 adds them exactly, in any order.
        pattern = torch.arange(MIB << 18, device=group.device).remainder_(7).float()
        mine, all_of_them = pattern * (group.rank + 1), pattern * (group.count * (group.count + 1) // 2)
        seconds, wrong = [], 0
        for _ in range(4):
            group.wait()
            began = time.perf_counter()
            total = group.sum(mine)
            if group.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            wrong += int((total != all_of_them).sum())
        return {"device": group.device.type, "seconds": min(seconds[1:]), "wrong": wrong}


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file)
