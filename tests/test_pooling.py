from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

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


def with_ties(dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Maps after a ReLU, as it were: in many pixels all channels of a filter group are 0."""
    return torch.randn(3, 44, 5, 5).sub(1).relu().to(dtype).to(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [2, 4, 11])
def test_it_and_its_gradient_are_those_of_torch(size: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """To the bit, and where channels are equal the first one has the gradient."""
    maps = with_ties(dtype, layout).requires_grad_()
    pooled, expected = ChannelMaxPool([size])(maps), maps.unflatten(1, (-1, size)).max(dim=2).values
    assert torch.equal(pooled, expected)
    with torch.no_grad():
        assert torch.equal(ChannelMaxPool([size])(maps), expected)
    pull = torch.randn_like(expected)
    found, right = (torch.autograd.grad(one, maps, pull)[0] for one in (pooled, expected))
    assert torch.equal(found, right)


def test_what_is_no_number_stays_none() -> None:
    maps = with_ties().requires_grad_()
    with torch.no_grad():
        maps[0, 1, 2, 3] = float("nan")
    pooled = ChannelMaxPool([4])(maps)
    assert torch.equal(pooled.isnan(), maps.unflatten(1, (-1, 4)).isnan().any(dim=2))
    pooled.sum().backward()
    assert maps.grad is not None
    assert maps.grad.sum() == pooled.numel()


def test_a_place_is_kept_in_a_byte_while_it_fits() -> None:
    for size, dtype in ((256, torch.uint8), (257, torch.int64)):
        maps, kept = torch.randn(1, 2 * size, 2, 2, requires_grad=True), list[Tensor]()
        with saved_tensors_hooks(lambda saved, kept=kept: kept.append(saved) or saved, lambda saved: saved):
            ChannelMaxPool([size])(maps).square().sum().backward()
        assert [saved.dtype for saved in kept if not saved.is_floating_point()] == [dtype]
        assert maps.grad is not None
        assert maps.grad.count_nonzero() == 8


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, the first time that it differentiates forwards
def test_it_can_be_differentiated_twice_and_forwards() -> None:
    pool, maps = ChannelMaxPool([4]), torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pool, maps, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(pool, maps)
    ties = with_ties()
    with torch.no_grad(), forward_ad.dual_level():
        slope = torch.randn_like(ties)
        found = forward_ad.unpack_dual(pool(forward_ad.make_dual(ties, slope))).tangent
        places = ties.unflatten(1, (-1, 4)).max(dim=2, keepdim=True).indices
        assert found is not None
        assert torch.equal(found, slope.unflatten(1, (-1, 4)).gather(2, places).squeeze(2))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own: its scatter_ is not batched
def test_the_gradients_of_many_images_are_had_at_once() -> None:
    pool, maps = ChannelMaxPool([4]), with_ties()

    def loss(one: Tensor) -> Tensor:
        return pool(one[None]).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(maps)
    assert torch.equal(found, torch.stack([torch.func.grad(loss)(one) for one in maps]))


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
