"""Which trial won is a matter of definition; these tests state it, and that nothing is lost on the way to a file."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import launch.search
from launch.search import results
from launch.search.outcome import Outcome
from launch.search.results import Goals, best, pareto, rank_correlation, ranked, spearman
from tests.launch.search.outcomes import trial

BOTH: Goals = {"accuracy": "max", "error": "min"}
FRONT = [(0.99, 0.5), (0.98, 0.1), (0.90, 0.05)]
BEHIND = [(0.98, 0.2), (0.97, 0.1), (0.89, 0.05), (0.5, 0.9)]


def measured(*pairs: tuple[float, float], **given: Any) -> list[Outcome]:
    return [trial(number, {"accuracy": a, "error": e}, **given) for number, (a, e) in enumerate(pairs)]


def numbers(trials: list[Outcome]) -> list[int]:
    return [one.number for one in trials]


def write(folder: Path, outcomes: list[Outcome], goals: Goals = BOTH, epochs: int = 2) -> str:
    return results.write(folder, "s", outcomes, goals, lambda one: f"n: {one.number}\n", "launch it", epochs)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file, strict=True))


def stored(folder: Path) -> Any:
    """The JSON as a strict reader has it: NaN and Infinity are no JSON (RFC 8259, section 6)."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)


# --- who won


def test_the_front_of_a_set_made_by_hand() -> None:
    outcomes = measured(*BEHIND, *FRONT)
    assert numbers(pareto(outcomes, BOTH)) == [4, 5, 6]


def test_equal_trials_stay_together_on_the_front() -> None:
    assert numbers(pareto(measured((0.9, 0.1), (0.9, 0.1), (0.9, 0.2), (0.8, 0.1)), BOTH)) == [0, 1]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_trial_is_on_the_front_or_behind_one_that_is(count: int) -> None:
    draw = random.Random(count)
    goals: Goals = dict(list({"a": "max", "b": "min", "c": "max"}.items())[:count])  # type: ignore[arg-type]
    for size in range(25):
        outcomes = [trial(number, {name: float(draw.randint(0, 4)) for name in "abc"}) for number in range(size)]
        signed = [
            [one.metrics[name] * (1 if goal == "max" else -1) for name, goal in goals.items()] for one in outcomes
        ]
        undominated = [
            number
            for number, mine in enumerate(signed)
            if not any(
                all(a >= b for a, b in zip(its, mine, strict=True))
                and any(a > b for a, b in zip(its, mine, strict=True))
                for its in signed
            )
        ]
        assert sorted(numbers(pareto(outcomes, goals))) == undominated
        draw.shuffle(outcomes)
        assert sorted(numbers(pareto(outcomes, goals))) == undominated


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("goal", ["max", "min"])
def test_what_is_not_finite_never_wins(value: float | None, goal: Any) -> None:
    broken = trial(0, {} if value is None else {"loss": value}, curve=[{} if value is None else {"loss": value}])
    outcomes = [broken, trial(1, {"loss": 5.0})]
    assert numbers(pareto(outcomes, {"loss": goal})) == [1]
    assert best([broken], {"loss": goal}) is None
    assert numbers(ranked(outcomes, {"loss": goal})) == [1, 0]


@pytest.mark.parametrize("state", ["stopped", "failed", "unfinished"])
def test_only_a_finished_trial_wins(state: str) -> None:
    outcomes = [trial(0, {"accuracy": 1.0, "error": 0.0}, state=state), trial(1, {"accuracy": 0.5, "error": 0.5})]
    assert best(outcomes, BOTH) is outcomes[1]
    assert pareto(outcomes, BOTH) == outcomes[1:]
    assert best(outcomes[:1], BOTH) is None
    assert pareto(outcomes[:1], BOTH) == []


