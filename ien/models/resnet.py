"""Resnet18: the paper's wide pre-activation residual network for Rot-TIM."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ien.pooling import ChannelMaxPool

# published; "R8" also for R4 with reflections
WIDTHS = {"R4": 136, "R8": 192, "R8-4-2-1": 129, "R8-4-2": 88, "R4-2-1": 88}


class Resnet18(nn.Module):
    """Images (B, in_channels, S, S) → logits (B, classes); maps of 65, 33, 17 and 9 pixels a side at S = 65.

    `width` is the number of channels c of the stem; the four stages have c, 2c, 4c and 8c. Tapped are the raw residual
    sums of stages 1 to 3 and the normalised, activated output of stage 4, whose pooled average the classifier sees.
    """

    image_side = 65  # odd: 3×3 convolutions of stride 2 keep exact quarter turns on odd sides alone
    taps = ("stage1", "stage2", "stage3", "final")

    def __init__(self, width: int, pool: ChannelMaxPool, classes: int, in_channels: int = 3):
        super().__init__()
        pool.shares(width)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.stage1 = _stage(width, width, stride=1)
        self.stage2 = _stage(width, 2 * width, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, stride=2)
        self.stage4 = _stage(4 * width, 8 * width, stride=2)
        self.final = nn.Sequential(nn.BatchNorm2d(8 * width, momentum=0.9), nn.ReLU())
        self.pool = pool
        self.linear = nn.Linear(pool.width(8 * width), classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(images)))))
        return self.linear(self.pool(self.final(maps)).mean(dim=(-2, -1)))


class PreActivationBlock(nn.Module):
    """(B, inputs, S, S) → (B, outputs, S', S'): twice norm, ReLU, 3×3 convolution, the second with the stride.

    Where stride or width change, the shortcut is a 1×1 convolution of the normalised, activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1)
        straight = stride == 1 and inputs == outputs
        self.shortcut = None if straight else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        active = F.relu(self.norm1(maps))
        change = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return change + (maps if self.shortcut is None else self.shortcut(active))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(PreActivationBlock(inputs, outputs, stride), PreActivationBlock(outputs, outputs, 1))
