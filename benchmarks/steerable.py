"""How fast is a tied network beside a steerable one? (escnn's, of the same channels and kernels)"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks import training
from benchmarks.timing import Content, Effort, Side, interleaved, ratios, spread
from benchmarks.training import PLAIN
from ien import build
from ien.groups import Group
from ien.pooling import ChannelMaxPool
from ien.report.peer import FIELDS, steerable
from ien.symmetry import Symmetry


def against_steerable(device: torch.device, effort: Effort, tiny: bool) -> Content:
    """A tied network of this project against escnn's steerable one of the same blocks, on the same images."""
    size, group = 8 if tiny else 128, "R4"
    words = ("model=BasicCNN", f"mode={group}", f"batch_size={size}", "symmetry.tied=true", *PLAIN)
    plain = training.parts(training.settings(device, *words, "network.width=4"), device)
    images, labels = training.batch(plain)
    began = time.perf_counter()
    theirs = steerable(build.make_group(plain.settings), 10, 1).to(device)
    theirs_s = time.perf_counter() - began
    began = time.perf_counter()
    ours = _same_blocks().to(device)
    symmetry = Symmetry(ours, Group(4), ChannelMaxPool([4]))  # which is what makes it tied
    symmetry.start()
    ours_s = time.perf_counter() - began
    sides = {
        "tied, this project": _step(ours, images, labels, symmetry.project),
        "escnn": _step(theirs, images, labels),
    }
    found = interleaved(sides, device, effort)
    return {
        "images": size,
        "sides": {name: {"ms": spread([1e3 * v for v in values])} for name, values in found.items()},
        "construction_s": {"this project": round(ours_s, 4), "escnn": round(theirs_s, 4)},
        "ratio": {"escnn": {"time": ratios(found["tied, this project"], found["escnn"]), "memory": None}},
    }


def _same_blocks() -> nn.Module:
    """Convolutions of as many channels, kernels and pools as `ien.report.peer.steerable` has for C4."""

    def layers() -> Iterator[nn.Module]:
        before = 1
        for place, fields in enumerate(FIELDS):
            yield from (nn.Conv2d(before, 4 * fields, 5, padding=2, bias=False), nn.BatchNorm2d(4 * fields), nn.ReLU())
            before = 4 * fields
            if place < len(FIELDS) - 1:
                yield nn.AvgPool2d(2)
        yield from (ChannelMaxPool([4]), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(FIELDS[-1], 10))

    return nn.Sequential(*layers())


def _step(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, after: Side | None = None) -> Side:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    network.train()

    def step() -> None:
        optimizer.zero_grad()
        found = network(images)
        logits = found[0] if isinstance(found, tuple) else found
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        if after:
            after()

    return step
