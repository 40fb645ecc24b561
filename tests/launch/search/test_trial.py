from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ien import checkpoint, lock
from ien.config import Config
from launch.search import sweep
from launch.search.trial import InterruptedTrialError, Trial, TrialFailedError, means, records
from tests.launch.search.sweeps import events, written
from tests.runs_compared import assert_equal_runs

pytestmark = pytest.mark.timeout(300)


def configs(folder: Path, *words: str, seeds: str = "0") -> list[Config]:
    """The runs of trial 0 of a small sweep below `folder`."""
    folder.mkdir(exist_ok=True)
    wanted = sweep.load(written(folder, seeds=seeds), [f'set.run.root="{folder}/runs"', *words])
    return [wanted.run(0, {"beta_weight": 0.5}, seed) for seed in wanted.seeds]


def places(settings: list[Config]) -> list[Path]:
    return [Path(one.run.root) / one.save_dir for one in settings]


def to_the_end(trial: Trial) -> list[dict[str, float]]:
    return [trial.next() for _ in range(trial.epoch, trial.epochs)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """The run of a trial that nobody disturbed, and what it told."""
    settings = configs(tmp_path_factory.mktemp("whole"))
    told = to_the_end(Trial(settings, threads=1))
    return places(settings)[0], told


def test_a_trial_is_a_normal_run_and_tells_what_it_measured(whole: tuple[Path, list[dict[str, float]]]) -> None:
    run, told = whole
    assert (run / "summary.json").exists()
    assert told == [means([records(run)[epoch]]) for epoch in (1, 2, 3)]
    assert len(events(run, "finished")) == 1


def test_a_finished_trial_tells_everything_again_and_starts_nothing(
    whole: tuple[Path, list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = whole
    monkeypatch.setattr("subprocess.Popen", None)
    assert to_the_end(Trial(configs(run.parents[4]), threads=1)) == told


def test_seeds_train_side_by_side_and_are_averaged(tmp_path: Path) -> None:
    settings = configs(tmp_path, "set.tot_epochs=1", "set.cyc_size=1", seeds="0-1")
    told = Trial(settings, threads=1).next()
    each = [means([records(run)[1]]) for run in places(settings)]
    assert each[0]["accuracy"] != each[1]["accuracy"]
    assert told["class_loss"] == pytest.approx(statistics.mean(one["class_loss"] for one in each))
    assert all((run / "summary.json").exists() for run in places(settings))


def test_two_processes_train_one_run(tmp_path: Path) -> None:
    settings = configs(tmp_path, "set.tot_epochs=1", "set.cyc_size=1", "resources.processes=2")
    Trial(settings, threads=1).next()
    assert events(places(settings)[0], "started")[0]["processes"] == 2
    assert len(events(places(settings)[0], "finished")) == 1


def test_a_trial_ended_between_epochs_goes_on_and_is_bit_equal(
    tmp_path: Path, whole: tuple[Path, list[dict[str, float]]]
) -> None:
    settings = configs(tmp_path)
    first = Trial(settings, threads=1)
    told = [first.next()]
    first.end()
    assert len(events(places(settings)[0], "stopped")) == 1
    second = Trial(settings, threads=1)
    assert [*told, *to_the_end(second)[1:]] == whole[1]
    assert_equal_runs(whole[0], places(settings)[0])


def test_a_killed_process_fails_the_trial_which_can_be_begun_again(
    tmp_path: Path, whole: tuple[Path, list[dict[str, float]]]
) -> None:
    settings = configs(tmp_path)
    trial = Trial(settings, threads=1)
    trial.next()
    os.kill(lock.read(places(settings)[0])["pid"], signal.SIGKILL)
    with pytest.raises(TrialFailedError, match="killed by SIGKILL") as failure:
        trial.next()
    assert failure.value.again
    assert to_the_end(trial) == whole[1][1:]
    assert_equal_runs(whole[0], places(settings)[0])


def test_settings_that_the_data_do_not_allow_fail_for_good_in_the_runs_words(tmp_path: Path) -> None:
    trial = Trial(configs(tmp_path, "set.data.val_split=5000"), threads=1)
    with pytest.raises(TrialFailedError, match="val_split") as failure:
        trial.next()
    assert not failure.value.again


def test_a_loss_that_is_not_finite_fails_for_good(tmp_path: Path) -> None:
    trial = Trial(configs(tmp_path, "set.max_lr=1e30", "set.low_lr=1e30"), threads=1)
    with pytest.raises(TrialFailedError, match="not finite") as failure:
        trial.next()
    assert not failure.value.again


def asked_once_it_trains(run: Path) -> Callable[[], bool]:
    return lambda: (run / checkpoint_folder).exists()


checkpoint_folder = Path("checkpoints") / checkpoint.LAST


def test_a_search_that_is_asked_to_stop_leaves_in_order(tmp_path: Path) -> None:
    settings = configs(tmp_path, "set.tot_epochs=200", "set.cyc_size=200")
    run = places(settings)[0]
    trial = Trial(settings, threads=1, asked=asked_once_it_trains(run))
    with pytest.raises(InterruptedTrialError):
        to_the_end(trial)
    assert len(events(run, "stopped")) == 1
    assert lock.read(run) == {}


def test_runs_leave_with_everything_saved_when_their_supervisor_is_gone(tmp_path: Path) -> None:
    settings = configs(tmp_path, "set.tot_epochs=200", "set.cyc_size=200")
    child = os.fork()
    if child == 0:
        try:
            to_the_end(Trial(settings, threads=1))
        finally:
            os._exit(1)
    run = places(settings)[0]
    deadline = time.monotonic() + 120
    while not (run / checkpoint_folder).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while not events(run, "stopped") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert events(run, "stopped")[0]["signals"] == ["SIGTERM"]


def test_a_folder_that_others_are_leaving_is_waited_for(tmp_path: Path) -> None:
    settings = configs(tmp_path, "set.tot_epochs=1", "set.cyc_size=1")
    run = places(settings)[0]
    run.mkdir(parents=True, mode=0o700)
    held = lock.Lock(run, "another", 0)
    threading.Timer(12.0, held.release).start()
    assert Trial(settings, threads=1).next()["accuracy"] > 0


def test_metrics_are_those_that_every_seed_has() -> None:
    one = {
        "split": "val",
        "accuracy": 0.5,
        "equi_loss": {"a": 1.0},
        "relative_equivariance_error": {"a": 0.2, "b": 0.4},
    }
    other = {"split": "val", "accuracy": 1.0, "equi_loss": {}, "relative_equivariance_error": {"a": 0.4, "b": None}}
    assert means([one])["relative_equivariance_error"] == pytest.approx(0.3)
    told = means([one, other])
    assert told["accuracy"] == 0.75
    assert "equi_loss/a" not in told
    assert told["relative_equivariance_error/a"] == pytest.approx(0.3)
    assert told["relative_equivariance_error"] == pytest.approx(0.35)
