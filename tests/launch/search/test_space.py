"""A space means the settings that a person reads into it, and what it cannot mean is told in one line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ien.config import Config, flat, load
from ien.config.files import read as read_settings
from ien.errors import InputError
from launch.search.space import Point, Space, identity, overrides

BASE = Config.model_validate({"dataset": "digits", "model": "BasicCNN"})
PRESETS = ["R8-4-2-1", "R8-4-2", "R4-2-1"]


def space(text: str) -> Space:
    """The space of the YAML text, read as a sweep file is (`1e-3` is a number)."""
    return Space.read(yaml.safe_load(inspect.cleandoc(text)), BASE, "x.yaml: space")


def draws(text: str, key: str, count: int = 2000) -> list[Any]:
    found = space(text)
    return [found.drawn(7, number)[key] for number in range(count)]


def distance(values: list[float], below: Callable[[float], float]) -> float:
    """Kolmogorov and Smirnov's: the largest gap between the values' distribution and `below`."""
    ordered, count = sorted(values), len(values)
    return max(
        max(below(value) - number / count, (number + 1) / count - below(value)) for number, value in enumerate(ordered)
    )


LIKELY = 1.63 / math.sqrt(2000)  # draws of this distribution come further in one case of a hundred


def test_fractions_are_drawn_evenly() -> None:
    values = draws("beta_weight: {uniform: [2, 6]}", "beta_weight")
    assert distance(values, lambda value: (value - 2) / 4) < LIKELY
    assert all(isinstance(value, float) for value in values)


def test_a_logarithmic_range_gives_each_decade_the_same() -> None:
    values = draws("beta_weight: {loguniform: [0.01, 10]}", "beta_weight")
    assert distance(values, lambda value: math.log(value / 0.01) / math.log(1000)) < LIKELY
    assert min(values) >= 0.01
    assert max(values) <= 10


def test_whole_numbers_are_drawn_evenly_with_both_ends() -> None:
    values = draws("cyc_size: {randint: [5, 8]}", "cyc_size")
    shares = [values.count(number) / 2000 for number in (5, 6, 7, 8)]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)
    assert all(type(value) is int for value in values)


def test_whole_numbers_of_a_logarithmic_range_are_drawn_by_their_share_of_it() -> None:
    values = draws("cyc_size: {lograndint: [1, 4]}", "cyc_size")
    whole = math.log(4.5 / 0.5)
    shares = [values.count(number) / 2000 for number in (1, 2, 3, 4)]
    assert shares == pytest.approx([math.log((n + 0.5) / (n - 0.5)) / whole for n in (1, 2, 3, 4)], abs=0.03)
    assert all(type(value) is int for value in values)


def test_steps_are_met_exactly() -> None:
    values = draws("objective: {warmup_epochs: {quniform: [0.1, 0.5, 0.1]}}", "objective.warmup_epochs")
    assert set(values) == {0.1, 0.2, 0.3, 0.4, 0.5}
    assert all(values.count(value) / 2000 == pytest.approx(0.2, abs=0.03) for value in set(values))
    whole = draws("batch_size: {quniform: [16, 64, 16]}", "batch_size")
    assert set(whole) == {16, 32, 48, 64}
    assert all(type(value) is int for value in whole)


def test_choices_are_drawn_evenly() -> None:
    values = draws("heterogeneous: {choice: [false, R8-4-2, R4-2-1]}", "heterogeneous")
    shares = [values.count(value) / 2000 for value in (False, "R8-4-2", "R4-2-1")]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.035)


CYCLE = """
    max_lr: {loguniform: [1e-3, 1e-2]}
    dec_scale: {uniform: [1, 2]}
    cyc_size: {randint: [1, 1000]}
