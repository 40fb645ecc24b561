from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
import torch

from ien.data import Batches, InOrder, fits
from ien.data.loader import Batch
from ien.data.prepared import Rows, Split
from ien.data.turning import rotated
from ien.errors import InputError
from tests.data.inputs import numbered

READERS = [{"resident": True}, {"resident": False}, {"resident": False, "workers": 2}]


@pytest.fixture
def stored(tmp_path: Path) -> Split:
    """50 random images in a memory-mapped file, of which 40 were chosen."""
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 6, 6), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    chosen = np.random.default_rng(1).permutation(50)[:40]
    return Split(Rows(np.load(tmp_path / "images.npy", mmap_mode="r"), chosen), np.arange(40) % 7)


def seen(batches: object) -> list[int]:
    """The numbers of the numbered images in some batches, checked against their labels."""
    numbers = []
    for images, labels in batches:  # type: ignore[attr-defined]
        found = (images[:, 0, 0, 0] * 255).round().long()
        assert (found % 10 == labels).all()
        numbers += found.tolist()
    return numbers


def equal(one: list[Batch], other: list[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def test_an_epoch_shows_every_image_at_most_once_and_every_epoch_shuffles_anew() -> None:
    batches = Batches(numbered(50), batch_size=8, seed=1, resident=True)
    assert batches.steps_per_epoch == 6
    epochs = [seen(batches.epoch(epoch)) for epoch in range(3)]
    for numbers in epochs:
        assert len(numbers) == len(set(numbers)) == 48
    assert len({tuple(numbers) for numbers in epochs}) == 3
    assert set(epochs[0]) != set(epochs[1])  # another rest is left out
    assert seen(batches.epoch(1)) == epochs[1]
    assert seen(Batches(numbered(50), batch_size=8, seed=2, resident=True).epoch(0)) != epochs[0]


def test_the_order_is_the_documented_one() -> None:
    order = np.random.default_rng([7, 3]).permutation(50)
    assert seen(Batches(numbered(50), batch_size=10, seed=7, resident=True).epoch(3)) == order.tolist()


@pytest.mark.parametrize("shares", [2, 4])
@pytest.mark.parametrize("reader", READERS[:2])
def test_the_shares_make_up_the_global_batch(stored: Split, shares: int, reader: dict) -> None:
    whole = list(Batches(stored, batch_size=8, seed=0, **reader).epoch(2, start=1))
    parts = [Batches(stored, batch_size=8, seed=0, share=r, shares=shares, **reader) for r in range(shares)]
    for (images, labels), *shared in zip(whole, *(part.epoch(2, start=1) for part in parts), strict=True):
        for r, (own_images, own_labels) in enumerate(shared):
            assert torch.equal(own_images, images[r::shares])
            assert torch.equal(own_labels, labels[r::shares])


@pytest.mark.parametrize("reader", READERS[:2])
def test_each_image_is_turned_by_an_angle_of_its_own_anew_in_each_epoch(stored: Split, reader: dict) -> None:
    """By its definition; what is left of an epoch, and the shares, see the same; labels and order stay."""
    still = Batches(stored, batch_size=8, seed=3, **reader)
    whole = Batches(stored, batch_size=8, seed=3, random_rotation=True, **reader)
    epochs = [list(whole.epoch(epoch)) for epoch in (0, 1)]
    for epoch, batches in enumerate(epochs):
        angles = np.random.default_rng([3, epoch, 1]).uniform(0, 2 * np.pi, (len(batches), 8)).astype(np.float32)
        for (images, labels), (unmoved, same), angle in zip(batches, still.epoch(epoch), angles, strict=True):
            assert torch.equal(labels, same)
            expected = rotated((unmoved * 255).round().to(torch.uint8).numpy(), angle)
            assert (images * 255 - torch.from_numpy(expected)).abs().max() < 0.51
    assert equal(list(whole.epoch(1, start=2)), epochs[1][2:])
    parts = [Batches(stored, batch_size=8, seed=3, share=r, shares=2, random_rotation=True, **reader) for r in (0, 1)]
    for (images, _), *shared in zip(epochs[0], *(part.epoch(0) for part in parts), strict=True):
        for r, (own, _) in enumerate(shared):
            assert torch.equal(own, images[r::2])


@pytest.mark.parametrize("side", [None, 9])
@pytest.mark.parametrize("reader", READERS[1:])
def test_streamed_and_resident_batches_are_the_same_bits(stored: Split, reader: dict, side: int | None) -> None:
    resident = list(Batches(stored, batch_size=7, seed=0, side=side, resident=True).epoch(1))
    streamed = list(Batches(stored, batch_size=7, seed=0, side=side, **reader).epoch(1))
    assert len(resident) == 5
    assert equal(resident, streamed)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_seen_are_the_stored_bytes(stored: Split, reader: dict) -> None:
    images, labels = zip(*InOrder(stored, batch_size=16, **reader), strict=True)
    assert images[0].dtype == torch.float32
    assert labels[0].dtype == torch.int64
    expected = torch.from_numpy(stored.images[:]).float() / 255
    assert torch.equal(torch.cat(images), expected)
    assert torch.equal(torch.cat(labels), torch.from_numpy(stored.labels))


@pytest.mark.parametrize("reader", READERS)
def test_starting_late_gives_the_tail(stored: Split, reader: dict) -> None:
    batches = Batches(stored, batch_size=7, seed=0, **reader)
    whole = list(batches.epoch(4))
    for start in (2, 4, 5):
        assert equal(whole[start:], list(batches.epoch(4, start)))


class Watched(Rows):
    """Rows that remember which were read."""

    read: list[int]

    def __getitem__(self, key: np.ndarray) -> np.ndarray:
        self.read = [*getattr(self, "read", []), *np.asarray(key).tolist()]
        return super().__getitem__(key)


def test_skipped_steps_are_not_read(stored: Split) -> None:
    images = Watched(stored.images.stored, stored.images.chosen)
    batches = Batches(Split(images, stored.labels), batch_size=10, seed=5, resident=False)
    list(batches.epoch(0, start=3))
    assert images.read == np.random.default_rng([5, 0]).permutation(40)[30:].tolist()


@pytest.mark.parametrize("reader", READERS)
def test_global_random_numbers_neither_matter_nor_are_used(stored: Split, reader: dict) -> None:
    batches = Batches(stored, batch_size=10, seed=0, **reader)
    before = torch.get_rng_state()
    once = list(batches.epoch(0))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    np.random.seed(99)
    assert equal(once, list(batches.epoch(0)))


@pytest.mark.parametrize(("count", "batch_size", "shares"), [(10, 4, 1), (10, 4, 2), (11, 4, 3), (2, 8, 3), (0, 4, 2)])
@pytest.mark.parametrize("reader", READERS[:2])
def test_one_pass_shows_each_image_once(count: int, batch_size: int, shares: int, reader: dict) -> None:
    found = []
    for share in range(shares):
        own = InOrder(numbered(count), batch_size=batch_size, share=share, shares=shares, **reader)
        batches = list(own)
        assert len(batches) == len(own)
        assert seen(batches) == list(range(count))[share::shares]
        assert seen(own) == seen(batches)  # again
        found += seen(batches)
    assert sorted(found) == list(range(count))


def test_a_limited_pass_is_spread_over_the_split() -> None:
    assert seen(InOrder(numbered(100), batch_size=3, limit=5, resident=True)) == [0, 20, 40, 60, 80]
    assert seen(InOrder(numbered(5), batch_size=3, limit=9, resident=False)) == [0, 1, 2, 3, 4]
    shares = [InOrder(numbered(100), batch_size=4, share=r, shares=2, limit=5, resident=True) for r in (0, 1)]
    assert [seen(share) for share in shares] == [[0, 40, 80], [20, 60]]


@pytest.mark.parametrize("side", [3, 6, 13])
def test_resized_images_stay_in_range_and_keep_what_is_constant(side: int) -> None:
    images = np.stack([np.full((1, 6, 6), 255), np.zeros((1, 6, 6)), np.eye(6)[None] * 255]).astype(np.uint8)
    split = Split(Rows(images), np.arange(3))
    ((shown, _),) = InOrder(split, batch_size=3, side=side, resident=True)
    assert shown.shape == (3, 1, side, side)
    assert 0 <= shown.min() <= shown.max() <= 1
    torch.testing.assert_close(shown[0], torch.ones(1, side, side))
    assert (shown[1] == 0).all()
    torch.testing.assert_close(shown[2, 0], shown[2, 0].flip(0, 1))  # the centre stays the centre


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(InputError, match=r"32 .* does not divide by 3 processes; say batch_size=30 or batch_size=33"):
        Batches(numbered(50), batch_size=32, seed=0, shares=3, resident=True)
    with pytest.raises(InputError, match=r"does not divide by 4 processes; say batch_size=4$"):
        Batches(numbered(50), batch_size=2, seed=0, shares=4, resident=True)
    with pytest.raises(InputError, match="64 is more than the 50 training images; say batch_size=50 or less"):
        Batches(numbered(50), batch_size=64, seed=0, resident=True)


def test_what_fits() -> None:
    assert fits(numbered(50), "cpu")
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (3, 1 << 15, 1 << 15, 1), (0, 0, 0, 0))
    assert not fits(Split(Rows(huge), np.zeros(3, np.int64)), "cpu")


def test_workers_end_with_an_epoch_that_is_left_in_its_middle(stored: Split) -> None:
    epoch = Batches(stored, batch_size=4, seed=0, resident=False, workers=2).epoch(0)
    next(epoch)
    assert len(multiprocessing.active_children()) == 2
    epoch.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_signals_to_the_job_reach_none_of_the_loaders_processes(stored: Split, start_method: str) -> None:
    """SLURM sends them to every process of a step: workers, those that start workers, those that track their memory."""
    expected = list(Batches(stored, batch_size=2, seed=0, resident=False).epoch(0))
    batches = Batches(stored, batch_size=2, seed=0, resident=False, workers=2, start_method=start_method)
    epoch = batches.epoch(0)
    found = [next(epoch)]
    helpers = below(os.getpid())
    assert len(helpers) >= 2
    for process, number in itertools.product(helpers, (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)):
        os.kill(process, number)
    assert equal(expected, found + list(epoch))
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    os.kill(tracker, 0)  # lives
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # this process hears them as before


def below(process: int) -> list[int]:
    """The processes that `process` started, and those that they started."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *below(child))]


LEFT = """
import sys
import numpy as np
from ien.data import Batches
from ien.data.prepared import Rows, Split
from ien.data.turning import rotated
split = Split(Rows(np.zeros((4000, 1, 8, 8), np.uint8)), np.zeros(4000, np.int64))
epoch = Batches(split, batch_size=2, seed=0, resident=False, workers=2).epoch(0)
print(len(next(epoch)[1]), flush=True)
if sys.argv[1] == "error":
    raise KeyError("left in the middle")
"""


@pytest.mark.parametrize(("how", "status"), [("quietly", 0), ("error", 1)])
def test_a_process_can_end_in_the_middle_of_an_epoch(how: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", LEFT, how], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (status, "2\n")
    assert ("KeyError" in done.stderr) == (how == "error")
    assert done.stderr.count("Traceback") == status
