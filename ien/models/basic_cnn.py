"""BasicCNN: the paper's network for Rot-MNIST, six convolutions on 28×28 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ien.pooling import ChannelMaxPool

# name of the filter groups: channels of the first layer. R4 and R4-2-1 are published; the published script crashes on
# the others, which take Resnet18's widths here. Any other group takes the nearest multiple of its pool to the R4 width.
WIDTHS = {"R4": 128, "R8": 192, "R8-4-2-1": 129, "R8-4-2": 88, "R4-2-1": 88}


class BasicCNN(nn.Module):
    """Images (B, in_channels, S, S) → logits (B, classes); maps of 24, 24, 12, 12, 6 and 2 pixels a side at S = 28.

    `width` is the first layer's number of channels c; the six layers have c, 1.5c, 2c, 2c, 3c and 4c (1.5c taken to the
    nearest number that `pool` can share). The classifier sees the average of the last pooled map.
    """

    image_side = 28
    taps = ("block1", "block2", "block3", "block4", "block5", "block6")

    def __init__(self, width: int, pool: ChannelMaxPool, classes: int, in_channels: int = 1):
        super().__init__()
        pool.shares(width)
        c1, c2, c3, c5, c6 = width, pool.nearest(1.5 * width), 2 * width, 3 * width, 4 * width
        self.block1 = _block(in_channels, c1, kernel=7, padding=1)
        self.block2 = _block(c1, c2)
        self.block3 = _block(c2, c3)
        self.block4 = _block(c3, c3)
        self.block5 = _block(c3, c5)
        self.block6 = _block(c5, c6, padding=0)
        self.halve = nn.MaxPool2d(2)
        self.pool = pool
        self.head = nn.Sequential(
            nn.Linear(pool.width(c6), 128), nn.BatchNorm1d(128), nn.ELU(), nn.Linear(128, classes)
        )
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.halve(self.block2(self.block1(images)))
        maps = self.halve(self.block4(self.block3(maps)))
        maps = self.block6(self.block5(maps))
        return self.head(self.pool(maps).mean(dim=(-2, -1)))


def _block(inputs: int, outputs: int, kernel: int = 5, padding: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False), nn.BatchNorm2d(outputs), nn.ELU()
    )


@torch.no_grad()
def _initialise(layer: nn.Module) -> None:
    """Xavier-uniform weights and biases of 0.01, as published."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            layer.bias.fill_(0.01)
