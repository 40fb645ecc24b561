"""What the examples share: handwritten digits, turned by any angle (embedded: no download), and a small network."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ien import Group, Tapped, equivariance_sums, mean_errors, relative_errors
from ien.data import open_dataset


def steps_asked_for(arguments: list[str] | None, description: str | None, default: int) -> int:
    """`--steps N` of the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=default, help=f"of training, 32 images each (default: {default})")
    steps: int = parser.parse_args(arguments).steps
    return steps


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many shuffled batches of 32 images (32, 1, 28, 28) in [0, 1] and labels (32,)."""
    loader = DataLoader(data("train"), batch_size=32, shuffle=True, drop_last=True)
    step = 0
    while step < steps:
        for images, labels in loader:
            if step < steps:
                yield images, labels
            step += 1


def small_network() -> nn.Sequential:
    """An ordinary network: images (B, 1, 28, 28) → logits (B, 10); its blocks are called `0` to `3`."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


@lru_cache
def data(split: str) -> TensorDataset:
    """1,297 images to train on, 500 to test."""
    digits = open_dataset("digits", root=Path("data"), val_split=0)
    part = digits.train if split == "train" else digits.test
    return TensorDataset(torch.from_numpy(part.images[:]).float() / 255, torch.from_numpy(part.labels))


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Of the 500 test images, the share that is classified rightly."""
    model.eval()
    right = [model(images).argmax(dim=1) == labels for images, labels in DataLoader(data("test"), batch_size=100)]
    model.train()
    return float(torch.cat(right).float().mean())


def shown(errors: dict[str, float | None]) -> str:
    return ", ".join(f"{error:.3f} (layer {name})" for name, error in errors.items())


def relative_error(tapped: Tapped, group: Group) -> dict[str, float | None]:
    """‖f(g·x) − g·f(x)‖ / ‖f(x)‖ per layer, averaged over the group, on 50 test images."""
    images, _ = next(iter(DataLoader(data("test"), batch_size=50)))
    tapped.eval()
    errors = mean_errors(relative_errors(equivariance_sums(tapped, [images], group), group))
    tapped.train()
    return errors
