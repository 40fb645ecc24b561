"""The tables of the paper's experiments: every cell can be run, is run once, and is told from its file alone."""

from __future__ import annotations

import json
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.reproduce import __main__ as command
from benchmarks.reproduce import cells, pareto, savings, summary
from benchmarks.reproduce.cells import Cell, Place
from benchmarks.reproduce.tables import TABLES
from ien import config
from ien.revision import revision

PAGE = summary.RESULTS.read_text()


def placed(tmp_path: Path, *overrides: str) -> Place:
    return Place(tmp_path / "out", str(tmp_path / "runs"), str(tmp_path / "data"), overrides)


def cell(variant: str, seed: int, right: float, error: float = 0.2) -> dict[str, Any]:
    """What a cell's file holds, as far as a table looks."""
    tap = {"mean_error": error, "mean_floor": 0.0, "rms": 1.0, "dead_channels": 0.0, "verdict": "alive"}
    return {
        "variant": variant,
        "seed": seed,
        "git": {"commit": "0123456789", "clean": True},
        "device": "a machine",
        "threads": 1,
        "packages": {"torch": "2.14.1"},
        "data": {"train_images": "abc"},
        "measured": {"of": 100, "images": 50, "group": "C4"},
        "seconds": 60.4,
        "parameters": 1234,
        "test": {"accuracy": right},
        "figures": {
            "accuracy over the orbit": right,
            "agreement over the group": 1.0,
            "error of living layers": error,
        },
        "taps": {"block1": tap, "block6": tap},
    }


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_has_settings_of_its_own(name: str, tmp_path: Path) -> None:
    found = cells.cells_of(name)
    assert len(found) == len(TABLES[name].variants) * TABLES[name].seeds
    assert [one.seed for one in found] == sorted(one.seed for one in found)  # all variants before a second seed
    settings = [one.settings(placed(tmp_path)) for one in found]
    assert len({config.resolved(one) for one in settings}) == len({one.save_dir for one in settings}) == len(found)
    # One variant differs from another in more than its name and seed.
    of_first_seed = [cells._written(one) for one in settings[: len(TABLES[name].variants)]]
    assert all(a != b for place, a in enumerate(of_first_seed) for b in of_first_seed[:place])


def test_no_cell_of_rot_mnist_is_chosen_by_what_it_is_tested_on(tmp_path: Path) -> None:
    for name in TABLES:
        if name.startswith("rot_mnist"):
            assert all(one.settings(placed(tmp_path)).data.val_split == 0 for one in cells.cells_of(name))