def test_for_one_goal_the_best_is_the_largest_or_the_smallest() -> None:
    outcomes = measured((0.9, 0.1), (0.99, 0.5), (0.99, 0.6), (0.1, 0.01))
    assert best(outcomes, {"accuracy": "max"}) is outcomes[1], "of equal ones the first that was tried"
    assert numbers(pareto(outcomes, {"accuracy": "max"})) == [1, 2]
    assert best(outcomes, {"error": "min"}) is outcomes[3]
    assert best(outcomes, {"accuracy": "min"}) is outcomes[3]


def test_for_two_goals_the_best_is_the_knee_in_any_unit() -> None:
    outcomes = measured(*BEHIND, *FRONT)
    assert best(outcomes, BOTH) is outcomes[5]
    for unit in (1e-6, 1.0, 1e6):
        scaled = measured(*((a, unit * e) for a, e in (*BEHIND, *FRONT)))
        found = best(scaled, BOTH)
        assert found is not None
        assert found.number == 5


def test_of_two_ends_the_first_goal_decides() -> None:
    assert best(ends := measured((0.8, 0.1), (0.9, 0.2)), BOTH) is ends[1]
    assert best(ends, dict(reversed(BOTH.items()))) is ends[0]


def test_a_front_that_is_flat_in_one_goal_has_a_best_trial() -> None:
    assert best(flat := measured((0.9, 0.2), (0.9, 0.2)), BOTH) is flat[0]


def test_in_the_order_finished_stopped_unfinished_failed() -> None:
    states = ["failed", "stopped", "finished", "unfinished", "stopped", "finished"]
    values = [0.99, 0.2, 0.5, 0.8, 0.9, 0.6]
    curves = [[{"accuracy": value}] * length for value, length in zip(values, (2, 3, 4, 1, 1, 4), strict=True)]
    outcomes = [trial(n, state=state, curve=curve) for n, (state, curve) in enumerate(zip(states, curves, strict=True))]
    assert numbers(ranked(outcomes, {"accuracy": "max"})) == [5, 2, 1, 4, 3, 0]


# --- would early epochs have told?


@pytest.mark.parametrize(
    ("a", "b", "known"),
    [
        # https://en.wikipedia.org/wiki/Spearman%27s_rank_correlation_coefficient#Example
        ([106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17], -29 / 165),
        # https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.spearmanr.html, with a tie
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233),
        ([1, 1, 2, 2], [1, 2, 1, 2], 0.0),
        ([1, 2, 3], [10, 100, 1000], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 1, 1], [1, 2, 3], None),
        ([1], [1], None),
        ([], [], None),
    ],
)
def test_spearman_has_its_known_values(a: list[float], b: list[float], known: float | None) -> None:
    assert spearman(a, b) == (known if known is None else pytest.approx(known, abs=1e-12))
    assert spearman(b, a) == (known if known is None else pytest.approx(known, abs=1e-12))


@pytest.mark.parametrize(("goal", "sign"), [("max", 1), ("min", -1)])
def test_the_ranks_of_early_epochs_are_compared_with_the_last_ones(goal: Any, sign: int) -> None:
    curves = [(4, 1, 4), (3, 2, 3), (2, 3, 2), (1, 4, 1)]  # right at epoch 1, upside down at epoch 2
    outcomes = [trial(n, curve=[{"m": sign * float(value)} for value in curve]) for n, curve in enumerate(curves)]
    outcomes.append(trial(4, state="stopped", curve=[{"m": sign * 99.0}]))
    lines = rank_correlation(outcomes, {"m": goal})
    assert lines is not None
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["trials"] for line in lines] == [4, 4, 4]
    assert [line["spearman"] for line in lines] == pytest.approx([1, -1, 1])
    assert [line["best_in_upper_half"] for line in lines] == [True, False, True]
    assert rank_correlation(outcomes[1:], {"m": goal}) is None, "three finished trials say nothing"


