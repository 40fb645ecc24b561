"""Runs on the real cluster of the tests: submitted as a user would, watched through their ledgers, hurt on purpose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ien import ledger

ROOT = Path(__file__).resolve().parent.parent.parent
# 8 steps of 128 digits an epoch. One thread: the order of additions, and so the last bit, depends on their number.
SETTINGS = """
dataset: digits
model: BasicCNN
network: {width: 4}
batch_size: 128
max_lr: 0.01
run: {log_every: 3, equivariance_images: 32, device: cpu}
launch: {cpus_per_task: 1, nodes: 2, timeout_min: 10}
"""


class Runs:
    """A folder of runs of one settings file, submitted from there."""

    def __init__(self, folder: Path, epochs: int = 6):
        self.folder = folder
        (folder / "run.yaml").write_text(f"{SETTINGS}\ntot_epochs: {epochs}\ncyc_size: {epochs}\n")

    def submit(
        self, *words: str, check: bool = True, root: Path = ROOT, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """`launch/submit.py --config run.yaml …`, with as few variables as a login shell has, and `variables`."""
        command = [sys.executable, str(root / "launch/submit.py"), "--config", "run.yaml", *words]
        ended = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
            env=quiet() | variables,
        )
        assert not check or ended.returncode == 0, ended.stdout + ended.stderr
        return ended

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def events(self, name: str) -> list[dict[str, Any]]:
        return ledger.read(self.path(name))

    def named(self, name: str, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events(name) if one["event"] == event]

    def job(self, name: str) -> str:
        return str(self.named(name, "submitted")[-1]["job"])

    def until(self, name: str, seen: Callable[[list[dict[str, Any]]], bool], seconds: float = 240) -> None:
        """Wait for a state of the ledger; fails with all that is known."""
        deadline = time.monotonic() + seconds
        while not seen(self.events(name)):
            assert time.monotonic() < deadline, self.story(name)
            time.sleep(0.1)

    def until_event(self, name: str, event: str, count: int = 1, seconds: float = 240) -> None:
        self.until(name, lambda events: sum(one["event"] == event for one in events) >= count, seconds)

    def story(self, name: str) -> str:
        logs = [f"{path.name}\n{path.read_text()[-4000:]}" for path in sorted(self.path(name).rglob("*_log.out"))]
        lines = [json.dumps(event) for event in self.events(name)]
        return "\n".join([*lines, *logs, said("squeue"), said("scontrol", "show", "job")[-3000:]])


def quiet() -> dict[str, str]:
    """The surroundings of a login shell: nothing of a job."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "OMP_"))}
    return kept | ({"SLURM_CONF": os.environ["SLURM_CONF"]} if "SLURM_CONF" in os.environ else {})


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def task(job: str, rank: int) -> int:
    """The process number of a rank of a job, on this machine that plays all nodes."""
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"}
    for place in Path("/proc").iterdir():
        try:
            words = (place / "cmdline").read_bytes().decode().split("\0") if place.name.isdecimal() else []
            if words[:1] != ["srun"] and any(word.endswith("launch/task.py") for word in words):
                variables = (place / "environ").read_bytes().decode(errors="replace").split("\0")
                if wanted <= set(variables):
                    return int(place.name)
        except OSError:
            continue
    raise AssertionError(f"job {job} has no process of rank {rank}")


def hurt(job: str, rank: int, number: signal.Signals) -> None:
    os.kill(task(job, rank), number)


def left_over(folder: Path) -> list[str]:
    """Processes of runs in `folder` that still live."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            line = (place / "cmdline").read_bytes().decode(errors="replace") if place.name.isdecimal() else ""
        except OSError:
            continue
        if f"{folder}/" in line and "launch/task.py" in line:
            found.append(line.replace("\0", " "))
    return found
