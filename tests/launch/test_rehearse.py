"""A rehearsal tells a run that survives its stops from one that does not, by name, and leaves nothing behind."""

from __future__ import annotations

import copy
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ien import checkpoint
from launch import rehearse
from launch.rehearse_attempt import Failed, Orders
from launch.rehearse_difference import first_difference

ROOT = Path(__file__).resolve().parents[2]
# 8 steps of 128 digits an epoch: 20 steps lead through two validations
SMALL = """
dataset: digits
model: BasicCNN
network: {width: 4}
mode: R4
tot_epochs: 5
cyc_size: 5
batch_size: 128
max_lr: 0.01
run: {equivariance_images: 32, device: cpu}
"""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def orders(config: Path, folder: Path, *overrides: str, processes: int = 1, steps: int = 20) -> Orders:
    return Orders(config, list(overrides), processes, steps, folder, 120.0, time.sleep)


def patched(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Every Python that is started from now on runs this code first."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def exit_status(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        rehearse.main([str(argument) for argument in arguments])
    assert isinstance(exit.value.code, int)
    return exit.value.code


@pytest.mark.slow
def test_a_run_that_survives_is_bit_equal(small: Path, scratch: Path) -> None:
    command = [sys.executable, "-m", "launch.rehearse", "--config", str(small), "--scratch", str(scratch)]
    done = subprocess.run([*command, "run.log_every=3"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, _, verdict = done.stdout.splitlines()
    assert verdict == "bit-equal: 20 steps, with 3 stops and without"
    rows = {line.split()[0]: re.split(r" {2,}", line) for line in lines[1:]}
    assert sorted(rows) == ["KILL", "TERM", "USR2"]
    for name, (_, _, step, saved, lost, resumed, _) in rows.items():
        assert resumed == saved  # never from an older checkpoint than the newest
        assert 0 < int(step.split()[-1]) < 20
        if name != "KILL":
            assert (saved, lost) == (f"step {step}", "0")
    assert "steps/s" in done.stderr
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed(small: Path, scratch: Path) -> None:
    result = rehearse.rehearsed(orders(small, scratch, processes=2), ["KILL", "TERM"], random.Random(1))
    assert result.equal, result.verdict
    assert {hit.signal: hit.resumed for hit in result.hits} == {hit.signal: hit.saved for hit in result.hits}
    assert result.verdict.startswith("bit-equal: 20 steps")  # not 21, though two agree one step late


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])  # forkserver too on SLURM, in test_on_slurm
def test_workers_hear_nothing_of_it(small: Path, scratch: Path, method: str) -> None:
    streamed = ["data.resident=never", "data.workers=2", f"data.start_method={method}"]
    result = rehearse.rehearsed(orders(small, scratch, *streamed, steps=12), ["USR2"], random.Random(1))
    assert result.equal, result.verdict
    assert [hit.signal for hit in result.hits] == ["USR2"]


@pytest.mark.slow
def test_a_signal_that_comes_too_late_comes_again_in_another_run(small: Path, scratch: Path) -> None:
    """One that is sent after the first step stops the second; after the third, nothing is left to be stopped."""

    class Soonest(random.Random):
        def random(self) -> float:
            return 0.0

    result = rehearse.rehearsed(orders(small, scratch, steps=3), ["TERM"] * 2, Soonest())
    assert result.equal, result.verdict
    assert len(result.hits) == 2


@pytest.mark.slow
def test_workers_that_can_be_hit_are_found(
    small: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mortal = "import contextlib\nfrom ien.data import loader\nloader._signals_blocked = contextlib.nullcontext\n"
    patched(monkeypatch, tmp_path, mortal)
    streamed = ["data.resident=never", "data.workers=2", "data.start_method=spawn"]
    with pytest.raises(Failed, match="the run did not leave in order after USR2 to process and workers") as failed:
        rehearse.rehearsed(orders(small, scratch, *streamed), ["USR2"], random.Random(1))
    # Its last words, whatever they are: torch tells of a killed worker, or reading from it fails before torch does.
    words = failed.value.words
    assert words
    assert all(line.startswith("process 0 | ") for line in words), words


@pytest.mark.slow
def test_what_a_stop_loses_is_named(
    small: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forgetful = """
from ien.engine import Engine
whole = Engine.restore
def restore(self, state):
    whole(self, state)
    self._sums[2] += 1e-9  # a sum that no weight depends on
Engine.restore = restore
"""
    patched(monkeypatch, tmp_path, forgetful)
    # 7 steps: no epoch ends, which would begin the sums anew.
    assert exit_status("--config", small, "--scratch", scratch, "--steps", 7, "--rounds", 1) == 1
    verdict, reason = capsys.readouterr().out.splitlines()[-2:]
    assert re.match(r"first difference: engine\.sums\.0 differs by up to .*e-09, in 1 of \d+ places", verdict)
    assert reason.startswith("two runs without a stop are equal: a stop loses what is not saved")


@pytest.mark.slow
def test_a_run_that_differs_without_a_stop_is_told_from_that(
    small: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsteady = """
import os, torch
from ien.engine import Engine
exact = Engine.train_step
def train_step(self, images, labels, step):
    exact(self, images, labels, step)
    with torch.no_grad():
        next(iter(self.tapped.parameters())).add_(1e-6 * (os.getpid() % 1000 + 1))
Engine.train_step = train_step
"""
    patched(monkeypatch, tmp_path, unsteady)
    result = rehearse.rehearsed(orders(small, scratch, steps=7), ["USR2"], random.Random(1))
    assert not result.equal
    verdict, reason = result.verdict.splitlines()
    assert verdict.startswith("first difference: model.")
    assert reason.startswith("two runs without a stop differ as well (model.")


@pytest.mark.slow
def test_signals_that_do_nothing_are_not_counted(
    small: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched(monkeypatch, tmp_path, "from ien.stopping import StopRequest\nStopRequest.note = lambda *_: None\n")
    monkeypatch.setattr(rehearse, "IN_VAIN", 2)
    with pytest.raises(Failed, match=r"^1 × TERM did not come, or .* 7 steps .*--steps 28"):
        rehearse.rehearsed(orders(small, scratch, steps=7), ["TERM"], random.Random(1))


@pytest.mark.slow
def test_a_run_that_dies_of_a_signal_is_shown(
    small: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fatal = """
from ien.stopping import StopRequest
def note(self, number, frame):
    raise ArithmeticError("no signals, please")
StopRequest.note = note
"""
    patched(monkeypatch, tmp_path, fatal)
    assert exit_status("--config", small, "--scratch", scratch, "--seed", 2) == 1
    told = capsys.readouterr().out.splitlines()
    assert "process 0 | ArithmeticError: no signals, please" in told
    assert re.match(r"not proven: the run did not leave in order after (USR2|TERM) to .*process 0: status 1", told[-1])
    assert "bit-equal" not in "".join(told)


@pytest.mark.slow
def test_a_run_that_hangs_is_killed(
    small: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = "import time\nfrom ien.stopping import StopRequest\nStopRequest.note = lambda *_: time.sleep(1000)\n"
    patched(monkeypatch, tmp_path, deaf)
    monkeypatch.setenv("REHEARSAL_OF", str(scratch))
    monkeypatch.setattr(rehearse, "LEAVE_S", 0.0)
    hasty = orders(small, scratch)
    hasty.timeout_s = 3.0
    with pytest.raises(Failed, match=r"^TERM to process 0 did not end the run within 3 s .process 0: still runs"):
        rehearse.rehearsed(hasty, ["TERM"], random.Random(1))
    assert alive(scratch) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--steps", "4"], "--steps 4: are too few to stop in between; write 5 or more"),
        (["--steps", "few"], "invalid int value"),
        (["--rounds", "0"], "no number from 1 to 1000"),
        (["beta_wieght=1"], "beta_weight"),
        (["training=false"], "write training=true"),
        (["--processes", "3"], "batch_size: 128 does not divide by 3"),
        (["dataset=rot_mnist", "data.root=nowhere"], "python -m ien.data rot_mnist"),
        (["--scratch", "/dev/null"], "give a folder"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_bad_input_is_one_line_and_exit_status_2(
    small: Path, scratch: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("--config", small, "--scratch", scratch, *arguments) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert told in errors[0]
    assert said.out == ""
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_broken_off_it_leaves_nothing(small: Path, scratch: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "launch.rehearse", "--config", str(small), "--scratch", str(scratch)]
    streamed = ["data.resident=never", "data.workers=2", "data.start_method=fork", "--processes", "2", "--steps", "40"]
    marked = {**os.environ, "REHEARSAL_OF": str(scratch)}
    rehearsal = subprocess.Popen(
        [*command, *streamed], cwd=ROOT, env=marked, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert until(lambda: any(scratch.glob("*/whole/checkpoints/last.pt")), 120)
    assert len(alive(scratch)) >= 5  # the rehearsal, two processes and their workers
    os.killpg(rehearsal.pid, number)
    assert rehearsal.communicate(timeout=60)[1].splitlines()[-1] == "interrupted; nothing is left behind"
    assert rehearsal.returncode == 130
    assert alive(scratch) == []
    assert list(scratch.iterdir()) == []


def alive(mark: Path) -> list[str]:
    """The processes that have the mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"REHEARSAL_OF={mark}".encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def until(true: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(true())


STATE: dict[str, Any] = {
    "format": 2,
    "progress": {"epoch": 1, "seconds": 1.0, "best": {"accuracy": 0.5, "images_per_second": 3.0}},
    "engine": {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "sums": [torch.tensor(math.nan)]},
    "model": {"layer.weight": torch.tensor([[0.0, 1.0], [2.0, 3.0]])},
    "random": [torch.tensor([1, 2], dtype=torch.uint8)],
}


def changed(**leaves: Any) -> dict[str, Any]:
    """`STATE` with other values: names with __ between the keys."""
    state = copy.deepcopy(STATE)
    for name, value in leaves.items():
        *path, last = (int(key) if key.isdecimal() else key.replace("layer_", "layer.") for key in name.split("__"))
        place: Any = state
        for key in path:
            place = place[key]
        place[last] = value
    return state


def difference(tmp_path: Path, other: dict[str, Any]) -> str:
    for name, state in (("one", STATE), ("other", other)):
        checkpoint.save_last(tmp_path / name, state)
    return first_difference(tmp_path / "one" / "last.pt", tmp_path / "other" / "last.pt")


def test_clocks_alone_may_differ(tmp_path: Path) -> None:
    assert difference(tmp_path, changed(progress__seconds=7.0, progress__best__images_per_second=8.0)) == ""


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            changed(model__layer_weight=torch.tensor([[0.0, 1.0], [2.0, 5.0]])),
            "model.layer.weight differs by up to 2, in 1 of 4 places",
        ),
        (changed(model__layer_weight=torch.tensor([[-0.0, 1.0], [2.0, 3.0]])), "model.layer.weight differs by up to 0"),
        (changed(model__layer_weight=torch.zeros(2, 2).double()), "model.layer.weight is torch.float32 of (2, 2) in"),
        (changed(engine__optimizer__state__0__exp_avg=torch.zeros(2)), "engine.optimizer.state.0.exp_avg differs by"),
        (changed(engine__sums=[torch.tensor(0.0)]), "engine.sums.0 differs by up to 0, in 1 of 1 places"),
        (changed(engine__sums=[]), "engine.sums.0 is in one of the checkpoints alone"),
        (changed(random=[torch.tensor([1, 9], dtype=torch.uint8)]), "random.0 differs by up to 7"),
        (changed(progress__epoch=2), "progress.epoch is 1 in the one and 2 in the other"),
        (changed(progress__best__accuracy=0.25), "progress.best.accuracy is 0.5"),
        # the weights first, whatever stands before them in the file
        (changed(progress__epoch=2, model__layer_weight=torch.ones(2, 2)), "model.layer.weight differs by"),
    ],
)
def test_any_bit_of_a_checkpoint_counts(tmp_path: Path, other: dict[str, Any], told: str) -> None:
    assert difference(tmp_path, other).startswith(told)
