"""What is a run made of? (settings → group, data, network, engine; below this door there are plain arguments)"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ien import data, models
from ien.config import Config
from ien.config.sections import SymmetrySettings
from ien.data import Batches, Dataset, InOrder, Split, fits
from ien.distributed import Processes
from ien.engine import Engine
from ien.errors import InputError
from ien.groups import Element, Group
from ien.objective import EquivariantObjective, warmed_up
from ien.optim import CyclicLR, optimizer
from ien.pooling import ChannelMaxPool, group_size
from ien.stopping import StopRequest
from ien.symmetry import Symmetry
from ien.taps import LAYOUTS, Tapped, wants_numbers


@dataclass
class Parts:
    """All that a run needs besides its folder."""

    settings: Config
    processes: Processes
    data: Dataset
    batches: Batches
    tapped: Tapped
    symmetry: Symmetry | None
    engine: Engine
    anew: tuple[str, ...] = ()  # weights that `pretrained` does not give

    @property
    def eval_batch_size(self) -> int:
        """The global batch of a pass without training, a multiple of the number of processes."""
        size, count = self.settings.run.eval_batch_size, self.processes.count
        return -(-size // count) * count

    def in_order(self, split: Split, limit: int | None = None) -> InOrder:
        """This process's share of one pass over a split, or over `limit` images spread over it."""
        return InOrder(
            split,
            batch_size=self.eval_batch_size,
            share=self.processes.rank,
            shares=self.processes.count,
            device=self.processes.device,
            side=image_side(self.settings),
            resident=_resident(self.settings, split, self.processes),
            workers=self.settings.data.workers,
            start_method=self.settings.data.start_method,
            limit=limit,
        )

    @cached_property
    def validation(self) -> InOrder:
        return self.in_order(self.data.val)

    def validate(self) -> dict[str, float | None]:
        """The means of all that the objective measures, over the held-out images."""
        return self.engine.evaluate(self.validation, len(self.data.val), self.eval_batch_size)

    def test(self) -> dict[str, float | None]:
        """The same over the test set."""
        return self.engine.evaluate(self.in_order(self.data.test), len(self.data.test), self.eval_batch_size)


def parts(settings: Config, processes: Processes, stop: StopRequest | None = None) -> Parts:
    """Everything, in the order in which it is needed; `stop` says when to leave before the end.

    Raises `InputError` for what does not fit together.
    """
    group = make_group(settings)
    dataset = open_data(settings)
    if not settings.run.test and not len(dataset.val):
        raise InputError(
            "run.test: false, and no images are held out to measure; write data.val_split=0.1, or run.test=true"
        )
    batches = _batches(settings, dataset, processes)
    tapped, anew = _network(settings, group, dataset)
    tapped.to(processes.device)
    symmetry = make_symmetry(settings, tapped)
    engine = _engine(settings, group, tapped, symmetry, batches, processes)
    engine.stop = stop or engine.stop
    return Parts(settings, processes, dataset, batches, tapped, symmetry, engine, anew)


def make_group(settings: Config) -> Group:
    wanted = settings.group
    return Group.from_name(settings.mode, settings.reflection, wanted.interpolation, wanted.disc, wanted.scales)


def make_pool(settings: Config, group: Group) -> ChannelMaxPool:
    """The filter groups: a preset, shares of one's own, or one size for all."""
    if isinstance(settings.heterogeneous, str):
        return ChannelMaxPool.from_name(settings.heterogeneous)
    sizes = settings.mplc_kernel_size
    listed = [sizes] if isinstance(sizes, int) else list(sizes or [])
    if settings.heterogeneous:
        return ChannelMaxPool(listed, settings.ratio or [])
    # The published params carry the heterogeneous lists also where they are not used.
    size = group_size(group.rotations, group.reflection, len(group.scales))
    return ChannelMaxPool(listed if len(listed) == 1 else [size])


