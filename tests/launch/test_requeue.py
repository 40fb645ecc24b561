"""A job goes back into the queue when that helps, and never for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ien import lock
from ien.ledger import Attempt, Ledger, read
from launch.requeue import Job, after, decide, killed

POLICY = {"requeue": True, "max_timeouts": 3, "max_failures": 2, "signal_delay_s": 120}
RUNNING = Job()


class Story:
    """A ledger as it grows: one attempt after the other of job 7."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.restart = -1
        self.attempt(0)

    def add(self, event: str, **facts: Any) -> Story:
        line = {"time": "2026-01-01T00:00:00+00:00", "event": event, "job": "7", "restart": self.restart, **facts}
        self.events.append(line)
        return self

    def attempt(self, step: int) -> Story:
        """The next start, from a checkpoint at `step`."""
        self.restart += 1
        self.add("started", nodes=["n1"], processes=2)
        return self.add("resumed", step=step) if step else self

    def decided(self, job: Job = RUNNING, **policy: Any) -> Any:
        return decide(self.events, "7", self.restart, job, POLICY | policy)

    def again(self, **job: Any) -> Story:
        """Requeue as decided, which must be a requeue."""
        decision = self.decided(Job(**job))
        assert decision.event == "requeued", decision
        return self.add("requeued", why=decision.why, kind=decision.kind)


def timed_out(story: Story, step: int) -> Story:
    return story.add("saved", step=step, why="stop").add("stopped", signals=["SIGUSR2"], remaining_s=100.0)


def failed(story: Story, step: int, kind: str = "crash") -> Story:
    return story.add("failed", kind=kind, cause="ValueError: no", step=step)


def test_a_finished_run_is_left_alone() -> None:
    assert Story().add("finished", step=8).decided().event == ""


def test_a_job_that_only_tested_a_run_is_left_alone() -> None:
    assert decide([], "7", 0, RUNNING, POLICY).event == ""


def test_what_was_told_long_before_the_end_is_a_preemption() -> None:
    story = Story().add("saved", step=5).add("stopped", signals=["SIGTERM"], remaining_s=5000.0)
    decision = story.decided()
    assert (decision.event, decision.kind, decision.ours) == ("requeued", "preempted", True)


def test_slurm_knows_a_preemption_that_comes_late() -> None:
    story = timed_out(Story(), 5)
    assert story.decided().kind == "time limit"
    assert story.decided(Job(preempted=True)).kind == "preempted"


def test_time_limits_are_counted_and_preemptions_are_not() -> None:
    story, step = Story(), 0
    for number in range(8):
        preempted = number % 2 == 0
        step += 10
        timed_out(story, step).again(preempted=preempted) if number < 6 or preempted else timed_out(story, step)
        if number < 7:
            story.attempt(step)
    decision = story.decided()
    assert decision.event == "given up"
    assert "for the 4. time, and launch.max_timeouts is 3" in decision.why


def test_two_time_limits_without_a_step_between_them_end_it() -> None:
    story = timed_out(Story(), 10).again().attempt(10)
    story.add("stopped", signals=["SIGUSR2"], remaining_s=90.0)
    decision = story.decided()
    assert decision.event == "given up"
    assert "no further than step 10" in decision.why


def test_a_crash_is_tried_again_but_not_twice_at_the_same_step() -> None:
    story = failed(Story().add("saved", step=8), step=11)
    assert story.decided().kind == "failure"
    story.again().attempt(8).add("saved", step=10)
    decision = failed(story, step=11).decided()
    assert decision.event == "given up"
    assert "failed twice at the same step (11): ValueError: no" in decision.why


def test_crashes_at_other_steps_are_counted() -> None:
    story = failed(Story().add("saved", step=8), step=11).again().attempt(8)
    failed(story.add("saved", step=16), step=19).again().attempt(16)
    decision = failed(story.add("saved", step=24), step=27).decided()
    assert decision.event == "given up"
    assert "for the 3. time, and launch.max_failures is 2" in decision.why


def test_no_checkpoint_between_two_failures_counts_as_the_same_step() -> None:
    story = failed(Story().add("saved", step=8), step=11).again().attempt(8)
    assert failed(story, step=13).decided().event == "given up"


