"""A run's ledger keeps what was told, whoever is killed while it tells; and the costs add up."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import socket
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ien import ledger
from ien.errors import InputError
from ien.ledger import Ledger

BEGIN = datetime(2026, 11, 22, 10, tzinfo=timezone.utc)


def at(hours: float) -> datetime:
    return BEGIN + timedelta(hours=hours)


def line(hours: float, event: str, job: str = "7", restart: int = 0, **facts: Any) -> ledger.Event:
    return {"time": at(hours).isoformat(), "event": event, "job": job, "restart": restart, **facts}


def start(hours: float, restart: int = 0, gpus: int = 4, **facts: Any) -> ledger.Event:
    return line(hours, "started", restart=restart, gpus=gpus, processes=8, **facts)


def test_a_process_outside_of_slurm_is_its_own_job_unless_the_launcher_named_one() -> None:
    own = f"{os.getpid()}@{socket.gethostname()}"
    for environment, job in (
        ({}, (own, 0)),
        ({"IEN_JOB": "local-12"}, ("local-12", 0)),
        ({"SLURM_JOB_ID": "40", "IEN_JOB": "local-12", "SLURM_RESTART_COUNT": "2"}, ("40", 2)),
        # The number that squeue prints for an element of an array is not the one in SLURM_JOB_ID.
        ({"SLURM_JOB_ID": "43", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "0"}, ("40_0", 0)),
    ):
        assert ledger.job_of(environment) == job


def test_what_is_added_is_read_back_in_its_order(tmp_path: Path) -> None:
    book = Ledger(tmp_path, "7", 1, rank=0)
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    book.add("started", nodes=["n1"], previous_alive=None)
    book.add("failed", cause="größer\nals gedacht")
    first, second = ledger.read(tmp_path)
    assert (first["event"], first["job"], first["restart"], first["rank"], first["nodes"]) == (
        "started",
        "7",
        1,
        0,
        ["n1"],
    )
    assert "previous_alive" not in first
    assert second["cause"] == "größer\nals gedacht"
    assert before < ledger.when(first) <= ledger.when(second)
    assert (tmp_path / ledger.NAME).stat().st_mode & 0o077 == 0


def test_a_line_that_a_full_disk_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    book = Ledger(tmp_path, "7")
    book.add("started")
    with book.path.open("a") as file:
        file.write('{"time": "2026-11-22T10:00:00+00:00", "event": "sav')
    book.add("finished", step=5)
    assert [event["event"] for event in ledger.read(tmp_path)] == ["started", "finished"]


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / ledger.NAME).write_text('[1]\n3\n{"event": "started"}\n\n' + json.dumps(line(0, "finished")) + "\n")
    assert [event["event"] for event in ledger.read(tmp_path)] == ["finished"]
    assert ledger.read(tmp_path / "nowhere") == []


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write_many, args=(tmp_path, rank)) for rank in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    events = ledger.read(tmp_path)
    assert len((tmp_path / ledger.NAME).read_text().splitlines()) == len(events) == 800  # none cut, none empty
    for rank in range(4):
        assert [event["step"] for event in events if event["rank"] == rank] == list(range(200))


def _write_many(folder: Path, rank: int) -> None:
    for step in range(200):
        Ledger(folder, "7", rank=rank).add("saved", step=step, why="x" * 1000)


def test_a_line_waits_for_another_process_but_not_for_ever(tmp_path: Path) -> None:
    book = Ledger(tmp_path, "7")
    book.add("started")
    for held_s, least, most in ((0.3, 0.2, 1.0), (20, 0.9, 5.0)):
        ready = tmp_path / str(held_s)
        holder = multiprocessing.get_context("fork").Process(target=_hold, args=(book.path, ready, held_s))
        holder.start()
        while not ready.exists():
            time.sleep(0.01)
        began = time.monotonic()
        book.add("saved", step=1)
        assert least < time.monotonic() - began < most
        holder.kill()
        holder.join()
    assert len(ledger.read(tmp_path)) == 3


def _hold(path: Path, ready: Path, seconds: float) -> None:
    with path.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        ready.touch()
        time.sleep(seconds)


def test_each_start_of_each_job_is_an_attempt() -> None:
    events = [
        line(0, "submitted"),
        start(1),
        line(2, "resumed", step=3),
        line(3, "saved", step=5),
        line(3, "stopped"),
        line(3, "requeued"),
        start(4, restart=1),
        line(5, "submitted", job="8"),
        line(6, "saved", restart=1, step=9),
    ]
    first, second, third = ledger.attempts(events)
    assert [(one.job, one.restart, one.outcome) for one in (first, second, third)] == [
        ("7", 0, "stopped"),
        ("7", 1, "running"),
        ("8", 0, "submitted"),
    ]
    assert (first.first_step, first.saved_step, first.step) == (3, 5, 5)
    assert (second.first_step, second.saved_step) == (0, 9)
    assert (third.first_step, third.saved_step, third.step) == (0, 0, None)


def test_the_cause_of_a_failure_is_where_it_began_and_not_what_others_saw_of_it() -> None:
    peer = line(1, "failed", kind="peer", rank=0, cause="connection closed by peer")
    crash = line(2, "failed", kind="crash", rank=1, cause="IndexError")
    (attempt,) = ledger.attempts([start(0), peer, crash, peer])
    assert attempt.failure == crash
    assert ledger.attempts([start(0), peer])[0].failure == peer
    assert ledger.attempts([start(0)])[0].failure is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("32 does not divide by 3"), "input"),
        (KeyboardInterrupt(), "interrupt"),
        (RuntimeError("[gloo] Connection closed by peer [10.0.0.1]:4"), "peer"),
        (ZeroDivisionError("division by zero"), "crash"),
    ],
)
def test_what_ends_a_run_is_written_down_and_goes_on_its_way(tmp_path: Path, error: BaseException, kind: str) -> None:
    with pytest.raises(type(error)), Ledger(tmp_path, "7", rank=2).failures(InputError, StopIteration):
        raise error
    (event,) = ledger.read(tmp_path)
    assert (event["event"], event["kind"], event["rank"]) == ("failed", kind, 2)
    assert str(error) in event["cause"]
    assert event["host"]


def test_neither_an_ordered_end_nor_a_run_without_a_folder_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(StopIteration), Ledger(tmp_path).failures(InputError, StopIteration):
        raise StopIteration
    with pytest.raises(InputError), Ledger(tmp_path / "never made").failures(InputError, StopIteration):
        raise InputError("no")
    assert list(tmp_path.iterdir()) == []


# Hours of 4 GPUs: (events, hours, lost).
RESUMED = line(3.25, "resumed", restart=1, step=1)
COSTS = {
    "finished at once": ([start(0), line(2, "finished", step=9)], 8, 0),
    "still running": ([start(0), line(1, "saved", step=1)], 40, 0),
    "gone without a word, nobody went on": ([start(0), line(1, "saved", step=1)], 12, 8),
    "gone without a word before the first checkpoint": ([start(0)], 12, 12),
    "stopped in order": ([start(0), line(2, "saved", step=1), line(2.5, "stopped")], 10, 0),
    "failed an hour after the checkpoint": (
        [start(0), line(1, "saved", step=1), line(2, "failed", kind="crash")],
        8,
        4,
    ),
    # The job waited from 2 to 3, which costs nothing; then it took a quarter of an hour to go on.
    "stopped, requeued, finished": (
        [start(0), line(2, "saved", step=1), line(2, "stopped"), start(3, 1), RESUMED, line(5, "finished", restart=1)],
        16,
        1,
    ),
    "killed; the next one found when it was last alive": (
        [
            start(0),
            line(1, "saved", step=1),
            start(3, 1, previous_alive=at(2).isoformat()),
            RESUMED,
            line(4, "finished", restart=1),
        ],
        12,
        5,
    ),
    "killed; nobody knows when": (
        [start(0), line(1, "saved", step=1), start(3, 1), RESUMED, line(4, "finished", restart=1)],
        8,
        1,
    ),
    "cancelled, and stopped in order because of it": (
        [start(0), line(1, "cancelled"), line(1.5, "saved", step=1), line(1.5, "stopped")],
        6,
        0,
    ),
    "cancelled while it waited for its next start": (
        [start(0), line(1, "saved", step=1), line(1, "stopped"), line(9, "cancelled", restart=1)],
        4,
        0,
    ),
    "cancelled a long time after it had stopped": ([start(0), line(1, "stopped"), line(9, "cancelled")], 4, 0),
    "cancelled and killed": ([start(0), line(1, "saved", step=1), line(2, "cancelled")], 8, 4),
    "refused before it began": ([start(0), line(1, "finished"), line(5, "failed", job="8", kind="input")], 4, 0),
    "never started": ([line(0, "submitted")], 0, 0),
}


@pytest.mark.parametrize("case", COSTS)
def test_the_cost_is_what_the_devices_were_held_for_and_lost_is_what_had_to_be_done_again(case: str) -> None:
    events, hours, lost = COSTS[case]
    now = at(10) if case == "still running" else at(3)
    over = case.startswith("gone")
    cost = ledger.cost(events, now, over)
    assert (cost.hours, cost.lost_hours) == (pytest.approx(hours), pytest.approx(lost))
    assert cost.attempts == sum(event["event"] == "started" for event in events)


def test_without_gpus_processes_are_counted() -> None:
    events = [start(0, gpus=0), line(2, "finished")]
    assert ledger.cost(events) == ledger.Cost("process", pytest.approx(16), 0, 1)
    assert ledger.cost([start(0, gpus=2), line(2, "finished")]).device == "GPU"
