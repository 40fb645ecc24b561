"""What became of a run is told rightly, whoever was killed, and whether or not a cluster can be asked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ien import ledger
from ien.ledger import Ledger
from launch import history, jobs, logs, slurm, why
from launch.history import Story
from launch.slurm import Queued

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime.now(timezone.utc)  # all stories are told at this moment, however late a test comes
START = {"nodes": ["n1", "n2"], "processes": 8, "gpus": 4}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A working directory of its own; no SLURM on the PATH, but where a test is about it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    if "slurm_cluster" not in request.fixturenames:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(history, "datetime", Then)


class Then(datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz: Any = None) -> Then:
        return cls.fromisoformat(NOW.isoformat()).astimezone(tz)


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def line(before: float, event: str, job: str = "7", restart: int = 0, **facts: Any) -> ledger.Event:
    return {"time": ago(before), "event": event, "job": job, "restart": restart, **facts}


def beat(before: float, job: str = "7", restart: int = 0, **facts: Any) -> dict[str, Any]:
    """What the holder of the lock wrote so many seconds ago."""
    there = {"host": "elsewhere", "pid": 4, "job": job, "restart": restart, "step": 30, "of": 100, "time": ago(before)}
    return there | facts


def run(name: str, *events: ledger.Event, lock: dict[str, Any] | None = None, **files: str) -> Path:
    """A run folder that holds these events, lock and files."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / ledger.NAME).write_text("".join(json.dumps(event) + "\n" for event in events))
    if lock:
        (folder / ".lock").write_text(json.dumps(lock).ljust(400))
    for file, content in files.items():
        (folder / file.replace("_json", ".json")).write_text(content)
    return folder


def known(folder: Path, queue: dict[str, Queued] | None = None) -> Story:
    return Story(folder, ledger.read(folder), history.lock.read(folder), queue)


def queued(state: str, job: str = "7", start: float | None = None) -> dict[str, Queued]:
    """The queue with one job in it, which was started so many seconds ago."""
    return {job: Queued(job, state, start=None if start is None else NOW.timestamp() - start)}


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    jobs.main(arguments)
    return capsys.readouterr().out


