"""What is this process's share of a global batch, and how does it come to the device?

`batch_size` is that of the *global* batch. Image order is drawn from (seed, epoch) for all processes together, and
share r of R takes positions r, r+R, r+2R, … of every global batch: the number of processes changes the speed and not
the experiment.
"""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ien.data.prepared import Split
from ien.data.turning import turned
from ien.errors import InputError

Batch = tuple[Tensor, Tensor]  # images float32 (b, C, side, side) in [0, 1], labels int64 (b,), on the device

_ROTATION = 1  # which draw of an epoch it is, beside that of the order


class Batches:
    """One process's share of every global batch of training images."""

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        share: int = 0,
        shares: int = 1,
        device: torch.device | str = "cpu",
        side: int | None = None,
        resident: bool,
        workers: int = 0,
        start_method: str | None = None,
        random_rotation: bool = False,
    ) -> None:
        """Share `share` of `shares` of `split`; `resident` keeps its images on the device, else `workers` read them.

        Images are resized to `side` on the device where it differs from the stored one; `random_rotation` then turns
        each by an angle of its own, uniform over the circle and drawn anew in each epoch. Raises `InputError` if
        `batch_size` does not divide by `shares`, or if there are fewer images than one batch.
        """
        assert 0 <= share < shares, (share, shares)
        _check_divides(batch_size, shares)
        if len(split) < batch_size:
            raise InputError(
                f"batch_size: {batch_size} is more than the {len(split)} training images; "
                f"say batch_size={len(split) // shares * shares} or less"
            )
        self.batch_size, self.seed, self.share, self.shares = batch_size, seed, share, shares
        self.images = len(split)
        self.steps_per_epoch = len(split) // batch_size
        self.resident, self.random_rotation = resident, random_rotation
        self._side, self._device = side, torch.device(device)
        self._reader = _reader(split, torch.device(device), resident, workers, start_method)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of steps `start`, `start` + 1, … of an epoch, each of `batch_size` // `shares` images.

        The ragged rest of the permutation is left out of this epoch; every epoch shuffles anew. Skipped steps are not
        read.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
        whole = order[: self.steps_per_epoch * self.batch_size].reshape(self.steps_per_epoch, self.batch_size)
        batches = self._reader.read(list(whole[start:, self.share :: self.shares]))
        if not self.random_rotation:
            yield from ((_seen(images, self._side), labels) for images, labels in batches)
            return
        for (images, labels), angles in zip(batches, self._angles(epoch)[start:], strict=True):
            yield turned(_seen(images, self._side), angles), labels

    def _angles(self, epoch: int) -> Tensor:
        """This share's angles in an epoch, in radians (steps, batch), on the device; drawn for all shares together."""
        generator = np.random.default_rng([self.seed, epoch, _ROTATION])
        angles = generator.uniform(0, 2 * np.pi, (self.steps_per_epoch, self.batch_size)).astype(np.float32)
        return torch.from_numpy(angles[:, self.share :: self.shares].copy()).to(self._device)


