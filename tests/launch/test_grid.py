"""`--seeds` and `--grid` mean the runs that a person reads into them."""

from __future__ import annotations

import pytest

from ien.errors import InputError
from launch.grid import overrides


def test_without_either_there_is_one_run() -> None:
    assert overrides(None, [], "a") == [[]]


def test_each_pair_has_a_folder_of_its_own() -> None:
    runs = overrides("0-1", ["beta_weight=0,0.1,1"], "a/b")
    assert len(runs) == 6
    assert runs[0] == ["beta_weight=0", "run.seed=0", "save_dir=a/b/beta_weight_0-seed_0"]
    assert runs[-1] == ["beta_weight=1", "run.seed=1", "save_dir=a/b/beta_weight_1-seed_1"]
    assert len({run[-1] for run in runs}) == 6


def test_seeds_are_numbers_and_ranges() -> None:
    assert [run[0] for run in overrides("7,0-2,1", [], "a")] == [f"run.seed={n}" for n in (0, 1, 2, 7)]


def test_lists_are_values() -> None:
    runs = overrides(None, ["ratio=[8,2,1],[4,2,1]"], "a")
    assert [run[0] for run in runs] == ["ratio=[8,2,1]", "ratio=[4,2,1]"]
    assert runs[0][1] == "save_dir=a/ratio_-8-2-1"


@pytest.mark.parametrize(
    ("seeds", "grid", "line"),
    [
        ("4-0", [], "--seeds 4-0: write numbers and ranges"),
        ("one", [], "--seeds one: write numbers"),
        ("0-99999", [], "--seeds 0-99999: write"),
        (None, ["beta_weight"], "--grid beta_weight: write KEY=VALUE,VALUE"),
        (None, ["beta_weight=0,,1"], "write KEY=VALUE"),
        (None, ["beta_weight=0,0"], "a value stands there twice"),
        (None, ["save_dir=a,b"], "save_dir says where a run lies"),
        (None, ["launch.nodes=1,2"], "launch.nodes says where"),
        ("0-1", ["run.seed=1,2"], "run.seed is given twice"),
        ("0-999", ["beta_weight=" + ",".join(map(str, range(11)))], "these are 11000 runs"),
    ],
)
def test_what_cannot_be_read_is_told(seeds: str | None, grid: list[str], line: str) -> None:
    with pytest.raises(InputError, match=line):
        overrides(seeds, grid, "a")
