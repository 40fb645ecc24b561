"""Samplers propose what they are asked to, the same after every interruption, and TPE learns."""

from __future__ import annotations

import random
import sys
from typing import Any, Literal

import pytest

from ien.config import Config
from ien.errors import InputError
from launch.search.sampling import Sampler, sampler
from launch.search.space import Point, Space, identity

BASE = Config.model_validate({"dataset": "digits", "model": "BasicCNN"})
SMALL = {"heterogeneous": {"choice": [False, "R8-4-2"]}, "batch_size": {"quniform": [16, 48, 16]}}
MIXED = {
    "heterogeneous": {"choice": [False, "R8-4-2", "R4-2-1"]},
    "beta_weight": {"loguniform": [0.01, 10], "when": {"heterogeneous": False}},
    "max_lr": {"uniform": [0.001, 1.0]},
    "cyc_size": {"randint": [5, 20]},
}
PLANE = {"max_lr": {"uniform": [0.001, 1.0]}, "dec_scale": {"uniform": [0.001, 1.0]}}

Direction = Literal["max", "min"]


def space(given: dict[str, Any]) -> Space:
    return Space.read(given, BASE, "x.yaml: space")


def tpe(given: dict[str, Any], seed: int = 0, directions: tuple[Direction, ...] = ("min",)) -> Sampler:
    return sampler("tpe", space(given), seed, directions)


def proposed(by: Sampler, number: int) -> Point:
    point = by.propose(number)
    assert point is not None
    return point


def bowl(point: Point) -> float:
    """Least at (0.3, 0.7)."""
    return (point["max_lr"] - 0.3) ** 2 + (point["dec_scale"] - 0.7) ** 2


def learnt(by: Sampler, count: int) -> list[Point]:
    points = []
    for number in range(count):
        points.append(proposed(by, number))
        by.told(number, points[-1], [bowl(points[-1])])
    return points


def test_grid_proposes_each_point_once_and_then_nothing() -> None:
    given = {"heterogeneous": {"choice": [False, "R8-4-2"]}, "batch_size": {"choice": [16, 32]}}
    grid = sampler("grid", space(given), 0, ["max"])
    assert [grid.propose(number) for number in range(4)] == space(given).points()
    assert grid.propose(4) is None
    assert grid.propose(2) == space(given).points()[2]


def test_grid_refuses_a_range() -> None:
    with pytest.raises(InputError, match="batch_size: is a range, and grid tries lists"):
        sampler("grid", space(SMALL), 0, ["max"])


def test_random_proposes_by_seed_and_number() -> None:
    one, other = (sampler("random", space(MIXED), 5, ["max"]) for _ in range(2))
    last = other.propose(9)  # of a continued sweep
    assert [one.propose(number) for number in range(10)][9] == last == space(MIXED).drawn(5, 9)
    assert sampler("random", space(MIXED), 6, ["max"]).propose(9) != last


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_no_point_is_proposed_twice_and_a_small_space_ends(name: Literal["random", "tpe"]) -> None:
    small = sampler(name, space(SMALL), 0, ["min"])
    points = []
    for number in range(6):
        points.append(proposed(small, number))
        small.told(number, points[-1], [float(number)])
    assert len({identity(point) for point in points}) == 6
    assert small.propose(6) is None


def test_tpe_passes_over_the_points_it_knows() -> None:
    """In a space of 24 points, of which it likes one corner: more than it takes to begin."""
    given = {"batch_size": {"quniform": [8, 64, 8]}, "cyc_size": {"randint": [1, 3]}}
    of = tpe(given)
    seen = set()
    for number in range(24):
        point = proposed(of, number)
        of.told(number, point, [float(point["batch_size"] + point["cyc_size"])])
        seen.add(identity(point))
    assert len(seen) == 24
    assert of.propose(24) is None


