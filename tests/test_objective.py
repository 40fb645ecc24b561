from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from ien.errors import InputError
from ien.groups import Group
from ien.objective import EquivariantObjective, Terms, Views, warmed_up

GROUPS = [Group(4), Group(4, True), Group(8), Group(8, True), Group(5), Group(4, scales=(0.5, 1.25))]
CLASSES = 10


def logits_and_labels(views: Views) -> tuple[Tensor, Tensor]:
    return torch.randn(views.images + views.second, CLASSES), torch.randint(CLASSES, (views.images,))


def commuting(group: Group, maps: Tensor, views: Views) -> Tensor:
    """Features of both views that commute with the group."""
    return torch.cat((maps, group.act_in_runs(maps[: views.second], views.runs)))


def terms_of(
    objective: EquivariantObjective, maps: dict[str, Tensor], views: Views, beta: float | None = None
) -> Terms:
    torch.manual_seed(1)
    logits, labels = logits_and_labels(views)
    return objective(logits, maps, labels, views, beta)


@pytest.mark.parametrize("loss", ["mse", "relative"])
@pytest.mark.parametrize("group", [Group(4), Group(4, True), Group(2, True)], ids=lambda g: g.name)
def test_features_that_commute_cost_exactly_zero_and_shifted_ones_do_not(group: Group, loss: str) -> None:
    views = Views.plan(group, 14)
    maps = commuting(group, torch.randn(14, 3, 9, 9), views)
    objective = EquivariantObjective(group, loss=loss)
    assert terms_of(objective, {"tap": maps}, views).means["equivariance"] == 0
    shifted = torch.cat((maps[:14], maps[14:].roll(1, dims=-1)))
    assert terms_of(objective, {"tap": shifted}, views).means["equivariance"] > 0.5


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_known_answer_of_the_published_loss(group: Group) -> None:
    """Second views that are c off everywhere cost c², whatever the element and however the discs divide the batch."""
    views = Views.plan(group, 30)
    maps = torch.cat((torch.zeros(30, 2, 9, 9), torch.full((30, 2, 9, 9), 3.0)))
    terms = terms_of(EquivariantObjective(group, beta_weight=0.5), {"a": maps, "b": maps / 3}, views)
    assert math.isclose(terms.means["equivariance/a"].item(), 9.0, rel_tol=1e-5)
    assert math.isclose(terms.means["equivariance/b"].item(), 1.0, rel_tol=1e-5)
    assert math.isclose(terms.means["equivariance"].item(), 10.0, rel_tol=1e-5)
    assert math.isclose(terms.total.item(), terms.means["classification"].item() + 5.0, rel_tol=1e-5)


def test_against_the_formula_image_by_image() -> None:
    """The published formulation, one image after the other, on the exact elements of D4."""
    group = Group(4, reflection=True)
    views = Views.plan(group, 16, start=3)
    maps, total, place = torch.randn(32, 5, 8, 8), 0.0, 0
    for element, count in views.runs:
        for image in range(place, place + count):
            back = group.act(maps[16 + image][None], element.inverse)[0]
            total += float((maps[image] - back).square().mean()) / 16
        place += count
    terms = terms_of(EquivariantObjective(group), {"tap": maps}, views)
    assert math.isclose(terms.means["equivariance"].item(), total, rel_tol=1e-5)