SUBMITTED, STARTED = line(900, "submitted"), line(800, "started", **START)
STOPPED = line(500, "stopped", step=20, signals=["SIGTERM"], remaining_s=4000.0)
REQUEUED = line(499, "requeued", why="preempted (SIGTERM)", kind="preempted")
CRASHED = line(500, "failed", kind="crash", rank=1, cause="IndexError: 7 (groups.py:3)", host="n2")
AGAIN = line(100, "started", restart=1, **START)
# name: (events, seconds since the lock's last beat, the queue (None: not asked), what the run is)
STATES: dict[str, tuple[list[ledger.Event], float | None, dict[str, Queued] | None, str]] = {
    "waits for its first start": ([SUBMITTED], None, queued("PENDING"), "pending"),
    "waits, nobody can be asked": ([SUBMITTED], None, None, "pending"),
    "was taken from the queue by somebody": ([SUBMITTED], None, {}, "lost"),
    "is being started": ([SUBMITTED], None, queued("RUNNING"), "running"),
    "trains": ([SUBMITTED, STARTED], 3, queued("RUNNING"), "running"),
    "trains, nobody can be asked": ([SUBMITTED, STARTED], 3, None, "running"),
    "trains on a cluster that this one's queue knows nothing of": ([SUBMITTED, STARTED], 3, {}, "running"),
    "trains, but the lock's host is silent": ([SUBMITTED, STARTED], 4000, queued("RUNNING"), "running"),
    "was killed": ([SUBMITTED, STARTED], 4000, {}, "lost"),
    "was killed, nobody can be asked": ([SUBMITTED, STARTED], 4000, None, "lost"),
    "was killed, and its job ended a moment ago": ([SUBMITTED, STARTED], 4000, queued("FAILED"), "lost"),
    "left in order": ([SUBMITTED, STARTED, STOPPED], None, {}, "stopped"),
    "left in order, its job ends": ([SUBMITTED, STARTED, STOPPED], None, queued("COMPLETING"), "stopped"),
    "waits for its next start": ([SUBMITTED, STARTED, STOPPED, REQUEUED], None, queued("PENDING"), "requeued"),
    "waits for its next start, nobody can be asked": ([SUBMITTED, STARTED, STOPPED, REQUEUED], None, None, "requeued"),
    "was requeued by SLURM alone, after its node failed": ([SUBMITTED, STARTED], 4000, queued("PENDING"), "requeued"),
    "was requeued, and then taken from the queue": ([SUBMITTED, STARTED, STOPPED, REQUEUED], None, {}, "lost"),
    "was requeued, and begins": ([SUBMITTED, STARTED, STOPPED, REQUEUED], None, queued("RUNNING", start=9), "running"),
    "was requeued, its job ends": ([STARTED, STOPPED, REQUEUED], None, queued("COMPLETING", start=800), "requeued"),
    "trains again": ([SUBMITTED, STARTED, STOPPED, REQUEUED, AGAIN], None, queued("RUNNING"), "running"),
    "failed": ([SUBMITTED, STARTED, CRASHED, line(499, "given up", why="again")], None, {}, "failed"),
    "was cancelled while it waited": ([SUBMITTED, line(5, "cancelled")], None, {}, "cancelled"),
    "was cancelled, and saves": ([SUBMITTED, STARTED, line(5, "cancelled")], 3, queued("COMPLETING"), "cancelled"),
    "was cancelled, and has saved": ([STARTED, line(5, "cancelled"), line(1, "stopped")], None, {}, "cancelled"),
    "was cancelled, and submitted again": (
        [STARTED, line(90, "cancelled"), line(5, "submitted", job="8")],
        None,
        queued("PENDING", job="8"),
        "pending",
    ),
    "has finished": ([SUBMITTED, STARTED, line(5, "finished", step=100)], None, {}, "finished"),
    # The second job was refused, because the first holds the folder.
    "trains while another job was refused": (
        [SUBMITTED, STARTED, line(50, "failed", job="8", kind="input", cause="in use")],
        3,
        None,
        "running",
    ),
    "waits while another job was refused": (
        [SUBMITTED, STARTED, STOPPED, REQUEUED, line(50, "failed", job="8", kind="input", cause="in use")],
        None,
        queued("PENDING"),
        "requeued",
    ),
    "was started by hand, and is silent": ([line(800, "started", job="55@elsewhere")], 4000, {}, "lost"),
    "was started by hand": ([line(800, "started", job="55@elsewhere")], 3, {}, "running"),
    "ended with its local controller": (
        [line(800, "submitted", job="local-1"), line(799, "started", job="local-1")],
        4000,
        None,
        "lost",
    ),
}


@pytest.mark.parametrize("case", STATES)
def test_a_run_is_what_its_ledger_its_lock_and_the_queue_say_together(case: str) -> None:
    events, beats, queue, state = STATES[case]
    started = [event for event in events if event["event"] == "started"]
    lock = beat(beats, started[-1]["job"], started[-1]["restart"]) if beats else None
    assert known(run("a", *events, lock=lock), queue).state == state


def test_a_run_with_its_figures_is_finished_also_if_the_ledger_misses_its_end() -> None:
    folder = run("a", SUBMITTED, STARTED, lock=beat(4000), summary_json="{}")
    assert known(folder, {}).state == "finished"


def test_a_run_from_before_ledgers_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    for name, files in (("old", {"config.yaml", "environment.json"}), ("no run", {"config.yaml"})):
        (Path("runs") / name).mkdir()
        for file in files:
            (Path("runs") / name / file).write_text("{}")
    assert told(capsys, "list").splitlines()[1].split()[:2] == ["old", "stopped"]


@pytest.mark.parametrize("torn", ["", "{", '{"host": "n1", "pid": 4, "jo', "[3]", "\0\0\0", '{"time": "yesterday"}'])
def test_a_lock_that_is_half_written_is_no_lock(torn: str) -> None:
    folder = run("a", SUBMITTED, STARTED)
    (folder / ".lock").write_text(torn)
    assert known(folder, {}).state == "lost"
    assert known(folder, queued("RUNNING")).state == "running"


