"""Which trained network is this: what settings, data and weights is it of?

Either a finished run's folder says so, or a settings file and a file of weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ien import build, checkpoint, config
from ien.config import Config
from ien.data import Dataset
from ien.errors import InputError
from ien.models.weights import misfits, read_weights
from ien.runs import Folder
from ien.taps import Tapped

WEIGHTS = {"best": checkpoint.BEST, "last": checkpoint.LAST}
TESTED = "tested"  # those that the run was tested with


@dataclass(frozen=True)
class Trained:
    """A network with its weights, in evaluation mode on the CPU, and where they are from.

    `summary` is what the finished run wrote about itself, `revision` the code that trained it; None for bare weights.
    """

    settings: Config
    data: Dataset
    tapped: Tapped
    weights: Path
    summary: dict[str, Any] | None = None
    revision: dict[str, Any] | None = None

    @property
    def test_accuracy(self) -> float | None:
        """Of these very weights, where the run has measured it."""
        measured = self.summary or {}
        same = (measured.get("split"), measured.get("weights")) == ("test", self.weights.name)
        return measured["accuracy"] if same else None


def of_run(folder: Path, which: str = "best", overrides: Sequence[str] = ()) -> Trained:
    """The network of a finished run with its `best` or `last` weights (a key of `WEIGHTS`), or those it `TESTED`.

    `overrides` (`key=value`) may say where the data lie now (data.root). Raises `InputError` for a folder without a
    run, a run that is not finished, a checkpoint that is damaged, and data that are not those it was trained on.
    """
    run = Folder(folder)
    if not run.settings.exists():
        raise InputError(f"{folder} holds no run (no config.yaml); give the folder of one, such as runs/quickstart")
    if not run.finished:
        raise InputError(
            f"{folder} is not finished; go on with it (python -m ien.train --config {run.settings}), or take what is "
            f"there: --config {run.settings} --weights {run.checkpoints / checkpoint.BEST}"
        )
    settings = config.load(run.settings, overrides)
    if changed := config.differences(config.load(run.settings), settings):
        raise InputError(f"{folder} was trained with other settings ({'; '.join(changed)}); leave them out")
    summary = run.result()
    path = run.checkpoints / (summary["weights"] if which == TESTED else WEIGHTS[which])
    state = _checkpointed(path, f"take other weights: --config {run.settings} --weights FILE")
    trained = _with_weights(settings, state, path, str(run.settings))
    _refuse_other_data(trained, summary["data"], folder)
    return Trained(settings, trained.data, trained.tapped, path, summary, _revision(folder / "environment.json"))


def of_weights(settings: Config, path: Path, origin: str = "the settings") -> Trained:
    """The network of `settings` with the weights in `path`: a checkpoint, a `state_dict`, or a safetensors file.

    `origin` names the settings in messages. Raises `InputError` for what cannot be read, and for weights that do not
    fit the settings, naming their keys.
    """
    return _with_weights(settings, read_weights(path), path, origin)


def _with_weights(settings: Config, state: dict[str, Tensor], path: Path, origin: str) -> Trained:
    data = build.open_data(settings)
    # What it started from is not asked for again: the file may be on another machine.
    tapped = build.make_network(settings.model_copy(update={"pretrained": None}), build.make_group(settings), data)
    if problems := misfits(state, tapped.model.state_dict()):
        advice = "give the settings that these weights were trained with"
        raise InputError(f"{path} does not fit {origin}: it {problems}; {advice}")
    tapped.model.load_state_dict(state)
    return Trained(settings, data, tapped.eval(), path)


def _checkpointed(path: Path, advice: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = checkpoint.load(path)["model"]
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; put it back, or {advice}") from error
    except checkpoint.DamagedError as damage:
        raise InputError(f"{path}: {damage}; put a whole copy back, or {advice}") from damage
    return state


def _refuse_other_data(trained: Trained, fingerprint: dict[str, str], folder: Path) -> None:
    if trained.data.fingerprint != fingerprint:
        raise InputError(
            f"{folder} was trained on other data than {trained.data.name} is now; prepare the data as they were, or "
            "name their folder with data.root=…"
        )


def _revision(environment: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(environment.read_text())["git"] if environment.exists() else None
    return found
