"""What Slurm says is understood, what it does not say is told in one line; and a real one does what it is told."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from launch import slurm
from launch.slurm import Queued, SlurmError

SCRIPT = "#!/bin/bash\n#SBATCH --time=5 --requeue --output=/dev/null --job-name=ien-test\n"


def test_what_squeue_prints_is_read_job_by_job() -> None:
    lines = """10|RUNNING|None|1795391797|1795392097|n1
11_5|PENDING|JobArrayTaskLimit|N/A|N/A|
12|PENDING|Resources|1795391801|1795391901|
13|COMPLETING|None|2026-11-22T10:00:00|NONE|n[1-2]
squeue: warning: something else
"""
    running, element, estimated, ending = slurm.parsed(lines)
    assert running == Queued("10", "RUNNING", "", 1795391797.0, 1795392097.0, "n1")
    assert element == Queued("11_5", "PENDING", "JobArrayTaskLimit")
    assert (estimated.start, estimated.reason) == (1795391801.0, "Resources")
    # A squeue that knows nothing of SLURM_TIME_FORMAT=%s prints this machine's time.
    assert (ending.start, ending.end) == (datetime(2026, 11, 22, 10).timestamp(), None)
    assert (running.running, element.waiting, ending.running) == (True, True, True)


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ("PENDING", "waiting"),
        ("REQUEUE_HOLD", "waiting"),
        ("CONFIGURING", "waiting"),
        ("RUNNING", "running"),
        ("SUSPENDED", "running"),
        ("COMPLETING", "running"),
        ("PREEMPTED", "over"),
        ("OUT_OF_MEMORY", "over"),
    ],
)
def test_a_job_waits_runs_or_is_over(state: str, place: str) -> None:
    job = Queued("1", state)
    assert [name for name in ("waiting", "running", "over") if getattr(job, name)] == [place]


def test_the_job_that_we_are_in_leaves_nothing_in_the_one_that_we_submit() -> None:
    inherited = dict.fromkeys(("SLURM_CPU_BIND", "SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_X", "PMIX_RANK"), "1")
    kept = {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin", "MY_SLURM_NOTES": "x", "PMI": "x"}
    assert slurm.scrubbed(inherited | kept) == kept


def test_without_slurm_every_question_is_answered_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.available()
    assert (slurm.cluster_name(), slurm.max_array_size(), slurm.job_end("1"), slurm.shown("1")) == (
        None,
        None,
        None,
        {},
    )
    with pytest.raises(SlurmError, match=r"^squeue is not on the PATH$"):
        slurm.queue()
    assert slurm.test_only(SCRIPT) == (False, "sbatch is not on the PATH")
    assert slurm.requeue("1") == "scontrol is not on the PATH"
    assert slurm.cancel(["1"]) == "scancel is not on the PATH"
    assert slurm.cancel([]) == ""


def test_a_controller_that_is_down_is_told_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, does in (
        ("squeue", "exec sleep 60"),
        ("scancel", "echo 'scancel: error: no  luck'; exit 1"),
        ("sbatch", ""),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "TIMEOUT_S", 0.3)
    began = time.monotonic()
    with pytest.raises(SlurmError, match=r"^squeue did not answer within 0.3 s$"):
        slurm.queue()
    assert time.monotonic() - began < 5
    assert slurm.cancel(["1"]) == "no luck"
    assert slurm.test_only(SCRIPT) == (True, "")


def until(true: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something; the assertion of the test tells what was missed."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.2)


def submitted(*options: str) -> str:
    """A job of ours that sleeps; its number."""
    command = ["sbatch", "--parsable", *options]
    ended = subprocess.run(command, input=SCRIPT + "sleep 120\n", capture_output=True, text=True, check=True)
    return ended.stdout.strip().split(";")[0]


@pytest.mark.slurm
def test_a_real_cluster_tells_what_it_is(slurm_cluster: str) -> None:
    assert slurm.available()
    assert slurm.cluster_name() == "ien-test"
    assert slurm.max_array_size() == 11
    assert slurm.configuration()["PreemptMode"] == "REQUEUE"


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("", "to start at 20"),
        ("#SBATCH --partition=nowhere", "invalid partition specified: nowhere"),
        ("#SBATCH --mem=900G", "Requested node configuration is not available"),
        ("#SBATCH --nodes=3", "Requested node configuration is not available"),
        ("#SBATCH --array=0-11", "Invalid job array specification"),
    ],
)
def test_a_real_cluster_takes_or_refuses_a_script_in_one_line(slurm_cluster: str, line: str, verdict: str) -> None:
    accepted, said = slurm.test_only(f"{SCRIPT}{line}\nsleep 1\n")
    assert accepted == (not line)
    assert verdict in said
    assert "\n" not in said


@pytest.mark.slurm
def test_a_real_job_waits_runs_is_requeued_and_cancelled(slurm_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SQUEUE_STATES", "COMPLETED"), ("SQUEUE_FORMAT", "%i"), ("SLURM_TIME_FORMAT", "relative")):
        monkeypatch.setenv(name, value)  # what a user's shell may hold
    number, held = submitted(), submitted("--hold")
    try:
        until(lambda: slurm.queue()[number].running)
        job = slurm.queue()[number]
        assert job.running
        assert job.start == pytest.approx(time.time(), abs=60)
        assert job.nodes in ("n1", "n2")
        end = slurm.job_end(number)
        assert end == pytest.approx(time.time() + 300, abs=90)
        assert slurm.shown(number)["JobState"] == "RUNNING"
        assert float(slurm.shown(number)["EndTime"]) == end  # of no time zone, in which an hour may come twice
        assert slurm.queue()[held].reason == "JobHeldUser"
        assert slurm.job_end(held) is None
        assert slurm.requeue(number) == ""
        until(lambda: slurm.queue()[number].waiting)
        assert slurm.queue()[number].reason == "BeginTime"
        assert slurm.shown(number)["Restarts"] == "1"
        assert "pending" in slurm.requeue(number)
        assert "Invalid job id" in slurm.requeue("987654")
        assert slurm.job("987654") is None
    finally:
        refused = slurm.cancel([number, held])
    assert refused == ""
    until(lambda: number not in slurm.queue())
    assert not {number, held} & set(slurm.queue())
    ended = slurm.job(number)  # the controller remembers it for a while
    assert ended is not None
    assert ended.state == "CANCELLED"


@pytest.mark.slurm
def test_each_element_of_a_real_array_stands_for_itself(slurm_cluster: str) -> None:
    number = submitted("--array=1,3-4,7-10%1")
    elements = {f"{number}_{index}" for index in (1, 3, 4, 7, 8, 9, 10)}
    try:
        until(lambda: slurm.queue()[f"{number}_1"].running)
        queue = slurm.queue()
        assert {job for job in queue if job.startswith(f"{number}_")} == elements
        assert [queue[job].running for job in sorted(elements)].count(True) == 1
        assert slurm.cancel([f"{number}_{index}" for index in (4, 9)]) == ""
        until(lambda: f"{number}_9" not in slurm.queue())
        assert {job for job in slurm.queue() if job.startswith(f"{number}_")} == elements - {
            f"{number}_4",
            f"{number}_9",
        }
    finally:
        slurm.cancel([number])