def test_the_rest_of_the_way_is_told_by_the_speed_of_this_attempt() -> None:
    resumed = line(100, "resumed", restart=1, step=20)
    story = known(run("a", STARTED, STOPPED, AGAIN, resumed, lock=beat(0, restart=1, step=30, of=100)), {})
    assert story.seconds_left == pytest.approx(700, abs=10)  # 10 steps took 100 s, 70 are left
    assert (story.step, story.of, story.starts, story.requeues) == (30, 100, 2, 1)
    # From what was left of the attempt before nothing can be said about this one.
    begins = known(run("b", STARTED, AGAIN, lock=beat(300)), queued("RUNNING"))
    assert (begins.state, begins.seconds_left) == ("running", None)


def test_requeues_are_counted_by_their_cause() -> None:
    events = [
        STARTED,
        line(700, "stopped"),
        line(699, "requeued", kind="time limit"),
        line(600, "started", restart=1, **START),
        line(500, "failed", restart=1, kind="crash", cause="x"),
        line(499, "requeued", restart=1, kind="failure"),
        line(400, "started", restart=2, **START),  # and then its node failed
        line(300, "started", restart=3, **START),
        line(200, "stopped", restart=3),  # requeued by SLURM itself, which notes nothing here
    ]
    story = known(run("a", *events), queued("PENDING"))
    assert story.requeues == 4
    causes = {"time limit": 1, "failure": 1, "an end without a word": 1, "preemption": 1}
    assert why.requeue_causes(story) == causes
    assert why.requeue_causes(known(run("c", STARTED, STOPPED, REQUEUED, AGAIN))) == {"preemption": 1}
    # Another job is not a requeue.
    assert known(run("b", *events, line(5, "submitted", job="8")), queued("PENDING", job="8")).requeues == 3


def test_the_cost_of_a_run_that_died_does_not_grow() -> None:
    events = [line(7200, "started", **START), line(5400, "saved", step=10)]
    lost = known(run("a", *events, lock=beat(3600)), {}).cost
    assert (lost.hours, lost.lost_hours) == (pytest.approx(4, abs=0.02), pytest.approx(2, abs=0.02))
    running = known(run("b", *events, lock=beat(3600)), queued("RUNNING")).cost
    assert (running.hours, running.lost_hours) == (pytest.approx(8, abs=0.1), 0)


