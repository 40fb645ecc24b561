"""Which network is meant? (a config, a run folder, a name of the paper's, of torchvision's or timm's, one's own)

Weights play no part, so that nothing is downloaded, and the paper's networks are taken at their least width.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ien import build, config
from ien.config import Config
from ien.errors import InputError
from ien.models import MODELS, library_network, of_library
from ien.pooling import ChannelMaxPool

CLASSES = 10
GREY = ("digits", "rot_mnist", "scale_mnist")  # data sets of one channel


class Subject(NamedTuple):
    """A network, the channels of its images, and the side of those it was made for, where that is known."""

    name: str
    model: nn.Module
    channels: int
    side: int | None


def subject(name: str, channels: int | None) -> Subject:
    """The network of this name. Raises `InputError`, with what is allowed, if there is none."""
    path = Path(name)
    if path.is_dir():
        path = path / "config.yaml"
        if not path.exists():
            raise InputError(f"{name} is no run folder (it holds no config.yaml); name a config, or a run folder")
    if path.suffix in (".yaml", ".yml"):
        return _configured(name, config.load(path), channels)
    if name in MODELS:
        return _of_the_paper(name, name, ChannelMaxPool([4]), channels or (1 if name == "BasicCNN" else 3))
    if name.startswith(("torchvision/", "timm/")):
        return Subject(name, library_network(name, CLASSES, channels or 3), channels or 3, None)
    if ":" in name:
        return Subject(name, _of_ones_own(name, channels or 3), channels or 3, None)
    known = f"{', '.join(MODELS)}, torchvision/NAME, timm/NAME, MODULE:FUNCTION, a config or a run folder"
    near = difflib.get_close_matches(name, MODELS, n=1)
    raise InputError(f"{name!r} names no network; {f'did you mean {near[0]}? ' if near else ''}write {known}")


def _configured(name: str, settings: Config, channels: int | None) -> Subject:
    pool = build.make_pool(settings, build.make_group(settings))
    channels = channels or (1 if settings.dataset in GREY else 3)
    if of_library(settings.model):
        network = library_network(settings.model, CLASSES, channels, settings.network.arguments)
        return Subject(name, network, channels, build.image_side(settings))
    kernels = {"published_kernels": True} if settings.network.published_kernels else {}
    return _of_the_paper(name, settings.model, pool, channels, build.image_side(settings), **kernels)


def _of_the_paper(
    name: str, model: str, pool: ChannelMaxPool, channels: int, side: int | None = None, **kernels: bool
) -> Subject:
    network = MODELS[model].build(pool.multiple, pool, CLASSES, channels, **kernels)
    return Subject(name, network, channels, side or network.image_side)


def _of_ones_own(name: str, channels: int) -> nn.Module:
    """`package.module:function`, looked for from the current folder too; the function gives the network.

    A class that takes `classes` and `in_channels`, as the one of `model: package.module:Class` does, is given them.
    """
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made: Any = importlib.import_module(module)
        for part in function.split("."):
            made = vars(made)[part]
    except ImportError as error:
        raise InputError(f"{name}: {error}; write MODULE:FUNCTION, as in an import") from error
    except KeyError:
        raise InputError(f"{name}: {module} has no {function!r}; name a function that gives a network") from None
    finally:
        sys.path.pop(0)
    try:
        network = made if isinstance(made, nn.Module) else made(**_wanted(made, channels))
    except TypeError as error:
        raise InputError(
            f"{name}: {error}; it is called without arguments, or as (classes=…, in_channels=…)"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} gives {type(network).__name__}, no torch.nn.Module; name one that does")
    return network


def _wanted(made: Any, channels: int) -> dict[str, int]:
    offered = {"classes": CLASSES, "in_channels": channels}
    try:
        return offered if offered.keys() <= inspect.signature(made).parameters.keys() else {}
    except ValueError:  # a builtin
        return {}
