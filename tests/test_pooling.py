from __future__ import annotations

import pytest
import torch

from ien.errors import InputError
from ien.pooling import PRESETS, ChannelMaxPool, group_size


def test_known_answer_homogeneous() -> None:
    maps = torch.tensor([1.0, 5.0, 2.0, -1.0, -3.0, -2.0, -8.0, -9.0]).view(1, 8, 1, 1)
    assert ChannelMaxPool([4])(maps).flatten().tolist() == [5.0, -2.0]


def test_known_answer_heterogeneous() -> None:
    """Eleven channels as 8:2:1, pooled by 4, 2 and 1."""
    maps = torch.arange(11.0).view(1, 11, 1, 1)
    assert ChannelMaxPool.from_name("R4-2-1")(maps).flatten().tolist() == [3.0, 7.0, 9.0, 10.0]


@pytest.mark.parametrize("name", PRESETS)
def test_blind_to_permutations_inside_a_filter_group_and_to_no_other(name: str) -> None:
    pool = ChannelMaxPool.from_name(name)
    channels = 2 * pool.multiple
    maps = torch.randn(3, channels, 4, 4)
    order, start = [], 0
    for share, size in zip(pool.shares(channels), pool.sizes, strict=True):
        for first in range(start, start + share, size):
            order += [first + int(place) for place in torch.randperm(size)]
        start += share
    pooled = pool(maps)
    assert pooled.shape == (3, pool.width(channels), 4, 4)
    assert torch.equal(pool(maps[:, order]), pooled)
    shifted = torch.roll(torch.arange(channels), 1)  # moves the ends of every filter group into their neighbours
    assert not torch.equal(pool(maps[:, shifted]), pooled)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_stays(dtype: torch.dtype) -> None:
    assert ChannelMaxPool.from_name("R8-4-2-1")(torch.rand(1, 43, 2, 2).to(dtype)).dtype == dtype


@pytest.mark.parametrize(("name", "multiple", "width"), [("R8-4-2-1", 43, 8), ("R8-4-2", 22, 4), ("R4-2-1", 11, 4)])
def test_least_channels(name: str, multiple: int, width: int) -> None:
    pool = ChannelMaxPool.from_name(name)
    assert (pool.multiple, pool.width(multiple)) == (multiple, width)
    for channels in range(1, 3 * multiple):
        if channels % multiple:
            with pytest.raises(InputError, match=f"multiple of {multiple}"):
                pool.width(channels)
        else:
            assert pool(torch.rand(1, channels, 1, 1)).shape[1] == pool.width(channels)


def test_refusal_names_numbers_and_neighbours() -> None:
    with pytest.raises(InputError, match=r"30 channels cannot be shared as 8:2:1 .* multiple of 11; nearest: 22 or 33"):
        ChannelMaxPool.from_name("R4-2-1").width(30)


def test_nearest_width_can_be_pooled() -> None:
    pool = ChannelMaxPool.from_name("R8-4-2-1")
    assert [pool.nearest(c) for c in (1, 43, 64, 65, 193.5)] == [43, 43, 43, 86, 215]


def test_homogeneous_sizes_are_the_published_ones() -> None:
    sizes = {(n, r): group_size(n, r) for n in (4, 8, 5) for r in (False, True)}
    assert sizes == {(4, False): 4, (4, True): 8, (8, False): 8, (8, True): 8, (5, False): 5, (5, True): 10}


@pytest.mark.parametrize(("sizes", "ratio"), [([4, 2], [1]), ([], []), ([0], [1]), ([4], [-1])])
def test_filter_groups_that_cannot_be_are_refused(sizes: list[int], ratio: list[int]) -> None:
    with pytest.raises(InputError, match="equally many"):
        ChannelMaxPool(sizes, ratio)


def test_unknown_preset() -> None:
    with pytest.raises(InputError, match="R8-4-2-1, R8-4-2, R4-2-1"):
        ChannelMaxPool.from_name("R8-4")


def test_refusal_of_homogeneous_groups() -> None:
    with pytest.raises(InputError, match=r"30 channels cannot be put in filter groups of 4 .*nearest: 28 or 32"):
        ChannelMaxPool([4]).width(30)