def test_the_whole_orbit_of_every_image() -> None:
    """As many second views as there are moves: each image meets each once, and its terms are the means over single
    passes in which all images take one of them."""
    group, images = Group(4, reflection=True), 5
    objective, labels = EquivariantObjective(group), torch.randint(CLASSES, (images,))
    views = Views.plan(group, images, second_views=7.0, start=3)
    pictures, maps = torch.rand(images, 1, 6, 6), torch.randn(8 * images, 2, 6, 6)
    seen = objective.both_views(pictures, views).split(images)
    assert torch.equal(seen[0], pictures)
    assert {str(element) for element, count in views.runs if count == images} == {str(one) for one in group.moves}
    logits = torch.randn(8 * images, CLASSES)
    whole, single = objective(logits, {"tap": maps}, labels, views), []
    for number, (element, _) in enumerate(views.runs, start=1):
        assert torch.equal(seen[number], group.act(pictures, element))
        one = Views(images, ((element, images),), images, ((element, images),))
        both = [torch.cat((part.split(images)[0], part.split(images)[number])) for part in (maps, logits)]
        single.append(objective(both[1], {"tap": both[0]}, labels, one))
    for name in ("equivariance", "equivariance/tap", "accuracy_second_view", "accuracy"):
        mean = sum(float(terms.means[name]) for terms in single) / 7
        assert math.isclose(float(whole.means[name]), mean, rel_tol=1e-5), name
    assert whole.counts["equivariance"] == 7 * images
    assert whole.counts["classification"] == 8 * images


@pytest.mark.parametrize("second_views", [2.0, 3.0, 5.0])
def test_several_second_views_of_an_image_take_different_elements(second_views: float) -> None:
    for images in (1, 4, 6, 9):
        for start in range(7):
            runs = Views.plan(Group(4, reflection=True), images, second_views, start).runs
            taken = [str(element) for element, count in runs for _ in range(count)]
            assert len(taken) == second_views * images
            assert all(len(set(taken[image::images])) == second_views for image in range(images))


def test_classification_is_over_both_views() -> None:
    views = Views.plan(Group(4), 4)
    labels = torch.tensor([0, 1, 2, 3])
    right = torch.nn.functional.one_hot(labels, CLASSES).float() * 50
    wrong = right.roll(1, dims=1)
    terms = EquivariantObjective(Group(4))(torch.cat((right, wrong)), {}, labels, views)
    assert math.isclose(terms.means["classification"].item(), 25.0, rel_tol=1e-4)
    assert (terms.means["accuracy"].item(), terms.means["accuracy_second_view"].item()) == (1.0, 0.0)


def test_shrinking_lowers_the_published_loss_and_not_the_relative_one() -> None:
    views = Views.plan(Group(4), 12)
    maps = torch.randn(24, 3, 8, 8)
    losses = {}
    for loss in ("mse", "relative"):
        objective = EquivariantObjective(Group(4), loss=loss)
        losses[loss] = [
            terms_of(objective, {"tap": scale * maps}, views).means["equivariance"].item() for scale in (1, 0.1)
        ]
    assert math.isclose(losses["mse"][1], losses["mse"][0] / 100, rel_tol=1e-4)
    assert math.isclose(losses["relative"][1], losses["relative"][0], rel_tol=1e-4)


def test_relative_loss_known_answers() -> None:
    """Opposite maps cost 4; the gradient is orthogonal to the features, so that it cannot push their scale."""
    views = Views.plan(Group(4), 3)
    half = torch.randn(3, 2, 6, 6)
    objective = EquivariantObjective(Group(4), loss="relative")
    opposite = torch.cat((half, -commuting(Group(4), half, views)[3:]))
    assert math.isclose(terms_of(objective, {"tap": opposite}, views).means["equivariance"].item(), 4, rel_tol=1e-5)
    maps = torch.randn(6, 2, 6, 6, requires_grad=True)
    terms_of(objective, {"tap": maps}, views).total.backward()
    assert maps.grad is not None
    assert abs(float((maps.grad * maps.detach()).sum())) < 1e-5 * float(maps.grad.norm() * maps.detach().norm())
    dead = torch.zeros(6, 2, 6, 6, requires_grad=True)
    terms_of(objective, {"tap": dead}, views).total.backward()
    assert dead.grad is not None
    assert torch.isfinite(dead.grad).all()


