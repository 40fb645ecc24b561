"""How far is a step from what the hardware could do, and what comes before the first one?"""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import count

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training
from benchmarks.memory import asked_for
from benchmarks.timing import Content, Effort, Measure, Side, interleaved, ratios, spread
from ien.engine import AUTOCAST


def matrix_peak(network: str, mode: str, on_cpu: int = 8) -> Measure:
    """The share of the measured matrix peak that the convolutions of a step reach; on a CPU with `on_cpu` images.

    And the floors of a step: its convolutions' FLOP over that peak, and its bytes (each that is allocated is written
    once and read once, at least) over the bandwidth of a copy.
    """

    def measure(device: torch.device, effort: Effort, tiny: bool) -> Content:
        size = 4 if tiny else 64 if device.type == "cuda" else on_cpu
        words = (f"model={network}", f"mode={mode}", f"batch_size={size}", *(("network.width=8",) if tiny else ()))
        wanted = training.settings(device, *words)
        work, moved = _counted(device, *words)
        dtype = AUTOCAST.get(wanted.run.precision, torch.float32)
        side = 256 if tiny else 8192 if device.type == "cuda" else 2048
        matrix = torch.randn(side, side, dtype=dtype, device=device)
        source = torch.randn(2**18 if tiny else 2**26, device=device)
        target = torch.empty_like(source)
        sides: dict[str, Side] = {
            "step": training.step(device, *words),
            "matrix product": lambda: matrix @ matrix,
            "copy": lambda: target.copy_(source),
        }
        found = interleaved(sides, device, effort)
        bandwidth = [2 * source.nbytes / seconds for seconds in found["copy"]]
        peak = [2 * side**3 / seconds for seconds in found["matrix product"]]
        reached = [work / seconds for seconds in found["step"]]
        return {
            "images": size,
            "settings": words,
            "convolution_flop": work,
            "peak_tflops": spread([value / 1e12 for value in peak]),
            "reached_tflops": spread([value / 1e12 for value in reached]),
            "moved_bytes": moved,
            "bandwidth_gbs": spread([value / 1e9 for value in bandwidth]),
            "floor_ms": {
                "FLOP over peak": spread([1e3 * work / value for value in peak]),
                "bytes over bandwidth": spread([1e3 * moved / value for value in bandwidth]),
            },
            "ratio": {"the matrix peak": {"time": ratios(reached, peak), "memory": None}},
            "sides": {name: {"ms": spread([1e3 * v for v in values])} for name, values in found.items()},
        }

    return measure


def _counted(device: torch.device, *words: str) -> tuple[int, int]:
    """FLOP of the convolutions of a step, and the bytes that it moves at least."""
    made = training.parts(training.settings(device, *words, "run.cuda_graphs=false"), device)
    images, labels = training.batch(made)
    with FlopCounterMode(display=False) as flops:
        made.engine.train_step(images, labels, 0)
    counted = flops.get_flop_counts()["Global"]
    work = sum(number for operation, number in counted.items() if "convolution" in str(operation))
    return work, 2 * asked_for(lambda: made.engine.train_step(images, labels, 1), device)


def waiting_for_data(*how: str) -> Measure:
    """An epoch as the trainer runs it, against as many steps on one batch that lies on the device.

    On a CPU the network is narrow: its steps are as short as those of a GPU, and a wait shows.
    """

    def measure(device: torch.device, effort: Effort, tiny: bool) -> Content:
        narrow = "network.width=4" if tiny else "network.width=8" if device.type == "cpu" else "network.width=null"
        words = ("model=BasicCNN", "mode=R4", "batch_size=64", narrow, *how)
        made = training.parts(training.settings(device, *words), device)
        images, labels = training.batch(made)
        epochs, steps = count(), made.batches.steps_per_epoch

        def loaded() -> None:
            for seen, truth in made.batches.epoch(next(epochs)):
                made.engine.train_step(seen, truth, 0)

        def ready() -> None:
            for _ in range(steps):
                made.engine.train_step(images, labels, 0)

        found = interleaved({"data on the device already": ready, "an epoch": loaded}, device, effort)
        ratio = {"time": ratios(found["data on the device already"], found["an epoch"]), "memory": None}
        return {
            "images": 64,
            "settings": words,
            "sides": {name: {"ms": spread([1e3 * v for v in values])} for name, values in found.items()},
            "ratio": {"an epoch": ratio},
        }

    return measure


def starting(label: str, code: str) -> Measure:
    """Seconds that a process needs for `code` on `{device}`, over torch's own import."""

    def measure(device: torch.device, effort: Effort, tiny: bool) -> Content:
        def seconds(what: str) -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", what], check=True, cwd=training.ROOT)
            return time.perf_counter() - began

        ours = code.format(device=device.type)
        pairs = [(seconds("import torch"), seconds(ours)) for _ in range(effort.repetitions)]
        sides = dict(zip(("torch", label), map(list, zip(*pairs, strict=True)), strict=True))
        return {
            "sides": {name: {"ms": spread([1e3 * s for s in values])} for name, values in sides.items()},
            "extra_s": spread([b - a for a, b in pairs]),
        }

    return measure
