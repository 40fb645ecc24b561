"""Which feature maps of *any* `nn.Module` are compared? (layer names → pooled maps)"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from ien.errors import InputError
from ien.pooling import ChannelMaxPool


class Tapped(nn.Module):
    """A network that also returns pooled feature maps: images (B, C, S, S) → logits (B, K), {layer: (B, C', S', S')}.

    `layers` are names as in `model.named_modules()`, of layers that run once a forward. `pool` is a `ChannelMaxPool`,
    its name (`R4`, `R8-4-2-1`, …) or the size of its filter groups (1: the maps as they are). `as_map` makes the map
    (B, C, S, S) of what a layer gives, where that is none: `tokens_as_map` for the tokens of a transformer,
    `channels_last_as_map` where the channels stand last.

    The network is not rewritten: its outputs are read by hooks, its `state_dict` stays its own
    (`tapped.model.state_dict()`), and `close()`, or the end of a `with`, takes the hooks off again. A copy (`deepcopy`,
    `pickle`) has its own maps. Where they are measured alone (beta is 0), `differentiable = False` keeps no graph of
    them, and saves its memory. Raises `InputError` for layers that the network does not have; in the first forward for
    those that give no square feature map, cannot be pooled, or run never or twice.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        pool: ChannelMaxPool | str | int,
        as_map: Callable[[Any], Any] | None = None,
    ):
        super().__init__()
        _refuse_no_list(layers)
        self.model, self.pool, self.layers, self.as_map = model, ChannelMaxPool.of(pool), tuple(layers), as_map
        self._maps: dict[str, Tensor] | None = None  # while a forward runs
        self.differentiable = True  # False: the maps are measured alone, and no graph of theirs is kept
        self._learns = False
        self._hooks: list[RemovableHandle] = []
        self.attach()

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        maps: dict[str, Tensor] = {}
        self._maps, self._learns = maps, torch.is_grad_enabled()
        try:
            logits = self.model(images)
        finally:
            self._maps = None
        for name in self.layers:
            if name not in maps:
                raise InputError(
                    f"layer {name!r} does not run in a forward, or was replaced; tap another layer, or call attach()"
                )
        return logits, {name: maps[name] for name in self.layers}

    def attach(self) -> None:
        """Put the hooks on the layers that now have these names: some may have been replaced (by SyncBatchNorm)."""
        self.close()
        found = [_layer(self.model, name) for name in self.layers]
        self._hooks = [
            layer.register_forward_hook(_Keeper(self, name)) for name, layer in zip(self.layers, found, strict=True)
        ]

    def close(self) -> None:
        """Take the hooks off: the network is what it was before."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Tapped:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def keep(self, name: str, output: Any) -> None:
        """What the hooks call: pool a layer's output and keep it for the forward that runs."""
        if self._maps is None:  # the network alone, or gradient checkpointing that runs a part of it again
            return
        if name in self._maps:
            raise InputError(f"layer {name!r} runs more than once in a forward; tap a layer that runs once")
        if self._learns and not torch.is_grad_enabled():
            raise InputError(
                f"layer {name!r} runs without gradients and would learn nothing; checkpoint with use_reentrant=False, "
                "or tap a layer that learns"
            )
        with _untold():
            maps = _feature_map(name, output if self.as_map is None else self.as_map(output))
            self._maps[name] = self._pooled(name, maps if self.differentiable else maps.detach())

    def _pooled(self, name: str, maps: Tensor) -> Tensor:
        # At once: a later in-place activation must not reach what is compared.
        try:
            pooled: Tensor = self.pool(maps)
        except InputError as error:
            raise InputError(f"layer {name!r}: {error}; tap another layer, or take other filter groups") from None
        return pooled.clone() if self.pool.sizes == (1,) else pooled  # groups of one are the maps themselves


def tappable(
    model: nn.Module, images: Tensor, as_map: Callable[[Any], Any] | None = None
) -> dict[str, tuple[int, int]]:
    """The layers that can be tapped, in the order in which they run: name → (channels C, side S) of their maps.

    One forward of a copy, in eval mode, tells which give square maps (or what `as_map` makes square maps of) and run
    once. Nothing is computed, unless the network makes tensors on a device of its own choice.
    """
    try:
        return _tappable(copy.deepcopy(model).to("meta"), images.to("meta"), as_map)
    except RuntimeError as error:
        if not wants_numbers(error):
            raise
        return _tappable(copy.deepcopy(model), images, as_map)


def wants_numbers(error: Exception) -> bool:
    """Whether a forward on the meta device failed because the network looks into a tensor, or makes one elsewhere."""
    return any(sign in str(error) for sign in ("device meta", "meta tensors"))


def _tappable(copied: nn.Module, images: Tensor, as_map: Callable[[Any], Any] | None) -> dict[str, tuple[int, int]]:
    copied.eval()
    seen: dict[str, list[Any]] = {}
    for name, layer in copied.named_modules():
        if name:
            layer.register_forward_hook(
                lambda _layer, _inputs, output, name=name: seen.setdefault(name, []).append(output)
            )
    with torch.no_grad():
        copied(images)
    maps = {name: _map_or_none(outputs[0], as_map) for name, outputs in seen.items() if len(outputs) == 1}
    return {name: (output.shape[1], output.shape[2]) for name, output in maps.items() if output is not None}


def _map_or_none(output: Any, as_map: Callable[[Any], Any] | None) -> Tensor | None:
    try:
        return _feature_map("", output if as_map is None else as_map(output))
    except InputError:
        return None


class _Keeper:
    """The hook of one tap. An object and no closure: the copy of a network keeps its maps in the copy."""

    def __init__(self, tapped: Tapped, name: str):
        self.tapped, self.name = tapped, name

    def __call__(self, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        self.tapped.keep(self.name, output)


def tokens_as_map(tokens: Tensor) -> Tensor:
    """The tokens of a transformer (B, N, C) as a map (B, C, S, S): the last S² of them, S² the largest square ≤ N.

    So class and register tokens, which stand in front, are left out as long as they are at most 2S.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        raise InputError(f"{_shown(tokens)} are no tokens (B, N, C); tap a block of the transformer")
    side = math.isqrt(tokens.shape[1])
    return tokens[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


def channels_last_as_map(maps: Tensor) -> Tensor:
    """Maps (B, S, S, C), as in Swin Transformers, as (B, C, S, S)."""
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise InputError(f"{_shown(maps)} is no map (B, S, S, C); tap another layer")
    return maps.permute(0, 3, 1, 2)


# What `network.tap_layout` may say, in timm's terms (timm.layers.Format).
LAYOUTS: Mapping[str, Callable[[Any], Any] | None] = MappingProxyType(
    {"NCHW": None, "NHWC": channels_last_as_map, "NLC": tokens_as_map}
)


def _untold() -> AbstractContextManager[Any]:
    """Gradient checkpointing counts what a part of the network saves, and runs it again without the taps: it is not
    told of what they save."""
    return nullcontext() if torch.compiler.is_compiling() else saved_tensors_hooks(_same, _same)


def _same(saved: Any) -> Any:
    return saved


def _refuse_no_list(layers: Sequence[str]) -> None:
    if isinstance(layers, str) or not layers:
        example = layers or "layer1"
        raise InputError(f"{layers!r} is no list of layers to tap; write layers=[{example!r}]")
    for place, name in enumerate(layers):
        if name in layers[:place]:
            raise InputError(f"layer {name!r} is to be tapped twice; name it once")


def _layer(model: nn.Module, name: str) -> nn.Module:
    layers = dict(model.named_modules(remove_duplicate=False))
    if name not in layers or not name:
        near = difflib.get_close_matches(name, list(layers), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "print(model) shows their names"
        raise InputError(f"the network has no layer {name!r} to tap; {hint}")
    return layers[name]


def _feature_map(name: str, output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 4:
        tokens = isinstance(output, Tensor) and output.ndim == 3
        hint = ", or say that these are tokens (network.tap_layout: NLC; as_map=tokens_as_map)" if tokens else ""
        raise InputError(f"layer {name!r} gives {_shown(output)}, no feature map (B, C, S, S); tap another layer{hint}")
    if output.shape[-1] != output.shape[-2]:
        if output.shape[1] == output.shape[2]:
            hint = "network.tap_layout: NHWC; as_map=channels_last_as_map"
            raise InputError(f"layer {name!r} gives {_shown(output)}; if its channels stand last, say so ({hint})")
        raise InputError(
            f"layer {name!r} gives {_shown(output)}, no square map (B, C, S, S), and cannot be turned; crop or pad the "
            "images to squares, or tap another layer"
        )
    return output


def _shown(output: Any) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
