"""What is timed of training? (steps of the trainer's own engine, on a batch that lies on the device)

The images are scikit-learn's digits, resized to the side that the network was made for, so that no data set need be
prepared: what a step costs does not depend on what is seen.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Side
from ien import build, config
from ien.build import Parts
from ien.config import Config
from ien.distributed import Processes
from ien.engine import AUTOCAST

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
ON_A_GPU = ("run.precision=bf16", "run.channels_last=true")
PLAIN = ("objective.augment=none", "beta_weight=0")


def settings(device: torch.device, *words: str) -> Config:
    """Settings of a run on digits: `key=value`s over the quickstart's; on a GPU bf16 and channels_last unless said."""
    fast = ON_A_GPU if device.type == "cuda" else ()
    given: dict[str, str] = {}
    for word in (*fast, "network.width=null", f"run.device={device.type}", *words):
        key, _, value = word.partition("=")
        given[key] = value
    return config.load(QUICKSTART, [f"{key}={value}" for key, value in given.items()])


def parts(wanted: Config, device: torch.device) -> Parts:
    """Network, objective and engine of one process."""
    return build.parts(wanted, Processes(0, 1, device))


def batch(made: Parts) -> tuple[Tensor, Tensor]:
    """The first batch of its first epoch."""
    images, labels = next(iter(made.batches.epoch(0)))
    return images, labels


def bare_step(device: torch.device, *words: str) -> Side:
    """A step of the same network, images and arithmetic in a loop of torch's own: no taps, cross-entropy alone."""
    made = parts(settings(device, *words), device)
    images, labels = batch(made)
    run, network = made.settings.run, made.tapped.model.train()
    made.tapped.close()
    if run.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    dtype = AUTOCAST.get(run.precision)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()
        optimizer.step()

    return step


def step(device: torch.device, *words: str) -> Side:
    """A training step that can be called again and again, as the trainer calls it."""
    made = parts(settings(device, *words), device)
    images, labels = batch(made)
    steps = count()
    return lambda: made.engine.train_step(images, labels, next(steps) % 20)
