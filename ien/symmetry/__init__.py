"""Which weights would make a network exactly equivariant, and how far is it from them?

A layer commutes with a move g of the image if its weights stay the same when the kernel is turned and the channels are
permuted by g. The mean over the group of all such copies (the Reynolds operator),

    P w = 1/|G| Σ_g g·w,        (g·w)[o, i] = g · w[σ_g⁻¹(o), σ'_g⁻¹(i)]

is the nearest such layer: P is the orthogonal projection onto the equivariant weights (Cohen and Welling, arXiv
1602.07576, have these in steerable form). σ and σ' permute the output's and the input's channels as `representations`
says; G holds the elements that are exact on the pixel grid, and on sides that keep alignment (see docs/objective.md)
the projected network is equivariant to the last digit of its arithmetic. It stays an ordinary network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ien.groups import Element, Group
from ien.pooling import ChannelMaxPool
from ien.symmetry.carriers import Carrier, carriers
from ien.symmetry.representations import channel_origins, exact_generators

Index = tuple[Tensor, ...]  # where each number of a tensor comes from, one index per dimension, broadcast


class Symmetry:
    """The equivariant weights that belong to a network whose channels lie in the filter groups of `pool`.

    Holds the network's weights and running statistics, not the network: make it when they are where they stay (after
    `.to(device)`). Nothing here waits for the device. Raises `InputError`, naming the layer, where the network cannot
    be equivariant, and where the group has no exact element.
    """

    def __init__(self, model: nn.Module, group: Group, pool: ChannelMaxPool):
        found = carriers(model, pool)
        self._weights = [one for one in found if isinstance(one.tensor, nn.Parameter)]
        tensors = [one.tensor for one in self._weights]
        statistics = [one for one in found if not isinstance(one.tensor, nn.Parameter)]
        self._tensors, self._statistics = tensors, [one.tensor for one in statistics]
        self._mean = _Mean(self._weights, group, pool)
        self._mean_statistics = _Mean(statistics, group, pool)

    @torch.no_grad()
    def project(self) -> None:
        """Replace the weights and the running statistics by their group means; doing it again changes no bit."""
        _write(self._tensors, self._mean(self._tensors))
        _write(self._statistics, self._mean_statistics(self._statistics))

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Replace the gradients by their group means: what the free weights θ of a network with weights P θ would get.

        An optimizer that treats all numbers alike (SGD, Adam) then keeps symmetric weights symmetric, its moments too.
        """
        having = [weight.grad for weight in self._tensors if weight.grad is not None]
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self._tensors]
        means = self._mean(gradients)
        _write(having, [mean for weight, mean in zip(self._tensors, means, strict=True) if weight.grad is not None])

    @torch.no_grad()
    def start(self) -> None:
        """Project, and give each tensor the norm that it had: w ← P w · ‖w‖/‖P w‖.

        The mean of |G| independent numbers has 1/|G| of their variance; scaled back, the layers pass signals on as the
        initialisation meant them to. A tensor whose projection is 0 stays 0.
        """
        norms = _norms(self._tensors)
        self.project()
        for tensor, norm, now in zip(self._tensors, norms, _norms(self._tensors), strict=True):
            tensor.mul_(torch.where(now > 0, norm / now, 1.0))

    def asymmetry(self) -> Tensor:
        """Σ over layers of ‖w - P w‖²/‖w‖², w being all weights of a layer that move: differentiable, blind to scale.

        Each layer's is between 0 (equivariant) and 1 (nothing left after projection); its gradient is orthogonal to w,
        so that it cannot be lowered by shrinking the weights.
        """
        with torch.no_grad():
            means = self._mean(self._tensors)
        apart: dict[str, Tensor] = {}
        whole: dict[str, Tensor] = {}
        for one, weight, mean in zip(self._weights, self._tensors, means, strict=True):
            # The mean counts as constant: as P is an orthogonal projection, the gradient is 2 (w - P w) either way.
            apart[one.layer] = apart.get(one.layer, 0.0) + (weight - mean).square().sum()
            whole[one.layer] = whole.get(one.layer, 0.0) + weight.square().sum()
        return torch.stack([apart[layer] / (whole[layer] + 1e-12) for layer in apart]).sum()

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Σ‖w - P w‖² / Σ‖w‖² over all weights that move: 0 for an equivariant network, at most 1."""
        apart = [weight - mean for weight, mean in zip(self._tensors, self._mean(self._tensors), strict=True)]
        return torch.stack(_norms(apart)).square().sum() / torch.stack(_norms(self._tensors)).square().sum()


def project(model: nn.Module, group: Group, pool: ChannelMaxPool) -> None:
    """Make the network exactly equivariant, in place, by the smallest change of its weights (see `Symmetry`)."""
    Symmetry(model, group, pool).project()


def weight_distance(model: nn.Module, group: Group, pool: ChannelMaxPool) -> float:
    """How far the network's weights are from equivariant ones: Σ‖w - P w‖² / Σ‖w‖², from 0 to 1."""
    return float(Symmetry(model, group, pool).distance())