@pytest.mark.parametrize(("before", "upper"), [(0, True), (1, True), (2, False), (3, False)])
def test_the_upper_half_of_four_are_two(before: int, upper: bool) -> None:
    early = [2.5, *(3.0 if n < before else 1.0 for n in range(3))]
    outcomes = [trial(n, curve=[{"m": value}, {"m": -float(n)}]) for n, value in enumerate(early)]
    lines = rank_correlation(outcomes, {"m": "max"})
    assert lines is not None
    assert lines[0]["best_in_upper_half"] is upper


def test_an_epoch_that_a_trial_did_not_measure_is_ranked_without_it() -> None:
    outcomes = [trial(n, curve=[{"m": float(n)}, {"m": float(n)}]) for n in range(5)]
    outcomes[4].curve[0]["m"] = math.nan
    lines = rank_correlation(outcomes, {"m": "max"})
    assert lines is not None
    assert (lines[0]["trials"], lines[0]["spearman"], lines[0]["best_in_upper_half"]) == (4, pytest.approx(1), False)


# --- the files


def test_the_csv_gives_back_what_was_put_in(tmp_path: Path) -> None:
    cause = 'ValueError: "a", b;\r\nthen\n=c, ü €'
    seeds = (Path("r/x, y/000/seed-0"), Path("r/x, y/000/seed-1"))
    metrics = {"accuracy": 0.1 + 0.2, "error": math.inf, "equivariance/block2": 1e-9}
    write(
        tmp_path,
        [
            trial(1, state="failed", cause=cause, settings={"heterogeneous": False, "ratio": [8, 2, 1]}),
            trial(0, metrics, settings={"heterogeneous": "R8-4", "cyc": None}, spread={"error": 0.5}, folders=seeds),
        ],
    )
    first, second = rows(tmp_path)
    assert list(first) == [
        *("number", "state", "heterogeneous", "ratio", "cyc", "epoch", "accuracy", "error", "equivariance/block2"),
        *("error_std", "seconds", "epochs_trained", "cause", "folders"),
    ]
    assert (first["number"], first["state"], first["epoch"], first["epochs_trained"]) == ("0", "finished", "2", "4")
    assert (float(first["accuracy"]), first["error"], float(first["error_std"])) == (0.1 + 0.2, "", 0.5)
    assert (first["heterogeneous"], first["cyc"], first["ratio"]) == ("R8-4", "null", "")
    assert first["folders"].split(";") == [str(path) for path in seeds]
    assert (second["heterogeneous"], second["ratio"], second["cyc"]) == ("false", "[8, 2, 1]", "")
    assert (second["cause"], second["accuracy"], second["epochs_trained"]) == (cause, "", "0")
    assert (tmp_path / "results.csv").read_bytes().endswith(b"\r\n"), "RFC 4180, section 2"


def test_half_a_character_at_the_end_of_a_cause_is_no_obstacle(tmp_path: Path) -> None:
    write(tmp_path, [trial(0, state="failed", cause=b"M\xc3".decode(errors="surrogateescape"))])
    assert rows(tmp_path)[0]["cause"] == "M?"
    assert stored(tmp_path)["counts"]["failed"] == 1


def test_the_json_has_everything_and_no_nan(tmp_path: Path) -> None:
    outcomes = measured(*BEHIND, *FRONT)
    curve = [{"accuracy": 0.2, "error": 1.0}, {"accuracy": math.nan, "error": -math.inf}]
    outcomes.append(trial(7, state="failed", curve=curve, cause="diverged", folders=(Path("a"), Path("b"), Path("c"))))
    outcomes.append(trial(8, state="stopped", curve=curve[:1], spread={"error": math.nan}, seconds=1.5))
    write(tmp_path, outcomes, epochs=2)
    content = stored(tmp_path)
    assert (content["name"], content["goals"], content["command"]) == ("s", BOTH, "launch it")
    assert content["counts"] == {"finished": 7, "stopped": 1, "unfinished": 0, "failed": 1}
    assert content["best"]["number"] == 5
    assert content["best"]["metrics"] == {"accuracy": 0.98, "error": 0.1}
    assert [one["number"] for one in content["front"]] == [4, 5, 6]
    assert content["epochs"] == {"trained": 14 + 6 + 1, "of_running_all": 14 + 6 + 2}
    assert len(content["rank_correlation"]) == 2
    assert [one["number"] for one in content["trials"]] == list(range(9))
    failed, stopped = content["trials"][7:]
    assert failed["curve"] == [{"accuracy": 0.2, "error": 1.0}, {"accuracy": None, "error": None}]
    assert (failed["cause"], failed["folders"], failed["epochs_trained"]) == ("diverged", ["a", "b", "c"], 6)
    assert (stopped["spread"], stopped["seconds"]) == ({"error": None}, 1.5)