"""


def test_a_draw_depends_on_its_seed_and_number_alone() -> None:
    one, other = space(CYCLE), space(CYCLE)
    later = other.drawn(3, 5)
    assert [one.drawn(3, number) for number in range(6)][5] == later
    assert one.drawn(4, 5) != later
    assert one.drawn(3, 6) != later
    assert one.drawn(3, 5, attempt=1) != later


def test_the_draws_of_a_seed_stay_what_they_are() -> None:
    """A continued sweep draws what its beginning would have drawn, also with a newer version of this code."""
    text = CYCLE + "    model: {choice: [BasicCNN, Resnet18, VGG]}"
    assert space(text).drawn(0, 0) == {
        "max_lr": pytest.approx(0.0015205957949454433, rel=1e-12),
        "dec_scale": pytest.approx(1.968864842128295, rel=1e-12),
        "cyc_size": 535,
        "model": "BasicCNN",
    }


def test_axes_do_not_know_of_each_other() -> None:
    conditional = CYCLE + "    heterogeneous: {choice: [false, R4-2-1]}\n"
    conditional += "    beta_weight: {uniform: [0, 1], when: {heterogeneous: false}}\n"
    small, large = space(CYCLE), space(conditional)
    for number in range(50):
        drawn = large.drawn(1, number)
        assert {key: drawn[key] for key in small.drawn(1, number)} == small.drawn(1, number)


def test_two_axes_of_one_range_are_not_correlated() -> None:
    text = "beta_weight: {uniform: [0, 1]}\nweight_decay_rate: {uniform: [0, 1]}"
    found = space(text)
    pairs = [tuple(found.drawn(0, number).values()) for number in range(2000)]
    covariance = sum((a - 0.5) * (b - 0.5) for a, b in pairs) / 2000
    assert abs(covariance * 12) < 3 / math.sqrt(2000)


CONDITIONS = f"""
    beta_weight: {{choice: [0.1, 1], when: {{optimizer.clip_norm: 1}}}}
    heterogeneous: {{choice: [false, {", ".join(PRESETS)}]}}
    optimizer: {{clip_norm: {{choice: [null, 1], when: {{heterogeneous: [R8-4-2, R4-2-1]}}}}}}
