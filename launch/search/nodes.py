"""How does Ray live on a job's nodes, and nowhere else?

SLURM starts one process on each node. The first one's Ray is the head; the others read where it listens, and its token,
from a file in the sweep's own folder, and join. On one node Ray listens on that machine alone.

Every port is chosen before Ray starts, from a block that this Ray has on its node. All that Ray starts is born with
USR1, USR2 and TERM blocked, because SLURM sends them to every process of a job: the search heeds them, trials save, and
then Ray is ended from here. `ray stop` is never used: it would end everybody's Ray on the node.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ien.stopping import SIGNALS, Stopped
from launch.search import driver
from launch.search.driver import ray  # which has said what holds for every Ray of ours before it was loaded

START_S = 120.0  # for Ray to start on a node
JOIN_S = 300.0  # for all nodes to be there: a node may be slow to load Python from a shared disk
LEAVE_S = 60.0  # for runs whose trial is gone, to save and leave
SILENT_S = 10.0  # after which a head that does not answer is taken for gone
_BLOCK = 512  # ports
_BLOCKS = range(10_000, 32_000, _BLOCK)  # below those that Linux deals out (from 32768 on)
_FIXED = (
    "port",  # of the head
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",  # which is not started; see `start_hook`
)
_HEADS = ("port", "ray-client-server-port")
_SUBREAPER, _DEATH_SIGNAL = 36, 1  # of prctl(2)


@dataclass(frozen=True)
class Place:
    """This process among those of its job: one on each of `nodes`, SLURM's names for them; `index` counts from 0."""

    index: int
    nodes: tuple[str, ...]
    job: str
    restart: int

    @property
    def meeting(self) -> str:
        """The name of the file by which they find each other: another one after a requeue."""
        return f"ray-{self.job}-{self.restart}.json"


def allotted(environment: Mapping[str, str]) -> tuple[int, int]:
    """CPUs and GPUs of this node that are the job's, however many the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = environment.get("SLURM_CPUS_PER_TASK") or environment.get("SLURM_CPUS_ON_NODE") or str(cores)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return min(cores, int(told)), len([one for one in visible.split(",") if one and one != "NoDevFiles"])
    return min(cores, int(told)), int(environment.get("SLURM_GPUS_ON_NODE") or 0)


@contextmanager
def ray_of_the_job(folder: Path, place: Place) -> Iterator[None]:
    """In the first process: a Ray over all nodes of the job, which ends with the block, on each of them.

    `folder` is private, and on a disk that all nodes share. USR1, USR2 and TERM are blocked when this begins. Raises
    `Stopped` where one of them comes before all is there, and `RuntimeError` where a node does not join.
    """
    for left in folder.glob("ray-*.json"):  # by a head that was killed
        left.unlink(missing_ok=True)
    with _alone(), _own_folder() as own:
        if len(place.nodes) == 1:
            with driver.ray_on_this_machine(*allotted(os.environ)):
                yield
            return
        address, token = _address(place.nodes[0]), secrets.token_hex(32)
        with Ports() as ports:
            there = f"{address}:{ports.first['port']}"
            process = _started(
                own, token, place, address, ["--head", "--include-dashboard=false", *ports.options(head=True)]
            )
            _wait_for(process, own)
            meeting = folder / place.meeting
            try:
                _publish(meeting, {"address": there, "token": token})
                ray.init(
                    address=there, _temp_dir=str(own / driver.OPEN), log_to_driver=False, logging_level=logging.ERROR
                )
                _wait_for_all(place, there)
                yield
            finally:
                ray.shutdown()
                meeting.unlink(missing_ok=True)


def lend(folder: Path, place: Place) -> None:
    """In the other processes: give this node to the first one's Ray until it has ended.

    Raises `RuntimeError` where Ray cannot start here, or the first process is gone without a word.
    """
    meeting = folder / place.meeting
    said = _met(meeting)
    if said is None:
        return
    with _alone(), _own_folder() as own, Ports() as ports:
        address = _address(place.nodes[place.index])
        options = [f"--address={said['address']}", *ports.options(head=False)]
        process = _started(own, said["token"], place, address, options)
        _wait_for(process, own)
        heard = time.monotonic()
        while _is_there(meeting):
            if process.poll() is not None:
                raise RuntimeError(f"Ray has ended on {place.nodes[place.index]}: {_last_words(own)}")
            if _answers(said["address"]):
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENT_S:
                raise RuntimeError(f"{place.nodes[0]} does not answer any more: Connection refused")
            time.sleep(1.0)


class Ports:
    """A block of ports of this machine that no other Ray of ours takes, whoever's it is.

    The first port of the block is bound as long as the object is open, and that decides; the others were free when it
    was taken. `first` has the ports by the name of their option.
    """

    def __init__(self, blocks: Sequence[int] = _BLOCKS):
        for begin in random.SystemRandom().sample(list(blocks), len(blocks)):
            if guard := _bound(begin):
                if all(_free(port) for port in range(begin + 1, begin + _BLOCK)):
                    self._guard, self._begin = guard, begin
                    self.first = {name: begin + 1 + place for place, name in enumerate(_FIXED)}
                    return
                guard.close()
        raise RuntimeError(f"{socket.gethostname()} has no {_BLOCK} free ports in a row from {blocks[0]} on")

    def options(self, head: bool) -> list[str]:
        """For `ray start`."""
        fixed = [f"--{name}={port}" for name, port in self.first.items() if head or name not in _HEADS]
        workers = (self._begin + 1 + len(_FIXED), self._begin + _BLOCK - 1)
        return [*fixed, f"--min-worker-port={workers[0]}", f"--max-worker-port={workers[1]}"]

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, *error: object) -> None:
        self._guard.close()


def _bound(port: int) -> socket.socket | None:
    one = socket.socket()
    try:
        one.bind(("", port))
    except OSError:
        one.close()
        return None
    return one


def _free(port: int) -> bool:
    one = _bound(port)
    if one:
        one.close()
    return one is not None


def _address(node: str) -> str:
    """Where the other nodes reach this one: its name's address, if that is not the loopback that Debian gives it."""
    found = socket.gethostbyname(node)
    return str(ray.util.get_node_ip_address()) if found.startswith("127.") else found


