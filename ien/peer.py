"""What would a network of steerable filters measure? (escnn's, made to be measured like any other)

Weiler & Cesa 2019 (arXiv 1911.08251): blocks of regular fields of C_N or D_N, whose filters are solved to be
equivariant. A regular field has a channel for each element, and a turn permutes them; so the pool over a field plays
the part of the pool over a filter group. This is the only importer of escnn.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ien.errors import InputError
from ien.groups import Group
from ien.pooling import ChannelMaxPool
from ien.taps import Tapped

FIELDS = (4, 6, 8)  # regular fields of the blocks; after the first and the second the side is halved


def steerable(group: Group, classes: int, channels: int, seed: int = 0) -> Tapped:
    """An untrained network of escnn for this group: images (B, channels, S, S) → logits (B, classes), tapped blocks.

    5×5 filters of stride 1 and average pooling by 2, all of which keep exact quarter turns where S divides by 4.
    Raises `InputError` where escnn is not installed, and for a group that scales.
    """
    if group.scales:
        raise InputError(f"--peer escnn: its network turns and mirrors, and {group.name} scales; leave --peer out")
    gspaces, enn = _escnn()
    space = (gspaces.flipRot2dOnR2 if group.reflection else gspaces.rot2dOnR2)(group.rotations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Steerable(space, enn, group.order, classes, channels)
    return Tapped(model, ["block1", "block2", "block3"], ChannelMaxPool([group.order]))


class _Steerable(nn.Module):
    def __init__(self, space: Any, enn: Any, order: int, classes: int, channels: int):
        super().__init__()
        types = [enn.FieldType(space, channels * [space.trivial_repr])]
        types += [enn.FieldType(space, fields * [space.regular_repr]) for fields in FIELDS]
        self.block1, self.block2, self.block3 = (_Block(enn, before, after) for before, after in pairwise(types))
        self.halve = nn.AvgPool2d(2)
        self.pool = ChannelMaxPool([order])
        self.linear = nn.Linear(FIELDS[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.block3(self.halve(self.block2(self.halve(self.block1(images)))))
        return self.linear(self.pool(maps).mean(dim=(-2, -1)))


class _Block(nn.Module):
    """Plain tensors in and out, so that taps and the pools between see what they see of any network."""

    def __init__(self, enn: Any, before: Any, after: Any):
        super().__init__()
        self.before, self.enn = before, enn
        convolution = enn.R2Conv(before, after, kernel_size=5, padding=2, bias=False)
        self.layers = enn.SequentialModule(convolution, enn.InnerBatchNorm(after), enn.ReLU(after))

    def forward(self, maps: Tensor) -> Tensor:
        tensor: Tensor = self.layers(self.enn.GeometricTensor(maps, self.before)).tensor
        return tensor


def _escnn() -> tuple[Any, Any]:
    try:
        from escnn import gspaces
        from escnn import nn as enn
    except ImportError as error:
        raise InputError(f"--peer escnn: {error}; type: pip install escnn (it needs a Fortran compiler)") from error
    return gspaces, enn
