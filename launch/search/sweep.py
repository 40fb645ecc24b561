"""What does a sweep file say? (`configs/sweeps/<name>.yaml`)

A base config, what is set over it for every trial, the space, and how it is searched. Everything is checked here,
before anything starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ien import config
from ien.config import Config
from ien.config.files import Setting, as_yaml, from_command_line, nested, read
from ien.config.problems import by_dotted_key, told
from ien.config.sections import Count, LaunchSettings, Settings
from ien.errors import InputError
from ien.private import refuse_shared
from launch.grid import numbers
from launch.search.axes import Choice
from launch.search.results import Goals
from launch.search.space import Point, Space, overrides

WHOLE = ("accuracy", "accuracy_second_view", "class_loss", "equivariance", "relative_equivariance_error")
BY_TAP = ("equi_loss", "feature_norm", "relative_equivariance_error")
NAME = "sweep.yaml"
CHANGEABLE = ("beta_weight", "max_lr", "low_lr", "dec_scale", "optimizer.clip_norm")  # in the middle of a run
# May change while a sweep is unfinished: how much, where and how often, but not what is compared.
_FREE = ("budget", "resources", "max_failures", "launch")
_BOUND_BASE = "base settings"


class Budget(Settings):
    trials: Count = Field(default=16, description="settings to try; a grid has as many as it has")
    hours: Annotated[float, Field(gt=0)] | None = Field(default=None, description="no trial is begun after them")


class Resources(Settings):
    processes: int = Field(default=1, ge=1, description="of one run, on one machine (DDP)")
    cpus: float = Field(default=1.0, gt=0, description="cores of one process")
    gpus: float = Field(default=0.0, ge=0, description="GPUs of one process; shares are allowed if processes is 1")


class Asha(Settings):
    grace_cycles: float = Field(default=1.0, gt=0, description="no trial is stopped before so many cycles (cyc_size)")
    reduction_factor: float = Field(default=3.0, gt=1, description="one in so many goes on at each rung")


class Pbt(Settings):
    every_epochs: int = Field(default=5, ge=1, description="epochs between exploits")
    quantile: float = Field(default=0.25, gt=0, le=0.5, description="share that is replaced, and that is copied")


class SweepFile(Settings):
    """Every key of a sweep file."""

    base: str = Field(min_length=1, description="the config that it starts from, relative to this file")
    set: dict[str, Any] = Field(default={}, description="settings of every trial, over those of base")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$")] | None = Field(
        default=None, description="folder under runs/sweeps; null: the file's name"
    )
    space: dict[str, Any] = Field(description="what is searched: setting → distribution")
    seeds: str | Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=0)]] = Field(
        default=0, description="of the runs of a trial, whose metrics are averaged: 0, 0-2 or [0, 3]"
    )
    metrics: dict[str, Literal["max", "min"]] = Field(
        default={"accuracy": "max"}, min_length=1, description="what is compared, on held-out images"
    )
    sampler: Literal["grid", "random", "tpe"] = Field(default="random", description="how settings are chosen")
    scheduler: Literal["none", "asha", "pbt"] = Field(default="none", description="who is stopped early")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the sampler")
    max_failures: int = Field(default=2, ge=0, description="how often a trial that crashed is begun again")
    asha: Asha = Asha()
    pbt: Pbt = Pbt()
    budget: Budget = Budget()
    resources: Resources = Resources()
    launch: LaunchSettings = LaunchSettings()  # of the job that searches, on SLURM


SECTIONS = frozenset({"asha", "pbt", "budget", "resources", "launch", "set"})


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: `name`, the file's content, the settings of every trial, the space and the seeds."""

    name: str
    path: Path
    file: SweepFile
    base_path: Path
    over: tuple[str, ...]  # key=value of every trial
    base: Config
    space: Space
    seeds: tuple[int, ...]

    @property
    def folder(self) -> Path:
        return Path(self.base.run.root) / "sweeps" / self.name

    @property
    def goals(self) -> Goals:
        return dict(self.file.metrics)

    @property
    def epochs(self) -> int:
        """The most that a trial trains."""
        return max(self._values("tot_epochs") or [self.base.tot_epochs])

    @property
    def grace_epochs(self) -> int:
        """Epochs before which ASHA stops nobody: `grace_cycles` of the longest cycle in the space."""
        longest = max(self._values("cyc_size") or [self.base.cyc_size])
        return max(1, min(round(self.file.asha.grace_cycles * longest), self.epochs))

    @cached_property
    def cpus(self) -> float:
        """Cores of one trial, whose seeds train at the same time."""
        return len(self.seeds) * self.file.resources.processes * self.file.resources.cpus

    @cached_property
    def gpus(self) -> float:
        """GPUs of one trial."""
        return len(self.seeds) * self.file.resources.processes * self.file.resources.gpus

    def refuse_too_large(self, cpus: float, gpus: float) -> None:
        """Raises `InputError` where one trial needs more than the largest machine has."""
        file, count = self.file.resources, len(self.seeds)
        for name, wanted, there, each in (("CPU", self.cpus, cpus, file.cpus), ("GPU", self.gpus, gpus, file.gpus)):
            if wanted > there:
                asked = f"{count} seed{'s' * (count > 1)} × {file.processes} process{'es' * (file.processes > 1)}"
                less = f"{each * there / wanted:.2g} or less" if there else "0"
                raise InputError(
                    f"resources: a trial needs {wanted:g} {name}s ({asked} × {each:g}), and the largest machine has "
                    f"{there:g}; write resources.{name.lower()}s={less}" + (", or fewer seeds" if count > 1 else "")
                )

    def refuse_impossible(self, points: Iterable[Point]) -> None:
        """Raises `InputError` for the first point whose settings do not go together."""
        for number, point in enumerate(points):
            try:
                self.run(number, point, self.seeds[0])
            except InputError as error:
                told = ", ".join(overrides(point))
                raise InputError(f"{self.path}: space: {told} cannot be tried ({error}); narrow the space") from None

    def run(self, number: int, point: Point, seed: int, generation: int = 0) -> Config:
        """The settings of one run of trial `number`. Raises `InputError` where the point cannot be."""
        place = self.run_folder(number, seed, generation).relative_to(self.base.run.root)
        words = [*self.over, *overrides(point), f"run.seed={seed}", f"save_dir={place}"]
        return config.load(self.base_path, words)

    def run_folder(self, number: int, seed: int, generation: int = 0) -> Path:
        """Where that run lies; another one for each generation of its settings."""
        return self.folder / f"{number:03}" / (f"seed-{seed}" + (f"-{generation}" if generation else ""))

    def best(self, point: Point) -> str:
        """YAML that repeats a trial's first run as one of its own, tested at the end."""
        words = [word for word in self.over if not word.startswith(("run.test=", "launch."))]
        own = [*words, *overrides(point), f"run.seed={self.seeds[0]}", f"save_dir=best/{self.name}"]
        return config.resolved(config.load(self.base_path, own))

    def described(self) -> dict[str, Any]:
        """What must not change while the sweep is unfinished, and what may, by key."""
        content = self.file.model_dump(mode="json", exclude={"base", "set", "name"})
        unused = {"asha", "pbt"} - {self.file.scheduler}
        base = {key: value for key, value in config.flat(self.base).items() if _decides(key)}
        kept = {key: value for key, value in content.items() if key not in unused}
        return json.loads(json.dumps({**kept, "seeds": self.seeds, _BOUND_BASE: base}))

    def refuse_other(self) -> None:
        """Raises `InputError` if the folder holds a sweep that this one cannot go on with, naming what differs."""
        refuse_shared(self.folder)
        recorded = self.folder / NAME
        if not recorded.exists():
            return
        before, now = {key: setting.value for key, setting in read(recorded, ()).items()}, self.described()
        changed = [line for key in now | before if key not in _FREE for line in _differences(key, before, now)]
        if changed:
            raise InputError(
                f"{self.folder}: holds a sweep of another kind ({'; '.join(changed)}); set these back, or begin a new "
                "one with name=ANOTHER"
            )

    @property
    def text(self) -> str:
        """What `sweep.yaml` in the folder holds."""
        return as_yaml(self.described())

    def _values(self, key: str) -> list[Any]:
        """What the space has for a setting: options, or the ends of a range."""
        axes = [axis.values for axis in self.space.axes if axis.key == key]
        return [value for one in axes for value in (one.options if isinstance(one, Choice) else (one.low, one.high))]


