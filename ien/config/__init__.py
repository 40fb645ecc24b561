"""What can be set, what is its default, who wins?

`load("configs/quickstart.yaml", ["beta_weight=0.1"])` reads a file over those that it `extends:`, and `key=value` over
both. At the top level stand the names and defaults of the published code (https://github.com/transmuteAI/implicit-networks),
so that a published `params` works unchanged, and `taps` and `pretrained` beside the `model` that they belong to; what
else is new stands in sections. `python -m ien.config` lists all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ien.config.files import Setting, as_yaml, from_command_line, nested, read
from ien.config.problems import by_dotted_key, told
from ien.config.rules import GROUPS, PAPER_MODELS, PRESETS, fits_together, refused
from ien.config.sections import (
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
            raise refused("mode", f"{mode!r} is no group; {GROUPS}")
        return mode

    @field_validator("save_dir", mode="before")
    @classmethod
    def _is_below_the_runs(cls, folder: Any) -> Any:
        parts = folder.split("/") if isinstance(folder, str) else [""]
        if len("/".join(parts)) > 200 or not all(re.fullmatch(r"[A-Za-z0-9._-]+", part) for part in parts):
            allowed = "a relative path of at most 200 characters from A-Z a-z 0-9 . _ - /"
            raise refused("save_dir", f"{folder!r} is no folder under run.root; write {allowed}")
        if {".", ".."} & set(parts):
            raise refused("save_dir", f"{folder!r} must not hold . or ..; write the folder's name alone")
        return folder

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        fits_together(self)
        return self


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