@pytest.mark.slow
def test_the_smoke_table_is_run_once_and_drawn_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["smoke", "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 0
    (first, second) = (tmp_path / "out" / "smoke" / f"{name}_seed0.json" for name in ("beta_1", "tied"))
    table = (tmp_path / "out" / "smoke" / "table.md").read_text()
    assert table in capsys.readouterr().out
    content = json.loads(second.read_text())
    assert f"| {100 * (1 - content['test']['accuracy']):.2f} |" in table
    assert all(tap["mean_error"] < 1e-5 for tap in content["taps"].values())  # tied weights, quarter turns
    assert min(tap["mean_error"] for tap in json.loads(first.read_text())["taps"].values()) > 0.01
    command.main([*words, "--ship", str(tmp_path / "networks")])
    shipped = load_file(tmp_path / "networks" / "tied.safetensors")
    assert (
        shipped.keys() == torch.load(tmp_path / "runs/reproduce/smoke/tied_seed0/checkpoints/best.pt")["model"].keys()
    )
    card = (tmp_path / "networks" / "tied.md").read_text()
    assert f"Test error {100 * (1 - content['test']['accuracy']):.2f} % of 500 images" in card
    assert "python -m benchmarks.reproduce smoke --cell 1\n" in card
    assert content["git"]["commit"] in card
    written = [path.stat().st_mtime_ns for path in (first, second)]
    with pytest.raises(SystemExit):
        command.main(words)
    assert [path.stat().st_mtime_ns for path in (first, second)] == written
    with pytest.raises(SystemExit) as refused:
        command.main([*words, "network.width=4"])
    assert refused.value.code == 2
    assert "other settings (network.width); move it away, or give another --out" in capsys.readouterr().err
    for path in (first, second):  # from before there was such a setting: it had what is the default
        older = json.loads(path.read_text())
        del older["settings"]["optimizer.ema_decay"]
        path.write_text(json.dumps(older))
    with pytest.raises(SystemExit) as drawn:
        command.main([*words, "--report"])
    assert drawn.value.code == 0
    assert capsys.readouterr().out.strip() == table.strip()
    with pytest.raises(SystemExit):
        command.main([*words, "optimizer.ema_decay=0.5"])
    assert "other settings (optimizer.ema_decay)" in capsys.readouterr().err


def test_a_cell_whose_package_is_missing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    numbers = [n for n, cell in enumerate(cells.cells_of("rot_mnist_w8")) if cell.needs]
    assert len(numbers) == 3
    with pytest.raises(SystemExit) as ended:
        command.main(["rot_mnist_w8", "--cell", str(numbers[0]), "--out", str(tmp_path)])
    assert ended.value.code == 0
    assert "steerable network (escnn), no second view, seed 0: left, because it needs escnn" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_cell_run_again_gives_the_same_figures(tmp_path: Path) -> None:
    short = ("network.width=4", "tot_epochs=1", "cyc_size=1")
    found = []
    for time_of_day in ("morning", "evening"):
        place = placed(tmp_path / time_of_day, *short)
        assert cells.train(Cell("smoke", "beta_1", 0), place, float("inf"))
        found.append(cells.measure(Cell("smoke", "beta_1", 0), place))
        found[-1].pop("seconds")
    assert found[0] == found[1]


def test_at_the_end_of_its_time_a_cell_saves_and_leaves(tmp_path: Path) -> None:
    place = placed(tmp_path, "network.width=4", "tot_epochs=2000", "cyc_size=2000")
    one = Cell("smoke", "beta_1", 0)
    assert not cells.train(one, place, time.monotonic() + 8)
    folder = config.run_dir(one.settings(place))
    assert (folder / "checkpoints" / "last.pt").exists()
    assert not (folder / "summary.json").exists()
    assert cells.read(one, place) is None


def test_without_time_nothing_is_begun_and_that_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["smoke", "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--minutes", "-1"]
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 75
    assert not (tmp_path / "runs").exists()
    assert capsys.readouterr().out.count("not run") == 2


def test_a_cell_that_fails_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rot_mnist_w8", "--cell", "1", "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as ended:
        command.main([*words, "--data", str(tmp_path / "nothing")])
    assert ended.value.code == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "published loss, beta 1, seed 0: " in line
    assert "python -m ien.data rot_mnist" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rot_mnist", "--cell", "99"], "write 0 to 83"),
        (["rot_mnist", "--jobs", "0"], "write 1 or more"),
        (["rot_mnist", "beta"], "'beta' is no key=value"),
        (["rot_mist"], "invalid choice: 'rot_mist'"),
    ],
)
def test_bad_input_gets_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_row_is_the_mean_over_its_seeds_and_says_what_is_missing() -> None:
    some = [cell("augmented", 0, 0.97), cell("augmented", 1, 0.98), cell("tied", 0, 0.99, 3e-7)]
    lines = summary.markdown("rot_mnist", summary.by_variant("rot_mnist", some)).splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    assert "| 2.50 ± 0.71 |" in rows["augmented (beta 0)"]
    assert rows["augmented (beta 0)"].endswith("| 0.200 … 0.200 | 60 | 1,234 | 2 of 3 |")
    assert "| 1.00 | 1.00 | 100.0 | 3e-07 | 3e-07 … 3e-07 | 60 |" in rows["tied weights, no second view"]
    assert rows["published loss, beta 1"].endswith("| not run |  |  |  |  |  |  | 0 of 3 |")
    assert "Commit 0123456; a machine (1 threads); torch 2.14.1; train_images sha256 abc." in lines[0]


def test_what_a_preset_saves_is_counted_on_the_networks() -> None:
    """BasicCNN has c, 1.5c, 2c, 2c, 3c and 4c channels; R4-2-1 has c = 88 where R4 has 128."""
    widths = {"R4": (1, 128, 192, 256, 256, 384, 512), "R4-2-1": (1, 88, 132, 176, 176, 264, 352)}
    for variant, channels in widths.items():
        weights = sum(49 * a * b if a == 1 else 25 * a * b for a, b in pairwise(channels))
        assert savings.counted("rot_mnist_presets", variant) == (sum(channels) - 1, weights)
    assert savings.told("rot_mnist_presets", "R4") == ("1,728", "")
    saved = "31 % of the channels, 53 % of the weights of R4"
    assert savings.told("rot_mnist_presets", "R4-2-1") == ("1,188", saved)
    (row,) = (line for line in summary.markdown("rot_mnist_presets", {"R4-2-1": []}).splitlines() if "not run" in line)
    assert row == f"| R4-2-1 | not run |  |  |  |  |  | 1,188 | {saved} |  | 0 of 3 |"


def test_the_front_holds_whatever_no_other_beats() -> None:
    assert pareto._front([(0.1, 2.0), (0.2, 1.0), (0.2, 2.0), (0.05, 3.0), (0.3, 1.0)]) == {0, 1, 3}


@pytest.mark.parametrize("name", [name for name in TABLES if summary.generated(name, PAGE) is not None])
def test_what_the_results_show_is_what_the_cells_say(name: str) -> None:
    place = Place(command.COMMITTED)
    found = [content for one in cells.cells_of(name) if (content := cells.read(one, place))]
    picture = f"{name}.png" if (summary.RESULTS.parent / f"{name}.png").exists() else None
    assert summary.generated(name, PAGE) == summary.markdown(name, summary.by_variant(name, found), picture)


def test_results_that_are_written_do_not_make_the_code_another(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "cell.json").write_text("{}\n")
    made = revision(tmp_path)
    assert made
    assert made["clean"]
    (tmp_path / "code.py").write_text("2\n")
    made = revision(tmp_path)
    assert made
    assert not made["clean"]