def load(path: Path, words: Sequence[str] = (), below: Mapping[str, Setting] | None = None) -> Sweep:
    """The sweep of a file, with `key=value` over it (`set.KEY=value` for the settings of every trial).

    `below` are settings over which the file's stand: a cluster's `launch`. Raises `InputError` of one line for whatever
    cannot be read or is not allowed.
    """
    given = dict(below or {}) | read(path, SECTIONS) | from_command_line(words, SECTIONS)
    fixed = {key: setting for key, setting in given.items() if key.startswith("set.")}
    rest = {key: setting for key, setting in given.items() if key not in fixed}
    try:
        file = SweepFile.model_validate(nested(rest, SECTIONS))
    except ValidationError as error:
        raise told(error, by_dotted_key(SweepFile), rest, str(path)) from None
    base_path = Path(os.path.normpath(path.parent / file.base))
    over = (*_words(fixed), *_imposed(file))
    base = config.load(base_path, over)
    space = Space.read(file.space, base, _origin(rest, "space", path))
    seeds = tuple(_seeds(file.seeds, _origin(rest, "seeds", path)))
    sweep = Sweep(file.name or path.stem, path, file, base_path, over, base, space, seeds)
    _refuse_metrics(file, base, _origin(rest, "metrics", path))
    _refuse_combinations(sweep, path)
    return sweep


