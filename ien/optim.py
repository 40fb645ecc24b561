"""How do weights and the learning rate move?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

OPTIMIZERS: dict[str, type[torch.optim.Adam] | type[torch.optim.AdamW]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def optimizer(name: str, parameters: Iterable[Parameter], weight_decay_rate: float) -> Optimizer:
    """Adam (weight decay as an L2 term, as published) or AdamW (decoupled); the learning rate is set at every step."""
    return OPTIMIZERS[name](parameters, lr=0.0, weight_decay=weight_decay_rate, fused=True)


class CyclicLR:
    """The published cycle of the learning rate, per iteration.

    A cycle lasts `cyc_size` epochs: a half-cosine from `low_lr` up to the peak in its first quarter, a half-cosine back
    down in the rest. As many whole cycles as fit into `tot_epochs` follow one another, the peak divided by `dec_scale`
    from one to the next, and `low_lr` stays afterwards. (The published loop runs one cycle alone and then stays at the
    value before its end, some 3e-11 above `low_lr`.)
    """

    def __init__(
        self,
        low_lr: float,
        max_lr: float,
        cyc_size: int,
        dec_scale: float,
        tot_epochs: int,
        steps_per_epoch: int,
    ):
        self.low_lr, self.max_lr, self.dec_scale = low_lr, max_lr, dec_scale
        self.steps = cyc_size * steps_per_epoch
        self.cycles = tot_epochs // cyc_size

    def __call__(self, step: int) -> float:
        """The learning rate of iteration `step`, counted from 0 over the whole run."""
        cycle, place = divmod(step, self.steps)
        if cycle >= self.cycles:
            return self.low_lr
        height = self.max_lr / self.dec_scale**cycle - self.low_lr
        rise = self.steps // 4
        if place <= rise:
            return self.low_lr + height * (0.5 - 0.5 * math.cos(math.pi * place / max(1, rise)))
        return self.low_lr + height * (0.5 + 0.5 * math.cos(math.pi * (place - rise) / (self.steps - rise)))


class WeightAverage:
    """The exponential moving average of a network's weights and BatchNorm statistics, in their own precision.

        average ← d · average + (1 - d) · weights,   d = min(decay, (1 + step) / (10 + step))

    after each step (Polyak & Juditsky 1992; the smaller d of the first steps forgets the initial weights). What it
    averages over is some 1 / (1 - decay) steps. Averages of equivariant weights are equivariant.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        # References: what moves the weights moves these.
        self._weights = {name: one for name, one in network.state_dict().items() if one.is_floating_point()}
        self._average = {name: one.clone() for name, one in self._weights.items()}

    def update(self, step: int) -> None:
        """Take in the weights after iteration `step`, counted from 0 over the whole run."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([*self._average.values()], [*self._weights.values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """In this block the network has the averaged weights; after it its own again."""
        own = [one.clone() for one in self._weights.values()]
        self._put([*self._average.values()])
        try:
            yield
        finally:
            self._put(own)

    def state(self) -> dict[str, Tensor]:
        return self._average

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, one in state.items():
            self._average[name].copy_(one)

    @torch.no_grad()
    def _put(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_([*self._weights.values()], weights)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def replayable(optimizer: Optimizer, device: torch.device) -> None:
    """Let the optimizer read its learning rate on the device, where a replayed step finds what `set_lr` has set."""
    for group in optimizer.param_groups:
        group["lr"], group["capturable"] = torch.zeros((), device=device), True


def load(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Its moments from `state_dict()`; how it computes stays its own, whatever that of the saved one was."""
    own = [{key: value for key, value in group.items() if key in _HOW} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, how in zip(optimizer.param_groups, own, strict=True):
        group |= how


_HOW = ("lr", "capturable", "fused", "foreach")
