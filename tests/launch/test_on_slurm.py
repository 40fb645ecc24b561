"""A run on a real SLURM ends as it would have anywhere, whatever is done to it on the way; or says why not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.cluster import ROOT, Runs, hurt, left_over, quiet, said, task
from tests.runs_compared import assert_equal_runs, lines

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm_cluster"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that two processes of this machine trained, and nobody stopped."""
    runs = Runs(tmp_path_factory.mktemp("whole"))
    runs.submit("--executor", "local", "launch.nodes=1", "launch.tasks_per_node=2", "save_dir=run", "--wait")
    return runs.path("run")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    made = Runs(tmp_path)
    yield made
    jobs = [event["job"] for ledger in tmp_path.rglob("ledger.jsonl") for event in _submitted(ledger)]
    if jobs:
        subprocess.run(["scancel", *jobs], check=False, capture_output=True)


def _submitted(ledger: Path) -> list[dict[str, str]]:
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    return [event for event in events if event["event"] == "submitted"]


ENDS = ("finished", "given up", "cancelled")


def finished(runs: Runs, name: str, whole: Path) -> None:
    """Wait for the end; it is that of the run that was not disturbed, and nobody is left behind."""
    job = runs.job(name)
    runs.until(name, lambda events: any(one["event"] in ENDS and one["job"] == job for one in events))
    assert runs.named(name, "finished"), runs.story(name)
    assert_equal_runs(whole, runs.path(name))
    deadline = time.monotonic() + 30
    while left_over(runs.folder) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left_over(runs.folder) == []


def test_two_nodes_train_as_two_processes_of_one_machine(runs: Runs, whole: Path) -> None:
    # What a shell inside of another job has would change this one.
    inherited = {
        "SBATCH_PARTITION": "nonsense",
        "SLURM_CPU_BIND": "map_cpu:0",
        "SLURM_NTASKS": "7",
        "SLURM_NNODES": "5",
    }
    told = runs.submit("save_dir=run", **inherited).stdout
    for start in (
        "executor slurm: sbatch is on the PATH",
        "job     ",
        "run     runs/run",
        "follow  ",
        "stop    python -m launch.jobs cancel runs/run",
    ):
        assert f"\n{start}" in f"\n{told}"
    assert "ssh -t -L 6006:localhost:6006" in told
    finished(runs, "run", whole)
    assert lines(runs.path("run")) == lines(whole)
    log = next(runs.path("run").glob("jobs/*_0_log.out")).read_text()
    assert "n1: rank 0 cpu" in log
    assert "n2: rank 1 cpu" in log
    assert runs.named("run", "started")[0]["nodes"] == ["n1", "n2"]


def test_requeued_by_hand(runs: Runs, whole: Path) -> None:
    runs.submit("save_dir=run")
    runs.until_event("run", "saved")
    assert said("scontrol", "requeue", runs.job("run")) == ""
    finished(runs, "run", whole)
    assert [event["kind"] for event in runs.named("run", "requeued")] == ["preempted"]
    assert len(runs.named("run", "signal")) == 1
    assert [event["restart"] for event in runs.named("run", "started")] == [0, 1]
    stopped = runs.named("run", "stopped")[0]
    assert stopped["signals"] == ["SIGTERM"]
    # what was saved on the signal is what it went on from
    assert runs.named("run", "resumed")[0]["step"] == runs.named("run", "signal")[0]["step"]


@pytest.mark.parametrize("switch", ["--plain", "--preempt-send-user-signal"])
def test_preempted_by_a_higher_partition(runs: Runs, whole: Path, switch: str, slurm_cluster: str) -> None:
    folder = str(Path(slurm_cluster).parent)
    reconfigure = [ROOT / "slurm/cluster/reconfigure", "--dir", folder, switch]
    subprocess.run(reconfigure, check=True, capture_output=True, timeout=60)
    runs.submit("save_dir=run", "launch.partition=low")
    runs.until_event("run", "saved")
    hungry = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    subprocess.run([*hungry, "--wrap=sleep 3"], check=True, capture_output=True, env=quiet())
    finished(runs, "run", whole)
    assert [event["kind"] for event in runs.named("run", "requeued")] == ["preempted"]
    asked = "SIGUSR2" if switch == "--preempt-send-user-signal" else "SIGTERM"
    assert runs.named("run", "stopped")[0]["signals"] == [asked]


def test_a_killed_rank_is_a_failure_that_is_tried_again(runs: Runs, whole: Path) -> None:
    runs.submit("save_dir=run")
    runs.until_event("run", "saved")
    hurt(runs.job("run"), 1, signal.SIGKILL)
    finished(runs, "run", whole)
    assert [event["kind"] for event in runs.named("run", "requeued")] == ["failure"]
    causes = " ".join(event["cause"] for event in runs.named("run", "failed"))
    assert "n2: task 1: Killed" in causes


