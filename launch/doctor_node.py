"""What does a node see? (`launch.doctor` runs this in every process of its allocation; what it finds goes to the log)

Only the standard library is imported before the versions are told: a node whose torch cannot be loaded can say so.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.doctor_together import (
    MEETING_S,
    SEEN_WITHIN_S,
    Meeting,
    Place,
    all_reduce,
    clock_ms,
    lock,
    shared,
    unreached,
    write_durably,
)

MARK = "IEN-DOCTOR"
SIGNALS = ("SIGUSR2", "SIGTERM")  # in the order in which they are sent
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "pyyaml",
    "pydantic",
    "submitit",
    "tensorboard",
    "tqdm",
    "scikit-learn",
)
_LINE = 600  # srun passes lines of more than 1024 characters on in pieces, between those of other processes
_SIGNAL_S = 60.0
_ROOT = Path(__file__).resolve().parent.parent


def main(folder: Path) -> None:
    """All that there is to see, one thing after the other; one that fails is told, and the next is tried."""
    place = Place.here(os.environ)
    tell = Told(place.rank)
    tell(node=place.node, local=place.local, versions=versions(), cpus=cpus(), tools=_tools())
    if place.speaks:
        with _stage(tell, "run folder", 30):
            facts = folder_facts(folder.parent, f"{folder.name}-{place.node}")
            tell(folder={**facts, "login": (folder / "login").is_file()})
    torch, meeting = None, None
    with _stage(tell, "torch", 90):
        torch = _torch()
        tell(torch=torch)
    if torch:
        with _stage(tell, "meeting", MEETING_S + 5):
            meeting = Meeting(place)
        if meeting:
            _together(tell, place, meeting, folder)
        with _stage(tell, "signals", 3 * _SIGNAL_S):
            _signals(tell)
    tell(done=True)
    sys.stdout.flush()
    os._exit(0)  # threads of what has failed would hold it back


class Told:
    """Writes facts to standard output, in marked lines that are short enough to arrive whole (see `told`)."""

    def __init__(self, rank: int):
        self.rank, self.number, self.stage = rank, 0, ""

    def __call__(self, **facts: Any) -> None:
        text, self.number = json.dumps(facts), self.number + 1
        parts = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
        for part, line in enumerate(parts, start=1):
            sys.stdout.write(f"{MARK} {self.rank} {self.number} {part}/{len(parts)} {line}\n")
            sys.stdout.flush()


def versions() -> dict[str, str | None]:
    """Python, the libraries, and a fingerprint of this project's code, without loading any of them."""
    from ien import __version__

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    code = hashlib.sha256()
    for path in sorted([*_ROOT.glob("ien/**/*.py"), *_ROOT.glob("launch/*.py")]):
        code.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes())
    return {**found, "ien": f"{__version__} ({code.hexdigest()[:8]})"}


