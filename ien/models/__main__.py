"""Which layers of a network can be tapped? (`python -m ien.models torchvision/resnet18`: names for `taps`)"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.models import MODELS, library_network, of_library
from ien.pooling import ChannelMaxPool
from ien.taps import LAYOUTS, tappable


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: one line per layer, with its map's shape and how many channels stay when it is pooled."""
    parser = OneLineParser(prog="python -m ien.models", description="List the layers of a network that can be tapped.")
    parser.add_argument("model", help="torchvision/NAME, timm/NAME, package.module:Class, or a network of the paper")
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels (default: 64)")
    parser.add_argument("--channels", type=int, default=3, help="of the images (default: 3)")
    parser.add_argument("--pool", default="R4", help="filter groups: R4, R8, R8-4-2-1, … (default: R4)")
    parser.add_argument("--depth", type=int, default=2, help="of the names: layer1 is 1, layer1.0 is 2 (default: 2)")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="NCHW", help="what the layers give: network.tap_layout (default: NCHW)"
    )
    with told_in_one_line():
        given = parser.parse_args(arguments)
        pool = ChannelMaxPool.from_name(given.pool)
        network = _network(given.model, given.channels, pool)
        for name, (channels, side) in _maps(network, given.channels, given.side, given.layout).items():
            if name.count(".") < given.depth:
                print(f"{name:<28} {channels:>5} × {side} × {side}   {_pooled(pool, channels)}")


def _network(name: str, channels: int, pool: ChannelMaxPool) -> nn.Module:
    if of_library(name):
        return library_network(name, classes=10, in_channels=channels)
    if name not in MODELS:
        raise InputError(f"model: {name!r} is unknown; take {', '.join(MODELS)}, torchvision/NAME or timm/NAME")
    return MODELS[name].build(pool.multiple, pool, 10, channels)


def _maps(network: nn.Module, channels: int, side: int, layout: str) -> dict[str, tuple[int, int]]:
    try:
        return tappable(network, torch.zeros(1, channels, side, side), LAYOUTS[layout])
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = [*str(error).splitlines(), ""][0]
        raise InputError(
            f"--side: images of {side}×{side} do not fit through it ({reason}); try another one"
        ) from error


def _pooled(pool: ChannelMaxPool, channels: int) -> str:
    try:
        return f"pooled {pool.width(channels)}"
    except InputError:
        return f"cannot be pooled: {channels} is no multiple of {pool.multiple}"


if __name__ == "__main__":
    main()
