from __future__ import annotations

import statistics
from typing import Any

import pytest

from ien.report.comparison import compared, labels

IEN = {"beta_weight": 1.0, "mode": "R4", "run.seed": 0}


def run(label: str, accuracy: float, error: float | None = 0.5, verdict: str = "alive") -> dict[str, Any]:
    rows = [{"logit_error": value, "in_group": place < 2} for place, value in enumerate((0.0, 0.2, 0.9))]
    over_orbit = {
        "accuracy": accuracy,
        "lowest_accuracy": accuracy,
        "agreement_group": 1.0,
        "averaged_group": accuracy,
        "ece": 0.1,
    }
    taps = {"a": {"verdict": "alive", "mean_error": 0.1}, "b": {"verdict": verdict, "mean_error": error}}
    square = {"accuracy": accuracy, "over_orbit": over_orbit, "elements": rows}
    return {"name": f"{label} {accuracy}", "label": label, "square": square, "taps": taps}


def test_seeds_of_one_setting_have_one_label() -> None:
    assert labels([IEN, {**IEN, "run.seed": 7}]) == ["IEN, beta 1"] * 2


def test_baselines_are_called_by_what_they_are() -> None:
    augmented = {**IEN, "beta_weight": 0.0}
    assert labels([augmented, {**augmented, "objective.augment": "none"}]) == ["augmented", "plain"]


def test_whatever_else_differs_is_said() -> None:
    """A setting at its default is not among those that a report keeps."""
    assert labels([IEN, {**IEN, "network.width": 16, "mode": "R8"}]) == [
        "IEN, beta 1, mode=R4, network.width=default",
        "IEN, beta 1, mode=R8, network.width=16",
    ]


def test_mean_and_standard_deviation_over_seeds() -> None:
    several, alone = compared([run("a", 0.90), run("b", 0.5), run("a", 0.94), run("a", 0.95)])
    assert (several["label"], several["n"], alone["n"]) == ("a", 3, 1)
    assert several["figures"]["accuracy"]["mean"] == pytest.approx(0.93)
    assert several["figures"]["accuracy"]["std"] == pytest.approx(statistics.stdev([0.90, 0.94, 0.95]))
    assert alone["figures"]["accuracy"] == {"mean": 0.5, "std": None}


def test_collapsed_layers_make_no_mean_better() -> None:
    (row,) = compared([run("a", 0.9, error=0.0, verdict="collapsed")])
    assert row["figures"]["error of living layers"]["mean"] == pytest.approx(0.1)
    assert row["figures"]["collapsed layers"]["mean"] == 1
    (row,) = compared([run("a", 0.9, error=None)])
    assert row["figures"]["error of living layers"]["mean"] == pytest.approx(0.1)


def test_the_error_of_logits_is_over_the_groups_elements_alone() -> None:
    (row,) = compared([run("a", 0.9)])
    assert row["figures"]["error of logits"]["mean"] == pytest.approx(0.2)
