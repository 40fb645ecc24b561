"""Which settings do not go together, and how is that refused?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

from ien.config.sections import LaunchSettings, SymmetrySettings

if TYPE_CHECKING:
    from ien.config import Config

# name → (ratio, mplc_kernel_size): the heterogeneous filter groups of the paper. Stands here too, not only in
# `ien.pooling`, because settings are read where torch is not wanted.
PRESETS = {
    "R8-4-2-1": ((32, 8, 2, 1), (8, 4, 2, 1)),
    "R8-4-2": ((8, 2, 1), (8, 4, 2)),
    "R4-2-1": ((8, 2, 1), (4, 2, 1)),
}
PAPER_MODELS = "BasicCNN, Resnet18, VGG"
GROUPS = "write R4, R8 or R<N> with N ≥ 2, or R1 with group.scales"


def refused(key: str, problem: str) -> PydanticCustomError:
    """The error that `config_problems` tells as one line: which setting, and what to write instead."""
    return PydanticCustomError("setting", "{problem}", {"key": key, "problem": problem})


def fits_together(config: Config) -> None:
    """Raises pydantic's error, with the setting that is to be changed, where two settings contradict one another."""
    if config.low_lr > config.max_lr:
        raise refused("low_lr", f"{config.low_lr:g} is above max_lr {config.max_lr:g}; write one that is not")
    if config.cyc_size > config.tot_epochs:
        problem = f"a cycle of {config.cyc_size} epochs does not fit into tot_epochs {config.tot_epochs}"
        raise refused("cyc_size", f"{problem}; write {config.tot_epochs} or fewer")
    _network_is_whole(config)
    if config.network.published_kernels and config.model != "VGG":
        raise refused("network.published_kernels", f"is of VGG alone, and model is {config.model}; write false")
    if config.objective.augment == "none" and config.beta_weight > 0:
        advice = "write beta_weight: 0, or objective.augment: group"
        raise refused("beta_weight", f"{config.beta_weight:g} needs a second view, but augment is none; {advice}")
    if config.symmetry.tied and config.symmetry.weight_penalty > 0:
        problem = f"{config.symmetry.weight_penalty:g} has nothing to lower: tied weights are equivariant"
        raise refused("symmetry.weight_penalty", f"{problem}; write 0, or symmetry.tied: false")
    _balances_something(config)
    _moves_something(config)
    _has_filter_groups(config)
    _batch_divides(config)
    _signal_comes_in_time(config)


def _balances_something(config: Config) -> None:
    if config.objective.balance == "none":
        return
    if config.beta_weight == 0:
        raise refused(
            "objective.balance", f"{config.objective.balance} has nothing to balance: beta_weight is 0; write none"
        )
    if config.run.compile:
        advice = "write run.compile: false"
        raise refused("run.compile", f"keeps no graph for the second gradient of objective.balance; {advice}")


def _moves_something(config: Config) -> None:
    if config.mode == "R1" and not config.group.scales:
        raise refused("mode", f"'R1' is no group; {GROUPS}")
    if 1 in config.group.scales:
        raise refused("group.scales", "1 is always among them; leave it out, as in [0.8, 1.25]")
    if config.mode == "R1" and config.symmetry.mode is None and config.symmetry != SymmetrySettings():
        raise refused("symmetry.mode", "is needed where mode is R1, which does not turn; write R4, or no symmetry")


def _network_is_whole(config: Config) -> None:
    if config.network.arguments and ":" not in config.model:
        raise refused("network.arguments", f"is for package.module:Class, and model is {config.model}; remove it")
    if not set("/:") & set(config.model):
        return
    if config.network.width is not None:
        advice = "remove it" if "/" in config.model else "write network.arguments: {width: …}, if the class has it"
        raise refused("network.width", f"is of {PAPER_MODELS}, and model is {config.model}; {advice}")
    if config.taps is None and "/" in config.model:
        advice = f"`python -m ien.models {config.model}` lists them"
        raise refused("taps", f"is required for {config.model}; write names of its layers as a list ({advice})")


def _has_filter_groups(config: Config) -> None:
    ratio, sizes = config.ratio, config.mplc_kernel_size
    if config.heterogeneous is False:
        return
    if ratio is None or not isinstance(sizes, tuple):
        missing = "ratio" if ratio is None else "mplc_kernel_size"
        example = "ratio: [32, 8, 2, 1] and mplc_kernel_size: [8, 4, 2, 1], or heterogeneous: R8-4-2-1"
        raise refused("heterogeneous", f"needs {missing} as a list; write {example}")
    if len(ratio) != len(sizes):
        raise refused("ratio", f"has {len(ratio)} shares for {len(sizes)} mplc_kernel_size; write as many of each")
    preset = PRESETS.get(config.heterogeneous) if isinstance(config.heterogeneous, str) else None
    if preset and preset != (ratio, sizes):
        advice = "remove ratio and mplc_kernel_size, or write heterogeneous: true"
        raise refused("heterogeneous", f"{config.heterogeneous} is {preset[0]} of {preset[1]}; {advice}")


def _batch_divides(config: Config) -> None:
    parts = (config.launch.nodes, config.launch.tasks, config.optimizer.accumulate)
    whole = parts[0] * parts[1] * parts[2]
    if config.batch_size % whole:
        below = config.batch_size - config.batch_size % whole
        near = f"{below} or {below + whole}" if below else f"{whole}"
        names = "launch.nodes × launch.tasks_per_node × optimizer.accumulate"
        problem = f"{config.batch_size} does not divide by {whole} ({names} = {' × '.join(map(str, parts))})"
        raise refused("batch_size", f"{problem}; write {near}")


def _signal_comes_in_time(config: Config) -> None:
    launch, default = config.launch, LaunchSettings().signal_delay_s
    if launch.signal_delay_s not in (launch.signal_s, default):
        problem = f"{launch.signal_delay_s} s are too long for launch.timeout_min {launch.timeout_min}"
        raise refused("launch.signal_delay_s", f"{problem}; write {launch.latest_signal_s} or less")