"""


def test_a_setting_stands_only_where_its_conditions_hold() -> None:
    found = space(CONDITIONS)
    points = found.points()
    assert points == [
        {"heterogeneous": False},
        {"heterogeneous": "R8-4-2-1"},
        {"heterogeneous": "R8-4-2", "optimizer.clip_norm": None},
        {"heterogeneous": "R8-4-2", "optimizer.clip_norm": 1, "beta_weight": 0.1},
        {"heterogeneous": "R8-4-2", "optimizer.clip_norm": 1, "beta_weight": 1},
        {"heterogeneous": "R4-2-1", "optimizer.clip_norm": None},
        {"heterogeneous": "R4-2-1", "optimizer.clip_norm": 1, "beta_weight": 0.1},
        {"heterogeneous": "R4-2-1", "optimizer.clip_norm": 1, "beta_weight": 1},
    ]
    assert len({identity(point) for point in points}) == len(points)
    drawn = [found.drawn(0, number) for number in range(300)]
    assert {identity(point) for point in drawn} == {identity(point) for point in points}


def test_a_condition_on_the_base_holds_always_or_never() -> None:
    assert space("max_lr: {choice: [0.1], when: {dataset: [digits, rot_mnist]}}").points() == [{"max_lr": 0.1}]
    assert space("max_lr: {choice: [0.1], when: {dec_scale: 1}}").points() == [{"max_lr": 0.1}]  # the base has 1.0
    preset = Config.model_validate(BASE.model_dump() | {"heterogeneous": "R4-2-1"})
    given = {"max_lr": {"choice": [0.1], "when": {"ratio": [8, 2, 1]}}}
    assert Space.read(given, preset, "x").points() == [{"max_lr": 0.1}]


def test_a_condition_may_name_a_number_of_steps_or_a_whole_list() -> None:
    text = """
        cyc_size: {randint: [5, 6]}
        max_lr: {choice: [0.1], when: {cyc_size: 5}}
        ratio: {choice: [[8, 2, 1], [1, 1]]}
        dec_scale: {choice: [2], when: {ratio: [8, 2, 1]}}
    """
    found = space(text)
    drawn = [found.drawn(0, number) for number in range(50)]
    assert {point["cyc_size"] for point in drawn} == {5, 6}
    assert all(("max_lr" in point) == (point["cyc_size"] == 5) for point in drawn)
    assert all(("dec_scale" in point) == (point["ratio"] == [8, 2, 1]) for point in drawn)


def test_points_of_equal_settings_are_one_point() -> None:
    assert identity({"max_lr": 0.1, "cyc_size": 5}) == identity({"cyc_size": 5, "max_lr": 0.1})
    assert identity({"reflection": True}) != identity({"reflection": False})


def test_the_grid_is_every_combination_in_a_stable_order() -> None:
    points = space("beta_weight: {choice: [0, 1, 10]}\nreflection: {choice: [false, true]}").points()
    assert len(points) == 6
    assert points[:2] == [{"beta_weight": 0, "reflection": False}, {"beta_weight": 0, "reflection": True}]


def test_a_grid_has_lists_alone_and_an_end() -> None:
    with pytest.raises(InputError, match=r"x.yaml: space: max_lr: is a range, and grid tries lists; write choice: "):
        space("max_lr: {uniform: [0.1, 0.2]}").points()
    many = "\n".join(f"{key}: {{choice: {list(range(1, 23))}}}" for key in ("max_lr", "beta_weight", "dec_scale"))
    with pytest.raises(InputError, match="the grid has more than 10000 points; write fewer values, or sampler: random"):
        space(many).points()


def test_overrides_read_back_exactly(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("dataset: digits\nmodel: BasicCNN\n")
    point: Point = {
        "max_lr": 0.1 + 0.2,
        "low_lr": 1e-07,
        "cyc_size": 7,
        "reflection": True,
        "heterogeneous": "R8-4-2",
        "ratio": [8, 2, 1],
        "network.width": None,
        "optimizer.clip_norm": 1e14 / 3,
        "objective.tap_weights": {"block1": 0.5},
        "data.root": "true",
        "data.name": "1e3",
        "run.root": "where = 'here', Küche",
    }
    settings = flat(load(base, overrides(point)))
    assert {key: settings[key] for key in point} == point | {"ratio": (8, 2, 1)}
    assert "heterogeneous=R8-4-2" in overrides(point)  # as a person would type it


def test_drawn_points_read_back_exactly(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("dataset: digits\nmodel: BasicCNN\n")
    found = space("beta_weight: {loguniform: [1e-9, 1e9]}")
    drawn = [found.drawn(0, number) for number in range(20)]
    assert [load(base, overrides(point)).beta_weight for point in drawn] == [point["beta_weight"] for point in drawn]


def test_scientific_numbers_are_numbers_whoever_read_the_file(tmp_path: Path) -> None:
    text = "{max_lr: {uniform: [1e-3, 1e-2]}, low_lr: {choice: [1e-5, 1e-4]}}"
    (tmp_path / "x.yaml").write_text(f"space: {text}")
    ours = read_settings(tmp_path / "x.yaml", ())["space"].value
    assert yaml.safe_load(text) != ours  # PyYAML leaves text
    found = Space.read(ours, BASE, "x")
    assert found == Space.read(yaml.safe_load(text), BASE, "x")
    assert 1e-3 <= found.drawn(0, 0)["max_lr"] <= 1e-2
    assert found.drawn(0, 0)["low_lr"] in (1e-5, 1e-4)


def test_partners_may_be_searched_together() -> None:
    """low_lr alone would lie above the base's max_lr, and a cycle of 100 epochs alone above its tot_epochs."""
    found = space("max_lr: {uniform: [1, 2]}\nlow_lr: {uniform: [0.5, 1]}\ncyc_size: {randint: [80, 100]}")
    assert len(found.axes) == 3