def test_corners_that_leave_the_frame_cost_nothing_inside_the_disc() -> None:
    """Only the corners of the reference view differ from constant maps: the disc does not see them, the square does."""
    moves = Group(8).moves
    views = Views.plan(Group(8), len(moves))
    maps = torch.ones(2 * len(moves), 1, 17, 17)
    disc = Group(8).visible(moves[-1], 17)
    assert disc is not None
    maps[: len(moves), :, ~disc] = 5.0
    exact = sum(move.exact for move in moves) / len(moves)
    outside = 16.0 * float((~disc).float().mean())
    inside_alone = terms_of(EquivariantObjective(Group(8)), {"tap": maps}, views).means["equivariance"].item()
    assert math.isclose(inside_alone, exact * outside, rel_tol=1e-4)
    square = EquivariantObjective(Group(8, disc=False))
    assert terms_of(square, {"tap": maps}, views).means["equivariance"].item() > 2 * inside_alone


def test_maps_too_small_for_a_disc_are_left_out_with_one_message(caplog: pytest.LogCaptureFixture) -> None:
    group = Group(8)
    views = Views.plan(group, 14)
    maps = torch.randn(28, 2, 2, 2)
    objective = EquivariantObjective(group)
    with caplog.at_level(logging.WARNING, logger="ien"):
        first = terms_of(objective, {"tiny": maps}, views)
        terms_of(objective, {"tiny": maps}, views)
    assert [record.getMessage() for record in caplog.records] == [
        "tiny: its 2×2 maps are too small to be compared under 45°, 135°, 225°, 315°; left out of the loss"
    ]
    exact = Views.plan(Group(4), 6)
    same = terms_of(EquivariantObjective(Group(4)), {"tiny": torch.cat((maps[:6], maps[14:20]))}, exact)
    assert first.counts["equivariance/tiny"] == 6
    assert torch.allclose(first.means["equivariance/tiny"], same.means["equivariance/tiny"])
    halves = Views.plan(Group(3), 6)
    only_resampled = terms_of(EquivariantObjective(Group(3)), {"tiny": maps[:12]}, halves)
    assert only_resampled.means["equivariance"] == 0
    assert "equivariance/tiny" not in only_resampled.means


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
@pytest.mark.parametrize("second_views", [1.0, 0.4, 2.0])
@pytest.mark.parametrize("shares", [2, 3, 6])
def test_shares_average_to_the_whole_batch(group: Group, second_views: float, shares: int) -> None:
    """Dealt out to processes, a batch keeps its elements, every mean, and the loss."""
    batch, side = 18, 9
    whole = Views.plan(group, batch, second_views, start=5)
    logits, labels = logits_and_labels(whole)
    images = torch.rand(batch, 1, side, side)
    seen = EquivariantObjective(group).both_views(images, whole)
    maps = {"tap": torch.cat((seen, seen.square() + seen.roll(1, -1)), dim=1)}
    objective = EquivariantObjective(group, loss="relative")
    one = objective(logits, maps, labels, whole)
    totals, sums = torch.zeros(()), {name: torch.zeros(()) for name in one.means}
    for share in range(shares):
        views = Views.plan(group, batch, second_views, start=5, share=share, shares=shares)
        places = torch.arange(batch)[share::shares]
        second = batch + torch.arange(whole.second)[share::shares]
        mine = torch.cat((places, second))
        assert torch.allclose(objective.both_views(images[places], views), seen[mine], atol=1e-6)
        part = objective(logits[mine], {"tap": maps["tap"][mine]}, labels[places], views)
        totals = totals + part.total / shares
        sums = {name: sums[name] + mean / shares for name, mean in part.means.items()}
    assert torch.allclose(totals, one.total, rtol=1e-5)
    for name, mean in one.means.items():
        assert torch.allclose(sums[name].double(), mean.double(), rtol=1e-5), name


def test_second_views_share() -> None:
    views = Views.plan(Group(4), 10, second_views=0.3)
    assert (views.images, views.second) == (10, 3)
    terms = terms_of(EquivariantObjective(Group(4)), {"tap": torch.randn(13, 1, 4, 4)}, views)
    assert terms.counts == {
        "classification": 13, "accuracy": 10, "accuracy_second_view": 3,
        "power/tap": 10, "equivariance/tap": 3, "equivariance": 3,
    }  # fmt: skip


