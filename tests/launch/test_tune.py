"""A sweep with the real Ray: to its end, over everything that can end it on the way, and on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ien import config, lock
from launch import tune as command
from tests.launch.search.sweeps import ROOT, ended, events, results, surroundings, tune, written
from tests.runs_compared import assert_equal_runs

pytestmark = pytest.mark.timeout(900)
RAYS = ("raylet", "gcs_server", "ray::")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder from which a sweep was run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    written(folder)
    status, said = ended(tune(folder))
    assert status == 0, said
    (folder / "said").write_text(said)
    return folder


def trials(folder: Path, name: str = "small") -> list[Path]:
    """The folders of a sweep's runs."""
    return sorted((folder / "runs/sweeps" / name).glob("[0-9]*/seed-*"))


def until(seen: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(parent: int) -> Iterator[tuple[int, str]]:
    """The living processes below `parent`, and their command lines."""
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                above = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if above == parent:
                yield int(place.name), line
                yield from children(int(place.name))


def left_over(folder: Path) -> list[str]:
    """Processes of Ray's that work for a sweep in `folder`, and of its runs."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            here = place.name.isdecimal() and (place / "cwd").readlink() == folder
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if here and ("launch.search.process" in line or any(name in line for name in RAYS)):
            found.append(line)
    return found


def test_a_sweep_ends_with_its_results_and_leaves_nothing_running(whole: Path) -> None:
    said = (whole / "said").read_text()
    assert "small: 3 trials (3 finished); 9 of 9 epochs trained" in said
    assert "launch/submit.py --config runs/sweeps/small/best.yaml" in said
    assert "tensorboard --logdir" in said
    found = results(whole)
    assert [one["state"] for one in found["trials"]] == ["finished"] * 3
    assert len(trials(whole)) == 3
    for run in trials(whole):
        assert len(events(run, "finished")) == 1
        assert json.loads((run / "summary.json").read_text())["split"] == "val"  # the test set is left alone
    files = {path.name for path in (whole / "runs/sweeps/small").iterdir()}
    assert {"results.csv", "best.yaml", "parameters.png", "sweep.yaml", "trials.jsonl"} <= files
    assert ".ray" not in files
    until(lambda: not left_over(whole), 30)


def test_its_best_settings_are_a_config_that_is_tested_at_the_end(whole: Path) -> None:
    submit = [sys.executable, str(ROOT / "launch/submit.py"), "--config", "runs/sweeps/small/best.yaml"]
    one_thread = surroundings() | {"OMP_NUM_THREADS": "1"}  # as the trial had: the last bits depend on it
    subprocess.run([*submit, "--executor", "inline"], cwd=whole, env=one_thread, check=True, capture_output=True)
    summary = json.loads((whole / "runs/best/small/summary.json").read_text())
    best = results(whole)["best"]["number"]
    assert summary["split"] == "test"
    run = json.loads((trials(whole)[best] / "summary.json").read_text())
    assert summary["validation"]["accuracy"] == run["validation"]["accuracy"]


def test_tensorboard_has_the_settings_and_the_last_metrics_of_every_trial(whole: Path) -> None:
    for run in trials(whole):
        board = EventAccumulator(str(run)).Reload()
        content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        assert b"beta_weight" in content
        assert board.Scalars("val/accuracy")[-1].step == 24


def test_the_same_command_on_a_finished_sweep_trains_nothing(whole: Path) -> None:
    before = [(run / "ledger.jsonl").read_text() for run in trials(whole)]
    status, said = ended(tune(whole))
    assert status == 0
    assert "3 of 3 trials are over" in said
    assert [(run / "ledger.jsonl").read_text() for run in trials(whole)] == before


def test_a_larger_budget_goes_on_and_another_space_is_refused(whole: Path) -> None:
    status, said = ended(tune(whole, "metrics={class_loss: min}"))
    assert status == 2
    assert "holds a sweep of another kind" in said
    assert "name=ANOTHER" in said


def assert_equal_sweeps(whole: Path, other: Path) -> None:
    """The same trials, each finished once, with the same bits."""
    assert [run.relative_to(whole) for run in trials(whole)] == [run.relative_to(other) for run in trials(other)]
    for one, again in zip(trials(whole), trials(other), strict=True):
        assert len(events(again, "finished")) == 1
        assert_equal_runs(one, again)
    mine, others = results(whole), results(other)
    assert [one["settings"] for one in mine["trials"]] == [one["settings"] for one in others["trials"]]
    assert (mine["best"], mine["front"]) == (others["best"], others["front"])


@pytest.mark.parametrize("victim", ["driver", "trial", "worker"])
def test_killed_at_any_moment_the_same_command_finishes_the_sweep(victim: str, tmp_path: Path, whole: Path) -> None:
    written(tmp_path)
    moments = random.Random(victim)
    sweep = tune(tmp_path)
    until(lambda: list(tmp_path.rglob("last.pt")))
    time.sleep(moments.uniform(0.0, 3.0))
    if victim == "driver":
        sweep.kill()
        ended(sweep)
        sweep = tune(tmp_path)
    elif victim == "trial":
        alive = [pid for run in trials(tmp_path) if (pid := lock.read(run).get("pid"))]
        for process in alive[:1]:
            os.kill(process, signal.SIGKILL)
    else:
        workers = [process for process, line in children(sweep.pid) if line.startswith("ray::ResourceTrainable")]
        assert workers
        os.kill(workers[0], signal.SIGKILL)
    status, said = ended(sweep)
    assert status == 0, said
    assert_equal_sweeps(whole, tmp_path)
    until(lambda: not left_over(tmp_path), 60)


def test_asked_to_stop_it_saves_and_the_same_command_goes_on(tmp_path: Path, whole: Path) -> None:
    written(tmp_path)
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        saved = [path.stat().st_mtime for path in tmp_path.rglob("last.pt")]
        sweep = tune(tmp_path)
        until(lambda: [path.stat().st_mtime for path in tmp_path.rglob("last.pt")] != saved)  # noqa: B023
        sweep.send_signal(number)
        left, said = ended(sweep)
        assert left == status, said
        assert "the same command goes on" in said
        assert left_over(tmp_path) == []
    status, said = ended(tune(tmp_path))
    assert status == 0, said
    assert_equal_sweeps(whole, tmp_path)
    assert [event for run in trials(tmp_path) for event in events(run, "resumed")]


def test_a_trial_that_fails_has_its_reason_in_the_results_and_the_sweep_goes_on(tmp_path: Path) -> None:
    space = {"max_lr": {"choice": [0.01, 1e30]}}
    written(tmp_path, space=space, sampler="grid", seeds="0-1")
    status, said = ended(tune(tmp_path, "set.tot_epochs=1", "set.cyc_size=1", "resources.cpus=0.5"))
    assert status == 0, said
    one, other = results(tmp_path)["trials"]
    assert (one["state"], other["state"]) == ("finished", "failed")
    assert "not finite" in other["cause"]
    assert one["spread"]["accuracy"] >= 0


def test_asha_stops_the_worse_and_remembers_it(tmp_path: Path) -> None:
    space = {"max_lr": {"choice": [0.01, 0.008, 0.006, 1e-5, 2e-5, 3e-5]}}
    words = ["set.tot_epochs=6", "set.cyc_size=6", "asha.grace_cycles=0.34", "asha.reduction_factor=2"]
    written(tmp_path, space=space, sampler="grid", scheduler="asha")
    status, said = ended(tune(tmp_path, *words))
    assert status == 0, said
    assert "none is stopped before epoch 2 of 6" in said
    found = results(tmp_path)["trials"]
    stopped = [one for one in found if one["state"] == "stopped"]
    assert stopped
    assert all(one["settings"]["max_lr"] < 1e-3 or one["epoch"] < 6 for one in stopped)
    assert results(tmp_path)["best"]["settings"]["max_lr"] > 1e-3
    before = [(run / "ledger.jsonl").read_text() for run in trials(tmp_path)]
    status, said = ended(tune(tmp_path, *words))
    assert status == 0, said
    assert [(run / "ledger.jsonl").read_text() for run in trials(tmp_path)] == before
    assert results(tmp_path)["trials"] == found


def test_a_population_takes_over_the_weights_of_the_better(tmp_path: Path) -> None:
    pbt = {"every_epochs": 1, "quantile": 0.5}
    space = {"beta_weight": {"loguniform": [0.01, 10]}, "max_lr": {"loguniform": [0.001, 0.01]}}
    written(tmp_path, space=space, scheduler="pbt", pbt=pbt, budget={"trials": 2})
    status, said = ended(tune(tmp_path, "set.tot_epochs=2", "set.cyc_size=2"))
    assert status == 0, said
    changed = [one for one in results(tmp_path)["trials"] if one["folders"][0].endswith("-1")]
    assert len(changed) == 1
    taken, better = changed[0]["number"], 1 - changed[0]["number"]
    folder = tmp_path / "runs/sweeps/small"
    lines = [(folder / place / "metrics.jsonl").read_text().splitlines() for place in
             (f"{taken:03}/seed-0", f"{better:03}/seed-0", f"{taken:03}/seed-0-1")]  # fmt: skip
    assert lines[2][:2] == lines[1][:2] != lines[0][:2]  # the other's first epoch, then its own
    assert lines[2][2:] != lines[1][2:]
    assert config.load(folder / f"{taken:03}/seed-0-1/config.yaml").beta_weight == changed[0]["settings"]["beta_weight"]


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({}, ["budget.trials=0"], "budget.trials: 0 is not allowed"),
        ({"metrics": {"f1": "max"}}, [], "f1 is not measured; write accuracy"),
        ({"metrics": {"equi_loss/stage1": "min"}}, [], "BasicCNN has equi_loss/block1"),
        ({"space": {"beta_wait": {"uniform": [0, 1]}}}, [], "did you mean beta_weight"),
        ({"space": {"beta_weight": {"uniform": [1, 0]}}}, [], "beta_weight"),
        ({}, ["resources.cpus=1000"], "a trial needs 1000 CPUs"),
        ({}, ["resources.gpus=64"], "a trial needs 64 GPUs"),
        ({}, ["set.data.val_split=0"], "held-out images"),
        ({}, ["set.run.seed=1"], "write seeds:"),
        ({"scheduler": "asha", "metrics": {"accuracy": "max", "class_loss": "min"}}, [], "compares one metric"),
        ({"base": "bass.yaml"}, [], "did you mean"),
        ({"space": {"cyc_size": {"randint": [2, 9]}}}, [], "cannot be tried"),
    ],
)
def test_bad_input_is_one_line_before_any_trial(
    changes: dict[str, Any],
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, **changes)
    with pytest.raises(SystemExit) as left:
        command.main(["--config", str(path), *words])
    assert left.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert list(tmp_path.rglob("trials.jsonl")) == []


def test_a_dry_run_says_what_would_be_searched_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command.main(["--config", str(written(tmp_path)), "--dry-run"])
    said = capsys.readouterr().out
    assert "3 trials, random, scheduler none, by accuracy (max)" in said
    assert "beta_weight: 0.01 … 10, log-uniform" in said
    assert not (tmp_path / "runs").exists()


def test_without_ray_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "launch.search.driver", raising=False)
    monkeypatch.delattr("launch.search.driver", raising=False)
    with pytest.raises(SystemExit) as left:
        command.main(["--config", str(written(tmp_path))])
    assert left.value.code == 2
    assert 'pip install -e ".[tune]"' in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
