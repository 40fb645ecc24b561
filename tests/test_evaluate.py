"""The command, as its users meet it: reports of finished runs, side by side, and every mistake in one line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ien import evaluate
from ien.groups import Group
from tests.runs_made import finished_run
from tests.symmetry.symmetric import average_kernels

ROOT = Path(__file__).parent.parent
FEW = ("--images", "12", "--device", "cpu")


def averaged(network: nn.Module) -> None:
    average_kernels(network, Group(4))


@torch.no_grad()
def silenced(network: nn.Module) -> None:
    """Constant from its third convolution on."""
    network.block3[0].weight.zero_()  # type: ignore[index,union-attr,operator]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five finished runs: an averaged network, a constant one, two seeds of an ordinary one, and its plain baseline."""
    root = tmp_path_factory.mktemp("runs")
    finished_run(root, "averaged", change=averaged)
    finished_run(root, "constant", change=silenced)
    finished_run(root, "seed_0")
    finished_run(root, "seed_1", "run.seed=1")
    finished_run(root, "plain", "beta_weight=0", "objective.augment=none")
    return root


def report(*words: str | Path, out: Path) -> dict[str, Any]:
    evaluate.main([*map(str, words), "--out", str(out), *FEW])
    content: dict[str, Any] = json.loads((out / "report.json").read_text())
    return content


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line on stderr with which the command ends."""
    with pytest.raises(SystemExit) as ended:
        evaluate.main([*map(str, words), *FEW])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


@pytest.fixture(scope="module")
def side_by_side(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("side by side") / "report"
    report(*(runs / name for name in ("seed_0", "seed_1", "averaged", "constant", "plain")), out=out)
    return out


def loaded(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text())
    return content


def of_run(out: Path, name: str) -> dict[str, Any]:
    return next(run for run in loaded(out)["runs"] if run["name"] == name)


def test_an_averaged_network_is_equivariant_to_rounding_in_each_exact_element(side_by_side: Path) -> None:
    run = of_run(side_by_side, "averaged")
    for tap in run["taps"].values():
        assert tap["verdict"] == "alive"
        assert [*tap["elements"]] == ["90°", "180°", "270°"]
        for one in tap["elements"].values():
            assert one["error"] < 2e-6
            assert one["floor"] == 0
    exact = [row for row in run["square"]["elements"] if row["exact"]]
    assert len(exact) == 4
    for row in exact:
        assert row["logit_error"] < 2e-6
        assert row["agreement"] == 1
        assert row["accuracy"] == run["square"]["accuracy"]


def test_a_constant_network_is_collapsed_and_not_equivariant(side_by_side: Path) -> None:
    run = of_run(side_by_side, "constant")
    verdicts = {name: tap["verdict"] for name, tap in run["taps"].items()}
    assert verdicts["block1"] == verdicts["block2"] == "alive"
    assert verdicts["block3"] == "collapsed"
    assert run["logits"]["verdict"] == "collapsed"
    assert run["square"]["classes_predicted"] == 1
    page = (side_by_side / "report.html").read_text()
    assert "No merit: block3 is collapsed; " in page
    assert page.count("the logits are collapsed") == 1


def test_an_ordinary_network_is_neither(side_by_side: Path) -> None:
    run = of_run(side_by_side, "seed_0")
    assert run["taps"]["block1"]["mean_error"] > 0.1
    assert run["taps"]["block1"]["mean_error_of_varying"] > run["taps"]["block1"]["mean_error"]
    assert run["taps"]["block1"]["local"]["translation"]["lee"] > 0
    assert run["taps"]["block6"]["local"]["rotation"]["lee"] is None  # 2×2 maps have no inner pixel


def test_seeds_are_one_row_and_baselines_another(side_by_side: Path) -> None:
    """`averaged` and `constant` have the settings of `seed_0`: what is done to weights afterwards is in no config."""
    rows = {row["label"]: row for row in loaded(side_by_side)["comparison"]}
    assert set(rows) == {"IEN, beta 1", "plain"}
    assert rows["IEN, beta 1"]["n"] == 4
    assert rows["plain"]["figures"]["accuracy"]["std"] is None
    page = (side_by_side / "report.html").read_text()
    assert "4 seeds" in page
    assert "one seed" in page
    assert "±" in page


def test_the_report_holds_what_it_promises(side_by_side: Path) -> None:
    content = loaded(side_by_side)
    assert set(content) == {"format", "origin", "made", "measured", "runs", "comparison"}
    assert content["measured"]["images"] == 12
    for run in content["runs"]:
        assert set(run) == {
            "name", "label", "weights_sha256", "settings", "parameters",
            "corner_power", "square", "disc", "taps", "logits",
        }  # fmt: skip
        assert [row["degrees"] for row in run["square"]["elements"]] == [15 * k for k in range(24)]
        assert set(run["square"]["elements"][0]) == {
            "element", "degrees", "mirrored", "scale", "exact", "in_group",
            "accuracy", "nll", "ece", "agreement", "logit_error",
        }  # fmt: skip
        assert len(run["square"]["per_class"]) == 10
        for tap in run["taps"].values():
            assert set(tap) == {
                "side", "channels", "rms", "spatial_variance", "spatial_share", "varying", "dead_channels", "verdict",
                "elements", "mean_error", "mean_floor", "mean_error_of_varying", "local",
            }  # fmt: skip


def test_the_page_is_one_file_that_needs_no_network(side_by_side: Path) -> None:
    page = (side_by_side / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|@import|<script|<link""", page)
    assert "http" not in page
    pictures = sorted(path.name for path in side_by_side.glob("*.png"))
    assert page.count('src="data:image/png;base64,') == len(pictures)
    assert {"accuracy.png", "agreement.png", "layers.png"} < set(pictures)
    assert {"stabilised_seed_0.png", "filters_seed_0.png", "stabilised_plain.png"} < set(pictures)
    assert "prefers-color-scheme: dark" in page


