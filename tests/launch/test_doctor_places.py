"""The doctor finds what is really wrong: in its arguments, on this machine, on two nodes of a real SLURM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launch import doctor
from launch.doctor_allocation import LocalProcesses, SlurmJob, hear
from launch.doctor_verdict import FAIL, OK
from tests.launch.test_doctor import good

ROOT = Path(doctor.__file__).resolve().parent.parent


def run(*arguments: str, folder: Path, timeout: float = 150, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m launch.doctor …` in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "launch.doctor", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def lines_of(table: str) -> dict[tuple[str, str], str]:
    """The verdict by check and place."""
    rows = [re.split(r"\s{2,}", line) for line in table.splitlines()[1:] if re.search(r"  (ok|warn|FAIL)  ", line)]
    return {(cells[0], cells[1]): cells[2] for cells in rows}


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nodes", "2"], "error: --nodes 2: needs sbatch and srun on the PATH"),
        (["--nodes", "0"], "error: argument --nodes: '0' is no number from 1 to 10000"),
        (["--partition", "gpu"], "error: --partition: is for nodes of a cluster; add --nodes 2"),
        (["--setup", "module load cuda"], "error: --setup: is for nodes of a cluster"),
        (["--config", "none.yaml"], "error: none.yaml: there is no such file"),
        (["--nonsense"], "error: unrecognized arguments: --nonsense"),
    ],
)
@pytest.mark.usefixtures("no_slurm")
def test_bad_input_gets_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        doctor.main(arguments)
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.err.startswith(line)
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--partition", "low;id"], "error: --partition: 'low;id' cannot be"),
        (["--account", "a\nb"], r"error: --account: 'a\nb' cannot be"),
        (["--setup", "a\nb"], r"error: --setup: 'a\nb' is more than one line"),
        (["--root", "a b"], "error: --root: 'a b' cannot be a job's"),
        (["--root", "a%j"], "error: --root: 'a%j' cannot be a job's"),
    ],
)
def test_what_a_shell_or_slurm_would_read_otherwise_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    for name in ("sbatch", "srun"):  # never called
        (tmp_path / name).write_text("#!/bin/sh\ntouch $0.called\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--nodes", "2", *arguments])
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.err.startswith(line)
    assert shown.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sbatch", "srun"]


def test_the_script_is_bash_and_holds_words_as_they_are(tmp_path: Path) -> None:
    job = SlurmJob(
        tmp_path / ".doctor-1", 2, 4, 5, cpus_per_task=3, gpus_per_node=2, partition="p", setup=["module load x"]
    )
    script = job.script()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert script.splitlines()[:2] == ["#!/bin/bash", "module load x"]
    assert " --cpus-per-task=3 " in script
    assert {"--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=3", "--gpus-per-node=2", "--partition=p"} < set(
        job.command()
    )
    assert not any(word.startswith("--account") for word in job.command())


@pytest.mark.usefixtures("no_slurm")
def test_a_root_that_cannot_be_is_told_and_nothing_else_is_tried(tmp_path: Path) -> None:
    ended = run("--root", "/proc/none/runs", folder=tmp_path)
    assert ended.returncode == 1
    assert "/proc/none/runs: cannot make it: No such file or directory" in ended.stdout
    assert "NOT fit to train: run folder" in ended.stdout


def test_the_login_node_answers_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')")
    code = "from launch import doctor; doctor.main(['--root', '/proc/none/runs'])"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "cannot make it" in ended.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
def test_this_machine_is_checked_without_slurm(tmp_path: Path) -> None:
    ended = run("--tasks-per-node", "2", folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    verdicts = lines_of(ended.stdout)
    assert {check for check, _ in verdicts} >= {"versions", "torch", "devices", "run folder", "ports", "signals"}
    assert {verdict for (check, _), verdict in verdicts.items() if check not in ("all-reduce", "CPUs", "devices")} == {
        OK
    }
    assert list(tmp_path.iterdir()) == []  # the folder of runs was made, tried, and went again


@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
def test_reports_made_by_hand_tell_what_real_ones_tell(tmp_path: Path) -> None:
    (tmp_path / "login").touch()
    heard = hear(LocalProcesses(tmp_path, 2), 2, 60, "processes", lambda line: None)
    assert heard.ended == ""
    by_hand, real = good(), heard.reports
    for rank in range(2):
        assert real[rank].keys() == by_hand[rank].keys()
        for fact, value in by_hand[rank].items():
            if isinstance(value, dict) and fact != "versions":
                assert real[rank][fact].keys() == value.keys(), fact


# Read by every Python below its folder at its start: what is wrong with one node.
SABOTAGE = """
import os, signal, time
here = os.environ.get("SLURMD_NODENAME") == "n2" if "SLURM_PROCID" in os.environ else os.environ.get("RANK") == "1"
faults = os.environ.get("FAULTS", "").split() if here else []
if "clock" in faults:
    real = time.time
    time.time = lambda: real() + 2
if "python" in faults:
    import platform
    platform.python_version = lambda: "3.9.1"
if "cores" in faults:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
if "dead" in faults:
    os._exit(9)
