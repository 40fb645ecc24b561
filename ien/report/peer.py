"""What would a network of steerable filters measure? (escnn's, made to be measured, and trained, like any other)

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


class SteerableCNN(nn.Module):
    """BasicCNN with steerable filters: its channels, kernels, pools and head, the channels being regular fields of C_N.

    Images (B, in_channels, 28, 28) → logits (B, classes). `width` is the first layer's number of channels, a multiple
    of 2N for `rotations` N (the second layer has 1.5 times as many). A field of N channels shares one filter of as many
    parameters as a channel of BasicCNN has. Made by `model: ien.report.peer:SteerableCNN`, with
    `network.arguments: {width: 8}`; raises `InputError` where escnn is not installed.
    """

    taps = ("block1", "block2", "block3", "block4", "block5", "block6")

    def __init__(self, classes: int, in_channels: int, width: int = 128, rotations: int = 4):
        super().__init__()
        gspaces, enn = _escnn()
        if width % (2 * rotations):
            raise InputError(
                f"width: {width} is not a multiple of {2 * rotations}; write {2 * rotations} or one that is"
            )
        space = gspaces.rot2dOnR2(rotations)
        channels = (width, 3 * width // 2, 2 * width, 2 * width, 3 * width, 4 * width)
        types = [enn.FieldType(space, in_channels * [space.trivial_repr])]
        types += [enn.FieldType(space, count // rotations * [space.regular_repr]) for count in channels]
        kernels = ((7, 1), (5, 2), (5, 2), (5, 2), (5, 2), (5, 0))  # and their paddings
        self.block1, self.block2, self.block3, self.block4, self.block5, self.block6 = (
            _Block(enn, before, after, kernel, padding, enn.ELU(after))
            for (before, after), (kernel, padding) in zip(pairwise(types), kernels, strict=True)
        )
        self.halve = nn.MaxPool2d(2)
        self.pool = ChannelMaxPool([rotations])
        self.head = nn.Sequential(
            nn.Linear(channels[-1] // rotations, 128), nn.BatchNorm1d(128), nn.ELU(), nn.Linear(128, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        maps = self.halve(self.block2(self.block1(images)))
        maps = self.halve(self.block4(self.block3(maps)))
        maps = self.block6(self.block5(maps))
        return self.head(self.pool(maps).mean(dim=(-2, -1)))


class _Block(nn.Module):
    """Plain tensors in and out, so that taps and the pools between see what they see of any network."""

    def __init__(self, enn: Any, before: Any, after: Any, kernel: int = 5, padding: int = 2, activation: Any = None):
        super().__init__()
        self.before, self.typed = before, enn.GeometricTensor
        # A basis of its own: escnn's others share theirs, and a cast of one network would be felt by the next.
        convolution = enn.R2Conv(before, after, kernel_size=kernel, padding=padding, bias=False, recompute=True)
        self.layers = enn.SequentialModule(convolution, enn.InnerBatchNorm(after), activation or enn.ReLU(after))
        self.train()

    def train(self, mode: bool = True) -> _Block:
        """As ever; but the filter is made from its weights in every forward, also in evaluation.

        escnn keeps it then, in the `state_dict` too, where it would stand or be missed as the mode happened to be.
        """
        super().train(mode)
        self.layers[0].train(True)
        return self

    def forward(self, maps: Tensor) -> Tensor:
        tensor: Tensor = self.layers(self.typed(maps, self.before)).tensor
        return tensor


def _escnn() -> tuple[Any, Any]:
    try:
        from escnn import gspaces
        from escnn import nn as enn
    except ImportError as error:
        hint = 'pip install -e ".[peer]" (it needs gfortran)'
        raise InputError(f"escnn: {error}; type: {hint}") from error
    return gspaces, enn
