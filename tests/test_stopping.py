"""Asked to stop, a run saves at a step's end and leaves; what it goes on to is the run that was never stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ien import config, ledger, stopping, train
from ien.stopping import STOPPED, StopRequest, heeded
from tests.runs_compared import assert_equal_runs

ROOT = Path(__file__).parent.parent
SMALL = """
dataset: digits
model: BasicCNN
network: {width: 4}
tot_epochs: 6
cyc_size: 6
batch_size: 128
run: {log_every: 3, equivariance_images: 32, device: cpu}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "small.yaml"
    path.write_text(SMALL)
    return path


def command(settings: Path, root: Path, *words: str) -> list[str]:
    return [*words, "-m", "ien.train", "--config", str(settings), f"run.root={root}", "save_dir=run"]


def begun(settings: Path, root: Path, *words: str) -> subprocess.Popen[str]:
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(settings, root, *words or (sys.executable,)),
        cwd=ROOT,
        env=surroundings,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def whole(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody stopped."""
    root = tmp_path_factory.mktemp("whole")
    one = begun(settings, root)
    _, said = one.communicate(timeout=120)
    assert one.returncode == 0, said
    return root / "run"


def until_saved(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(event["event"] == "saved" for event in ledger.read(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_each_signal_saves_and_leaves_and_the_run_goes_on_to_the_same_bits(
    settings: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    one = begun(settings, tmp_path / "cut")
    until_saved(tmp_path / "cut" / "run")
    one.send_signal(number)
    _, said = one.communicate(timeout=60)
    assert one.returncode == STOPPED, said
    assert f"stopped: {number.name}" in said
    events = ledger.read(tmp_path / "cut" / "run")
    # At an epoch's end, which saves anyway, the signal is heard after that.
    kinds = [event["event"] for event in events[-3:]]
    assert kinds in (["signal", "saved", "stopped"], ["saved", "signal", "stopped"])
    saved = events[-3 + kinds.index("saved")]["step"]
    again = begun(settings, tmp_path / "cut")
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    resumed = next(event for event in ledger.read(tmp_path / "cut" / "run") if event["event"] == "resumed")
    assert resumed["step"] == saved
    assert_equal_runs(whole, tmp_path / "cut" / "run")


def test_a_signal_to_one_process_stops_all_at_the_same_step(settings: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    root = tmp_path / "cut"
    both = begun(settings, root, *words)
    until_saved(root / "run")
    second = next(pid for pid in below(both.pid) if _variable(pid, "RANK") == "1")
    os.kill(second, signal.SIGUSR2)
    both.communicate(timeout=60)
    stopped = next(event for event in ledger.read(root / "run") if event["event"] == "stopped")
    assert (stopped["signals"], stopped["ranks"]) == (["SIGUSR2"], [1])
    again = begun(settings, root, *words)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    whole = begun(settings, tmp_path / "whole", *words)
    whole.communicate(timeout=120)
    assert_equal_runs(tmp_path / "whole" / "run", root / "run")


def test_a_silent_process_is_named_by_the_others(settings: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    for stopped, left in ((1, 0), (0, 1)):
        root = tmp_path / str(stopped)
        line = [*command(settings, root, *words), "run.timeout_s=6", "tot_epochs=200"]
        both = subprocess.Popen(
            line,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        until_saved(root / "run")
        pids = {_variable(pid, "RANK"): pid for pid in below(both.pid) if _variable(pid, "RANK")}
        os.kill(pids[str(stopped)], signal.SIGSTOP)
        began = time.monotonic()
        while not (lost := [event for event in ledger.read(root / "run") if event.get("kind") == "lost"]):
            assert time.monotonic() - began < 20, ledger.read(root / "run")
            time.sleep(0.1)
        assert lost[0]["cause"].startswith(f"process {stopped} ")
        assert lost[0]["rank"] == left
        for pid in (both.pid, *pids.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        both.communicate()


def test_the_jobs_end_is_a_stop_too(settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stopping.JOB_END, str(time.time() + 45))
    with pytest.raises(stopping.Stopped):
        train.run(config.load(settings, [f"run.root={tmp_path}", "save_dir=run", "tot_epochs=1000"]))
    events = ledger.read(tmp_path / "run")
    assert {"signal", "saved", "stopped"} <= {event["event"] for event in events[-3:]}
    saved = [event["step"] for event in events if event["event"] == "saved"]
    assert saved[-1] == next(event["step"] for event in events if event["event"] == "signal")  # nothing is lost
    assert events[-1]["signals"] == []
    assert events[-1]["remaining_s"] < 40  # 30 seconds, and three times the slowest save


def test_the_handler_answers_in_its_own_process_alone() -> None:
    with heeded() as request:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR2)
            os._exit(0 if request.signal is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert request.signal is None
        assert not request.asked()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert request.asked()
        assert request.why() == "SIGUSR2"
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


HELD_BACK = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.kill(os.getpid(), signal.SIGUSR2)
from ien.stopping import heeded
with heeded() as request:
    print(request.signal)
"""


def test_what_a_launcher_held_back_is_heard() -> None:
    done = subprocess.run([sys.executable, "-c", HELD_BACK], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "SIGUSR2\n"


def test_the_margin_before_the_end_is_kept() -> None:
    request = StopRequest(time.time() + 100)
    assert not request.asked()
    request.margin = 200
    assert request.asked()
    assert not StopRequest(last_step=5).asked(4)
    assert StopRequest(last_step=5).asked(5)


def below(process: int) -> list[int]:
    """The processes that `process` started, and those that they started: torchrun gives each a session of its own."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (child, *below(child))]


def _variable(process: int, name: str) -> str | None:
    try:
        words = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), None)
