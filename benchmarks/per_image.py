"""What does the published formulation cost? (every image is turned, and every map turned back, by itself)

Written from its formula: a Python loop over the images of a batch, each with an element of its own, concatenates what
is moved; per layer another loop takes the difference of each pair of maps. arXiv 2111.14157; the published code is
https://github.com/transmuteAI/implicit-networks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from ien.groups import Element, Group
from ien.taps import Tapped


def step(
    tapped: Tapped,
    optimizer: Optimizer,
    group: Group,
    images: Tensor,
    labels: Tensor,
    elements: Sequence[Element],
    beta: float = 1.0,
    autocast: AbstractContextManager[object] | None = None,
) -> Tensor:
    """One update, image by image: images (B, C, S, S), labels (B,), one element for each; returns the loss."""
    optimizer.zero_grad()
    with autocast or contextlib.nullcontext():
        logits, maps = tapped(torch.cat((images, _moved(group, images, elements))))
        loss = F.cross_entropy(logits, torch.cat((labels, labels)))
        for tap in maps.values():
            back = _moved(group, tap[len(images) :], [element.inverse for element in elements])
            loss = loss + beta * F.mse_loss(tap[: len(images)], back)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _moved(group: Group, maps: Tensor, elements: Sequence[Element]) -> Tensor:
    """Each map by its element, put behind those before it."""
    moved = maps[:0]
    for place, element in enumerate(elements):
        moved = torch.cat((moved, group.act(maps[place : place + 1], element)))
    return moved
