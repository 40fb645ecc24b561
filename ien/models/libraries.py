"""How is a network of torchvision, of timm, or of one's own made from its name? (nothing is downloaded)"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from ien.errors import InputError

Build = Callable[[str, int, int], nn.Module]  # (name, classes, in_channels)


def library_network(
    name: str, classes: int, in_channels: int = 3, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """`torchvision/NAME`, `timm/NAME`, or `package.module:Class`, with its initial weights.

    A class of one's own is called as `Class(classes=…, in_channels=…, **arguments)`; `arguments` are its alone. Raises
    `InputError` for names that are unknown, with the nearest, and for what a class does not take.
    """
    library, slash, model = name.partition("/")
    if not slash:
        return _own(name, classes, in_channels, arguments or {})
    if library not in LIBRARIES:
        raise InputError(f"model: {name!r} is of no known library; write {'/NAME or '.join(LIBRARIES)}/NAME")
    return LIBRARIES[library](model, classes, in_channels)


def of_library(name: str) -> bool:
    """Whether the name is one that `library_network` reads, rather than of a network of the paper."""
    return "/" in name or ":" in name


def _torchvision(name: str, classes: int, in_channels: int) -> nn.Module:
    from torchvision import models

    if name not in (known := models.list_models(module=models)):
        raise InputError(_unknown("torchvision", name, known))
    network = models.get_model(name, weights=None, num_classes=classes, **_ONE_OUTPUT.get(name, {}))
    return network if in_channels == 3 else _with_grey_stem(network, name, in_channels)


# Their auxiliary classifiers would be a second and third output in training; without `init_weights` they warn.
_ONE_OUTPUT = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}


def _timm(name: str, classes: int, in_channels: int) -> nn.Module:
    try:
        import timm  # takes seconds to import, and only here
    except ImportError:
        raise InputError('model: timm is not installed; type: pip install -e ".[timm]"') from None
    if not timm.is_model(name):
        raise InputError(_unknown("timm", name, timm.list_models()))
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=in_channels)
    return network


LIBRARIES: dict[str, Build] = {"torchvision": _torchvision, "timm": _timm}


def _own(name: str, classes: int, in_channels: int, arguments: Mapping[str, Any]) -> nn.Module:
    path, _, attribute = name.partition(":")
    try:
        found = vars(importlib.import_module(path)).get(attribute)
    except ModuleNotFoundError as error:
        raise InputError(
            f"model: {name!r} cannot be imported ({error}); put the folder that holds it on PYTHONPATH"
        ) from None
    # Nothing else is ever called: a settings file cannot run `os:system`.
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise InputError(f"model: {path} has no nn.Module called {attribute!r}; write the name of a class of {path}")
    given = {"classes": classes, "in_channels": in_channels, **arguments}
    try:
        return found(**given)
    except TypeError as error:
        called = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise InputError(
            f"model: {name}({called}): {error}; write in network.arguments what its __init__ takes"
        ) from error


def _with_grey_stem(network: nn.Module, name: str, channels: int) -> nn.Module:
    """The network, its first convolution seeing a grey image as it saw that image in three equal channels."""
    stem = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if stem is None or stem.in_channels != 3 or channels != 1:
        raise InputError(
            f"model: torchvision/{name} sees images of 3 channels or 1, and these have {channels}; take a timm/NAME"
        )
    stem.in_channels, stem.weight = 1, nn.Parameter(seen_grey(stem.weight.detach()))
    return network


def seen_grey(weight: torch.Tensor) -> torch.Tensor:
    """The kernels (out, 3, k, k) of a first convolution for one channel (out, 1, k, k): the sum over the colours."""
    return weight.sum(dim=1, keepdim=True)


def _unknown(library: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    also = [one for one in known if len(name) > 2 and re.match(re.escape(name), one)][:3]
    hint = f"did you mean {' or '.join(f'{library}/{one}' for one in near or also)}?" if near or also else ""
    return f"model: {library} has no network {name!r}; {hint or f'{library}.list_models() names them'}"