@pytest.mark.parametrize("kind", ["input", "interrupt"])
def test_what_a_person_must_mend_is_not_tried_again(kind: str) -> None:
    decision = failed(Story(), step=3, kind=kind).decided()
    assert decision.event == "given up"
    assert "a person has to mend this: ValueError: no" in decision.why


@pytest.mark.parametrize(
    ("job", "event", "ours"),
    [
        (
            Job("COMPLETING", "None", 1),
            "requeued",
            False,
        ),  # SLURM does it: preempted without grace, or scontrol requeue
        (Job("COMPLETING", "None", 0), "cancelled", False),  # scancel: a requeue would bring it back
        (Job("COMPLETING", "TimeLimit", 0), "requeued", True),
        (Job("CANCELLED", "None", 0), "cancelled", False),
    ],
)
def test_what_slurm_is_doing_decides(job: Job, event: str, ours: bool) -> None:
    decision = timed_out(Story(), 5).decided(job)
    assert (decision.event, decision.ours) == (event, ours)


def test_a_cancelled_job_is_not_brought_back() -> None:
    assert timed_out(Story().add("cancelled", why="by its owner"), 5).decided().event == ""


def test_requeueing_can_be_switched_off() -> None:
    assert timed_out(Story(), 5).decided(requeue=False).event == "given up"


def test_who_was_killed_is_read_from_the_log(tmp_path: Any) -> None:
    log = tmp_path / "7_0_log.out"
    before = "ien: start 0 of job 7 on n[1-2]\nsrun: error: n1: task 0: Killed\n"
    now = "ien: start 1 of job 7 on n[1-2]\nepoch 1\nsrun: error: n2: task 1: Killed\nsrun: Force Terminated StepId=7\n"
    log.write_text(before + now)
    attempt = Attempt("7", 0, Story().events)
    assert killed(attempt, 137, log) == "srun: error: n2: task 1: Killed"
    assert killed(attempt, 137, None) == "srun ended with status 137 and nobody said why"
    assert killed(attempt, 0, log) is None
    told = Attempt("7", 0, failed(Story(), 3).events)
    assert killed(told, 1, log) is None
    seen_by_a_peer = Attempt("7", 0, failed(Story(), 3, kind="peer").events)
    assert killed(seen_by_a_peer, 1, log) == "srun: error: n2: task 1: Killed"


def test_elements_of_an_array_that_search_one_sweep_do_not_count_for_one_another() -> None:
    story = Story()
    for number, restart in (("7_0", 0), ("7_0", 1), ("7_1", 0)):
        facts = {"job": number, "restart": restart}
        story.add("started", **facts).add("saved", step=10, **facts)
        story.add("stopped", signals=["SIGUSR2"], remaining_s=100.0, **facts)
        if (number, restart) == ("7_0", 0):
            story.add("requeued", kind="time limit", **facts)
    assert decide(story.events, "7_1", 0, RUNNING, POLICY).event == "requeued"
    assert decide(story.events, "7_0", 1, RUNNING, POLICY).event == "given up"


def test_only_a_decision_to_queue_it_again_does_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("launch.slurm.shown", lambda number: {"JobState": "RUNNING"})
    monkeypatch.setattr("launch.slurm.requeue", lambda number: asked.append(number) or "")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    book = Ledger(tmp_path, "7", 0)
    book.add("started", nodes=["n1"], processes=1)
    assert after(tmp_path, POLICY | {"requeue": False}, 1) == 1
    assert asked == []
    book.add("failed", kind="crash", cause="ValueError: no", step=3)
    assert after(tmp_path, POLICY, 1) == 0
    assert asked == ["7"]


def test_the_step_of_a_killed_process_is_the_one_that_its_lock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.slurm.shown", lambda number: {})
    monkeypatch.setattr("launch.slurm.requeue", lambda number: "")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    book = Ledger(tmp_path, "7", 0)
    book.add("started", nodes=["n1"], processes=1)
    book.add("saved", step=10)
    for restart, step in ((0, 17), (4, 10)):  # of another start the lock says nothing
        (tmp_path / lock.NAME).write_text(json.dumps({"job": "7", "restart": restart, "step": 17}))
        after(tmp_path, POLICY, 137)
        assert [event["step"] for event in read(tmp_path) if event["event"] == "failed"][-1] == step
        (tmp_path / "ledger.jsonl").write_text("")
        book.add("started", nodes=["n1"], processes=1)
        book.add("saved", step=10)
