"""What can be set, what is its default, who wins?

`load("configs/quickstart.yaml", ["beta_weight=0.1"])` reads a file over those that it `extends:`, and `key=value` over
both. At the top level stand the names and defaults of the published code (https://github.com/transmuteAI/implicit-networks),
so that a published `params` works unchanged, and `taps` and `pretrained` beside the `model` that they belong to; what
else is new stands in sections. `python -m ien.config` lists all.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ien.config_files import Setting, as_yaml, from_command_line, nested, read
from ien.config_problems import allowed, by_dotted_key, told
from ien.config_sections import (
    Count,
    Counts,
    DataSettings,
    GroupSettings,
    LaunchSettings,
    LayerName,
    LibraryModel,
    NetworkSettings,
    ObjectiveSettings,
    OptimizerSettings,
    RunSettings,
    Settings,
    SymmetrySettings,
)
from ien.errors import InputError

# name → (ratio, mplc_kernel_size): the heterogeneous filter groups of the paper. Stands here too, not only in
# `ien.pooling`, because settings are read where torch is not wanted.
PRESETS = {
    "R8-4-2-1": ((32, 8, 2, 1), (8, 4, 2, 1)),
    "R8-4-2": ((8, 2, 1), (8, 4, 2)),
    "R4-2-1": ((8, 2, 1), (4, 2, 1)),
}
PAPER_MODELS = "BasicCNN, Resnet18, VGG"
MODEL_NAMES = f"{PAPER_MODELS}, torchvision/NAME, timm/NAME or package.module:Class"


class Config(Settings):
    """Every setting of a run, checked. `Config.model_validate({...})` makes one from a notebook."""

    dataset: Literal["digits", "rot_mnist", "scale_mnist", "rot_tim", "image_folder"] = Field(
        description="what is seen"
    )
    model: Literal["BasicCNN", "Resnet18", "VGG"] | LibraryModel = Field(
        description="the network: of the paper, of torchvision or timm, or a class of one's own",
        json_schema_extra={"allowed": MODEL_NAMES},
    )
    taps: Annotated[tuple[LayerName, ...], Field(min_length=1, strict=False)] | None = Field(
        default=None,
        description="layers whose maps are compared; null: the network's own taps (torchvision, timm: required)",
        json_schema_extra={"allowed": "a list of names of layers, as in [layer1, layer2], or null"},
    )
    pretrained: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="weights to start from: a local .pt, .pth or .safetensors file"
    )
    reflection: bool = Field(
        default=False, description="flips too: the dihedral group; with rot_tim: the data set R2-TIM"
    )
    heterogeneous: bool | Literal["R8-4-2-1", "R8-4-2", "R4-2-1"] = Field(
        default=False, description="filter groups of several sizes: a preset, or true with ratio and mplc_kernel_size"
    )
    mode: str = Field(
        default="R4",
        description="R<N>: N rotations; default R8 where heterogeneous filter groups start with 8, without reflection; "
        "R1: none, with group.scales",
        json_schema_extra={"pattern": "^R[1-9][0-9]*$"},
    )
    ratio: Counts | None = Field(default=None, description="shares of the channels (ignored unless heterogeneous)")
    mplc_kernel_size: Counts | Count | None = Field(
        default=None, description="sizes of the filter groups, one per share; or the one size if not heterogeneous"
    )
    save_dir: str = Field(
        default="ien_training", description="run folder under run.root", json_schema_extra={"maxLength": 200}
    )
    training: bool = Field(default=True, description="false: evaluate the run in save_dir")
    beta_weight: float = Field(
        default=1.0, ge=0, description="weight of the equivariance loss; 1 in all published experiments"
    )
    tot_epochs: int = Field(default=90, ge=1, description="epochs to train")
    batch_size: int = Field(
        default=32, ge=1, description="images in a step over all processes, second views not counted"
    )
    weight_decay_rate: float = Field(default=1e-7, ge=0, description="weight decay of the optimizer")
    max_lr: float = Field(default=5e-3, gt=0, description="learning rate at the peak of a cycle")
    low_lr: float = Field(default=1e-5, ge=0, description="learning rate at both ends of a cycle and after the last")
    cyc_size: int = Field(default=70, ge=1, description="epochs of a cycle")
    dec_scale: float = Field(default=1.0, gt=0, description="the peak is divided by it from cycle to cycle")

    group: GroupSettings = GroupSettings()
    network: NetworkSettings = NetworkSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    symmetry: SymmetrySettings = SymmetrySettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    data: DataSettings = DataSettings()
    run: RunSettings = RunSettings()
    launch: LaunchSettings = LaunchSettings()

    @model_validator(mode="before")
    @classmethod
    def _follow_heterogeneous(cls, given: Any) -> Any:
        """A preset's name brings its shares and sizes; sizes from 8 down turn by R8, as in the published code."""
        if not isinstance(given, dict) or not given.get("heterogeneous"):
            return given
        filled, name = dict(given), given["heterogeneous"]
        if isinstance(name, str) and name in PRESETS:
            for key, value in zip(("ratio", "mplc_kernel_size"), PRESETS[name], strict=True):
                filled[key] = value if given.get(key) is None else given[key]
        sizes = filled.get("mplc_kernel_size")
        if "mode" not in given and isinstance(sizes, list | tuple) and [*sizes][:1] == [8]:
            filled["mode"] = "R4" if given.get("reflection") else "R8"
        return filled

    @field_validator("mode", mode="before")
    @classmethod
    def _is_a_group(cls, mode: Any) -> Any:
        if not isinstance(mode, str) or not re.fullmatch(r"R[1-9][0-9]*", mode):
            raise _refused("mode", f"{mode!r} is no group; {_GROUPS}")
        return mode

    @field_validator("save_dir", mode="before")
    @classmethod
    def _is_below_the_runs(cls, folder: Any) -> Any:
        parts = folder.split("/") if isinstance(folder, str) else [""]
        if len("/".join(parts)) > 200 or not all(re.fullmatch(r"[A-Za-z0-9._-]+", part) for part in parts):
            allowed = "a relative path of at most 200 characters from A-Z a-z 0-9 . _ - /"
            raise _refused("save_dir", f"{folder!r} is no folder under run.root; write {allowed}")
        if {".", ".."} & set(parts):
            raise _refused("save_dir", f"{folder!r} must not hold . or ..; write the folder's name alone")
        return folder

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.low_lr > self.max_lr:
            raise _refused("low_lr", f"{self.low_lr:g} is above max_lr {self.max_lr:g}; write one that is not")
        if self.cyc_size > self.tot_epochs:
            problem = f"a cycle of {self.cyc_size} epochs does not fit into tot_epochs {self.tot_epochs}"
            raise _refused("cyc_size", f"{problem}; write {self.tot_epochs} or fewer")
        self._network_is_whole()
        if self.network.published_kernels and self.model != "VGG":
            raise _refused("network.published_kernels", f"is of VGG alone, and model is {self.model}; write false")
        if self.objective.augment == "none" and self.beta_weight > 0:
            advice = "write beta_weight: 0, or objective.augment: group"
            raise _refused("beta_weight", f"{self.beta_weight:g} needs a second view, but augment is none; {advice}")
        if self.symmetry.tied and self.symmetry.weight_penalty > 0:
            problem = f"{self.symmetry.weight_penalty:g} has nothing to lower: tied weights are equivariant"
            raise _refused("symmetry.weight_penalty", f"{problem}; write 0, or symmetry.tied: false")
        self._moves_something()
        self._has_filter_groups()
        self._batch_divides()
        self._signal_comes_in_time()
        return self

    def _moves_something(self) -> None:
        if self.mode == "R1" and not self.group.scales:
            raise _refused("mode", f"'R1' is no group; {_GROUPS}")
        if 1 in self.group.scales:
            raise _refused("group.scales", "1 is always among them; leave it out, as in [0.8, 1.25]")

    def _network_is_whole(self) -> None:
        if self.network.arguments and ":" not in self.model:
            raise _refused("network.arguments", f"is for package.module:Class, and model is {self.model}; remove it")
        if not set("/:") & set(self.model):
            return
        if self.network.width is not None:
            advice = "remove it" if "/" in self.model else "write network.arguments: {width: …}, if the class has it"
            raise _refused("network.width", f"is of {PAPER_MODELS}, and model is {self.model}; {advice}")
        if self.taps is None and "/" in self.model:
            advice = f"`python -m ien.models {self.model}` lists them"
            raise _refused("taps", f"is required for {self.model}; write names of its layers as a list ({advice})")

    def _has_filter_groups(self) -> None:
        ratio, sizes = self.ratio, self.mplc_kernel_size
        if self.heterogeneous is False:
            return
        if ratio is None or not isinstance(sizes, tuple):
            missing = "ratio" if ratio is None else "mplc_kernel_size"
            example = "ratio: [32, 8, 2, 1] and mplc_kernel_size: [8, 4, 2, 1], or heterogeneous: R8-4-2-1"
            raise _refused("heterogeneous", f"needs {missing} as a list; write {example}")
        if len(ratio) != len(sizes):
            raise _refused("ratio", f"has {len(ratio)} shares for {len(sizes)} mplc_kernel_size; write as many of each")
        preset = PRESETS.get(self.heterogeneous) if isinstance(self.heterogeneous, str) else None
        if preset and preset != (ratio, sizes):
            advice = "remove ratio and mplc_kernel_size, or write heterogeneous: true"
            raise _refused("heterogeneous", f"{self.heterogeneous} is {preset[0]} of {preset[1]}; {advice}")

    def _batch_divides(self) -> None:
        parts = (self.launch.nodes, self.launch.tasks, self.optimizer.accumulate)
        whole = parts[0] * parts[1] * parts[2]
        if self.batch_size % whole:
            below = self.batch_size - self.batch_size % whole
            near = f"{below} or {below + whole}" if below else f"{whole}"
            names = "launch.nodes × launch.tasks_per_node × optimizer.accumulate"
            problem = f"{self.batch_size} does not divide by {whole} ({names} = {' × '.join(map(str, parts))})"
            raise _refused("batch_size", f"{problem}; write {near}")

    def _signal_comes_in_time(self) -> None:
        launch, default = self.launch, LaunchSettings().signal_delay_s
        if launch.signal_delay_s not in (launch.signal_s, default):
            problem = f"{launch.signal_delay_s} s are too long for launch.timeout_min {launch.timeout_min}"
            raise _refused("launch.signal_delay_s", f"{problem}; write {launch.latest_signal_s} or less")


