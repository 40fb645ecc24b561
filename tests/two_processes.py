"""A few steps of a network without BatchNorm, for one process or for `torchrun`; writes what was seen and learned.

`python -m tests.two_processes OUT ACCUMULATE [BALANCE]`
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from ien import data, distributed
from ien.data import Batches
from ien.engine import Engine
from ien.groups import Group
from ien.objective import EquivariantObjective
from ien.pooling import ChannelMaxPool
from ien.taps import Tapped

BATCH, STEPS = 24, 12


class Small(nn.Module):
    """Two convolutions without BatchNorm: (B, 1, S, S) → (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(1, 8, 5, stride=2), nn.ELU())
        self.block2 = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ELU())
        self.linear = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.block2(self.block1(images)).mean(dim=(-2, -1)))


def main() -> None:
    out, accumulate = Path(sys.argv[1]), int(sys.argv[2])
    digits = data.open_dataset("digits", root=Path("nowhere"))
    with distributed.processes("cpu") as processes:
        torch.manual_seed(0)
        tapped = Tapped(Small(), ["block1", "block2"], ChannelMaxPool([4]))
        batches = Batches(
            digits.train, batch_size=BATCH, seed=1, share=processes.rank, shares=processes.count, resident=True
        )
        engine = Engine(
            tapped,
            EquivariantObjective(Group(8)),
            torch.optim.SGD(tapped.parameters(), momentum=0.9),  # unlike Adam not blind to the scale of gradients
            processes,
            BATCH,
            lr=lambda step: 0.05,
            beta=lambda step: 0.5,
            second_views=0.75,
            accumulate=accumulate,
            balance=(sys.argv[3:] or [None])[0],
        )
        seen = []
        for step, (images, labels) in zip(range(STEPS), batches.epoch(0), strict=False):
            shares = processes.gather(images), processes.gather(labels)
            seen.append([torch.stack(share, dim=1).flatten(0, 1) for share in shares])
            engine.train_step(images, labels, step)
        losses, bad = engine.read()
        assert bad is None
        val = engine.evaluate(
            data.InOrder(digits.val, batch_size=64, share=processes.rank, shares=processes.count, resident=True),
            len(digits.val),
            64,
        )
        if processes.first:
            weights = tapped.model.state_dict()
            torch.save({"seen": seen, "losses": losses, "val": val, "weights": weights}, out)


if __name__ == "__main__":
    main()