def _words(fixed: dict[str, Setting]) -> list[str]:
    """`set:` as key=value; a section there is a mapping."""
    words = []
    for key, setting in fixed.items():
        name, value = key.removeprefix("set."), setting.value
        if name in ("save_dir", "run.seed", "run.test") or name.split(".")[0] == "launch":
            advice = {"run.seed": "; write seeds:"}.get(name, "")
            raise InputError(f"{setting.origin}: set: {name}: is the sweep's to say{advice}")
        parts = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        words += [f"{part}={json.dumps(inner)}" for part, inner in parts.items()]
    return words


def _imposed(file: SweepFile) -> list[str]:
    """What the search itself sets: the test set is left alone, and one machine trains a run."""
    words = [
        "run.test=false",
        "launch.nodes=1",
        "launch.executor=inline",
        f"launch.tasks_per_node={file.resources.processes}",
    ]
    if any(metric.startswith("relative_equivariance_error") for metric in file.metrics):
        words.append("run.equivariance_every=1")
    return words


def _seeds(given: str | int | list[int], where: str) -> list[int]:
    seeds = (
        numbers(given, f"{where}: seeds:") if isinstance(given, str) else [given] if isinstance(given, int) else given
    )
    if len(set(seeds)) < len(seeds) or not seeds:
        raise InputError(f"{where}: seeds: {given} names none, or one twice; write each once, as in 0-2")
    return seeds


def _refuse_metrics(file: SweepFile, base: Config, where: str) -> None:
    for metric in file.metrics:
        kind, slash, _ = metric.partition("/")
        if metric not in WHOLE and not (slash and kind in BY_TAP):
            allowed = f"{', '.join(WHOLE)}, or {', '.join(f'{kind}/TAP' for kind in BY_TAP)}"
            raise InputError(f"{where}: metrics: {metric} is not measured; write {allowed}")
    if base.data.val_split == 0:
        raise InputError(f"{where}: metrics: are measured on held-out images, and data.val_split is 0; set it above 0")


def _refuse_combinations(sweep: Sweep, path: Path) -> None:
    file = sweep.file
    if file.sampler == "grid":
        sweep.space.points()
    if file.scheduler != "none" and len(file.metrics) > 1:
        raise InputError(f"{path}: scheduler: {file.scheduler} compares one metric; write one, or scheduler: none")
    if file.scheduler == "pbt" and file.sampler == "tpe":
        raise InputError(f"{path}: scheduler: pbt changes settings itself; write sampler: random or grid")
    if file.scheduler == "pbt" and (fixed := [axis.key for axis in sweep.space.axes if axis.key not in CHANGEABLE]):
        raise InputError(
            f"{path}: scheduler: pbt changes settings on the way, and {fixed[0]} cannot; write a space of "
            f"{', '.join(CHANGEABLE)}, or scheduler: none"
        )
    if file.resources.gpus % 1 and (file.resources.processes > 1 or file.resources.gpus > 1):
        raise InputError(
            f"{path}: resources.gpus: {file.resources.gpus:g} for each of {file.resources.processes} processes; a "
            "share of a GPU is for a run of one process; write 1"
        )


def _origin(given: dict[str, Setting], key: str, path: Path) -> str:
    return given[key].origin if key in given else str(path)


def _decides(key: str) -> bool:
    return key not in config.FREE and not key.startswith("launch.") and key != "run.seed"


def _differences(key: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = before.get(key), now.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
        inner = sorted(old.keys() | new.keys())
        prefix = "" if key == _BOUND_BASE else f"{key}."
        return [f"{prefix}{k}: {old.get(k)} → {new.get(k)}" for k in inner if old.get(k) != new.get(k)]
    return [] if old == new else [f"{key}: {old} → {new}"]
