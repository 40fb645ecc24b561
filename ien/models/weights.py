"""How are the weights of a file read, and put into a network? (`pretrained`, and bare weights)"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ien.errors import InputError
from ien.models.libraries import seen_grey

Weights = dict[str, Tensor]
_LISTED = 3  # names of each kind that a message holds


def load_weights(network: nn.Module, path: str | Path, classes: int) -> tuple[str, ...]:
    """Put the weights of a local file into the network; returns the names of those that keep their initial values.

    `path` is a `.safetensors` file or what `torch.save` wrote: a state_dict, alone or under `model` or `state_dict` (a
    checkpoint of a run here too). Only tensors are read, no code is run. A classifier of another number of classes
    stays as it is; the first convolution of a network for grey images takes the sum over the three colours. Raises
    `InputError` for a file that cannot be read, and for weights that do not fit, naming them.
    """
    own = network.state_dict()
    given = {name: _fitted(value, own.get(name)) for name, value in read_weights(Path(path)).items()}
    anew = tuple(
        name for name, value in given.items() if name in own and _of_other_classes(network, name, value, classes)
    )
    for name in anew:
        del given[name]
    wanted = {name: value for name, value in own.items() if name not in anew and (name in given or not _counts(name))}
    if problems := misfits(given, wanted):
        raise InputError(f"{path} does not fit the network: it {problems}; take weights of this very network")
    network.load_state_dict(given, strict=False)
    return anew


def read_weights(path: Path) -> Weights:
    """The tensors of a weights file by name, on the CPU. Raises `InputError`."""
    if not path.is_file():
        raise InputError(f"there is no file {path}; give a .pt, .pth or .safetensors file of weights")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) else content
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path} holds no weights by name; write them with torch.save(model.state_dict(), path)")
    return dict(content)


def misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What is wrong with these weights, by name (`lacks a; has the unknown b; c is (4, 1) and not (8, 1)`); or ""."""
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    other = [
        f"{name} is {tuple(given[name].shape)} and not {tuple(weight.shape)}"
        for name, weight in wanted.items()
        if name in given and given[name].shape != weight.shape
    ]
    kinds = (("lacks ", missing), ("has the unknown ", unknown), ("", other))
    return "; ".join(word + _some(names) for word, names in kinds if names)


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = "it holds more than tensors, or is damaged" if isinstance(error, pickle.UnpicklingError) else error
        raise InputError(
            f"{path} cannot be read as weights ({_first_line(reason)}); write a file with "
            "torch.save(model.state_dict(), path)"
        ) from error


def _safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise InputError(f'{path} needs safetensors; type: pip install -e ".[export]"') from None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as weights ({_first_line(error)}); take a whole file") from error


def _fitted(value: Tensor, own: Tensor | None) -> Tensor:
    """A first convolution for colours where ours sees grey images; anything else as it is."""
    if own is None or value.ndim != 4 or value.shape[1] != 3 or own.shape != (value.shape[0], 1, *value.shape[2:]):
        return value
    return seen_grey(value)


def _of_other_classes(network: nn.Module, name: str, value: Tensor, classes: int) -> bool:
    """Whether these are weights of a classifier that differ from ours in nothing but the number of classes."""
    layer, own = network.get_submodule(name.rpartition(".")[0]), network.state_dict()[name]
    classifies = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    others = value.ndim == own.ndim and value.shape[1:] == own.shape[1:] and value.shape != own.shape
    return classifies and others and own.shape[:1] == (classes,)


def _counts(name: str) -> bool:
    """BatchNorm's count of batches: files from before it was counted lack it, and it changes no output."""
    return name.endswith("num_batches_tracked")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _first_line(reason: object) -> str:
    return (str(reason).splitlines() or ["empty"])[0][:150]