def test_no_second_view_is_plain_classification() -> None:
    views = Views.plan(Group(4), 6, second_views=0.0)
    images = torch.rand(6, 1, 8, 8)
    objective = EquivariantObjective(Group(4), beta_weight=0.0)
    assert objective.both_views(images, views) is images
    logits, labels = logits_and_labels(views)
    terms = objective(logits, {"tap": images}, labels, views)
    assert torch.allclose(terms.total, torch.nn.functional.cross_entropy(logits, labels))
    assert not any(name.startswith("equivariance") for name in terms.means)


def test_label_smoothing_mixes_the_target_with_all_classes() -> None:
    """(1 - ε) · cross-entropy + ε · its mean over all classes as targets, over both views."""
    views = Views.plan(Group(4), 6)
    logits, labels = logits_and_labels(views)
    objective = EquivariantObjective(Group(4), beta_weight=0.0, label_smoothing=0.3)
    found = objective(logits, {"tap": torch.rand(12, 1, 8, 8)}, labels, views).total
    surprise = -logits.log_softmax(dim=1)
    of_label = surprise.gather(1, torch.cat((labels, labels))[:, None]).mean()
    assert torch.allclose(found, 0.7 * of_label + 0.3 * surprise.mean())


def test_stop_gradient_moves_the_second_view_alone() -> None:
    views = Views.plan(Group(4), 6)
    maps = torch.randn(12, 2, 5, 5, requires_grad=True)
    terms_of(EquivariantObjective(Group(4), stop_gradient=True), {"tap": maps}, views).total.backward()
    assert maps.grad is not None
    assert maps.grad[:6].abs().sum() == 0
    assert maps.grad[6:].abs().sum() > 0


def test_beta_zero_measures_without_a_gradient() -> None:
    views = Views.plan(Group(4), 6)
    maps = torch.randn(12, 2, 5, 5, requires_grad=True)
    terms = terms_of(EquivariantObjective(Group(4), beta_weight=0.0), {"tap": maps}, views)
    assert terms.means["equivariance"] > 0
    assert not terms.total.requires_grad
    assert terms.total == terms.means["classification"]


def test_tap_weights_scale_their_tap_alone() -> None:
    views = Views.plan(Group(4), 6)
    maps = {"a": torch.randn(12, 1, 5, 5), "b": torch.randn(12, 1, 5, 5)}
    plain = terms_of(EquivariantObjective(Group(4)), maps, views).means
    weighted = terms_of(EquivariantObjective(Group(4), tap_weights={"b": 0.25}), maps, views).means
    assert torch.allclose(weighted["equivariance"], plain["equivariance/a"] + 0.25 * plain["equivariance/b"])
    assert torch.equal(weighted["equivariance/b"], plain["equivariance/b"])


def test_feature_power() -> None:
    views = Views.plan(Group(4), 6)
    terms = terms_of(EquivariantObjective(Group(4)), {"tap": torch.full((12, 2, 5, 5), -3.0)}, views)
    assert terms.means["power/tap"] == 9.0


def test_bf16_maps_are_summed_in_full_precision() -> None:
    views = Views.plan(Group(4), 4)
    maps = torch.cat((torch.zeros(4, 8, 65, 65), torch.full((4, 8, 65, 65), 0.1))).bfloat16()
    terms = terms_of(EquivariantObjective(Group(4)), {"tap": maps}, views)
    assert terms.total.dtype == torch.float32
    assert math.isclose(terms.means["equivariance"].item(), float(torch.tensor(0.1).bfloat16()) ** 2, rel_tol=1e-3)


def test_warm_up() -> None:
    assert [warmed_up(2.0, epochs, 4) for epochs in (0, 1, 4, 9)] == [0.0, 0.5, 2.0, 2.0]
    assert warmed_up(2.0, 0, 0) == 2.0


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="mse, relative"):
        EquivariantObjective(Group(4), loss="l1")
    views = Views.plan(Group(4), 3)
    with pytest.raises(InputError, match="did you mean 'block1'"):
        terms_of(EquivariantObjective(Group(4), tap_weights={"blok1": 1}), {"block1": torch.rand(6, 1, 4, 4)}, views)
