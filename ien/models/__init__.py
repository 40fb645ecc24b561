"""What do the paper's networks look like? (the `MODELS` table; `libraries`: networks from elsewhere)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ien.groups import Group
from ien.models import basic_cnn, resnet, vgg
from ien.models.basic_cnn import BasicCNN
from ien.models.libraries import LIBRARIES, library_network, of_library
from ien.models.resnet import Resnet18
from ien.models.vgg import VGG
from ien.models.weights import load_weights
from ien.pooling import PRESETS, ChannelMaxPool

__all__ = [
    "LIBRARIES",
    "MODELS",
    "VGG",
    "BasicCNN",
    "Network",
    "Resnet18",
    "default_width",
    "library_network",
    "load_weights",
    "of_library",
]

Network = BasicCNN | Resnet18 | VGG


@dataclass(frozen=True)
class Entry:
    """A network and its widths, by the name of the filter groups."""

    build: type[BasicCNN] | type[Resnet18] | type[VGG]
    widths: Mapping[str, int]


# spelled as published
MODELS = {
    "BasicCNN": Entry(BasicCNN, basic_cnn.WIDTHS),
    "Resnet18": Entry(Resnet18, resnet.WIDTHS),
    "VGG": Entry(VGG, vgg.WIDTHS),
}


def default_width(model: str, group: Group, pool: ChannelMaxPool) -> int:
    """The published width for these filter groups, or the nearest one that `pool` can share."""
    widths = MODELS[model].widths
    for name, (ratio, sizes) in PRESETS.items():
        if (pool.ratio, pool.sizes) == (ratio, sizes):
            return widths[name]
    return pool.nearest(widths["R4" if group.order <= 4 else "R8"])
