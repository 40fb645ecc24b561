"""What does the objective cost, and beside what? (time and memory of training steps, side by side)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle, islice

import torch

from benchmarks import per_image, training
from benchmarks.memory import peak_mib
from benchmarks.published import HOME, PublishedLoop
from benchmarks.timing import Content, Effort, Measure, Side, interleaved, ratios, spread
from ien import build
from ien.engine import AUTOCAST
from ien.errors import InputError


def against_classification(
    network: str, *group: str, batch: int = 64, on_cpu: int = 32, small: tuple[str, ...] = ()
) -> Measure:
    """A step against a bare loop, cross-entropy alone, on twice the images; `batch` images on a GPU, `on_cpu` there.

    Both are launched kernel by kernel: a bare loop has no CUDA graph.
    """

    def measure(device: torch.device, effort: Effort, tiny: bool) -> Content:
        size = 8 if tiny else batch if device.type == "cuda" else on_cpu
        common = (f"model={network}", *group, *(small if tiny else ()), "run.cuda_graphs=false")
        sides = {
            "this objective": lambda: training.step(device, *common, f"batch_size={size}"),
            "a bare loop of cross-entropy, on as many images": lambda: training.bare_step(
                device, *common, f"batch_size={2 * size}"
            ),
        }
        told, ratio = _sides(sides, device, effort)
        return {"images": size, "settings": common, "sides": told, "ratio": ratio}

    return measure


def against_plain(*words: str) -> Measure:
    """A step with these settings against the plain network's in a bare loop, on the same images."""

    def measure(device: torch.device, effort: Effort, tiny: bool) -> Content:
        size = 8 if tiny else 64 if device.type == "cuda" else 32
        narrow = ("network.width=4",) if tiny else ()
        common = ("model=BasicCNN", "mode=R4", f"batch_size={size}", *narrow, "run.cuda_graphs=false")
        sides = {
            "this objective": lambda: training.step(device, *common, *words),
            "the plain network, in a bare loop": lambda: training.bare_step(device, *common),
        }
        told, ratio = _sides(sides, device, effort)
        return {"images": size, "settings": (*common, *words), "sides": told, "ratio": ratio}

    return measure


def against_default(network: str, *words: str, on_cpu: str = "network.width=24") -> Measure:
    """A step with these settings against one in fp32, launched kernel by kernel; on a CPU of a narrow network."""

    def measure(device: torch.device, effort: Effort, tiny: bool) -> Content:
        if device.type == "cpu" and "run.cuda_graphs=true" in words:
            raise InputError("CUDA graphs need a GPU")
        size = 8 if tiny else 64 if device.type == "cuda" else 32
        width = ("network.width=8",) if tiny else (on_cpu,) if device.type == "cpu" else ()
        plain = ("run.precision=fp32", "run.channels_last=false", "run.cuda_graphs=false")
        common = (f"model={network}", "mode=R4", f"batch_size={size}", *width)
        sides = {
            "with it": lambda: training.step(device, *common, *plain, *words),
            "without": lambda: training.step(device, *common, *plain),
        }
        told, ratio = _sides(sides, device, effort)
        return {"images": size, "settings": (*common, *words), "sides": told, "ratio": ratio}

    return measure


def against_per_image(mode: str) -> Measure:
    """A step against one of the published formulation: same network, images and arithmetic."""

    def measure(device: torch.device, effort: Effort, tiny: bool) -> Content:
        common = ("model=BasicCNN", f"mode={mode}", "batch_size=32", *(("network.width=8",) if tiny else ()))
        sides = {
            "this objective": lambda: training.step(device, *common),
            "image by image": lambda: _image_by_image(device, *common),
        }
        told, ratio = _sides(sides, device, effort)
        return {"images": 32, "settings": common, "sides": told, "ratio": ratio}

    return measure


def against_published(network: str, mode: str) -> Measure:
    """A step in the published code's arithmetic against one of its own, on images of the same shape."""

    def measure(device: torch.device, effort: Effort, tiny: bool) -> Content:
        if effort.published is None:
            raise InputError(f"give --published and the folder of a clone of {HOME}")
        if network == "Resnet18" and device.type == "cpu":
            raise InputError("at the published width a step takes minutes on a CPU")
        exact = ("run.precision=fp32", "run.channels_last=false")
        words = (f"model={network}", f"mode={mode}", f"batch_size={4 if tiny else 32}", *exact)
        data = {"BasicCNN": "rot_mnist", "Resnet18": "rot_tim"}[network]
        params: dict[str, str | bool] = {
            "dataset": data,
            "model": network,
            "mode": mode,
            "reflection": False,
            "heterogeneous": False,
        }
        side, channels = (28, 1) if network == "BasicCNN" else (65, 3)
        size = 4 if tiny else 32
        batch = torch.rand(size, channels, side, side), torch.arange(size) % 10
        loop = PublishedLoop(effort.published, device, batch, params)
        sides = {"this objective": training.step(device, *words), "the published code": loop.step}
        found = interleaved(sides, device, effort)
        loop.close()
        told = {name: {"ms": spread([1e3 * value for value in values])} for name, values in found.items()}
        ratio = {"time": ratios(found["this objective"], found["the published code"]), "memory": None}
        return {"images": size, "settings": words, "sides": told, "ratio": {"the published code": ratio}}

    return measure


def _image_by_image(device: torch.device, *words: str) -> Side:
    made = training.parts(training.settings(device, *words), device)
    images, labels = training.batch(made)
    group, precision = build.make_group(made.settings), made.settings.run.precision
    if made.settings.run.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    elements = list(islice(cycle(group.moves), len(images)))
    made.tapped.train()
    optimizer = torch.optim.Adam(made.tapped.parameters(), lr=1e-4)

    def step() -> object:
        autocast = torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else None
        return per_image.step(made.tapped, optimizer, group, images, labels, elements, autocast=autocast)

    return step


def _sides(sides: Mapping[str, Callable[[], Side]], device: torch.device, effort: Effort) -> tuple[Content, Content]:
    """Milliseconds and memory of each side, and the first one's ratio to each of the others."""
    memory = {name: peak_mib(make, device) for name, make in sides.items()}
    found = interleaved({name: make() for name, make in sides.items()}, device, effort)
    first = next(iter(sides))
    told = {
        name: {"ms": spread([1e3 * value for value in values]), "peak_mib": round(memory[name], 1)}
        for name, values in found.items()
    }
    ratio: Content = {name: {"time": ratios(found[first], found[name])} for name in list(sides)[1:]}
    for name, one in ratio.items():
        one["memory"] = round(memory[first] / memory[name], 3)
    return told, ratio