def test_names_cannot_write_into_the_page(tmp_path: Path) -> None:
    odd = finished_run(tmp_path, "odd").rename(tmp_path / "<i>&")
    report(odd, "--no-pictures", out=tmp_path / "odd_report")
    page = (tmp_path / "odd_report/report.html").read_text()
    assert "&lt;i&gt;&amp;" in page
    assert "<b><i>" not in page


def test_tensorboard_gets_the_same(side_by_side: Path) -> None:
    board = EventAccumulator(str(side_by_side / "tensorboard/seed_0")).Reload()
    rows = of_run(side_by_side, "seed_0")["square"]["elements"]
    seen = {event.step: event.value for event in board.Scalars("turned/accuracy")}
    assert seen == pytest.approx({round(row["degrees"]): row["accuracy"] for row in rows})
    pictures = EventAccumulator(str(side_by_side / "tensorboard")).Reload()
    assert "layers.png" in pictures.Tags()["images"]


def test_one_run_has_its_report_beside_it_and_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        evaluate.main([str(runs / "plain"), "--no-pictures", *FEW])
    said = capsys.readouterr()
    assert (runs / "plain/report/report.html").exists()
    assert str(runs / "plain/report/report.html") in said.out
    assert "plain (plain): accuracy" in said.out
    assert not list((runs / "plain/report").glob("*.png"))
    assert len(list((runs / "plain/report/tensorboard/plain").glob("events*"))) == 1


def test_bare_weights_are_measured_as_their_run_is(runs: Path, side_by_side: Path, tmp_path: Path) -> None:
    state = torch.load(runs / "seed_0/checkpoints/best.pt", weights_only=True)["model"]
    torch.save(state, tmp_path / "bare.pt")
    given = ("--config", runs / "seed_0/config.yaml", "--weights", tmp_path / "bare.pt", "--no-pictures")
    (bare,) = report(*given, out=tmp_path / "out")["runs"]
    run = of_run(side_by_side, "seed_0")
    assert bare["square"] == run["square"]
    assert bare["taps"] == run["taps"]


