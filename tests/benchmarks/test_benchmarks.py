"""The benchmarks run, tell what they measured and what nobody did; the formulation that they beat is the same one."""

from __future__ import annotations

import json
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import page, per_image, time_to_accuracy, timing
from benchmarks.claims import CLAIMS
from ien.data.__main__ import main as prepare
from ien.groups import Group
from ien.models import BasicCNN
from ien.objective import EquivariantObjective, Views
from ien.pooling import ChannelMaxPool
from ien.taps import Tapped
from tests.data.inputs import write_mnist

CPU = torch.device("cpu")


@pytest.mark.slow
def test_every_row_can_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--smoke", "--device", "cpu", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        command.main(words)
    printed = capsys.readouterr()
    rows = {(row["claim"], row["row"]): row for row in page.read(tmp_path)}
    wanted = {(name, row.name) for name, claim in CLAIMS.items() for row in claim.rows}
    missing = wanted - rows.keys()
    elsewhere = {("per_image", f"{name}, its own code") for name in ("BasicCNN R4", "Resnet18 R8")}  # no clone here
    elsewhere |= {("settings", "BasicCNN, bf16, channels_last, CUDA graphs")}
    assert elsewhere <= missing <= {("steerable", "C4"), *elsewhere}
    assert printed.out.count("not measured | | |") == len(missing)
    for row in rows.values():
        assert row["smoke"]
        assert row["git"]
        assert row["packages"]["torch"] == torch.__version__.partition("+")[0]
        for side in row["sides"].values():
            assert 0 < side["ms"]["low"] <= side["ms"]["median"] <= side["ms"]["high"]
    step = rows["step", "BasicCNN R4"]
    of, over = (side["peak_mib"] for side in step["sides"].values())
    (ratio,) = step["ratio"].values()
    assert ratio["time"]["n"] == 2
    assert 0 < ratio["time"]["low"] <= ratio["time"]["median"] <= ratio["time"]["high"]
    assert ratio["memory"] == pytest.approx(of / over, rel=0.05)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    with pytest.raises(SystemExit):
        command.main(["step", "plain", *words])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == written


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["speed"], "'speed' is no claim; write one or several of step, per_image"),
        (["--smoke"], "--smoke: its figures mean nothing"),
        (["--repetitions", "2"], "--repetitions: 2 has no spread; write 3 or more"),
    ],
)
def test_bad_input_gets_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("group", [Group(4), Group(4, True)], ids=lambda group: group.name)
def test_the_formulation_by_images_minimises_the_same(group: Group) -> None:
    """For elements that are exact on the grid, where the published code and this project compare the same pixels."""
    torch.manual_seed(0)
    pool = ChannelMaxPool([group.order])
    tapped = Tapped(BasicCNN(2 * group.order, pool, 10, 1), ("block1", "block4"), pool).double()
    images, labels = torch.rand(7, 1, 28, 28, dtype=torch.float64), torch.arange(7)
    views = Views.plan(group, 7)
    elements = [element for element, count in views.runs for _ in range(count)]
    objective = EquivariantObjective(group, beta_weight=1.0)
    expected = objective(*tapped(objective.both_views(images, views)), labels, views).total
    optimizer = torch.optim.SGD(tapped.parameters(), lr=0.0)
    found = per_image.step(tapped, optimizer, group, images, labels, elements)
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_the_sides_of_a_figure_take_turns() -> None:
    turns: list[str] = []
    sides = {name: (lambda name=name: turns.append(name)) for name in "ab"}
    found = timing.interleaved(sides, CPU, timing.Effort(repetitions=3, seconds=0.0, warm_up=1))
    assert turns == [*"aabb", *islice(cycle("ab"), 6)]  # a warm-up and a first look at each
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3}


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert timing.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "n": 5}
    assert timing.ratios([2.0, 3.0, 8.0], [1.0, 1.0, 2.0])["median"] == 3.0


def test_what_nobody_measured_says_so() -> None:
    assert page.markdown([]).count("not measured | | |") == sum(len(claim.rows) for claim in CLAIMS.values())


def test_the_page_shows_what_the_rows_say() -> None:
    rows: list[dict[str, Any]] = page.read(page.COMMITTED)
    assert not any(row["smoke"] for row in rows)
    found = page.BLOCK.search(page.PAGE.read_text())
    assert found
    assert found[1] == page.markdown(rows)
    assert all(json.dumps(row) for row in rows)


def test_time_to_accuracy_tells_what_it_needs_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        time_to_accuracy.main(["--trials", "1", "--data", str(tmp_path), "--out", str(tmp_path / "found.json")])
    assert ended.value.code == 2
    assert "python -m ien.data rot_mnist" in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()


@pytest.mark.slow
def test_time_to_accuracy_counts_trials_that_reach_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 20 images of ten classes: one epoch reaches nothing, and that is told."""
    source = write_mnist(tmp_path / "mnist")
    prepare(["rot_mnist", "--from", str(source), "--root", str(tmp_path / "data"), "--train", "20", "--test", "10"])
    patched = tuple("batch_size=8" if word.startswith("batch_size") else word for word in time_to_accuracy.SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_to_accuracy, "SETTINGS", patched)
        words = ["--trials", "2", "--epochs", "1", "--width", "4", "--data", str(tmp_path / "data")]
        with pytest.raises(SystemExit) as ended:
            time_to_accuracy.main([*words, "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["trials"]) == 2
    assert found["reached"] == sum(trial["error_percent"] <= 1 for trial in found["trials"])
    assert (ended.value.code == 0) == (found["reached"] == 2)
    assert (found["mean_seconds"] is None) == (found["reached"] == 0)
