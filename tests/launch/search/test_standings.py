"""A person reads the end of a sweep in a terminal of 100 columns."""

from __future__ import annotations

import math

import pytest

from launch.search import standings
from launch.search.outcome import Outcome
from launch.search.results import Goals, ranked
from tests.launch.search.outcomes import trial

BOTH: Goals = {"val_accuracy": "max", "equivariance_error": "min"}


def many(count: int, settings: int) -> list[Outcome]:
    keys = [
        "beta_weight",
        "objective.max_lr",
        "heterogeneous",
        "cyc_size",
        "low_lr",
        "dec_scale",
        "a_quite_long_name_x",
    ]
    values = [0.123456789, 1.23456789e-5, "R8-4-2-1", 10, 1e-10, 1234567.0, "a value of no practical brevity at all"]
    point = dict(list(zip(keys, values, strict=True))[:settings])
    ends = {"val_accuracy": 0.987654321, "equivariance_error": 0.000123456789}
    return [trial(n, ends, settings=point, spread={"val_accuracy": 0.00123}) for n in range(count)]


@pytest.mark.parametrize("settings", range(8))
@pytest.mark.parametrize("failed", [False, True])
def test_no_line_is_longer_than_100_columns(settings: int, failed: bool) -> None:
    outcomes = many(3, settings)
    if failed:
        outcomes.append(trial(3, state="failed", settings=outcomes[0].settings, cause="CUDA out of memory " * 20))
    for text in (standings.trials(outcomes, BOTH, outcomes[0]), standings.front(outcomes, BOTH, outcomes[0])):
        assert max(map(len, text.splitlines())) <= 100
    if failed:
        assert "  CUDA out of memory" in standings.trials(outcomes, BOTH, None), "a cause keeps its room"


def test_numbers_are_shortened_to_their_first_digits_and_never_cut() -> None:
    for settings in (2, 5, 7):
        text = standings.trials(outcomes := many(1, settings), BOTH, outcomes[0])
        assert "0.9877 ±0.0012" in text
        assert "1.235e-5" in text or "1.23e-5" in text
    assert "R8-4-2-1" in text, "short text has room"
    assert "…" in text


def test_settings_without_room_are_named() -> None:
    outcomes = [trial(0, {"val_accuracy": 0.5}, settings={f"section.setting_{n}": 0.123456 for n in range(20)})]
    text = standings.trials(outcomes, BOTH, None)
    shown = sum(word.startswith("sett") for word in text.splitlines()[1].split())
    assert shown > 3
    assert f"no room for section.setting_{shown}, " in text.splitlines()[-1]
    assert text.endswith("…: see results.csv")
    assert max(map(len, text.splitlines())) <= 100


def test_twenty_rows_and_the_count_of_the_rest() -> None:
    outcomes = many(23, 1)
    lines = standings.trials(outcomes, BOTH, outcomes[0]).splitlines()
    assert [line.split()[0] for line in lines[3:-1]] == [str(number) for number in range(20)]
    assert lines[-1] == "3 more in results.csv"
    assert "more in" not in standings.trials(outcomes[:20], BOTH, outcomes[0])


def test_the_best_is_marked_and_failures_come_last_with_their_cause_on_one_line() -> None:
    outcomes = [
        trial(0, state="failed", cause="ValueError: a\n  b\x1b[2J\tc"),
        trial(1, {"val_accuracy": 0.5, "equivariance_error": math.nan}),
        trial(2, {"val_accuracy": 0.75, "equivariance_error": 0.25}),
    ]
    lines = standings.trials(ranked(outcomes, BOTH), BOTH, outcomes[2]).splitlines()
    assert lines[0] == "by val_accuracy (max), then equivariance_error (min); * the best"
    assert lines[3].split() == ["2", "*", "finished", "2", "0.7500", "0.2500", "0.3"]
    assert "not finite" in lines[4]
    assert lines[5].startswith("0 ")
    assert lines[5].endswith("  ValueError: a b?[2J c")
    assert len(lines) == 6


def test_keys_are_known_by_their_last_word_unless_two_share_it() -> None:
    head = standings.trials(
        [trial(0, settings={"a.lr": 1, "b.lr": 2, "objective.mode": "R4"})], BOTH, None
    ).splitlines()[1]
    assert head.split()[-3:] == ["a.lr", "b.lr", "mode"]


def test_metrics_whose_names_begin_alike_keep_their_columns() -> None:
    names = [f"relative_equivariance_error/block{n}" for n in (1, 2)]
    text = standings.trials([trial(0, dict(zip(names, (0.25, 0.75), strict=True)))], dict.fromkeys(names, "min"), None)
    assert text.splitlines()[3].split()[3:5] == ["0.2500", "0.7500"]
