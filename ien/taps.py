"""Which feature maps of *any* `nn.Module` are compared? (layer names → pooled maps)"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ien.errors import InputError
from ien.pooling import ChannelMaxPool


class Tapped(nn.Module):
    """A network that also returns pooled feature maps: images (B, C, S, S) → logits (B, K), {layer: (B, C', S', S')}.

    `layers` are names as in `model.named_modules()`. The network is not rewritten: its outputs are read by hooks, its
    `state_dict` stays its own (`tapped.model.state_dict()`), and `close()` takes the hooks off again.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], pool: ChannelMaxPool):
        super().__init__()
        self.model, self.pool, self.layers = model, pool, tuple(layers)
        self._maps: dict[str, Tensor] = {}
        self._hooks = [_layer(model, name).register_forward_hook(self._keeper(name)) for name in self.layers]

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self._maps.clear()
        logits = self.model(images)
        maps = {name: self._maps.pop(name) for name in self.layers}
        return logits, maps

    def close(self) -> None:
        """Take the hooks off: the network is what it was before."""
        for hook in self._hooks:
            hook.remove()

    def _keeper(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # Pooled at once: a later in-place activation must not reach what is compared.
            self._maps[name] = self.pool(_feature_map(name, output))

        return keep


def _layer(model: nn.Module, name: str) -> nn.Module:
    layers = dict(model.named_modules())
    if name not in layers or not name:
        near = difflib.get_close_matches(name, list(layers), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "print(model) shows their names"
        raise InputError(f"the network has no layer {name!r} to tap; {hint}")
    return layers[name]


def _feature_map(name: str, output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 4:
        what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"layer {name!r} gives {what}, no feature map (B, C, S, S); tap another layer")
    return output
