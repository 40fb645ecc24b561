"""Scales: what they do to an image, where two views are compared, and what a network pays."""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections import Counter

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ien.errors import InputError
from ien.groups import Element, Group
from ien.metrics import equivariance_sums, relative_errors
from ien.objective import EquivariantObjective, Terms, Views
from ien.pooling import ChannelMaxPool, group_size
from ien.scales import _weights, rescaled
from ien.taps import Tapped

SCALES = (0.3, 0.5, 0.8, 0.95, 1.1, 1.25, 2.0, 3.0)
ALONE = Group(1, scales=(0.8, 1.25))
TURNED = Group(8, True, scales=(0.5, 1.25))


def scaling(factor: float) -> Element:
    return Element(0, 1, scale=factor)


def blob(side: int, width: float, x: float = 0.0, y: float = 0.0) -> Tensor:
    """A Gaussian of standard deviation `width` pixels, its middle (x, y) pixels right of and below the centre."""
    place = torch.arange(side) - (side - 1) / 2
    return torch.exp(-((place[None, :] - x) ** 2 + (place[:, None] - y) ** 2) / (2 * width**2))[None, None]


def apart(a: Tensor, b: Tensor, mask: Tensor) -> float:
    return float(((a - b) * mask).norm() / (b * mask).norm())


@pytest.mark.parametrize("side", [96, 97])
@pytest.mark.parametrize("factor", SCALES)
def test_a_gaussian_becomes_the_gaussian_of_another_size(side: int, factor: float) -> None:
    """Its width and its place are multiplied by the factor, but for the filter, which widens it a little."""
    width, x, y = 4 / min(factor, 1), 2.0, -1.0
    moved = ALONE.act(blob(side, width, x, y), scaling(factor))
    tent = max(1, factor) ** 2 / 6  # the variance of the filter, in pixels of the result
    wide = math.sqrt((factor * width) ** 2 + tent)
    expected = (factor * width / wide) ** 2 * blob(side, wide, factor * x, factor * y)
    assert apart(moved, expected, torch.ones(side, side)) < 0.02


@pytest.mark.parametrize("side", [2, 3, 8, 9])
def test_known_answer_of_twice_and_half(side: int) -> None:
    """By 1/2 with one tent of two pixels, written out; nothing moves the centre, for odd and for even sides."""
    half = _weights(0.5, side)
    for row in range(side):
        place = 2 * (row - (side - 1) / 2)
        tents = [max(0.0, 1 - abs(column - (side - 1) / 2 - place) / 2) / 2 for column in range(side)]
        assert torch.allclose(half[row], torch.tensor(tents, dtype=torch.float64))
    for factor in SCALES:
        assert torch.allclose(_weights(factor, side), _weights(factor, side).flip(0, 1))


def test_the_filter_is_pillows() -> None:
    """Where a size is a whole number of pixels, `resize` of Pillow says the same, inside the frame."""
    image = torch.rand(40, 40)
    ours = rescaled(image[None, None], [(0.7, 1)])[0, 0, 6:34, 6:34]
    theirs = Image.fromarray(image.numpy()).resize((28, 28), Image.Resampling.BILINEAR)
    inside = slice(2, -2)
    expected = torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.float32).view(28, 28)
    assert torch.allclose(ours[inside, inside], expected[inside, inside], atol=1e-5)


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.8])
def test_a_pattern_too_fine_for_the_smaller_image_becomes_its_mean(factor: float) -> None:
    """Anti-aliasing: stripes and noise fade into grey, the mean is kept; picked pixels alone would stay as bright."""
    side = 96
    noise = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(1))
    mask = ALONE.visible(scaling(factor), side)
    assert mask is not None
    smaller = ALONE.act(noise, scaling(factor))[0, 0][mask]
    assert abs(float(smaller.mean()) - 0.5) < 0.02
    # White noise is averaged over a tent of 1/factor pixels to either side: the sum of squared weights remains.
    remains = _weights(factor, side).square().sum(dim=1)[mask.any(dim=1)].mean()
    assert float(smaller.std()) == pytest.approx(float(noise.std() * remains), rel=0.1)
    stripes = (torch.arange(side) % 2).float().expand(1, 1, side, side)
    contrast = float(ALONE.act(stripes, scaling(factor))[0, 0][mask].std())
    assert contrast < (0.05 if factor <= 0.5 else 0.3)  # 0.5 before