class InOrder:
    """One process's share of one ordered pass, for evaluation: over all shares each image exactly once, no padding.

    `limit` images at most, spread evenly over the split, because it may be sorted by class. Can be iterated again.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        share: int = 0,
        shares: int = 1,
        device: torch.device | str = "cpu",
        side: int | None = None,
        resident: bool,
        workers: int = 0,
        start_method: str | None = None,
        limit: int | None = None,
    ) -> None:
        """`batch_size` over all shares; a process has `batch_size` // `shares` (at least one), the last is ragged."""
        assert 0 <= share < shares, (share, shares)
        wanted = len(split) if limit is None else min(limit, len(split))
        rows = np.arange(wanted) * len(split) // max(wanted, 1)
        own = split.take(rows[share::shares])
        self.images = len(own)
        self._size, self._side = max(batch_size // shares, 1), side
        self._reader = _reader(own, torch.device(device), resident, workers, start_method)

    def __len__(self) -> int:
        return -(-self.images // self._size)

    def __iter__(self) -> Iterator[Batch]:
        positions = np.arange(self.images)
        for images, labels in self._reader.read(
            [positions[at : at + self._size] for at in range(0, self.images, self._size)]
        ):
            yield _seen(images, self._side), labels


def fits(split: Split, device: torch.device | str) -> bool:
    """May the split live on the device whole: within a quarter of the free CUDA memory, or 2 GiB elsewhere?"""
    device = torch.device(device)
    room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2 << 30
    return split.images.nbytes <= room


def _check_divides(batch_size: int, shares: int) -> None:
    if batch_size % shares:
        below, above = batch_size // shares * shares, (batch_size // shares + 1) * shares
        nearest = f"batch_size={below} or batch_size={above}" if below else f"batch_size={above}"
        raise InputError(
            f"batch_size: {batch_size} (of all processes together) does not divide by {shares} processes; say {nearest}"
        )


def _seen(images: Tensor, side: int | None) -> Tensor:
    """uint8 (b, C, S, S) -> float32 (b, C, side, side) in [0, 1]."""
    seen = images.float().div_(255)
    if side is None or side == seen.shape[-1]:
        return seen
    shrinks = side < seen.shape[-1]  # enlarged, there is nothing to alias, and the filter would take twice as long
    seen = F.interpolate(seen, size=(side, side), mode="bilinear", antialias=shrinks, align_corners=False)
    return seen.clamp_(0, 1)


def _reader(
    split: Split, device: torch.device, resident: bool, workers: int, start_method: str | None
) -> _Resident | _Streamed:
    return _Resident(split, device) if resident else _Streamed(split, device, workers, start_method)


class _Resident:
    """All images on the device; a batch is one `index_select` there. The host neither copies nor waits per batch."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.images = torch.empty(split.images.shape, dtype=torch.uint8, device=device)
        for at in range(0, len(split), 4096):  # a large set is not first gathered on the host
            self.images[at : at + 4096] = torch.from_numpy(split.images[at : at + 4096])
        self.labels = torch.from_numpy(split.labels.copy()).to(device)

    def read(self, batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        if not batches:
            return
        order = torch.from_numpy(np.concatenate(batches)).to(self.images.device)
        for rows in order.split([len(batch) for batch in batches]):
            yield self.images.index_select(0, rows), self.labels.index_select(0, rows)


class _Streamed:
    """Images stay in their file; worker processes read the batches ahead."""

    def __init__(self, split: Split, device: torch.device, workers: int, start_method: str | None) -> None:
        self.stored, self.device, self.workers = _Stored(split), device, workers
        self.start_method = start_method if workers else None

    def read(self, batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        reading = self._reading(batches)
        _readings.add(reading)
        return reading

    def _reading(self, batches: Sequence[np.ndarray]) -> Generator[Batch, None, None]:
        if not batches:
            return
        with _signals_blocked():
            iterator = iter(self._loader(batches))
        try:
            while (batch := next(iterator, None)) is not None:
                images, labels = batch
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        finally:
            del iterator  # ends the workers, also when an epoch is left in its middle

    def _loader(self, batches: Sequence[np.ndarray]) -> DataLoader:
        return DataLoader(
            self.stored,
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            num_workers=self.workers,
            multiprocessing_context=self.start_method,
            prefetch_factor=4 if self.workers else None,
            pin_memory=self.device.type == "cuda",
            # The default draws a seed from the global generator: a run would depend on how its data came.
            generator=torch.Generator(),
        )


class _Stored(TorchDataset):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitems__(self, rows: np.ndarray) -> Batch:
        return torch.from_numpy(self.split.images[rows]), torch.from_numpy(self.split.labels[rows])


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Workers inherit the mask: what a scheduler sends to the whole job is for the training process to answer alone."""
    kept_away = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGCONT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, kept_away)
    # Workers that are not forked have a process that tracks their shared memory, and starting that one lets SIGTERM and
    # SIGINT through again: so it is started first, and they are blocked once more.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, kept_away)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_readings: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    # A process that exits in the middle of an epoch would wait for ever for workers that do not hear its SIGTERM.
    for reading in list(_readings):
        reading.close()