def test_optuna_has_the_same_points() -> None:
    from optuna.trial import create_trial

    found = space("""
        beta_weight: {loguniform: [0.01, 10], when: {heterogeneous: false}}
        heterogeneous: {choice: [false, R8-4-2-1]}
        ratio: {choice: [null, [8, 2, 1], [1, 1]]}
        max_lr: {uniform: [0.001, 0.01]}
        cyc_size: {randint: [5, 20]}
        tot_epochs: {lograndint: [20, 80]}
        batch_size: {quniform: [16, 64, 16]}
        objective: {warmup_epochs: {quniform: [0.1, 1.3, 0.1]}}
    """)
    for point in [found.drawn(0, number) for number in range(100)]:
        params, distributions = found.as_trial(point)
        trial = create_trial(value=0.0, params=params, distributions=distributions)
        assert identity(found.suggested(trial)) == identity(point)  # type: ignore[arg-type]  # it has suggest_…() too


def test_each_axis_is_told_in_a_line() -> None:
    text = """
        beta_weight: {loguniform: [0.01, 10], when: {heterogeneous: false, batch_size: [16, 32]}}
        heterogeneous: {choice: [false, R8-4-2-1]}
        max_lr: {uniform: [0.001, 0.01]}
        cyc_size: {randint: [5, 20]}
        tot_epochs: {lograndint: [20, 80]}
        batch_size: {quniform: [16, 64, 16]}
        optimizer: {clip_norm: {quniform: [0.5, 2.5, 1.0]}}
    """
    assert space(text).described() == [
        "heterogeneous: false, R8-4-2-1",
        "batch_size: 16 … 64 in steps of 16",
        "beta_weight: 0.01 … 10, log-uniform; where heterogeneous is false and batch_size is 16 or 32",
        "max_lr: 0.001 … 0.01, uniform",
        "cyc_size: 5 … 20, whole numbers, uniform",
        "tot_epochs: 20 … 80, whole numbers, log-uniform",
        "optimizer.clip_norm: 0.5 … 2.5 in steps of 1",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{}", "names no setting to search; write one below it, as in beta_weight: {loguniform: [0.01, 10]}"),
        ("[max_lr]", "names no setting to search"),
        ("beta_wieght: {uniform: [0, 1]}", "beta_wieght: unknown setting; did you mean beta_weight?"),
        ("optimizer: {clipnorm: {uniform: [1, 2]}}", "optimizer.clipnorm: unknown setting; did you mean optimizer"),
        ("optimizer: 3", "optimizer: is a section; write its settings below it, indented"),
        ("{optimizer.name: {choice: [adam]}, optimizer: {name: {choice: [adamw]}}}", "optimizer.name: is given twice"),
        ("save_dir: {choice: [a]}", "save_dir: is not searched: the sweep gives each trial a folder of its own"),
        ("run: {root: {choice: [a]}}", "run.root: is not searched: the sweep gives each trial a folder"),
        ("run: {seed: {randint: [0, 9]}}", "run.seed: is not searched: the best seed is only luck; write seeds:"),
        ("run: {test: {choice: [true]}}", "run.test: is not searched: the test images are not there to choose"),
        ("training: {choice: [true]}", "training: is not searched: a trial trains; remove it"),
        ("launch: {nodes: {randint: [1, 2]}}", "launch.nodes: is not searched: it says how a run is started"),
        ("max_lr: 0.1", "max_lr: is no range and no list of values; write it as in beta_weight: {loguniform"),
        ("max_lr: {}", "max_lr: needs one distribution, and has none"),
        ("max_lr: {uniform: [1, 2], choice: [1]}", "max_lr: needs one distribution, and has uniform and choice"),
        ("max_lr: {unifrom: [1, 2]}", "max_lr: unifrom is no distribution; write one of choice, uniform, loguniform, "
            "randint, lograndint, quniform; did you mean uniform?"),
        ("max_lr: {uniform: [1]}", "max_lr: uniform: [1] is not 2 numbers; write uniform: [low, high]"),
        ("max_lr: {uniform: 1}", "max_lr: uniform: 1 is not 2 numbers"),
        ("max_lr: {uniform: [1, two]}", 'max_lr: uniform: [1, "two"] is not 2 numbers'),
        ("max_lr: {uniform: [false, true]}", "max_lr: uniform: [false, true] is not 2 numbers"),
        ("max_lr: {quniform: [1, 2]}", "max_lr: quniform: [1, 2] is not 3 numbers; write quniform: [low, high, step]"),
        ("cyc_size: {randint: [5, 7.5]}", "cyc_size: randint: [5, 7.5] is not 2 whole numbers; write randint: "
            "[low, high] (both ends included)"),
        ("max_lr: {uniform: [1, .inf]}", "max_lr: uniform: [1, Infinity] is out of reach; write finite numbers"),
        ("max_lr: {uniform: [.nan, 1]}", "max_lr: uniform: [NaN, 1] is out of reach"),
        ("max_lr: {uniform: [2, 1]}", "max_lr: uniform: [2, 1] is an empty range; write the smaller end first"),
        ("max_lr: {uniform: [2, 2]}", "max_lr: uniform: [2, 2] is an empty range; write choice: [2], or a larger high"),
        ("beta_weight: {loguniform: [0, 1]}", "loguniform: a logarithmic range cannot reach 0; write a low above 0"),
        ("data: {workers: {lograndint: [0, 8]}}", "lograndint: a logarithmic range cannot reach 0"),
        ("cyc_size: {uniform: [5, 20]}", "cyc_size: 5.0 is not allowed; write a whole number ≥ 1 (uniform draws "
            "fractions; for whole numbers write randint)"),
        ("cyc_size: {loguniform: [5, 20]}", "for whole numbers write lograndint)"),
        ("cyc_size: {quniform: [5, 20, 2.5]}", "cyc_size: 5.0 is not allowed; write a whole number ≥ 1"),
        ("batch_size: {quniform: [16, 70, 16]}", "batch_size: quniform: from 16, steps of 16 do not meet 70; write a "
            "high of 64 or 80, or another step"),
        ("batch_size: {quniform: [16, 20, 16]}", "write a high of 32, or another step"),
        ("max_lr: {quniform: [1, 2, 0]}", "max_lr: quniform: the step 0 does not lead to 2; write a larger one"),
        ("beta_weight: {uniform: [-1, 1]}", "beta_weight: -1 is not allowed; write a number ≥ 0"),
        ("objective: {second_views: {uniform: [0.5, 2]}}", "second_views: 1.25 is not allowed; write a share > 0"),
        ("objective: {second_views: {quniform: [0.5, 2, 0.5]}}", "second_views: 1.5 is not allowed; write a share"),
        ("cyc_size: {randint: [0, 5]}", "cyc_size: 0 is not allowed; write a whole number ≥ 1"),
        ("heterogeneous: {uniform: [0, 1]}", "heterogeneous: 0 is not allowed; write true or false or R8-4-2-1"),
        ("heterogeneous: {choice: [R8-4]}", "heterogeneous: 'R8-4' is not allowed; write true or false or R8-4-2-1"),
        ("model: {choice: [vgg]}", "model: 'vgg' is not allowed; write BasicCNN, Resnet18, VGG, torchvision/NAME"),
        ("model: {choice: [vgg]}", "did you mean VGG?"),
        ("mode: {choice: [S4]}", "mode: 'S4' is no group; write R4, R8 or R<N> with N ≥ 2"),
        ("max_lr: {choice: [.inf]}", "max_lr: Infinity is not allowed; write a number > 0"),
        ("max_lr: {choice: []}", "max_lr: choice: [] is no list of values; write choice: [VALUE, VALUE]"),
        ("max_lr: {choice: 0.1}", "max_lr: choice: 0.1 is no list of values"),
        ("max_lr: {choice: [1, 2, 1.0]}", "max_lr: choice: 1.0 stands there twice; remove one"),
        ("max_lr: {choice: [1], when: []}", "max_lr: when: is no condition; write when: {KEY: VALUE}"),
        ("max_lr: {choice: [1], when: {}}", "max_lr: when: is no condition"),
        ("max_lr: {choice: [1], when: {heterogenous: false}}", "max_lr: when: heterogenous: unknown setting; did you"),
        ("max_lr: {choice: [1], when: {mode: []}}", "max_lr: when: mode: is an empty list; write the values"),
        ("max_lr: {choice: [1], when: {model: vgg}}", "max_lr: when: model: 'vgg' is not allowed; write BasicCNN"),
        ("max_lr: {choice: [1], when: {model: [VGG, vgg]}}", "max_lr: when: model: 'vgg' is not allowed"),
        ("max_lr: {choice: [1], when: {model: VGG}}", "max_lr: when: model is BasicCNN in all trials, so that max_lr "
            "is never set; write that value, or search model too"),
        ("{max_lr: {choice: [1], when: {model: VGG}}, model: {choice: [BasicCNN, Resnet18]}}",
            "max_lr: when: model is never exactly VGG (BasicCNN, Resnet18); write a value that it can have"),
        ("{max_lr: {choice: [1], when: {beta_weight: 0.5}}, beta_weight: {uniform: [0, 1]}}",
            "max_lr: when: beta_weight is never exactly 0.5 (0 … 1, uniform)"),
        ("{max_lr: {choice: [1], when: {batch_size: 20}}, batch_size: {quniform: [16, 64, 16]}}",
            "max_lr: when: batch_size is never exactly 20 (16 … 64 in steps of 16)"),
        ("{max_lr: {choice: [1], when: {mode: R4}}, heterogeneous: {choice: [false, R8-4-2]}}",
            "max_lr: when: mode follows from heterogeneous, which is searched; write that as the condition"),
        ("{max_lr: {choice: [1], when: {dec_scale: 1}}, dec_scale: {choice: [1], when: {max_lr: 1}}}",
            "when: goes in a circle (max_lr → dec_scale → max_lr); remove one of these conditions"),
        ("{max_lr: {choice: [1], when: {max_lr: 1}}}", "when: goes in a circle (max_lr → max_lr)"),
        ("{model: {choice: [VGG, BasicCNN]}, dec_scale: {choice: [1, 2], when: {model: VGG}}, "
            "max_lr: {choice: [1], when: {dec_scale: 2, model: BasicCNN}}}",
            "max_lr: when: is never set, because dec_scale is set only where model is VGG; write a condition that can"),
        ("{model: {choice: [VGG, BasicCNN, Resnet18]}, dec_scale: {choice: [1], when: {model: [VGG, BasicCNN]}}, "
            "max_lr: {choice: [1], when: {dec_scale: 1, model: [BasicCNN, Resnet18]}}, "
            "low_lr: {choice: [1], when: {max_lr: 1, model: VGG}}}",
            "low_lr: when: is never set, because max_lr is set only where model is BasicCNN; write"),
        ("{max_lr: {choice: [1], when: {network.width: null}}, network: {width: {randint: [8, 16]}}}",
            "max_lr: when: network.width is never exactly null (8 … 16, whole numbers, uniform)"),
    ],
)  # fmt: skip
def test_what_no_trial_could_have_is_told_in_one_line(text: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        space(text)
    told = str(caught.value)
    assert told.startswith("x.yaml: space: ")
    assert line in told
    assert "\n" not in told