def test_groups_are_measured_by_what_holds_them_all(runs: Path, tmp_path: Path) -> None:
    """A run of R4 beside one of R6 with reflections: D12, whose slanted elements have a floor above 0."""
    other = finished_run(tmp_path, "r6", "mode=R6", "reflection=true", "network.width=12")
    content = report(runs / "plain", other, "--no-pictures", out=tmp_path / "out")
    assert content["measured"]["group"] == "D12"
    for run in content["runs"]:
        elements = run["taps"]["block1"]["elements"]
        assert len(elements) == 23
        assert elements["90°"]["floor"] == 0
        assert elements["30°"]["floor"] > 0
        assert [row["mirrored"] for row in run["square"]["elements"]].count(True) == 24


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("config.yaml", "holds no run (no config.yaml)"),
        ("summary.json", "is not finished; go on with it"),
        ("checkpoints/best.pt", "best.pt is missing; put it back"),
    ],
)
def test_a_run_that_lacks_something(
    missing: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished_run(tmp_path, "run")
    (folder / missing).unlink()
    assert problem in refused(capsys, folder)
    assert not (folder / "report").exists()


def test_a_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = finished_run(tmp_path, "run") / "checkpoints/best.pt"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in refused(capsys, tmp_path / "run")


def test_weights_that_do_not_fit_are_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(runs / "plain/checkpoints/best.pt", weights_only=True)["model"]
    state["stranger"] = state.pop("head.3.bias")
    state["block1.0.weight"] = state["block1.0.weight"][:2]
    torch.save(state, tmp_path / "odd.pt")
    line = refused(capsys, "--config", runs / "plain/config.yaml", "--weights", tmp_path / "odd.pt")
    assert "lacks head.3.bias; has the unknown stranger; block1.0.weight is (2, 1, 7, 7) and not (4, 1, 7, 7)" in line


def test_what_is_no_weights(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pt").write_text("not weights")
    torch.save([1, 2], tmp_path / "list.pt")
    config = ("--config", runs / "plain/config.yaml", "--weights")
    assert "cannot be read as weights" in refused(capsys, *config, tmp_path / "text.pt")
    assert "holds no weights by name" in refused(capsys, *config, tmp_path / "list.pt")
    assert "there is no file" in refused(capsys, *config, tmp_path / "none.pt")


def test_a_missing_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished_run(tmp_path, "run")
    settings = (folder / "config.yaml").read_text().replace("dataset: digits", "dataset: rot_mnist")
    (folder / "config.yaml").write_text(settings)
    assert "'rot_mnist' is not prepared" in refused(capsys, folder, f"data.root={tmp_path}")


def test_other_settings_are_no_evaluation_of_the_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "mode: 'R4' → 'R8'" in refused(capsys, runs / "plain", "mode=R8")


def test_a_report_of_something_else_stays(runs: Path, side_by_side: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (side_by_side / "report.json").read_bytes()
    assert "holds the report of" in refused(capsys, runs / "plain", "--out", side_by_side)
    assert "holds other files" in refused(capsys, runs / "plain", "--out", runs)
    assert (side_by_side / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "give the folders of finished runs, or --config FILE and --weights FILE"),
        (("--weights", "w.pt"), "give the folders"),
        (("plain", "plain"), "given more than once"),
        (("plain", "--images", "few"), "is no number of images"),
        (("plain", "--image", "500"), "there are 500 images; write 0 to 499"),
        (("plain", "--split", "train"), "--help"),
    ],
)
def test_other_mistakes(
    words: tuple[str, ...],
    problem: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs)
    assert problem in refused(capsys, *words)


def test_without_matplotlib_the_extra_is_named(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install -e ".[report]"' in refused(capsys, runs / "plain")


def test_without_escnn_it_is_named(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "escnn", None)
    line = refused(capsys, runs / "plain", "--peer", "escnn", "--no-pictures")
    assert 'pip install -e ".[peer]"' in line


def test_what_the_documentation_shows_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/measuring.md").read_text(), re.DOTALL)
    exec(block, {})
    assert capsys.readouterr().out.startswith("alive ")


def test_a_run_of_scales_is_measured_over_them(tmp_path: Path) -> None:
    """Beside a run of turns: the group has both, the layers have their scaled elements, and the scale has its curve."""
    alone = finished_run(tmp_path, "alone", "mode=R1", "group.scales=[0.5]", "network.width=2")
    turns = finished_run(tmp_path, "turns", "mode=R2")
    content = report(turns, alone, out=tmp_path / "out")
    assert content["measured"]["group"] == "C2 ×0.5"
    for run in content["runs"]:
        assert set(run["taps"]["block1"]["elements"]) == {"180°", "×0.5", "180° ×0.5"}
        assert run["taps"]["block1"]["elements"]["×0.5"]["error"] > 0
        over = [row for row in run["square"]["elements"] if not row["degrees"] and not row["mirrored"]]
        assert min(row["scale"] for row in over) == 0.5
        assert run["square"]["over_scales"]["lowest_accuracy"] == min(row["accuracy"] for row in over)
    assert "accuracy over scales" in content["comparison"][0]["figures"]
    page = (tmp_path / "out/report.html").read_text()
    assert "Over the scales from 0.5 to 1" in page
    assert {"scales.png", "stabilised_alone.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    events = EventAccumulator(str(tmp_path / "out/tensorboard/alone")).Reload()
    assert next(point.step for point in events.Scalars("scaled/accuracy")) == 50
    assert [point.step for point in events.Scalars("turned/accuracy")] == [15 * k for k in range(24)]


def test_without_scales_nothing_is_said_of_them(side_by_side: Path) -> None:
    assert "accuracy over scales" not in loaded(side_by_side)["comparison"][0]["figures"]
    assert "scale" not in re.sub(
        r"data:image/png;base64,[^\"]*|<style>.*</style>", "", (side_by_side / "report.html").read_text(), flags=re.S
    )
    assert not (side_by_side / "scales.png").exists()


def test_weights_that_a_run_started_from_are_not_asked_for_again(tmp_path: Path) -> None:
    weights = finished_run(tmp_path, "first") / "checkpoints/best.pt"
    second = finished_run(tmp_path, "second", f"pretrained={weights}", "run.seed=1")
    weights.unlink()
    assert report(second, "--no-pictures", out=tmp_path / "out")["runs"][0]["settings"]["pretrained"] == str(weights)
