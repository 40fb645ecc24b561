"""The two verdicts on a network at one size: by shapes, and by measurement."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ien.alignment import Proof, Trace, prove, trace


class Through(nn.Module):
    """A function as a network, behind a 1×1 convolution: (B, 2, S, S) → whatever it gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.first, self.function = nn.Conv2d(2, 2, 1), function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(torch.sigmoid(self.first(images)))


def verdicts(network: nn.Module | Callable[[Tensor], Tensor], side: int) -> tuple[Trace, Proof]:
    """`trace` and `prove`, on two channels."""
    network = network if isinstance(network, nn.Module) else Through(network)
    found = trace(network, side, channels=2)
    return found, prove(network, found)


def agreed(network: nn.Module | Callable[[Tensor], Tensor], side: int) -> bool:
    """Whether nothing is broken, on which both verdicts must agree, and that a break is no matter of rounding."""
    found, proof = verdicts(network, side)
    assert not found.unjudged, found.unjudged
    assert proof.exact == (not found.broken), (found.broken, proof.error)
    assert proof.exact or proof.error > 1e-4
    return proof.exact