_GROUPS = "write R4, R8 or R<N> with N ≥ 2, or R1 with group.scales"


def _refused(key: str, problem: str) -> PydanticCustomError:
    return PydanticCustomError("setting", "{problem}", {"key": key, "problem": problem})


SECTIONS = frozenset(name for name, field in Config.model_fields.items() if isinstance(field.default, Settings))

# May change between two attempts at one run: they say where and how it is computed or whether it is only read, and
# none of them reaches a weight or decides where a checkpoint can lie. `launch.*` is among them.
FREE = frozenset(
    {
        "training",
        "save_dir",  # a run folder may be renamed
        "data.root",
        "data.workers",
        "data.start_method",
        "data.resident",
        "data.verify",
        "run.root",
        "run.checkpoint_minutes",
        "run.test",
        "run.timeout_s",
    }
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The settings of a YAML file, with `key=value` over them.

    Raises `InputError` of one line, with the place, for whatever cannot be read or is not allowed.
    """
    return load_with_origins(path, overrides)[0]


def load_with_origins(
    path: str | Path, overrides: Sequence[str] = (), below: Mapping[str, Setting] | None = None
) -> tuple[Config, dict[str, str]]:
    """`load`, and where each value is from: dotted key → `default`, `configs/x.yaml:12` or `command line`.

    `below` are settings over which the file's stand: a cluster's. What a setting of `heterogeneous` brings along is
    from `heterogeneous`.
    """
    settings = dict(below or {}) | read(Path(path), SECTIONS) | from_command_line(overrides, SECTIONS)
    try:
        config = Config.model_validate(nested(settings, SECTIONS))
    except ValidationError as error:
        raise told(error, by_dotted_key(Config), settings, str(path)) from None
    defaults = {key: schema.get("default") for key, schema in by_dotted_key(Config).items()}
    origins = {}
    for key, value in flat(config).items():
        brought = "default" if value == defaults[key] else "heterogeneous"
        given = key in settings and (settings[key].value is not None or value is None)
        origins[key] = settings[key].origin if given else brought
    return config, origins


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key, sections in the order of this page."""
    values: dict[str, Any] = {}
    for name, value in config.model_dump().items():
        values |= {f"{name}.{inner}": item for inner, item in value.items()} if name in SECTIONS else {name: value}
    return values


def resolved(config: Config) -> str:
    """YAML of everything that is set: `load` on it gives an equal `Config`."""
    return as_yaml(config.model_dump(mode="json"))


def differences(a: Config, b: Config) -> list[str]:
    """`beta_weight: 1.0 → 0.1` for each setting in which two attempts cannot be of one run (see `FREE`)."""
    mine, other = flat(a), flat(b)
    bound = [key for key in mine if key not in FREE and not key.startswith("launch.")]
    return [f"{key}: {mine[key]!r} → {other[key]!r}" for key in bound if mine[key] != other[key]]


def hyperparameters(config: Config) -> dict[str, Any]:
    """What a person compares runs by: the published settings, the seed, and what of the rest is not at its default."""
    defaults = {key: schema.get("default") for key, schema in by_dotted_key(Config).items()}
    apart = (*FREE, "run.log_every")
    return {
        key: value
        for key, value in flat(config).items()
        if key not in apart
        and not key.startswith("launch.")
        and ("." not in key or key == "run.seed" or value != defaults[key])
    }


def run_dir(config: Config) -> Path:
    """The folder of the run."""
    return Path(config.run.root) / config.save_dir


def refuse_other_settings(config: Config) -> None:
    """Raises `InputError` if the run folder holds a run of other settings, naming those that differ."""
    recorded = run_dir(config) / "config.yaml"
    if not recorded.exists():
        return
    if changed := differences(load(recorded), config):
        advice = "set these back, or write another save_dir"
        raise InputError(f"{recorded.parent}: holds a run of other settings ({'; '.join(changed)}); {advice}")


def schema() -> dict[str, Any]:
    """JSON schema of a settings file, for editors: any part of a `Config`, and `extends`."""
    whole = Config.model_json_schema()
    whole["title"] = "Settings of an ien run"
    del whole["required"]  # a parent may hold them
    file = {"type": "string", "minLength": 1}
    whole["properties"]["extends"] = {
        "anyOf": [file, {"type": "array", "items": file}],
        "description": "file or files whose settings these stand over, relative to this file",
    }
    return whole


def _listing() -> Iterator[str]:
    for key, setting in by_dotted_key(Config).items():
        choice = "R4, R8 or R<N>, or R1" if key == "mode" else allowed(setting)
        default = f"default {json.dumps(setting['default'])}" if "default" in setting else "required"
        yield f"{key}: {setting['description']}\n    {choice}; {default}"


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m ien.config`"""
    parser = argparse.ArgumentParser(prog="python -m ien.config", description="List every setting of a run.")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema instead (configs/schema.json)")
    if parser.parse_args(argv).schema:
        print(json.dumps(schema(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(_listing()))


if __name__ == "__main__":
    main()
