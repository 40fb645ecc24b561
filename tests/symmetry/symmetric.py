"""Networks that are equivariant by construction, for the tests."""

from __future__ import annotations

import torch
from torch import nn

from ien.groups import Group


@torch.no_grad()
def average_kernels(network: nn.Module, group: Group) -> None:
    """Replace every kernel by its mean over the group's exact elements: the layer then commutes with each of them."""
    exact = [element for element in group.elements if element.exact]
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.copy_(torch.stack([group.act(layer.weight, element) for element in exact]).mean(dim=0))
