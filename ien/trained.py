"""Which trained network is looked at? (a finished run, or a file of weights with its config)"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ien import build, checkpoint, config
from ien.build import Parts
from ien.config import Config
from ien.distributed import Processes
from ien.errors import InputError
from ien.runs import Folder

_SHOWN = 3  # keys in a message


@dataclass(frozen=True)
class Trained:
    """A network with its weights, in eval mode on its device, and all that belongs to it.

    `origin` says where it is from, `digest` which weights these are.
    """

    name: str
    origin: dict[str, str]
    digest: str
    parts: Parts

    @property
    def settings(self) -> Config:
        return self.parts.settings

    def called(self, name: str) -> Trained:
        """The same, under another name."""
        return replace(self, name=name)


def of_run(path: Path, processes: Processes, overrides: Sequence[str] = ()) -> Trained:
    """The weights that the run in this folder was tested with.

    `overrides` are settings that do not change what the run is: `data.root=…`. Raises `InputError` for a folder without
    a finished run, a damaged checkpoint, and data that are not there.
    """
    folder = Folder(path)
    if not folder.settings.is_file():
        raise InputError(f"{path} is no run: it has no config.yaml; give the folder of a run, such as runs/quickstart")
    if not folder.finished:
        raise InputError(
            f"{path} is not finished: it has no summary.json; go on with it (python launch/submit.py --config "
            f"{folder.settings}), or evaluate what is there with --config {folder.settings} --weights FILE"
        )
    weights = folder.checkpoints / folder.result().get("weights", checkpoint.BEST)
    if not weights.exists():
        raise InputError(f"{path} has no checkpoint: {weights} is missing; put it back, or train the run again")
    try:
        state = checkpoint.load(weights)["model"]
    except checkpoint.DamagedError as damage:
        raise InputError(f"{weights}: {damage}; put a whole copy back, or train the run again") from damage
    return _with_weights(
        path.resolve().name, {"run": str(path.resolve())}, folder.settings, weights, state, processes, overrides
    )


def of_weights(settings: Path, weights: Path, processes: Processes, overrides: Sequence[str] = ()) -> Trained:
    """A network of these settings with the weights of a file: a `state_dict`, or a checkpoint that holds one as `model`
    or `state_dict`, as torch.save or safetensors write it.

    Raises `InputError` for a file that cannot be read, and for weights that do not fit, with their names.
    """
    if not weights.is_file():
        raise InputError(f"--weights {weights}: there is no such file; give a .pt or .safetensors file")
    state = _read(weights)
    origin = {"config": str(settings.resolve()), "weights": str(weights.resolve())}
    return _with_weights(weights.stem, origin, settings, weights, state, processes, overrides)


def _with_weights(
    name: str,
    origin: dict[str, str],
    file: Path,
    weights: Path,
    state: Mapping[str, Tensor],
    processes: Processes,
    overrides: Sequence[str],
) -> Trained:
    here = [f"run.device={processes.device.type}", "data.resident=never", "data.workers=0"]
    settings = config.load(file, [*here, *overrides])
    if changed := config.differences(config.load(file, here), settings):
        raise InputError(f"{'; '.join(changed)}: this would be another network or other data; give data.* alone")
    parts = build.parts(settings, processes)
    _refuse_misfits(parts.tapped.model, state, f"{weights} does not fit {file}")
    parts.tapped.model.load_state_dict(state)
    parts.tapped.eval()
    return Trained(name, origin, hashlib.sha256(weights.read_bytes()).hexdigest(), parts)


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as weights; save a state_dict with torch.save") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} holds no state_dict; save model.state_dict() with torch.save")
    return content


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path} needs the safetensors package; type: pip install safetensors") from error
    try:
        state: Mapping[str, Tensor] = load_file(path)
        return state
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}); give a whole file") from error


def _refuse_misfits(model: nn.Module, state: Mapping[str, Tensor], problem: str) -> None:
    own = model.state_dict()
    misfits = {
        "missing": [key for key in own if key not in state],
        "unknown": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {_size(state[key])} for {_size(own[key])}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    told = [f"{len(keys)} {what} ({_few(keys)})" for what, keys in misfits.items() if keys]
    if told:
        raise InputError(f"{problem}: {', '.join(told)}; give the config that the weights were trained with")


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")


def _size(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "scalar"