def test_a_stopped_rank_is_named_and_the_job_does_not_wait_for_it(runs: Runs, whole: Path) -> None:
    runs.submit("save_dir=run", "run.timeout_s=10")
    runs.until_event("run", "saved")
    hurt(runs.job("run"), 1, signal.SIGSTOP)
    stopped = time.monotonic()
    runs.until_event("run", "requeued", seconds=60)
    # its own time-out, and what SLURM takes to kill a process that does not hear SIGTERM (KillWait)
    assert time.monotonic() - stopped < 10 + 15 + 10
    lost = [event["cause"] for event in runs.named("run", "failed") if event["kind"] == "lost"]
    assert len(lost) == 1  # the stopped one, which SLURM wakes to end it, accuses nobody
    assert lost[0].startswith("process 1 on ")
    assert "has not answered" in lost[0]
    finished(runs, "run", whole)


def test_a_run_that_fails_twice_at_the_same_step_stops_and_says_why(runs: Runs, whole: Path) -> None:
    runs.submit("save_dir=run", "run.checkpoint_minutes=60")
    runs.until_event("run", "saved")
    hurt(runs.job("run"), 1, signal.SIGKILL)
    runs.until_event("run", "resumed")
    hurt(runs.job("run"), 0, signal.SIGKILL)
    runs.until_event("run", "given up")
    assert "failed twice at the same step" in runs.named("run", "given up")[0]["why"]
    assert len(runs.named("run", "requeued")) == 1
    told = subprocess.run(
        [sys.executable, "-m", "launch.jobs", "why", str(runs.path("run"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "failed twice at the same step" in told
    assert "n1: task 0: Killed" in told
    # submitted again by a person it goes on
    runs.submit("save_dir=run")
    finished(runs, "run", whole)


def test_a_cancelled_run_stays_cancelled_until_it_is_submitted_again(runs: Runs, whole: Path) -> None:
    runs.submit("save_dir=run")
    runs.until_event("run", "saved")
    job = runs.job("run")
    subprocess.run(["scancel", job], check=True)
    runs.until_event("run", "cancelled")
    time.sleep(15)  # a requeued job would be back by now
    assert job not in said("squeue", "--noheader", "--format=%i").split()
    assert runs.named("run", "requeued") == []
    assert runs.named("run", "stopped")[0]["signals"] == ["SIGTERM"]  # and nothing was lost
    runs.submit("save_dir=run")
    finished(runs, "run", whole)


def test_a_second_job_in_the_same_folder_is_refused(runs: Runs, whole: Path) -> None:
    runs.submit("save_dir=run")
    runs.until_event("run", "saved")
    second = runs.submit("save_dir=run", check=False)
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: runs/run has job {runs.job('run')} already (RUNNING)")
    # Also where the queue is not asked: in this process.
    third = runs.submit("save_dir=run", "--executor", "inline", "launch.nodes=1", check=False)
    assert third.returncode == 2
    assert "runs/run is in use by process" in third.stderr
    assert f"job {runs.job('run')}" in third.stderr
    finished(runs, "run", whole)
    assert len(runs.named("run", "submitted")) == 1


def test_into_the_time_limit_and_on(runs: Runs, whole: Path) -> None:
    runs.submit("save_dir=run", "launch.timeout_min=2", "launch.signal_delay_s=30")
    runs.until_event("run", "saved")
    ranks = [task(runs.job("run"), rank) for rank in range(2)]
    # Held, because a fast machine would be done before; SLURM wakes what it signals.
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    runs.until_event("run", "stopped", seconds=150)
    runs.until_event("run", "requeued", seconds=60)
    stopped = runs.named("run", "stopped")[0]
    assert stopped["signals"] == ["SIGUSR2"]
    assert 0 < stopped["remaining_s"] < 30 + 70  # it may be a minute early
    assert runs.named("run", "requeued")[0]["kind"] == "time limit"
    finished(runs, "run", whole)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `whole`, with three epochs: workers that are not forked take seconds to start, in each epoch."""
    runs = Runs(tmp_path_factory.mktemp("short"), epochs=3)
    runs.submit("--executor", "local", "launch.nodes=1", "launch.tasks_per_node=2", "save_dir=run", "--wait")
    return runs.path("run")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_data_loaders_processes_do_not_mind_the_signals(tmp_path: Path, short: Path, method: str) -> None:
    runs = Runs(tmp_path, epochs=3)
    runs.submit("save_dir=run", "data.resident=never", "data.workers=2", f"data.start_method={method}")
    for count, number in enumerate(("USR2", "TERM"), start=1):
        runs.until_event("run", "started", count)
        time.sleep(3)  # its workers start, or work
        subprocess.run(["scancel", f"--signal={number}", runs.job("run")], check=True)  # to every process of the step
        runs.until_event("run", "requeued", count)
    finished(runs, "run", short)
    assert [event["signals"] for event in runs.named("run", "stopped")] == [["SIGUSR2"], ["SIGTERM"]]
    assert runs.named("run", "failed") == []


def test_an_array_of_seeds_runs_side_by_side_and_skips_what_is_done(runs: Runs) -> None:
    words = ["--seeds", "0-2", "launch.nodes=1", "tot_epochs=1", "cyc_size=1", "save_dir=many"]
    told = runs.submit(*words).stdout
    assert "(3 runs of 1 process each)" in told
    names = [f"many/seed_{seed}" for seed in range(3)]
    for name in names:
        runs.until_event(name, "finished")
    numbers = {runs.job(name).partition("_")[0] for name in names}
    assert len(numbers) == 1  # one array
    losses = {json.loads((runs.path(name) / "summary.json").read_text())["class_loss"] for name in names}
    assert len(losses) == 3  # a seed each; after one epoch they may well be right equally often
    (runs.path(names[1]) / "summary.json").unlink()
    again = runs.submit(*words).stdout
    assert "runs/many/seed_0 is finished" in again
    assert "(1 process)" in again
    runs.until_event(names[1], "finished", count=2)
    assert [len(runs.named(name, "submitted")) for name in names] == [1, 2, 1]


def test_more_runs_than_an_array_may_have_become_several(runs: Runs) -> None:
    """The cluster of the tests allows eleven."""
    plan = runs.submit("--seeds", "0-12", "launch.nodes=1", "save_dir=many", "--dry-run").stdout
    assert re.findall(r"#SBATCH --array=(\S+)", plan) == ["0-10%11", "0-1%2"]
    assert plan.count("would take it (sbatch --test-only)") == 2
    assert not (runs.folder / "runs").exists()


def test_two_jobs_at_once_on_the_same_nodes(runs: Runs, whole: Path) -> None:
    runs.submit("save_dir=one")
    runs.submit("save_dir=other")
    finished(runs, "one", whole)
    finished(runs, "other", whole)
    spans = [[runs.named(name, event)[0]["time"] for event in ("started", "finished")] for name in ("one", "other")]
    assert max(start for start, _ in spans) < min(end for _, end in spans)  # they did run together


def test_an_edit_does_not_change_a_job_that_waits(runs: Runs, whole: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("ien", "launch", "configs"):
        shutil.copytree(ROOT / name, project / name)
    busy = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    blocker = subprocess.run(
        [*busy, "--wrap=sleep 600"], check=True, capture_output=True, text=True, env=quiet()
    ).stdout
    try:
        runs.submit("save_dir=run", root=project)
        (project / "ien" / "train.py").write_text("raise SystemExit('the edited code was run')")
        assert runs.named("run", "started") == []
    finally:
        subprocess.run(["scancel", blocker.strip()], check=True)
    finished(runs, "run", whole)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("launch.partition=nonsense", "invalid partition"),
        ("launch.mem_gb=100000", "Memory|not available"),
        ("launch.nodes=64", "node|Node"),
        ("launch.constraint=nonsense", "feature|Invalid"),
    ],
)
def test_what_slurm_would_refuse_is_told_before_anything_is_written(runs: Runs, word: str, said: str) -> None:
    refused = runs.submit(word, "batch_size=128", check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: SLURM would not take the job: ")
    assert re.search(said, refused.stderr), refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (runs.folder / "runs").exists()
    plan = runs.submit(word, "--dry-run", check=False).stdout
    assert "REFUSES it (sbatch --test-only)" in plan


def test_a_run_without_python_on_the_login_node(runs: Runs, whole: Path) -> None:
    """slurm/train.sbatch, requeued on the way."""
    words = ["--nodes=2", "--cpus-per-task=1", "--parsable", "--time=10", str(ROOT / "slurm/train.sbatch")]
    given = ["run.yaml", "save_dir=run", "launch.cpus_per_task=1"]
    surroundings = quiet() | {"PYTHON": sys.executable}
    copied = runs.folder
    for name in ("ien", "launch"):
        (copied / name).symlink_to(ROOT / name)
    sent = subprocess.run(["sbatch", *words, *given], cwd=copied, env=surroundings, capture_output=True, text=True)
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.strip()
    runs.until_event("run", "saved")
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    runs.until_event("run", "requeued")
    runs.until_event("run", "finished")
    assert_equal_runs(whole, runs.path("run"))
    wrong = subprocess.run(["bash", str(ROOT / "slurm/train.sbatch"), "nothing"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "is no settings file" in wrong.stderr