if "deaf" in faults:
    mask = signal.pthread_sigmask
    signal.pthread_sigmask = lambda how, signals: None if how == signal.SIG_UNBLOCK else mask(how, signals)
    mask(signal.SIG_BLOCK, {signal.SIGUSR2})
if "workers" in faults:
    signal.pthread_sigmask = lambda how, signals: set()
"""


@pytest.fixture
def sabotage(tmp_path: Path) -> str:
    """The folder that PYTHONPATH must begin with."""
    (tmp_path / "sabotage").mkdir()
    (tmp_path / "sabotage" / "sitecustomize.py").write_text(SABOTAGE)
    return str(tmp_path / "sabotage")


@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize(
    ("fault", "line"),
    [("workers", "DataLoader worker .* is killed by signal: Terminated"), ("deaf", "no SIGUSR2 came")],
)
def test_a_real_fault_of_one_process_is_found(tmp_path: Path, sabotage: str, fault: str, line: str) -> None:
    ended = run("--tasks-per-node", "2", folder=tmp_path, PYTHONPATH=f"{sabotage}:{ROOT}", FAULTS=fault)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert re.search(rf"^signals .* FAIL  {line}", ended.stdout, re.MULTILINE), ended.stdout + ended.stderr
    assert "NOT fit to train: signals" in ended.stdout


class Queue:
    """What Slurm knows of the doctor's jobs."""

    def names(self) -> list[str]:
        told = subprocess.run(["squeue", "-h", "-o", "%j"], capture_output=True, text=True, check=True).stdout
        return [name for name in told.split() if name.startswith("ien-doctor-")]

    def until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, self.names()
            time.sleep(0.2)


@pytest.fixture
def queue(slurm_cluster: str) -> Queue:
    return Queue()


@pytest.mark.slow
@pytest.mark.slurm
def test_two_nodes_are_checked_in_less_than_two_minutes(tmp_path: Path, queue: Queue) -> None:
    began = time.monotonic()
    ended = run("--nodes", "2", "--tasks-per-node", "2", folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert time.monotonic() - began < 120
    verdicts = lines_of(ended.stdout)
    checks = ("versions", "torch", "run folder", "shared", "lock", "ports", "clock", "all-reduce", "signals")
    assert {(check, node) for check in checks for node in ("n1", "n2")} <= verdicts.keys()
    assert {verdict for (check, _), verdict in verdicts.items() if check not in ("all-reduce", "CPUs", "devices")} == {
        OK
    }
    assert queue.names() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.slurm
def test_what_is_wrong_with_one_node_is_told_of_that_node(tmp_path: Path, queue: Queue, sabotage: str) -> None:
    setup = f"export FAULTS='clock python cores' PYTHONPATH={sabotage}:$PYTHONPATH"
    asked = ["--nodes", "2", "--tasks-per-node", "1", "--cpus-per-task", "2", "--gpus-per-node", "2"]
    ended = run(*asked, "--setup", setup, folder=tmp_path)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    verdicts = lines_of(ended.stdout)
    for check in ("clock", "versions", "CPUs"):
        assert verdicts[check, "n2"] == FAIL
        assert verdicts[check, "n1"] == OK
    assert verdicts["devices", "n1"] == (OK if torch.cuda.device_count() >= 2 else FAIL)
    assert verdicts["signals", "n2"] == OK
    assert queue.names() == []


@pytest.mark.slow
@pytest.mark.slurm
def test_a_node_that_dies_is_missed_and_the_other_is_told_of(tmp_path: Path, queue: Queue, sabotage: str) -> None:
    ended = run("--nodes", "2", "--setup", f"export FAULTS=dead PYTHONPATH={sabotage}:$PYTHONPATH", folder=tmp_path)
    assert ended.returncode == 1
    assert "task 1 said nothing" in ended.stdout
    assert "srun: error: n2: task 1: Exited with exit code 9" in ended.stderr
    assert lines_of(ended.stdout)["signals", "n1"] == OK
    assert queue.names() == []


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_doctor_that_is_interrupted_leaves_no_job(tmp_path: Path, queue: Queue, number: int) -> None:
    command = [sys.executable, "-m", "launch.doctor", "--nodes", "2", "--setup", "sleep 100"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    doing = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    queue.until(lambda: bool(queue.names()))
    doing.send_signal(number)
    _, told = doing.communicate(timeout=60)
    assert doing.returncode == 130
    assert told.splitlines()[-1] == "interrupted; nothing is left behind"
    queue.until(lambda: not queue.names(), 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slurm
def test_nodes_that_cannot_be_had_are_refused_or_told(tmp_path: Path, queue: Queue) -> None:
    refused = run("--nodes", "2", "--partition", "nonsense", folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: sbatch refused 2 nodes: ")
    never = run("--nodes", "3", folder=tmp_path)
    assert never.returncode == 1
    assert "no job can have 3 nodes" in never.stdout
    failed = run("--nodes", "2", "--setup", "exit 3", folder=tmp_path)
    assert failed.returncode == 1
    assert "all tasks said nothing: the job ended before a process spoke (FAILED)" in failed.stdout
    assert queue.names() == []
    assert list(tmp_path.iterdir()) == []
