"""VGG: the paper's eight plain convolutions for Rot-TIM."""

from __future__ import annotations

from torch import Tensor, nn

from ien.pooling import ChannelMaxPool

# published, but for R8-4-2, which crashes there and takes the width of the authors' older script; "R8" also for R4 with
# reflections
WIDTHS = {"R4": 144, "R8": 200, "R8-4-2-1": 129, "R8-4-2": 132, "R4-2-1": 99}
PUBLISHED_KERNELS = (3, 2, 3, 2, 3, 3, 2, 3)


class VGG(nn.Module):
    """Images (B, in_channels, S, S) → logits (B, classes); maps of 64 32 16 16 8 8 4 4 pixels a side at S = 64.

    `width` is the first layer's number of channels c; the eight layers have c, 2c, 4c, 4c and four times 8c. All
    kernels are 3×3, so that quarter turns are exact at S = 64. `published_kernels` takes the 2×2 ones of the published
    code (maps of 64 33 16 17 8 8 5 5), whose odd maps 2×2 pooling cannot keep aligned.
    """

    image_side = 64
    taps = ("block1", "block2", "block3", "block4", "block5", "block6", "block7", "block8")

    def __init__(
        self,
        width: int,
        pool: ChannelMaxPool,
        classes: int,
        in_channels: int = 3,
        published_kernels: bool = False,
    ):
        super().__init__()
        pool.shares(width)
        channels = (in_channels, *(width * factor for factor in (1, 2, 4, 4, 8, 8, 8, 8)))
        kernels = PUBLISHED_KERNELS if published_kernels else (3,) * 8
        for name, inputs, outputs, kernel in zip(self.taps, channels, channels[1:], kernels, strict=False):
            self.add_module(name, _block(inputs, outputs, kernel))
        self.halve = nn.MaxPool2d(2)
        self.pool = pool
        self.head = nn.Sequential(
            nn.Linear(pool.width(channels[-1]), 1024),
            nn.BatchNorm1d(1024),
            nn.ELU(),
            nn.Dropout(0.5),
            nn.Linear(1024, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        maps = images
        for place, name in enumerate(self.taps, start=1):
            maps = self.get_submodule(name)(maps)
            if place in (1, 2, 4, 6):
                maps = self.halve(maps)
        return self.head(self.pool(maps).mean(dim=(-2, -1)))


def _block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ELU())
