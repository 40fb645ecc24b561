"""Along which of their dimensions do a network's weights move with the image?

A network of convolutions, norms, pointwise activations, pooling and residual sums has one rule: the image's channels
stay where they are, every feature map's channels lie in filter groups, and logits stay. The layers are read in the
order in which they are registered, which is that of computation:

    convolution     output channels in filter groups; so are the input's, but for the first one, which sees the image
    norm, PReLU     channels in filter groups, before the first linear layer
    first linear    input pooled filter groups (nothing moves), or the last convolution's own channels; output fixed
    behind it       nothing moves

What does not fit is refused by name: flattened maps, grouped (but not depthwise) convolutions, weights of other layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ien.errors import InputError
from ien.pooling import ChannelMaxPool

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm)


@dataclass(frozen=True)
class Carrier:
    """A weight, or a running statistic, of one layer: which of its dimensions are channels that lie in filter groups,
    and whether its last two are a kernel that turns."""

    layer: str
    tensor: Tensor
    channels: tuple[int, ...]
    turns: bool = False


def carriers(model: nn.Module, pool: ChannelMaxPool) -> list[Carrier]:
    """Everything in the network that moves with the image, in the order of its layers.

    Raises `InputError`, naming the layer, for what no choice of weights makes equivariant, or of which it is not known.
    """
    walk = _Walk(pool)
    return [carrier for name, layer in model.named_modules() for carrier in walk.through(name, layer)]


class _Walk:
    """Goes through the layers; `channels` are those of the last convolution, None before the first."""

    def __init__(self, pool: ChannelMaxPool):
        self.pool = pool
        self.channels: int | None = None
        self.fixed = False  # behind the first linear layer

    def through(self, name: str, layer: nn.Module) -> Iterator[Carrier]:
        if isinstance(layer, nn.Conv2d):
            yield from self._convolution(name, layer)
        elif isinstance(layer, nn.Linear):
            yield from self._linear(name, layer)
        elif not self.fixed and (isinstance(layer, NORMS) or next(layer.parameters(recurse=False), None) is not None):
            yield from self._vectors(name, layer)

    def _convolution(self, name: str, layer: nn.Conv2d) -> Iterator[Carrier]:
        if self.fixed:
            raise InputError(f"{name}: a convolution behind a linear layer has no known symmetry; leave symmetry out")
        depthwise = layer.groups == layer.in_channels == layer.out_channels and self.channels is not None
        if layer.groups > 1 and not depthwise:
            raise InputError(
                f"{name}: {layer.groups} groups of channels do not turn; take groups=1, or leave symmetry out"
            )
        if layer.kernel_size[0] != layer.kernel_size[1]:
            raise InputError(f"{name}: a kernel of {layer.kernel_size} does not turn; take a square one")
        sees_image, self.channels = self.channels is None, layer.out_channels
        self._check(name, layer.out_channels)
        if not sees_image:
            self._check(name, layer.in_channels)
        yield Carrier(name, layer.weight, (0,) if sees_image or depthwise else (0, 1), turns=True)
        if layer.bias is not None:
            yield Carrier(name, layer.bias, (0,))

    def _linear(self, name: str, layer: nn.Linear) -> Iterator[Carrier]:
        if self.fixed:
            return
        channels = self.channels or 0
        if channels == 0 or layer.in_features not in (channels, self.pool.width(channels)):
            pooled = f", or {self.pool.width(channels)} filter groups" if channels else ""
            raise InputError(
                f"{name}: sees {layer.in_features} numbers, not the {channels} channels{pooled} of an averaged map; "
                "average the last map over its pixels, or leave symmetry out"
            )
        self.fixed = True
        if layer.in_features == channels:
            yield Carrier(name, layer.weight, (1,))

    def _vectors(self, name: str, layer: nn.Module) -> Iterator[Carrier]:
        """The weights and running statistics of a norm: one number for each channel."""
        if isinstance(layer, nn.PReLU):
            channels = layer.num_parameters
            if channels == 1:
                return
        elif isinstance(layer, NORMS):
            channels = layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features
        else:
            raise InputError(
                f"{name or type(layer).__name__}: it is not known how the weights of {type(layer).__name__} move with "
                "the image (Conv2d, BatchNorm2d, GroupNorm, InstanceNorm2d, PReLU, Linear are); leave symmetry out"
            )
        self._check(name, channels)
        if isinstance(layer, nn.GroupNorm):
            self._check_group_norm(name, layer)
        for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            if tensor.shape == (channels,):
                yield Carrier(name, tensor, (0,))

    def _check(self, name: str, channels: int) -> None:
        try:
            self.pool.shares(channels)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None

    def _check_group_norm(self, name: str, layer: nn.GroupNorm) -> None:
        """What is normalised together must hold whole filter groups."""
        together = layer.num_channels // layer.num_groups
        whole = layer.num_groups == 1 or (len(self.pool.sizes) == 1 and together % self.pool.sizes[0] == 0)
        if not whole:
            raise InputError(
                f"{name}: GroupNorm over {together} channels divides filter groups of "
                f"{', '.join(map(str, self.pool.sizes))}; take num_groups=1"
            )
