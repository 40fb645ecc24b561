"""The settings of `symmetry`, and `objective.elements`, in real runs on a few digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ien import build, checkpoint, config, train
from ien.errors import InputError
from ien.groups import Group
from tests.runs_compared import assert_equal_runs, lines

# 8 steps of 128 digits
SMALL = """
dataset: digits
model: BasicCNN
network: {width: 8}
tot_epochs: 1
cyc_size: 1
batch_size: 128
max_lr: 0.01
beta_weight: 0
run: {log_every: 2, equivariance_images: 32, device: cpu}
"""


def settings(folder: Path, *overrides: str) -> config.Config:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return config.load(path, [f"run.root={folder}", "save_dir=run", *overrides])


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return train.run(settings(folder, *overrides))


def exact_errors(result: dict[str, Any]) -> list[float]:
    by_tap = result["relative_equivariance_error_by_element"].values()
    return [tap[element]["error"] for tap in by_tap for element in ("90°", "180°", "270°")]


def test_a_tied_run_is_exact_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """R8: exact for quarter turns, trained with second views at odd multiples of 45°; stopped after an epoch."""
    words = ["mode=R8", "symmetry.tied=true", "objective.elements=resampled", "optimizer.clip_norm=1.0"]
    result = run(tmp_path / "whole", *words, "tot_epochs=2")
    assert result["weight_distance"] == 0
    assert max(exact_errors(result)) < 1e-5
    assert result["relative_equivariance_error_by_element"]["block5"]["45°"]["error"] > 1e-2

    def gone(record: dict[str, Any]) -> None:
        raise ConnectionError("the machine is gone")

    (tmp_path / "stopped").mkdir()
    wanted = settings(tmp_path / "stopped", *words, "tot_epochs=2")
    with pytest.raises(ConnectionError):
        train.run(wanted, report=gone)
    train.run(wanted)
    assert_equal_runs(tmp_path / "whole" / "run", tmp_path / "stopped" / "run")


def test_adam_of_a_tied_run_has_symmetric_moments(tmp_path: Path) -> None:
    """The gradients are projected, not the weights alone."""
    run(tmp_path, "symmetry.tied=true", "objective.augment=none")
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / checkpoint.LAST)
    moments = state["engine"]["optimizer"]["state"][0]["exp_avg_sq"]  # of a kernel (8, 1, 7, 7) that sees the image
    turned = moments.rot90(1, (-2, -1)).unflatten(0, (2, 4)).roll(1, dims=1).flatten(0, 1)
    assert (moments[0] - moments[1]).abs().max() > 1e-3 * moments.max()
    assert (turned - moments).abs().max() < 1e-5 * moments.max()


def test_an_equivariant_start_is_left_freely(tmp_path: Path) -> None:
    result = run(tmp_path, "symmetry.start=equivariant", "objective.augment=none")
    assert max(result["relative_equivariance_error_before"].values()) < 1e-5
    assert result["weight_distance"] > 1e-3
    assert min(exact_errors(result)) > 1e-3


def test_the_penalty_has_its_own_name_and_draws_weights_together(tmp_path: Path) -> None:
    results = {
        weight: run(tmp_path / weight, "objective.augment=none", f"symmetry.weight_penalty={weight}")
        for weight in ("1e-9", "100")
    }
    assert results["100"]["weight_distance"] < 0.8 * results["1e-9"]["weight_distance"]
    for record in lines(tmp_path / "100" / "run"):
        assert ("asymmetry" in record) == (record["split"] == "train")
        assert 0 < record.get("asymmetry", 1) < 12


def test_a_run_without_symmetry_says_nothing_of_it(tmp_path: Path) -> None:
    assert "weight_distance" not in run(tmp_path, "objective.augment=none")
    assert not any("asymmetry" in record for record in lines(tmp_path / "run"))


def test_second_views_take_the_elements_that_are_asked_for(tmp_path: Path) -> None:
    """In training alone: the 2×2 maps of block6 cannot be compared at 45°; held-out images are seen under all."""
    run(tmp_path, "mode=R8", "objective.elements=resampled")
    by_split = {record["split"]: record["equi_loss"] for record in lines(tmp_path / "run")}
    assert by_split["train"]["block6"] == 0 < by_split["train"]["block5"]
    assert by_split["val"]["block6"] > 0


def test_the_elements_that_are_asked_for(tmp_path: Path) -> None:
    group = Group(8, reflection=True)
    taken = {
        kind: build.moves_of_second_views(settings(tmp_path, f"objective.elements={kind}"), group)
        for kind in ("all", "exact", "resampled")
    }
    assert taken["all"] == group.moves == taken["exact"] + taken["resampled"]
    assert [str(move) for move in taken["exact"][:3]] == ["90°", "180°", "270°"]
    assert (len(taken["exact"]), len(taken["resampled"])) == (7, 8)
    with pytest.raises(InputError, match=r"C4 has no resampled elements; write objective\.elements=all"):
        build.moves_of_second_views(settings(tmp_path, "objective.elements=resampled"), Group(4))
    with pytest.raises(InputError, match=r"4 views .* the 3 elements .*\(90°, 180°, 270°\); write 3 for all"):
        build.moves_of_second_views(settings(tmp_path, "objective.second_views=4"), Group(4))
    with pytest.raises(InputError, match=r"second_views: 1.5 .* write a share > 0 and ≤ 1, or a whole number"):
        settings(tmp_path, "objective.second_views=1.5")


def test_weights_may_know_a_smaller_group_than_second_views_take(tmp_path: Path) -> None:
    """Filter groups of four, turned by R4, in a run of R8: else they would be blind to half turns."""
    result = run(
        tmp_path,
        "mode=R8",
        "mplc_kernel_size=4",
        "symmetry.mode=R4",
        "symmetry.tied=true",
        "objective.augment=none",
    )
    assert max(exact_errors(result)) < 1e-5
    weights = checkpoint.load(tmp_path / "run" / "checkpoints" / checkpoint.LAST)["model"]["block1.0.weight"]
    assert not weights[0].allclose(weights[0].rot90(2, (-2, -1)), atol=1e-3)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["weight_distance"] == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["symmetry.tied=true", "symmetry.weight_penalty=1"], "weight_penalty.*tied weights are equivariant; write 0"),
        (["symmetry.mode=4"], "symmetry.mode"),
        (["symmetry.start=tied"], "symmetry.start.*free.*equivariant"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        settings(tmp_path, *overrides)


def test_a_group_without_exact_elements_has_nothing_to_tie(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="R3 without reflection has no element that is exact on the pixel grid"):
        run(tmp_path, "mode=R3", "network.width=6", "symmetry.tied=true")
