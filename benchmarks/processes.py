"""How much faster are several processes than one? (each with as many images a step as the one has)

`python -m torch.distributed.run --standalone --nproc_per_node P -m benchmarks.processes OUT …` is what a row starts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

from benchmarks import training
from benchmarks.timing import Content, Effort, Side, ratios, spread
from ien import build
from ien.distributed import Processes, processes
from ien.errors import InputError
from ien.tracking import write_json

ALONE, APART, TOGETHER = "one process", "processes that do not speak", "processes that train together"


def several(network: str) -> Callable[[torch.device, Effort, bool], Content]:
    """Steps of one process, of several that share no gradients, and of several that do, in turn, in one start."""

    def measure(device: torch.device, effort: Effort, tiny: bool) -> Content:
        cores = len(os.sched_getaffinity(0))
        number = min(8, torch.cuda.device_count()) if device.type == "cuda" else 2
        if number < 2 or cores < number:
            raise InputError(f"it takes two {'GPUs' if device.type == 'cuda' else 'cores'}, and here is one")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "found.json"
            words = [str(out), device.type, network, str(effort.repetitions), str(effort.seconds)]
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}", "-m"]
            threads = {"OMP_NUM_THREADS": str(max(1, cores // number))}
            ended = subprocess.run(
                [*start, "benchmarks.processes", *words, *(["--tiny"] if tiny else [])],
                cwd=training.ROOT, env=os.environ | threads, capture_output=True, text=True, timeout=1800, check=False,
            )  # fmt: skip
            if ended.returncode:
                raise RuntimeError(f"the processes ended with {ended.returncode}: {ended.stderr[-2000:]}")
            content: Content = json.loads(out.read_text())
        return content

    return measure


def main() -> None:
    """One of the processes; the first writes what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes")
    parser.add_argument("out", type=Path)
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("network")
    parser.add_argument("repetitions", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    with processes(given.device) as here:
        found = _measured(here, given)
        if here.first:
            write_json(given.out, found)


def _measured(here: Processes, given: argparse.Namespace) -> Content:
    size = 4 if given.tiny else 64 if given.device == "cuda" else 32
    words = (f"model={given.network}", "mode=R4", *(("network.width=4",) if given.tiny else ()))
    one = Processes(0, 1, here.device)
    alone, _ = _step(one, *words, f"batch_size={size}", "run.cuda_graphs=false")
    together, weights = _step(here, *words, f"batch_size={here.count * size}")
    sides: dict[str, Side | None] = {ALONE: alone if here.first else None, APART: alone, TOGETHER: together}
    for _ in range(2):
        for side in sides.values():
            _seconds(side, 1, here)
    once = _seconds(sides[ALONE], 1, here)
    calls = int(here.agree(str(max(1, round(given.seconds / once)))))  # the first process's word for all
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.repetitions):
        for name, side in sides.items():
            found[name].append(_seconds(side, calls, here) / calls)
    return {
        "images": size,
        "processes": here.count,
        "settings": words,
        "bytes_reduced": 4 * weights,
        "sides": {name: {"ms": spread([1e3 * value for value in values])} for name, values in found.items()},
        "ratio": {
            f"{here.count} times one process": {"time": ratios(found[ALONE], found[TOGETHER]), "memory": None},
            "without speaking": {"time": ratios(found[APART], found[TOGETHER]), "memory": None},
        },
    }


def _step(here: Processes, *words: str) -> tuple[Side, int]:
    """A training step, and how many weights it moves."""
    made = build.parts(training.settings(here.device, *words), here)
    images, labels = training.batch(made)
    steps = count()
    weights = sum(weight.numel() for weight in made.tapped.parameters())
    return lambda: made.engine.train_step(images, labels, next(steps) % 20), weights


def _seconds(side: Side | None, calls: int, here: Processes) -> float:
    """From when all processes are ready until all are done; a process without a side waits for the others."""
    here.wait()
    began = time.perf_counter()
    for _ in range(calls if side else 0):
        side()  # type: ignore[misc]
    here.wait()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
