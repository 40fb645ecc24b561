"""Which networks does a report compare, what are they called, and which images do they see?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ien import build, config, trained
from ien.config import Config
from ien.data import Dataset, InOrder, Split
from ien.data.prepared import sha256_of
from ien.errors import InputError
from ien.taps import Tapped
from ien.trained import Trained


@dataclass(frozen=True)
class Network:
    """A trained network on its device, under the name that it has in a report; `origin` says where it is from."""

    name: str
    origin: dict[str, str]
    trained: Trained
    device: torch.device

    @property
    def settings(self) -> Config:
        return self.trained.settings

    @property
    def data(self) -> Dataset:
        return self.trained.data

    @property
    def tapped(self) -> Tapped:
        return self.trained.tapped

    @property
    def digest(self) -> str:
        """The sha256 of the file of its weights."""
        return sha256_of(self.trained.weights)

    def split(self, name: str) -> Split:
        """The test images (`test`), or the held-out ones (`val`)."""
        return self.data.test if name == "test" else self.data.val

    def images(self, split: Split, limit: int | None = None) -> InOrder:
        """One pass over a split, or over `limit` images spread over it, on the device and of the network's size."""
        size, side = self.settings.run.eval_batch_size, build.image_side(self.settings)
        return InOrder(split, batch_size=size, device=self.device, side=side, resident=False, limit=limit)


def networks_of(folders: Sequence[Path], device: torch.device, overrides: Sequence[str] = ()) -> list[Network]:
    """The networks of finished runs, with the weights that they were tested with, under names of their own.

    Raises `InputError` as `trained.of_run` does, for a run that is given twice, and for runs of different data.
    """
    repeated = [str(path) for path, times in Counter(path.resolve() for path in folders).items() if times > 1]
    if repeated:
        raise InputError(f"{repeated[0]} is given more than once; give each run once")
    networks = [
        _on_device(path.resolve().name, {"run": str(path.resolve())}, _tested(path, overrides), device)
        for path in folders
    ]
    first = networks[0]
    for network in networks:
        if network.data.fingerprint != first.data.fingerprint:
            other = f"{network.data.name} in {network.name}"
            raise InputError(f"{first.data.name} in {first.name}, {other}: runs of other data do not compare")
    return _named_apart(networks)


def weights_of(settings: Path, weights: Path, device: torch.device, overrides: Sequence[str] = ()) -> Network:
    """A network of these settings with the weights of a file. Raises `InputError` as `trained.of_weights` does."""
    found = trained.of_weights(config.load(settings, overrides), weights, str(settings))
    origin = {"config": str(settings.resolve()), "weights": str(weights.resolve())}
    return _on_device(weights.stem, origin, found, device)


def _tested(path: Path, overrides: Sequence[str]) -> Trained:
    return trained.of_run(path, trained.TESTED, overrides)


def _on_device(name: str, origin: dict[str, str], found: Trained, device: torch.device) -> Network:
    found.tapped.to(device)
    return Network(name, origin, found, device)


def _named_apart(networks: Sequence[Network]) -> list[Network]:
    """Runs of one name in several folders are called by the folder too."""
    depth = 1
    paths = [Path(network.origin["run"]) for network in networks]
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [replace(one, name="/".join(path.parts[-depth:])) for one, path in zip(networks, paths, strict=True)]