class _Mean:
    """The group means of tensors like those of `carriers`.

    Vectors are put end to end and averaged at once. The mean is taken generator by generator: of |G| = 2ⁿ copies in n
    steps, and so that the result is symmetric to the bit ((1 + g)/2 of what commutes with g).
    """

    def __init__(self, carriers: Sequence[Carrier], group: Group, pool: ChannelMaxPool):
        moves = exact_generators(group)
        self.vectors = [place for place, one in enumerate(carriers) if one.tensor.ndim == 1]
        self.others = [place for place, one in enumerate(carriers) if one.tensor.ndim > 1]
        self.lengths = [len(carriers[place].tensor) for place in self.vectors]
        origins = _origins(group, pool)
        self.indices = {place: [_index(carriers[place], move, origins) for move in moves] for place in self.others}
        vectors = [carriers[place] for place in self.vectors]
        self.end_to_end = [_end_to_end(vectors, move, origins) for move in moves] if vectors else []

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        means = {place: _halved(tensors[place], self.indices[place]) for place in self.others}
        if self.vectors:
            joined = _halved(torch.cat([tensors[place] for place in self.vectors]), self.end_to_end)
            means |= dict(zip(self.vectors, joined.split(self.lengths), strict=True))
        return [means[place] for place in range(len(tensors))]


Origins = Callable[[Element, int, torch.device], Tensor]


def _origins(group: Group, pool: ChannelMaxPool) -> Origins:
    """`channel_origins` on a device, each computed once and shared by all layers of that many channels."""
    known: dict[tuple[Element, int], Tensor] = {}

    def origins(move: Element, channels: int, device: torch.device) -> Tensor:
        if (move, channels) not in known:
            known[move, channels] = channel_origins(pool, group, move, channels).to(device)
        return known[move, channels]

    return origins


def _index(carrier: Carrier, move: Element, origins: Origins) -> Index:
    """(O, 1, 1, 1), (1, I, 1, 1), (1, 1, h, w), (1, 1, h, w) for a kernel: small, whatever the layer's size."""
    shape, device = carrier.tensor.shape, carrier.tensor.device
    index = []
    for dim, length in enumerate(shape[:2] if carrier.turns else shape):
        moves = dim in carrier.channels
        places = origins(move, length, device) if moves else torch.arange(length, device=device)
        index.append(places.view(-1, *[1] * (len(shape) - dim - 1)))
    if carrier.turns:
        side = shape[-1]
        pixels = torch.arange(side * side).view(1, 1, side, side)
        turned = Group(move.steps, move.mirrored).act(pixels, move).to(device)
        index += [turned // side, turned % side]
    return tuple(index)


def _end_to_end(vectors: Sequence[Carrier], move: Element, origins: Origins) -> Index:
    parts, start = [], 0
    for one in vectors:
        parts.append(start + origins(move, len(one.tensor), one.tensor.device))
        start += len(one.tensor)
    return (torch.cat(parts),)


def _halved(tensor: Tensor, indices: Sequence[Index]) -> Tensor:
    """(1 + g_n)/2 ⋯ (1 + g_1)/2 of a tensor."""
    for index in indices:
        tensor = tensor[index].add_(tensor)
    return tensor.mul_(0.5 ** len(indices))


def _write(targets: list[Tensor], values: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, values)


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    return list(torch._foreach_norm(tensors))
