"""What do fewer filter groups save? (channels and weights of the convolutions, counted on the networks themselves)"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.reproduce.cells import Cell, Place
from benchmarks.reproduce.tables import TABLES
from ien import models
from ien.build import make_group, make_pool


def told(name: str, variant: str) -> tuple[str, str]:
    """The convolutions' channels, and what they save against the row that the variant names; empty where none is."""
    channels, weights = counted(name, variant)
    against = TABLES[name].variants[variant].against
    if not against:
        return f"{channels:,}", ""
    whole_channels, whole_weights = counted(name, against)
    fewer, lighter = 1 - channels / whole_channels, 1 - weights / whole_weights
    label = TABLES[name].variants[against].label
    return f"{channels:,}", f"{100 * fewer:.0f} % of the channels, {100 * lighter:.0f} % of the weights of {label}"


def counted(name: str, variant: str) -> tuple[int, int]:
    """Output channels and weights of all convolutions of a paper's network, none of whose cells need have run."""
    settings = Cell(name, variant, 0).settings(Place(Path()))
    group = make_group(settings)
    pool = make_pool(settings, group)
    width = settings.network.width or models.default_width(settings.model, group, pool)
    with torch.device("meta"):
        network = models.MODELS[settings.model].build(width, pool, classes=10)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return sum(one.out_channels for one in convolutions), sum(one.weight.numel() for one in convolutions)