def test_best_yaml_is_the_winner_s_and_the_command_stands_below(tmp_path: Path) -> None:
    text = write(tmp_path, measured(*BEHIND, *FRONT))
    assert (tmp_path / "best.yaml").read_text() == "n: 5\n"
    assert "the best run again: launch it\n" in text
    assert f"{tmp_path}: results.csv, results.json, best.yaml" in text
    assert "s: 7 trials (7 finished); 14 of 14 epochs trained" in text


def test_without_a_winner_there_is_no_best_yaml_either_of_old(tmp_path: Path) -> None:
    write(tmp_path, measured((0.9, 0.1)))
    text = write(tmp_path, measured((0.9, 0.1), state="failed", cause="out of memory"))
    assert "no trial finished: there is no best.yaml" in text
    assert "out of memory" in text
    assert "launch it" not in text
    assert not (tmp_path / "best.yaml").exists()
    assert (stored(tmp_path)["best"], stored(tmp_path)["front"], stored(tmp_path)["command"]) == (None, [], None)


def test_a_sweep_without_a_trial_says_so(tmp_path: Path) -> None:
    text = write(tmp_path, [])
    assert text.startswith("s: 0 trials; 0 of 0 epochs trained\nno trial has started\n")
    assert rows(tmp_path) == []
    assert (stored(tmp_path)["trials"], stored(tmp_path)["rank_correlation"]) == ([], None)


def test_a_sweep_of_one_trial_says_so(tmp_path: Path) -> None:
    text = write(tmp_path, measured((0.9, 0.1)))
    assert text.startswith("s: 1 trial (1 finished)")
    assert "Pareto front: 1 trial " in text
    assert "Pareto" not in write(tmp_path, measured((0.9, 0.1)), {"accuracy": "max"})


@pytest.mark.parametrize("file", ["results.csv", "results.json", "best.yaml"])
def test_interrupted_it_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    write(tmp_path, measured((0.9, 0.1)))
    before = (tmp_path / file).read_bytes()
    fsync, left = os.fsync, [("results.csv", "results.json", "best.yaml").index(file)]

    def interrupted(descriptor: int) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, measured((0.1, 0.9), (0.9, 0.1)))
    assert (tmp_path / file).read_bytes() == before


# --- the pictures may be missing, the rest may not


def test_without_matplotlib_there_is_a_note_in_place_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "launch.search.plots", raising=False)
    monkeypatch.delattr(launch.search, "plots", raising=False)
    text = write(tmp_path, measured(*FRONT))
    assert "no pictures (" in text.splitlines()[-1]
    assert "pip install 'ien[tune]'" in text.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.yaml", "results.csv", "results.json"]


def test_a_picture_that_cannot_be_drawn_costs_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plots = pytest.importorskip("launch.search.plots")
    monkeypatch.setattr(plots, "draw", lambda *_: 1 / 0)
    text = write(tmp_path, measured(*FRONT))
    assert text.endswith("no pictures (ZeroDivisionError: division by zero)")
    assert "the best run again" in text


def test_a_login_node_imports_nothing_heavy() -> None:
    heavy = ["matplotlib", "torch", "ray", "submitit"]
    code = f"import sys, launch.search.results; print([name for name in {heavy} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[]"