@pytest.mark.parametrize("seed", range(3))
def test_tpe_finds_the_least_of_a_bowl_better_than_chance(seed: int) -> None:
    by_tpe = learnt(tpe(PLANE, seed), 50)[25:]
    by_chance = learnt(sampler("random", space(PLANE), seed, ["min"]), 50)[25:]
    assert sorted(map(bowl, by_tpe))[12] < 0.4 * sorted(map(bowl, by_chance))[12]
    assert min(map(bowl, by_tpe)) < 0.002


def test_tpe_begins_as_chance_does() -> None:
    of = tpe(MIXED, seed=3)
    assert [of.propose(number) for number in range(10)] == [space(MIXED).drawn(3, number) for number in range(10)]


def test_tpe_goes_up_where_more_is_better() -> None:
    of = tpe(PLANE, directions=("max",))
    points = []
    for number in range(40):
        points.append(proposed(of, number))
        of.told(number, points[-1], [-bowl(points[-1])])
    assert sorted(map(bowl, points[20:]))[10] < 0.03


def test_tpe_learns_a_space_with_conditions() -> None:
    of = tpe(MIXED)
    points = []
    for number in range(50):
        point = proposed(of, number)
        assert ("beta_weight" in point) == (point["heterogeneous"] is False)
        of.told(number, point, [abs(point.get("beta_weight", 5.0) - 0.1)])
        points.append(point)
    assert sum(point["heterogeneous"] is False for point in points[25:]) > 15


def test_tpe_with_two_metrics_comes_near_their_front() -> None:
    """Least of x² and of (x-1)² lies on 0 ≤ x ≤ 1 with the other setting at 0.5."""

    def metrics(point: Point) -> list[float]:
        side = (point["dec_scale"] - 0.5) ** 2
        return [(point["max_lr"] - 0.2) ** 2 + side, -((point["max_lr"] - 0.8) ** 2) - side]

    of = tpe(PLANE, directions=("min", "max"))
    for number in range(60):
        point = proposed(of, number)
        of.told(number, point, metrics(point))
    late = [proposed(of, number) for number in range(60, 80)]
    assert sum(abs(point["dec_scale"] - 0.5) < 0.15 for point in late) > 9  # of 20, by chance 6
    assert min(point["max_lr"] for point in late) < 0.4
    assert max(point["max_lr"] for point in late) > 0.6


def history(count: int) -> list[tuple[int, Point, list[float] | None, int | None]]:
    """Trials of all kinds: complete, failed, stopped early."""
    kinds: list[tuple[int, Point, list[float] | None, int | None]] = []
    for number in range(count):
        point = space(MIXED).drawn(1, number)
        values = None if number % 7 == 3 else [point["max_lr"]]
        kinds.append((number, point, values, 4 if number % 5 == 2 else None))
    return kinds


def test_a_replayed_sweep_goes_on_as_the_first_would_have() -> None:
    whole, again = tpe(MIXED), tpe(MIXED)
    for number, point, values, stopped_at in history(20):
        whole.running(number, point)
        whole.told(number, point, values, stopped_at)
    for number in (23, 20, 21):
        whole.propose(number)
    whole.told(21, proposed(whole, 21), [0.5])

    shuffled = history(20)
    random.Random(0).shuffle(shuffled)
    again.told(21, proposed(whole, 21), [0.5])
    again.running(20, proposed(whole, 20))
    for number, point, values, stopped_at in shuffled:
        again.told(number, point, values, stopped_at)
    again.running(23, proposed(whole, 23))

    assert [again.propose(number) for number in (24, 22, 20)] == [whole.propose(number) for number in (24, 22, 20)]


def test_a_trial_that_is_run_again_keeps_its_point_and_can_be_told() -> None:
    first, second = tpe(PLANE), tpe(PLANE)
    for by in (first, second):
        learnt(by, 12)
    point = proposed(first, 12)
    second.running(12, point)
    assert second.propose(12) == point
    assert second.propose(13) == first.propose(13) != point
    second.told(12, point, [0.0])
    first.told(12, point, [0.0])
    assert second.propose(14) == first.propose(14)