def make_network(settings: Config, group: Group, dataset: Dataset) -> Tapped:
    """The tapped network with its initial weights, which depend on `run.seed`, `pretrained` and `symmetry` alone.

    Raises `InputError` for a network, taps or weights that cannot be, before anything is computed.
    """
    return _network(settings, group, dataset)[0]


def _network(settings: Config, group: Group, dataset: Dataset) -> tuple[Tapped, tuple[str, ...]]:
    """The tapped network, and the weights that `pretrained` leaves at their initial values."""
    pool, classes, channels = make_pool(settings, group), len(dataset.classes), dataset.channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        if models.of_library(settings.model):
            network = models.library_network(settings.model, classes, channels, settings.network.arguments)
        else:
            network = _paper_network(settings, group, pool, classes, channels)
    with _told_of("pretrained"):
        anew = models.load_weights(network, settings.pretrained, classes) if settings.pretrained else ()
    if settings.symmetry.start == "equivariant" or settings.symmetry.tied:
        with _told_of("symmetry"):
            Symmetry(network, symmetry_group(settings), pool).start()
    taps = settings.taps or getattr(network, "taps", None)
    if not taps:
        raise InputError(
            f"taps: is required, because {settings.model} has no attribute `taps`; write names of its layers as a list "
            f"(`python -m ien.models {settings.model}` lists them)"
        )
    with _told_of("taps"):
        tapped = Tapped(network, taps, pool, LAYOUTS[settings.network.tap_layout])
    _check_side(tapped, channels, image_side(settings) or dataset.side)
    return tapped, anew


def _paper_network(settings: Config, group: Group, pool: ChannelMaxPool, classes: int, channels: int) -> nn.Module:
    entry = models.MODELS[settings.model]
    width = settings.network.width or models.default_width(settings.model, group, pool)
    kernels = {"published_kernels": True} if settings.network.published_kernels else {}
    return entry.build(width, pool, classes, channels, **kernels)


def _check_side(tapped: Tapped, channels: int, side: int) -> None:
    """Try the shapes without computing: `InputError` where images do not fit the layers, or maps cannot be tapped."""
    shapes = copy.deepcopy(tapped).to("meta").eval()
    try:
        with _told_of("taps"):
            shapes(torch.empty(1, channels, side, side, device="meta"))
    except InputError:
        raise
    except NotImplementedError:  # a layer that has no shapes without numbers; the first step will tell
        return
    except (RuntimeError, AssertionError, ValueError) as error:
        if wants_numbers(error):  # likewise
            return
        made_for = getattr(tapped.model, "image_side", None)
        advice = f"leave it out for {made_for}, or write a larger one" if made_for else "write another one"
        raise InputError(
            f"data.image_size: images of {side}×{side} do not fit through {type(tapped.model).__name__} "
            f"({[*str(error).splitlines(), ''][0]}); {advice}"
        ) from error