def cpus() -> list[int]:
    """The CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def folder_facts(root: Path, name: str) -> dict[str, Any]:
    """Whose the folder of runs is, how much room it has, and whether a checkpoint could be written as runs do it."""
    facts: dict[str, Any] = {}
    place, doing = root / name, "see it"
    try:
        about, disk = root.stat(), os.statvfs(root)
        facts = {"mode": about.st_mode & 0o7777, "mine": about.st_uid in (os.geteuid(), 0)}
        facts |= {"free": disk.f_bavail * disk.f_frsize, "no_files": disk.f_files > 0 and disk.f_favail == 0}
        doing, began = "make a folder in it", time.monotonic()
        place.mkdir(mode=0o700)
        doing = "write 1 MiB, with fsync"
        content = os.urandom(1 << 20)
        write_durably(place / "new", content)
        doing = "rename a file"
        (place / "new").replace(place / "last")
        doing = "fsync a folder"
        _fsync(place)
        doing = "read back what was written"
        if (place / "last").read_bytes() != content:
            raise OSError(0, "other bytes came back")
        facts["seconds"] = time.monotonic() - began
    except OSError as error:
        facts |= {"error": f"cannot {doing}: {error.strerror}", "errno": error.errno}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return facts


def _together(tell: Told, place: Place, meeting: Meeting, folder: Path) -> None:
    """What takes more than one process to see."""
    if place.speaks:
        with _stage(tell, "ports", 30):
            tell(unreached=unreached(place, meeting))
        with _stage(tell, "clock", 30):
            tell(clock_ms=clock_ms(place, meeting))
        with _stage(tell, "shared", 2 * SEEN_WITHIN_S + 30):
            tell(shared=shared(place, meeting, folder))
            tell(lock=lock(place, meeting, folder / "lock"))
    with _stage(tell, "all-reduce", 90):
        tell(all_reduce=all_reduce(place, meeting, folder))
    with _stage(tell, "leaving", 60):
        meeting.wait("leaving")  # the first process keeps the store


def _signals(tell: Told) -> None:
    """Wait for the signals as a run does, with a data-loader worker beside; the doctor sends them once all wait."""
    import numpy as np

    from ien.data import Batches, Split
    from ien.data.prepared import Rows
    from ien.stopping import heeded

    images = Split(Rows(np.zeros((512, 1, 8, 8), np.uint8)), np.zeros(512, np.int64))
    reading = Batches(images, batch_size=2, seed=0, resident=False, workers=1).epoch(0)
    with heeded() as request:
        next(reading)
        workers = multiprocessing.active_children()
        tell(ready=len(workers))
        seen = _seen(tell, lambda: request.signal)
        if missing := [name for name in SIGNALS if name not in seen]:
            raise RuntimeError(f"no {' and no '.join(missing)} came")
        time.sleep(0.2)  # a worker that was hit has ended by now
        dead = sum(not worker.is_alive() for worker in workers)
        rest = sum(1 for _ in reading)  # raises where a worker is gone
        tell(workers={"dead": dead, "batches": rest})


def _seen(tell: Told, last: Callable[[], str | None]) -> set[str]:
    """The signals that the handler notes, until the last of them, or none, has come for a while."""
    seen: set[str] = set()
    until = time.monotonic() + _SIGNAL_S
    while SIGNALS[-1] not in seen and time.monotonic() < until:
        if (name := last()) and name not in seen:
            seen.add(name)
            tell(**{name: True})
            until = time.monotonic() + _SIGNAL_S
        time.sleep(0.02)
    return seen


def _torch() -> dict[str, Any]:
    """Load it, and see which GPUs it sees."""
    began = time.monotonic()
    import torch

    seconds, gpus = time.monotonic() - began, []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        identity = str(getattr(about, "uuid", number)).removeprefix("GPU-")
        gpus.append({"name": about.name, "id": identity, "gib": round(about.total_memory / 2**30)})
    return {"seconds": seconds, "cuda": torch.version.cuda, "gpus": gpus, "smi": gpu_errors()}


def gpu_errors() -> list[dict[str, str]] | None:
    """Each GPU's name and uncorrected memory errors, as `nvidia-smi` tells them; None where there is none to ask."""
    if not shutil.which("nvidia-smi"):
        return None
    asked = "--query-gpu=name,uuid,ecc.errors.uncorrected.volatile.total"
    try:
        command = ["nvidia-smi", asked, "--format=csv,noheader,nounits"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in told.splitlines()]
    return [dict(zip(("name", "id", "errors"), row, strict=True)) for row in rows if len(row) == 3]


def _tools() -> list[str]:
    """The commands that a run needs to requeue itself, and are not on this node."""
    return [] if "SLURM_JOB_ID" not in os.environ or shutil.which("scontrol") else ["scontrol"]


@contextmanager
def _stage(tell: Told, name: str, seconds: float) -> Iterator[None]:
    """What fails in it is told, and what takes longer ends the process, which could wait for ever."""
    tell(stage=name)
    timer = threading.Timer(seconds, _give_up, (tell, name, seconds))
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        tell(failed={name: text[:300]})
    finally:
        timer.cancel()


def _give_up(tell: Told, name: str, seconds: float) -> None:
    tell(failed={name: f"took longer than {seconds:.0f} s"}, done=True)
    os._exit(3)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