def _started(own: Path, token: str, place: Place, address: str, options: list[str]) -> subprocess.Popen[bytes]:
    """Ray on this node, with what the job was allotted; it dies with this process."""
    cpus, gpus = allotted(os.environ)
    _write_private(own / "token", token)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(own / "token")
    command = [
        *(sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"),
        *(f"--node-ip-address={address}", f"--node-name={place.nodes[place.index]}"),
        *(f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={driver.STORE_BYTES}"),
        *(f"--temp-dir={own / driver.OPEN}", "--disable-usage-stats", "--include-log-monitor=false"),
        *options,
    ]
    library = ctypes.CDLL(None)
    with (own / "start.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"RAY_START_HOOK": "launch.search.start_hook.called"},
            preexec_fn=lambda: library.prctl(_DEATH_SIGNAL, signal.SIGKILL),
        )


def _wait_for(process: subprocess.Popen[bytes], own: Path) -> None:
    until = time.monotonic() + START_S
    while "Ray runtime started" not in (own / "start.log").read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"Ray did not start on {socket.gethostname()}: {_last_words(own)}")
        _heed_what_waits()
        time.sleep(0.2)


def _last_words(own: Path) -> str:
    lines = [line.strip() for line in (own / "start.log").read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-400:] or "it said nothing"


def _wait_for_all(place: Place, there: str) -> None:
    until = time.monotonic() + JOIN_S
    while missing := set(place.nodes) - {node["NodeName"] for node in ray.nodes() if node["Alive"]}:
        if time.monotonic() > until:
            names = ", ".join(sorted(missing))
            raise RuntimeError(f"{names} did not join the Ray of {place.nodes[0]} at {there} within {JOIN_S:g} s")
        _heed_what_waits()
        time.sleep(0.5)


def _heed_what_waits() -> None:
    """Raises `Stopped` if a signal has come that is still blocked."""
    if signal.sigpending() & set(SIGNALS):
        raise Stopped


def _publish(meeting: Path, said: dict[str, Any]) -> None:
    fresh = meeting.with_name(f".{meeting.name}.new")
    _write_private(fresh, json.dumps(said))
    fresh.replace(meeting)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _met(meeting: Path) -> dict[str, Any] | None:
    """What the first process has published; None where the job is to stop before that."""
    until = time.monotonic() + START_S + JOIN_S
    while time.monotonic() < until:
        with suppress(FileNotFoundError):
            return dict(json.loads(meeting.read_text()))
        if signal.sigpending() & set(SIGNALS):
            return None
        time.sleep(0.5)
    raise RuntimeError(f"the first process did not write {meeting}; is that folder on a disk that all nodes share?")


def _is_there(meeting: Path) -> bool:
    """Opened, because a shared disk may answer otherwise with what it knew a minute ago."""
    try:
        with meeting.open("rb"):
            return True
    except FileNotFoundError:
        return False


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=SILENT_S / 2):
            return True
    except OSError:
        return False


@contextmanager
def _own_folder() -> Iterator[Path]:
    own = driver.own_folder()
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextmanager
def _alone() -> Iterator[None]:
    """What this process starts, and what that starts, ends with the block, also where its parent has died."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    try:
        yield
    finally:
        _end(os.getpid())
        ctypes.CDLL(None).prctl(_SUBREAPER, 0)


def _end(parent: int) -> None:
    """Kill all that descend from `parent`; runs, which notice that nobody listens, have time to save."""
    until = time.monotonic() + LEAVE_S
    while below := list(_below(parent)):
        for process, line in below:
            if "launch.search.process" not in line or time.monotonic() > until:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.1)


def _below(parent: int) -> Iterator[tuple[int, str]]:
    """The living processes that descend from `parent`, with their command lines."""
    parents: dict[int, tuple[int, str]] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            with suppress(OSError):
                state, above, *_ = (place / "stat").read_text().rpartition(")")[2].split()
                if state != "Z" or int(above) == parent:
                    line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    parents[int(place.name)] = int(above), line
    for process in parents:
        ancestor = process
        while ancestor in parents and ancestor != parent:
            ancestor = parents[ancestor][0]
        if ancestor == parent and process != parent:
            yield process, parents[process][1]