@pytest.mark.parametrize("factor", SCALES)
def test_smooth_images_come_home(factor: float) -> None:
    """There and back in the coarser frame: what resampling costs a smooth image is little, and more the wrong way."""
    image, element = blob(65, 9, 5, -6) + 0.5 * blob(65, 6, -8, 0), scaling(factor)
    there = element.inverse if factor < 1 else element  # the coarser image is magnified and brought back
    back = ALONE.act(ALONE.act(image, there), there.inverse)
    mask = ALONE.visible(element, 65)
    assert mask is not None
    assert apart(back, image, mask) < 0.01
    if abs(math.log(factor)) > 0.2:
        assert apart(ALONE.act(image, there), image, mask) > 0.1


@pytest.mark.parametrize(("side", "factor", "pixels"), [(8, 2, 2), (9, 2, 3), (28, 0.8, 22), (6, 0.8, 4), (2, 0.8, 0)])
def test_the_square_that_both_views_show(side: int, factor: float, pixels: int) -> None:
    """The centre square of side·min(s, 1/s) pixels, less those whose filter would take in the zeros outside."""
    for scale in (factor, 1 / factor):
        mask = ALONE.visible(scaling(scale), side)
        edge = (side - pixels) // 2
        expected = torch.zeros(side, side, dtype=torch.bool)
        expected[edge : side - edge, edge : side - edge] = pixels > 0
        assert mask is not None
        assert torch.equal(mask, expected)
        assert ALONE.visible_pixels(scaling(scale), side) == pixels**2
        assert ALONE.comparable(scaling(scale), side) == (pixels > 0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("side", [6, 9, 28])
def test_compared_pixels_never_see_outside_the_frame(scale: float, side: int) -> None:
    """Ones stay ones on them, for every turn (to a thousandth, where a turn is resampled twice in nearly one size)."""
    group = Group(8, scales=(scale,))
    for element in group.moves:
        mask, ones = group.visible(element, side), torch.ones(1, 1, side, side)
        if element.scale == 1 or mask is None or not mask.any():
            continue
        for seen in group.together(ones, ones, ((element, 1),)):
            assert torch.allclose(seen[0, 0][mask], torch.ones(()), atol=1e-3 if scale < 2 else 1e-5)
        beyond = [seen for seen in group.together(ones, ones, ((element, 1),)) if float(seen.min()) < 0.99]
        assert beyond  # outside the mask the one or the other view is dark


def test_elements_names_and_inverses() -> None:
    group = Group(4, True, scales=(1.25, 0.8))
    assert group.name == "D4 ×0.8 ×1.25"
    assert len(group.elements) == len(set(group.elements)) == len({str(one) for one in group.elements}) == 24
    assert group.order == 24
    assert group.elements[0] == Element(0, 4)
    assert set(group.elements[1:]) == set(group.moves)
    names = [str(Element(1, 8, scale=0.8)), str(scaling(1.25)), str(Element(0, 4, True, 2.0)), str(Element(0, 4))]
    assert names == ["45° ×0.8", "×1.25", "0° mirrored ×2", "0°"]
    assert Element(1, 8, scale=0.8).inverse == Element(7, 8, scale=1.25)
    assert Element(1, 8, True, 0.8).inverse == Element(1, 8, True, 1.25)
    assert not scaling(0.8).exact
    assert scaling(0.8).unscaled.exact
    assert Group(4, scales=(1.25, 0.8, 0.8)) == Group(4, scales=(0.8, 1.25))
    assert (group_size(4, False, 2), group_size(8, True, 1), group_size(1, False, 2)) == (12, 16, 3)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((1.0,), "scale 1 is not allowed; take 0.25 to 4, but not 1"),
        ((0.0,), "scale 0"),
        ((-2.0,), "scale -2"),
        ((5,), "scale 5"),
    ],
)
def test_scales_that_cannot_be(scales: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Group.from_name("R4", scales=scales)


def test_one_rotation_needs_scales() -> None:
    assert Group.from_name("R1", scales=[0.8]) == Group(1, scales=(0.8,))
    with pytest.raises(InputError, match="R1 with scales"):
        Group.from_name("R1")
    with pytest.raises(InputError, match="or 1 with scales"):
        Group(1, reflection=True)


@pytest.mark.parametrize("group", [ALONE, TURNED, Group(4, scales=(0.5, 0.8, 2))], ids=lambda group: group.name)
def test_every_move_is_dealt_equally_often(group: Group) -> None:
    dealt: Counter[Element] = Counter()
    for step in range(len(group.moves)):
        for element, count in group.in_turn(7, 7 * step):
            dealt[element] += count
    assert set(dealt) == set(group.elements[1:])
    assert set(dealt.values()) == {7}


def test_runs_act_on_their_own_images_alone() -> None:
    images, runs = torch.rand(60, 2, 9, 9), TURNED.in_turn(60)
    moved, start = TURNED.act_in_runs(images, runs), 0
    back = TURNED.act_in_runs(moved, runs, inverse=True)
    assert len(runs) == len(TURNED.moves) == 47
    for element, count in runs:
        part = slice(start, start + count)
        assert torch.allclose(moved[part], TURNED.act(images[part], element), atol=1e-6)
        assert torch.allclose(back[part], TURNED.act(moved[part], element.inverse), atol=1e-6)
        start += count


def test_a_turn_comes_before_the_scale() -> None:
    image = torch.rand(1, 1, 12, 12)
    turned = Group(8, True).act(image, Element(1, 8, mirrored=True))
    assert torch.equal(TURNED.act(image, Element(1, 8, True, 0.5)), ALONE.act(turned, scaling(0.5)))


def test_half_precision_is_resampled_in_full() -> None:
    """Also under autocast, which would multiply matrices in bf16."""
    image = torch.rand(2, 3, 17, 17)
    exact = ALONE.act(image, scaling(0.8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ALONE.act(image, scaling(0.8)), exact)
    assert ALONE.act(image.bfloat16(), scaling(0.8)).dtype == torch.bfloat16


def test_compiled_it_is_the_same() -> None:
    group = Group(8, scales=(0.5, 1.25))
    images, runs = torch.rand(30, 2, 9, 9), group.in_turn(30)
    compiled = torch.compile(lambda maps: group.together(maps, maps.square(), runs), backend="eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it does not know the caches, and makes what they hold anew
        pairs = zip(compiled(images), group.together(images, images.square(), runs), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def terms_of(objective: EquivariantObjective, maps: Tensor, views: Views) -> Terms:
    logits = torch.zeros(views.images + views.second, 10)
    return objective(logits, {"tap": maps}, torch.zeros(views.images, dtype=torch.long), views)


@pytest.mark.parametrize("loss", ["mse", "relative"])
@pytest.mark.parametrize("group", [ALONE, Group(4, True, scales=(0.5, 1.25))], ids=lambda group: group.name)
def test_maps_that_commute_cost_exactly_zero_and_others_do_not(group: Group, loss: str) -> None:
    """However fine their patterns are: both go through the same resampling."""
    views = Views.plan(group, 2 * len(group.moves))
    maps = torch.randn(views.images, 3, 12, 12)
    commuting = torch.cat((maps, group.act_in_runs(maps, views.runs)))
    objective = EquivariantObjective(group, loss=loss)
    assert terms_of(objective, commuting, views).means["equivariance"] == 0
    for wrong in (torch.cat((maps, maps)), torch.cat((maps, commuting[views.images :].roll(1, -1)))):
        assert terms_of(objective, wrong, views).means["equivariance"] > 0.1


@pytest.mark.parametrize("group", [ALONE, TURNED], ids=lambda group: group.name)
def test_known_answer_of_views_that_are_off_by_a_constant(group: Group) -> None:
    """c² per compared pixel, whatever the element: every run has its own pixels, and they are counted."""
    views = Views.plan(group, 3 * len(group.moves))
    maps = torch.cat((torch.zeros(views.images, 2, 17, 17), torch.full((views.second, 2, 17, 17), 3.0)))
    terms = terms_of(EquivariantObjective(group), maps, views)
    assert math.isclose(terms.means["equivariance"].item(), 9.0, rel_tol=1e-3)


def test_every_run_is_compared_over_its_own_pixels() -> None:
    """A ring that is seen at 0.8 and not at 0.5, in the second views alone: half of the images pay for it."""
    group = Group(1, scales=(0.5, 0.8))
    small, large = (group.visible(scaling(scale), 17) for scale in group.scales)
    assert small is not None
    assert large is not None
    maps = torch.cat((torch.zeros(6, 1, 17, 17), 2.0 * (large & ~small).expand(6, 1, 17, 17)))
    terms = terms_of(EquivariantObjective(group), maps, Views.plan(group, 6))
    share = 1 - int(small.sum()) / int(large.sum())
    assert math.isclose(terms.means["equivariance"].item(), 0.5 * 4 * share, rel_tol=1e-5)


def test_maps_too_small_for_a_scale_are_left_out_with_one_short_message(caplog: pytest.LogCaptureFixture) -> None:
    group = Group(4, scales=(0.8, 1.25))
    views, maps = Views.plan(group, 11), torch.randn(22, 1, 2, 2)
    with caplog.at_level(logging.WARNING, logger="ien"):
        terms = terms_of(EquivariantObjective(group), maps, views)
    assert terms.counts["equivariance/tap"] == 3  # the quarter turns
    assert [record.getMessage() for record in caplog.records] == [
        "tap: its 2×2 maps are too small to be compared under ×0.8, 90° ×0.8, 180° ×0.8, 270° ×0.8 and 4 more; "
        "left out of the loss"
    ]


def test_moves_that_share_their_work_are_neighbours() -> None:
    """Resampled turns go into one call, equal pixels into one sum, however many elements there are."""
    turns = [move.unscaled.exact for move in TURNED.moves]
    assert turns == sorted(turns, reverse=True)
    regions = [(move.unscaled.exact, move.shown) for move in TURNED.moves]
    assert sum(a != b for a, b in itertools.pairwise(regions)) == len(set(regions)) - 1


def test_both_views_get_a_gradient_in_either_frame_and_the_first_none_if_stopped() -> None:
    views = Views.plan(ALONE, 2)
    for stopped in (False, True):
        maps = torch.randn(4, 1, 9, 9, requires_grad=True)
        terms_of(EquivariantObjective(ALONE, stop_gradient=stopped), maps, views).total.backward()
        assert maps.grad is not None
        assert [bool(one.abs().sum() > 0) for one in maps.grad] == [not stopped, not stopped, True, True]


def convolution(kernel: Tensor) -> Tapped:
    layer = nn.Conv2d(1, 1, kernel.shape[-1], padding=kernel.shape[-1] // 2, bias=False)
    layer.weight.data = kernel[None, None]
    return Tapped(nn.Sequential(layer), ["0"], ChannelMaxPool([1]))


def errors_of(kernel: Tensor, group: Group) -> dict[str, dict[str, float | None]]:
    images = blob(65, 8, 6, -5) + 0.5 * blob(65, 6, -8, 2)
    return relative_errors(equivariance_sums(convolution(kernel), [images], group), group)["0"]


def test_known_errors_of_two_layers() -> None:
    """One that copies has none; d/dx is 1/s times as steep at s times the size, and has |1/s - 1|."""
    group = Group(1, scales=(0.5, 0.8, 1.25, 2))
    copies = errors_of(torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]), group)
    assert [one["error"] for one in copies.values()] == [0, 0, 0, 0]
    assert set(copies) == {"×0.5", "×0.8", "×1.25", "×2"}
    assert all(one["floor"] is not None and 0 < one["floor"] < 0.02 for one in copies.values())
    steep = errors_of(torch.tensor([[0.0, 0, 0], [-1, 0, 1], [0, 0, 0]]), group)
    for name, one in steep.items():
        scale = float(name.removeprefix("×"))
        assert one["error"] == pytest.approx(abs(1 / scale - 1), rel=0.05)


def test_turned_and_scaled_errors_stand_beside_the_plain_ones() -> None:
    """A blur commutes with quarter turns exactly, and at every scale nearly; the old elements keep their numbers."""
    blur = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    group = Group(4, scales=(0.8, 1.25))
    errors, plain = errors_of(blur, group), errors_of(blur, Group(4))
    assert len(errors) == 11
    assert {name: errors[name] for name in plain} == plain
    for name, one in errors.items():
        assert one["error"] is not None
        assert one["error"] < (1e-6 if name in plain else 0.01)