def test_a_finished_trial_can_be_run_again() -> None:
    """As after a crash: what it taught the first time no longer counts."""
    once, twice = tpe(PLANE), tpe(PLANE)
    for by in (once, twice):
        learnt(by, 14)
    last = proposed(once, 14)
    once.running(14, last)
    twice.told(14, last, [-1.0])
    twice.running(14, last)
    assert twice.propose(15) == once.propose(15)


def test_tpe_proposes_exact_steps() -> None:
    of = tpe({"objective.warmup_epochs": {"quniform": [0.1, 3.0, 0.1]}, "max_lr": {"uniform": [0.1, 0.2]}})
    for number in range(30):
        steps = proposed(of, number)["objective.warmup_epochs"]
        assert steps == round(steps, 1)
        of.told(number, proposed(of, number), [steps])


def test_tpe_looks_elsewhere_while_a_trial_runs() -> None:
    alone, beside = tpe(PLANE), tpe(PLANE)
    for by in (alone, beside):
        learnt(by, 15)
    wanted = proposed(alone, 30)
    for number in range(15, 30):
        beside.running(number, {key: value + 1e-4 * (number - 22) for key, value in wanted.items()})
    other = proposed(beside, 30)
    assert max(abs(other[key] - wanted[key]) for key in wanted) > 0.05


def test_what_the_caller_does_with_a_point_does_not_reach_the_sampler() -> None:
    for name in ("grid", "random", "tpe"):
        given = {"batch_size": {"choice": [16, 32]}}
        of = sampler(name, space(given), 0, ["min"])
        before = dict(proposed(of, 0))
        proposed(of, 0)["batch_size"] = 7
        assert of.propose(0) == before


@pytest.mark.parametrize("values", [None, [float("nan")], [float("inf")]])
def test_a_failed_trial_teaches_nothing_but_is_not_tried_again(values: list[float] | None) -> None:
    given = {"batch_size": {"quniform": [1, 30, 1]}}
    without, with_failed = tpe(given), tpe(given)
    failed = {"batch_size": 30}
    for number in range(15):
        for by in (without, with_failed):
            by.told(number, {"batch_size": number + 1}, [float(number)])
    with_failed.told(15, failed, values)
    assert with_failed.propose(16) == without.propose(16)
    assert failed not in [with_failed.propose(number) for number in range(17, 30)]
    assert with_failed.propose(31) is None  # 30 points, one of which failed


def test_a_stopped_trial_is_worse_than_a_complete_one() -> None:
    """All complete trials lie to the right; those to the left were stopped, although at a lower value."""
    of = tpe(PLANE)
    for number in range(40):
        left = number % 2 == 0
        point = {"max_lr": 0.1 + 0.001 * number if left else 0.8 + 0.001 * number, "dec_scale": 0.5}
        of.told(number, point, [0.0 if left else 1.0], stopped_at=1 if left else None)
    assert sum(proposed(of, number)["max_lr"] > 0.5 for number in range(40, 60)) > 15


def test_of_several_metrics_a_stopped_trial_is_left_out() -> None:
    plain, more = (tpe(PLANE, directions=("min", "max")) for _ in range(2))
    for number in range(12):
        point = space(PLANE).drawn(0, number)
        for by in (plain, more):
            by.told(number, point, [bowl(point), 0.0])
    more.told(12, {"max_lr": 0.9, "dec_scale": 0.9}, [-100.0, 100.0], stopped_at=2)
    assert more.propose(13) == plain.propose(13)


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"sampler: tpe needs Optuna, .*; type pip install -e \"\.\[optuna\]\", or "):
        tpe(PLANE)
    assert sampler("random", space(PLANE), 0, ["max"]).propose(0)


def test_optuna_is_quiet() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.INFO)
    tpe(PLANE)
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