def test_the_list_shows_the_newest_first_and_says_how_many_more(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(25):
        folder = run(f"sweep/seed{number}", SUBMITTED, STARTED, line(5, "finished", step=100))
        os.utime(folder / ledger.NAME, (1e9 + number, 1e9 + number))
    (Path("runs/sweep/seed0/jobs/copy")).mkdir(parents=True)
    (Path("runs/sweep/seed0/jobs/copy") / ledger.NAME).write_text("")
    shown = told(capsys, "list").splitlines()
    assert [row.split()[0] for row in shown[1:21]] == [f"sweep/seed{number}" for number in reversed(range(5, 25))]
    assert shown[21:] == ["5 more; show them with --all"]
    assert len(told(capsys, "list", "--all").splitlines()) == 26


def test_a_row_tells_how_far_a_run_is_and_what_it_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ends", SUBMITTED, STARTED, line(460, "failed", kind="crash", cause="x"))
    run("runs", line(760, "started", **START), lock=beat(0, step=50, of=100))
    run("waits", line(900, "submitted", job="8"))
    start = time.time() + 7200
    queue = {"7": Queued("7", "RUNNING"), "8": Queued("8", "PENDING", "Priority", start)}
    asked = []
    monkeypatch.setattr(jobs, "_queue", lambda: asked.append(1) or queue)
    rows = {row.split()[0]: row for row in told(capsys, "list").splitlines()}
    assert rows["RUN"].split() == ["RUN", "STATE", "STEP", "ATTEMPTS", "REQUEUES", "JOB"]
    assert rows["runs"].split(maxsplit=7) == ["runs", "running", "50/100", "(50%)", "1", "0", "7", "13 min left"]
    assert rows["waits"].split(maxsplit=4)[1:4] == ["pending", "0", "0"]
    assert rows["waits"].endswith(f"Priority, starts about {why.clock(start)}")
    assert rows["ends"].endswith("8 min ago")
    assert len(asked) == 1


def test_the_status_of_a_run_is_all_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    log = line(900, "submitted", log=str(Path("runs/a/jobs/7_{rank}_log.out").absolute()))
    metrics = '{"epoch": 1}\n{"epoch": 2, "split": "val"}\n'
    folder = run(
        "a",
        log,
        line(3600, "started", **START),
        line(300, "saved", step=20),
        lock=beat(2, step=50),
        **{"metrics.jsonl": metrics},
    )
    facts = dict(row.split(maxsplit=1) for row in told(capsys, "status", "a").splitlines())
    assert facts["run"] == "runs/a"
    assert facts["state"].startswith("running")
    assert facts["job"] == "7, on n1, n2"
    assert facts["step"] == "50 of 100 (50%), figures up to epoch 2"
    assert facts["checkpoint"].startswith("step 20, 5 min ago")
    assert facts["attempts"] == "1, never requeued"
    assert facts["cost"].startswith("GPU-hours 4.0")
    assert facts["cost"].endswith(", of which 0.00 lost to restarts")
    assert facts["log"].endswith("runs/a/jobs/7_0_log.out")
    assert facts["next"] == f"python -m launch.jobs logs -f {folder}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "rot_mnist_r5"], "rot_mnist_r5 is no run folder, and no run in runs; did you mean rot_mnist_r4?"),
        (["why", "seed1"], "seed1 is no run folder, and no run in runs; did you mean sweep/seed1?"),
        (
            ["logs", "zzz"],
            "zzz is no run folder, and no run in runs; see: python -m launch.jobs list --all --root runs",
        ),
        (["cancel", "rot_mnist_r4", "zzz"], "zzz is no run folder"),
        (["list", "--root", "nowhere"], "nowhere: there is no such folder; say where the runs are: --root FOLDER"),
        (["list", "everything"], "unrecognized arguments: everything"),
        (["logs", "rot_mnist_r4"], "runs/rot_mnist_r4: no job of this run noted a log"),
        (["logs", "sweep/seed1", "--rank", "9"], "runs/sweep/seed1: process 9 wrote no log"),
        (["frob"], "invalid choice: 'frob'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_is_told_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    run("rot_mnist_r4", STARTED)
    run("sweep/seed1", line(9, "submitted", log="/nowhere/7_{rank}_log.out"))
    with pytest.raises(SystemExit) as ended:
        jobs.main(arguments)
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert said in shown.err
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert ledger.read(Path("runs/rot_mnist_r4")) == [STARTED]  # nothing was cancelled


SUBMITITS = "submitit INFO (2026-11-22 10:00:00,123) - Starting with JobEnvironment(job_id=7, hostname=n1)\n"
LOG = f"""{SUBMITITS}epoch 1
srun: error: n1: task 0: Terminated
{SUBMITITS}epoch 2
srun: launch/slurm: _step_signal: Terminating StepId=7.0
slurmstepd-n2: error: Detected 1 oom-kill event(s) in StepId=7.0.
srun: error: n2: task 3: Out Of Memory
"""


def test_why_tells_the_story_of_a_run_that_was_killed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = line(501, "signal", step=20, signal="SIGTERM, 4000 s before the job's end")
    events = [
        line(900, "submitted", log="/gone/7_{rank}_log.out", command="python launch/submit.py --config a.yaml"),
        STARTED,
        asked,
        STOPPED,
        REQUEUED,
        line(3600, "started", restart=1, **START),
        line(3300, "resumed", restart=1, step=20),
        line(3000, "saved", restart=1, step=25),
    ]
    folder = run("a", *events, lock=beat(1800, restart=1, step=31))
    (folder / "jobs").mkdir()
    (folder / "jobs" / "7_0_log.out").write_text(LOG)  # the run folder was renamed since
    text = told(capsys, "why", "a")
    first, second = (part.splitlines() for part in text.split("\n\n")[1:3])
    assert first[0].startswith("1. Job 7, started ")
    assert first[0].endswith(" on n1, n2 (4 GPUs), from the beginning.")
    assert [sentence.partition(": ")[2] for sentence in first[1:]] == [
        "it was asked to stop (SIGTERM, 4000 s before the job's end).",
        "it saved and left (SIGTERM, 4000 s left).",
        "it was requeued: preempted (SIGTERM).",
    ]
    assert second[0].startswith("2. Job 7, restart 1, started ")
    assert second[0].endswith(", from step 20.")
    assert second[1].startswith("   It ended without a word; last sign of life at step 31: ")
    assert second[2:] == [
        "   The log says: slurmstepd-n2: error: Detected 1 oom-kill event(s) in StepId=7.0.",
        "   The log says: srun: error: n2: task 3: Out Of Memory",
        "   So it needed more memory than it had asked for.",
        "   20 min of work after its checkpoint of step 25 were lost, of 30 min.",
    ]
    assert text.splitlines()[-1] == (
        "lost: ask for more with launch.mem_gb, or take a smaller batch_size; then go on with it: "
        "python launch/submit.py --config a.yaml"
    )


@pytest.mark.parametrize(
    ("events", "sentences"),
    [
        (
            [
                SUBMITTED,
                STARTED,
                line(500, "failed", kind="peer", rank=0, cause="closed by peer"),
                CRASHED,
                line(499, "given up", why="it failed twice at the same step"),
            ],
            [
                "process 1 on n2 failed: IndexError: 7 (groups.py:3)",
                "it was not requeued: it failed twice at the same step.",
                "1 other process saw that and ended.",
                "It had saved nothing: 5 min of work were lost.",
                "failed: look into this: IndexError: 7 (groups.py:3); then go on with it: "
                "python launch/submit.py --config runs/a/config.yaml",
            ],
        ),
        (
            [SUBMITTED, line(500, "failed", kind="input", rank=0, cause="data set 'x' is not prepared")],
            ["did not begin to train.", "failed: mend this: data set 'x' is not prepared; then go on with it"],
        ),
        ([STARTED, line(5, "failed", kind="interrupt", cause="KeyboardInterrupt")], ["failed: go on with it: python"]),
        (
            [STARTED, STOPPED, line(499, "given up", why="its time was over for the 4. time")],
            ["it saved and left (SIGTERM, 4000 s left).", "stopped: its time was over for the 4. time; go on with it"],
        ),
        (
            [STARTED, line(5, "cancelled", by="ada@login1")],
            ["it was cancelled by ada@login1.", "cancelled: go on with it"],
        ),
        ([STARTED, line(5, "finished", step=100)], ["it finished at step 100.", "finished: nothing is to be done"]),
        ([SUBMITTED], ["pending: it starts by itself"]),
        ([line(9, "started", job="4@n1")], ["By hand (process 4@n1), started", "nothing of it runs or waits any more"]),
    ],
)
def test_why_ends_with_what_to_do(
    capsys: pytest.CaptureFixture[str], events: list[ledger.Event], sentences: list[str]
) -> None:
    run("a", *events)
    text = told(capsys, "why", "a")
    positions = [text.find(sentence) for sentence in sentences]
    assert -1 not in positions, text
    assert positions == sorted(positions)


def test_the_log_of_any_process_is_found_by_the_first_ones() -> None:
    assert logs.of_rank("/a/7_{rank}_log.out", 3) == logs.of_rank("/a/7_0_log.out", 3) == "/a/7_3_log.out"
    folder = run(
        "a",
        line(9, "submitted", log="/gone/7_{rank}_log.out"),
        line(5, "submitted", job="8", log="/gone/8_{rank}_log.out"),
    )
    assert logs.log_of(known(folder, queued("RUNNING", job="7")), 2) == Path("/gone/7_2_log.out")
    assert logs.log_of(known(folder, {}), 0) == Path("/gone/8_0_log.out")
    (folder / "jobs").mkdir()
    moved = folder / "jobs" / "8_0_log.out"
    moved.write_text("")
    assert logs.log_of(known(folder, {}), 0) == moved


def test_the_log_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for rank, text in ((0, "epoch 1\nhal\xff"), (1, "second")):
        folder = Path("runs/a")
        if not rank:
            run("a", line(9, "submitted", log=f"{folder.absolute()}/7_{{rank}}_log.out"))
        (folder / f"7_{rank}_log.out").write_bytes(text.encode("latin1"))
    assert told(capsys, "logs", "a") == "epoch 1\nhal\ufffd"
    assert told(capsys, "logs", "a", "--rank", "1") == "second"


@pytest.mark.parametrize("event", ["finished", "failed"])
def test_a_log_is_followed_through_a_requeue_and_a_new_job_until_the_run_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    monkeypatch.setattr(logs, "_POLL_S", 0.01)
    monkeypatch.setattr(logs, "_LOOK_S", 0.05)
    queue: dict[str, Queued] = queued("PENDING")
    monkeypatch.setattr(jobs, "_queue", lambda: queue)
    monkeypatch.setattr(jobs, "_QUEUE_S", 0.05)
    log = f"{Path.cwd()}/runs/a/{{}}_{{{{rank}}}}_log.out"
    folder = run("a", line(9, "submitted", log=log.format(7)))
    seven, eight = folder / "7_0_log.out", folder / "8_0_log.out"

    def happens() -> None:
        first, second = Ledger(folder, "7"), Ledger(folder, "8")
        time.sleep(0.2)
        queue["7"] = Queued("7", "RUNNING")
        seven.write_text("one\n")
        first.add("started", **START)
        first.add("stopped")
        time.sleep(0.2)  # the job is there all the time: that is no end
        first.add("requeued")
        time.sleep(0.2)
        with seven.open("a") as file:
            file.write("two\n")
        Ledger(folder, "7", 1).add("started", **START)
        time.sleep(0.2)
        queue["8"] = Queued("8", "RUNNING")
        second.add("submitted", log=log.format(8))
        Ledger(folder, "7", 1).add("cancelled")
        del queue["7"]
        second.add("started", **START)
        eight.write_text("three\n")
        time.sleep(0.2)
        with eight.open("a") as file:
            file.write("four\n")
        second.add(event, kind="crash", cause="x")
        del queue["8"]

    story = threading.Thread(target=happens)
    story.start()
    if event == "finished":
        jobs.main(["logs", "-f", "a"])
    else:
        with pytest.raises(SystemExit) as ended:
            jobs.main(["logs", "-f", "a"])
        assert ended.value.code == 1
    story.join()
    shown = capsys.readouterr()
    assert shown.out == f"one\ntwo\n==> {eight.absolute()} <==\nthree\nfour\n"
    assert shown.err.startswith("failed: look into this: x" if event == "failed" else "")


def test_what_does_not_run_is_not_cancelled(capsys: pytest.CaptureFixture[str]) -> None:
    done = run("done", STARTED, line(5, "finished"), summary_json="{}")
    away = run("away", line(800, "started", job="55@elsewhere"), lock=beat(3, job="55@elsewhere"))
    mine = f"{os.getpid()}@{socket.gethostname()}"  # the number of a process that ended was given to this one
    old = run(
        "old", line(800, "started", job=mine), lock=beat(4000, job=mine, host=socket.gethostname(), pid=os.getpid())
    )
    before = [ledger.read(folder) for folder in (done, away, old)]
    assert told(capsys, "cancel", "done", "away", "old").splitlines() == [
        "runs/done: nothing of it runs here or waits (finished)",
        "runs/away: nothing of it runs here or waits (running), but process 4 on elsewhere has it",
        "runs/old: nothing of it runs here or waits (lost)",
    ]
    assert [ledger.read(folder) for folder in (done, away, old)] == before


def test_a_job_cannot_be_cancelled_where_there_is_no_scancel(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", SUBMITTED)
    with pytest.raises(SystemExit) as ended:
        jobs.main(["cancel", "a"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: runs/a: scancel is not on the PATH\n"


WAITS = (
    "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(7)); print(flush=True); time.sleep(60)"
)


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that answers SIGINT with status 7."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen([sys.executable, "-c", WAITS, *arguments], stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        started[-1].stdout.readline()
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def test_a_run_of_this_machine_is_interrupted_after_the_ledger_knows(
    process: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    controller, by_hand = process("submitit.local._local", f"{Path.cwd()}/runs/a/jobs"), process()
    name, hand = f"local-{controller.pid}", f"{by_hand.pid}@{socket.gethostname()}"
    run("a", line(9, "submitted", job=name))
    held = beat(1, job=hand, pid=by_hand.pid, host=socket.gethostname())
    run("b", line(9, "started", job=hand), lock=held)
    run("c", line(9, "submitted", job=name))  # the number is another run's by now
    assert [known(Path("runs") / one).state for one in "abc"] == ["running", "running", "lost"]
    told(capsys, "cancel", "a", "b", "c")
    assert (controller.wait(10), by_hand.wait(10)) == (7, 7)
    assert [known(Path("runs") / one).state for one in "abc"] == ["cancelled", "cancelled", "lost"]
    assert ledger.read(Path("runs/a"))[-1]["job"] == name


def test_a_long_list_is_there_at_once() -> None:
    for number in range(200):
        saved = [line(700 - step, "saved", step=step, seconds=0.1, why="minutes") for step in range(50)]
        run(f"seed{number}", SUBMITTED, STARTED, *saved, line(5, "finished"))
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "importtime", "-m", "launch.jobs", "list"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 5  # 0.2 s on an idle machine
    assert len(ended.stdout.splitlines()) == 22
    imported = {words.split("|")[-1].strip() for words in ended.stderr.splitlines()}
    assert not {"torch", "numpy", "yaml", "pydantic", "submitit"} & imported


# A job of a real cluster writes what a run would write, and then waits to be killed.
JOB = f"""#!/bin/bash
#SBATCH --time=5 --requeue --output={{folder}}/jobs/%j_0_log.out --job-name=ien-test
{sys.executable} -c '
import os, sys, time
sys.path.insert(0, "{ROOT}")
from pathlib import Path
from ien.ledger import Ledger, job_of
print("begun", flush=True)
Ledger(Path("{{folder}}"), *job_of(os.environ)).add("started", nodes=["n1"], processes=1, gpus=0)
time.sleep(120)
'
"""


def until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.2)


@pytest.mark.slurm
def test_a_job_of_a_real_cluster_is_seen_from_submission_to_cancellation(
    slurm_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("a")
    (folder / "jobs").mkdir()
    command = ["sbatch", "--parsable", "--hold"]
    script = JOB.format(folder=folder.absolute())
    number = subprocess.run(command, input=script, capture_output=True, text=True, check=True).stdout.strip()

    def state() -> str:
        return history.story(folder, jobs._queue).state

    try:
        Ledger(folder, number).add("submitted", log=f"{folder.absolute()}/jobs/{number}_{{rank}}_log.out")
        assert "JobHeldUser" in told(capsys, "list")
        assert state() == "pending"
        subprocess.run(["scontrol", "release", number], check=True)
        until(lambda: ledger.read(folder)[-1]["event"] == "started")
        assert state() == "running"
        assert f"{number} on n" in told(capsys, "status", "a")
        assert told(capsys, "logs", "a") == "begun\n"
        assert slurm.requeue(number) == ""
        until(lambda: state() == "requeued")
        assert "requeued  BeginTime, starts about " in told(capsys, "status", "a")
        assert "requeued: it goes on by itself (BeginTime, " in told(capsys, "why", "a")
        cancelled = told(capsys, "cancel", "a")
        assert cancelled == f"runs/a: cancelled {number}; it saves and leaves if it can\n"
        assert (ledger.read(folder)[-1]["event"], ledger.read(folder)[-1]["restart"]) == ("cancelled", 1)
        until(lambda: number not in slurm.queue())
        assert number not in slurm.queue()
        assert state() == "cancelled"
        assert "nothing of it runs here or waits (cancelled)" in told(capsys, "cancel", "a")
    finally:
        slurm.cancel([number])


@pytest.mark.slurm
def test_a_job_of_a_real_cluster_that_was_killed_behind_our_back_is_lost(slurm_cluster: str, tmp_path: Path) -> None:
    folder = run("a")
    (folder / "jobs").mkdir()
    script = JOB.format(folder=folder.absolute())
    number = subprocess.run(
        ["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=True
    ).stdout.strip()
    log = folder / "jobs" / f"{number}_0_log.out"
    Ledger(folder, number).add("submitted", log=str(log))
    try:
        until(lambda: ledger.read(folder)[-1]["event"] == "started")
    finally:
        slurm.cancel([number])
    until(lambda: number not in slurm.queue())
    story = history.story(folder, jobs._queue)
    assert story.state == "lost"
    text = "\n".join(why.told(story))
    assert "CANCELLED AT" in text
    assert "So the job was ended by SLURM" in text