@contextlib.contextmanager
def _told_of(setting: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{setting}: {error}") from None


def symmetry_group(settings: Config) -> Group:
    """The group whose exact elements the weights know: the run's, or a smaller one than its second views take."""
    return Group.from_name(settings.symmetry.mode or settings.mode, settings.reflection)


def make_symmetry(settings: Config, tapped: Tapped) -> Symmetry | None:
    """The equivariant weights that belong to the network, if a setting asks for them."""
    if settings.symmetry == SymmetrySettings():
        return None
    with _told_of("symmetry"):
        return Symmetry(tapped.model, symmetry_group(settings), tapped.pool)


def moves_of_second_views(settings: Config, group: Group) -> tuple[Element, ...]:
    """The elements that second views take in training. Raises `InputError` if the group has none of them."""
    wanted = settings.objective.elements
    moves = tuple(move for move in group.moves if wanted == "all" or move.exact == (wanted == "exact"))
    if not moves:
        raise InputError(
            f"objective.elements: the group {group.name} has no {wanted} elements; write objective.elements=all"
        )
    views = settings.objective.second_views
    if views > len(moves):
        raise InputError(
            f"objective.second_views: {views:g} views of each image are more than the {len(moves)} elements to see it "
            f"under ({_named(moves)}); write {len(moves)} for all"
        )
    return moves


def _named(moves: tuple[Element, ...]) -> str:
    return ", ".join(map(str, moves[:8])) + (", …" if len(moves) > 8 else "")


def open_data(settings: Config) -> Dataset:
    wanted = settings.data
    return data.open_dataset(
        settings.dataset,
        root=Path(wanted.root),
        name=wanted.name,
        reflection=settings.reflection,
        val_split=wanted.val_split,
        seed=settings.run.seed,
        verify=wanted.verify,
    )


def image_side(settings: Config) -> int | None:
    """The side to which images are resized: the setting, or the one that a network of the paper was made for.

    None: they stay as they are.
    """
    made_for = None if models.of_library(settings.model) else models.MODELS[settings.model].build.image_side
    return settings.data.image_size or made_for


def mixed(*numbers: int) -> int:
    """One seed from several numbers, such as the run's and the process's."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def _batches(settings: Config, dataset: Dataset, processes: Processes) -> Batches:
    size, parts = settings.batch_size, processes.count * settings.optimizer.accumulate
    if size % parts:
        raise InputError(
            f"batch_size: {size} does not divide by {processes.count} processes × {settings.optimizer.accumulate} "
            f"accumulated parts; write batch_size={size // parts * parts or parts}"
        )
    if settings.objective.augment == "group" and round(settings.objective.second_views * size) < 1:
        raise InputError(
            f"objective.second_views: {settings.objective.second_views:g} of a batch of {size} is not one image; "
            f"write {1 / size:.3g} or more, or objective.augment=none with beta_weight=0"
        )
    return Batches(
        dataset.train,
        batch_size=settings.batch_size,
        seed=settings.run.seed,
        share=processes.rank,
        shares=processes.count,
        device=processes.device,
        side=image_side(settings),
        resident=_resident(settings, dataset.train, processes),
        workers=settings.data.workers,
        start_method=settings.data.start_method,
        random_rotation=settings.data.random_rotation,
    )


def _resident(settings: Config, split: Split, processes: Processes) -> bool:
    known = {"always": True, "never": False}
    return known.get(settings.data.resident, fits(split, processes.device))


def _engine(
    settings: Config,
    group: Group,
    tapped: Tapped,
    symmetry: Symmetry | None,
    batches: Batches,
    processes: Processes,
) -> Engine:
    tied = symmetry if settings.symmetry.tied else None
    penalised = symmetry if settings.symmetry.weight_penalty else None
    wanted, steps = settings.objective, batches.steps_per_epoch
    objective = EquivariantObjective(
        group, settings.beta_weight, wanted.loss, wanted.tap_weights, wanted.stop_gradient, wanted.label_smoothing
    )
    objective.check_taps(tapped.layers)
    schedule = CyclicLR(
        settings.low_lr, settings.max_lr, settings.cyc_size, settings.dec_scale, settings.tot_epochs, steps
    )
    return Engine(
        tapped=tapped,
        objective=objective,
        optimizer=optimizer(settings.optimizer.name, tapped.parameters(), settings.weight_decay_rate),
        processes=processes,
        batch_size=settings.batch_size,
        lr=schedule,
        beta=lambda step: warmed_up(settings.beta_weight, step / steps, wanted.warmup_epochs),
        second_views=wanted.second_views if wanted.augment == "group" else 0.0,
        moves=moves_of_second_views(settings, group),
        penalty=penalised.asymmetry if penalised else None,
        penalty_weight=settings.symmetry.weight_penalty,
        before_step=tied.project_gradients if tied else None,
        after_step=tied.project if tied else None,
        accumulate=settings.optimizer.accumulate,
        precision=settings.run.precision,
        clip_norm=settings.optimizer.clip_norm,
        balance=None if wanted.balance == "none" else wanted.balance,
        ema_decay=settings.optimizer.ema_decay,
        channels_last=settings.run.channels_last,
        sync_batchnorm=settings.run.sync_batchnorm,
        compile=settings.run.compile,
        cuda_graphs=settings.run.cuda_graphs,
    )
