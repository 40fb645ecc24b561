"""Is a job queued again? (the batch script asks, when all processes have left)

    launch/requeue.py runs-….json STATUS                      after submit.py
    launch/requeue.py --config FILE [key=value …] STATUS      after slurm/train.sbatch

It reads the run's ledger, asks SLURM how it sees the job, writes down what it decides, and requeues at most once. A job
goes back into the queue if it was preempted or its time was over, both with everything saved; after a crash, a few
times and never twice at the same step; never if it was cancelled, if a person has to mend its settings, or without
progress.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the packages lie beside a script's folder, not in it

from ien import ledger, lock
from ien.ledger import Attempt, Event, Ledger
from launch import slurm

_CAUSES = re.compile(
    r"^(srun: error: .*(Killed|Segmentation|Aborted|Terminated|Exited|Out Of Memory|oom).*|.*(oom.kill|OutOfMemory|"
    r"Bus error).*|.*: line \d+: +\d+ (Killed|Terminated|Segmentation fault) .*srun .*|process \d+ on .*; leaving)$"
)
START = "ien: start "  # the batch script's first line in the log of each of a job's starts


@dataclass(frozen=True)
class Job:
    """A job as SLURM sees it when its processes have left (`scontrol show job`)."""

    state: str = "RUNNING"
    reason: str = "None"
    restarts: int = 0
    preempted: bool = False


@dataclass(frozen=True)
class Decision:
    """What happens: `event` of the ledger (requeued, given up, cancelled, or "" for nothing), why, and who acts."""

    event: str
    why: str = ""
    ours: bool = False  # SLURM requeues by itself otherwise
    kind: str = ""  # of a requeue: time limit, preempted, failure


def main(arguments: Sequence[str]) -> int:
    """Decide, write it down, do it. Returns the exit status of the batch script."""
    return after(*_given(list(arguments)))


def after(folder: Path, policy: dict[str, Any], status: int) -> int:
    """The same for the run in `folder`, whose srun ended with `status`."""
    number, restart = ledger.job_of(os.environ)
    book = Ledger(folder, number, restart)
    events = ledger.read(folder)
    attempt = next((one for one in ledger.attempts(events) if (one.job, one.restart) == (number, restart)), None)
    attempt = attempt or Attempt(number, restart)
    told = slurm.shown(number)
    cause = killed(attempt, status, Path(told["StdOut"]) if "StdOut" in told else None)
    if cause:
        book.add("failed", kind="killed", cause=cause, step=_last_step(folder, attempt))
        events = ledger.read(folder)
    decision = decide(events, number, restart, seen(told), policy)
    if not decision.event:
        return 0
    print(f"{decision.event}: {decision.why}", flush=True)
    book.add(decision.event, why=decision.why, kind=decision.kind or None)
    if decision.ours and (refusal := slurm.requeue(number)):
        again = "give the same command again to go on from the last checkpoint"
        book.add("given up", why=f"SLURM did not requeue the job ({refusal}); {again}")
        return 1
    return 0 if decision.event == "requeued" else status or 1


def killed(attempt: Attempt, status: int, log: Path | None) -> str | None:
    """Why processes ended that could not say it themselves; None where one of them did, or where none failed."""
    told = [event for event in attempt.events if event["event"] == "failed" and event.get("kind") != "peer"]
    if told or attempt.outcome in ("finished", "stopped", "cancelled") or status == 0:
        return None
    lines = _end_of(log)
    found = [" ".join(line.split())[:200] for line in lines if _CAUSES.match(line)]
    return "; ".join(dict.fromkeys(found[-4:])) or f"srun ended with status {status} and nobody said why"


def decide(events: Sequence[Event], number: str, restart: int, job: Job, policy: dict[str, Any]) -> Decision:
    """From the ledger of the run and SLURM's view of the job to what happens next."""
    attempts = [one for one in ledger.attempts(list(events)) if not _is_another_element(one.job, number)]
    mine = next((one for one in attempts if (one.job, one.restart) == (number, restart)), Attempt(number, restart))
    if mine.outcome == "finished" or _cancelled(events, number):
        return Decision("")
    if job.state == "COMPLETING" and job.restarts > restart:
        return Decision("requeued", "SLURM queued it again by itself", kind="preempted")
    if job.state not in ("RUNNING", "COMPLETING") or (job.state == "COMPLETING" and job.reason != "TimeLimit"):
        return Decision("cancelled", "scancel, or an administrator")
    if not policy["requeue"]:
        return Decision("given up", "launch.requeue is false; the same command goes on with it")
    earlier = attempts[: attempts.index(mine)] if mine in attempts else attempts
    if mine.outcome == "stopped" or job.reason == "TimeLimit":
        return _after_stop(mine, earlier, job, policy)
    return _after_failure(mine, earlier, policy)


def _after_stop(mine: Attempt, earlier: Sequence[Attempt], job: Job, policy: dict[str, Any]) -> Decision:
    stopped = mine.last("stopped") or {}
    remaining = stopped.get("remaining_s")
    late = job.reason == "TimeLimit" or (remaining is not None and remaining <= policy["signal_delay_s"] + 90)
    if job.preempted or not late:
        return Decision("requeued", f"preempted ({_signals(stopped)})", ours=True, kind="preempted")
    before = [one for one in earlier if _requeued_as(one) == "time limit"]
    if len(before) >= policy["max_timeouts"]:
        limit = f"launch.max_timeouts is {policy['max_timeouts']}"
        return Decision("given up", f"its time was over for the {len(before) + 1}. time, and {limit}")
    if before and before[-1].saved_step >= mine.saved_step:
        step = f"step {mine.saved_step} in two attempts"
        return Decision("given up", f"its time was over, and it came no further than {step}; raise launch.timeout_min")
    return Decision("requeued", f"its time was over, number {len(before) + 1}", ours=True, kind="time limit")


def _after_failure(mine: Attempt, earlier: Sequence[Attempt], policy: dict[str, Any]) -> Decision:
    failure = mine.failure
    if failure is None:  # nothing went wrong: it only tested a run, or found it finished
        return Decision("")
    if failure.get("kind") in ("input", "interrupt"):
        return Decision("given up", f"a person has to mend this: {failure['cause']}")
    before = [one for one in earlier if _requeued_as(one) == "failure"]
    same = [one for one in before if _failed_at(one) == _failed_at(mine) or one.saved_step >= mine.saved_step]
    if same:
        return Decision("given up", f"it failed twice at the same step ({_failed_at(mine)}): {failure['cause']}")
    if len(before) >= policy["max_failures"]:
        limit = f"launch.max_failures is {policy['max_failures']}"
        return Decision("given up", f"it failed for the {len(before) + 1}. time, and {limit}: {failure['cause']}")
    return Decision("requeued", f"it failed: {failure['cause']}", ours=True, kind="failure")


def seen(told: dict[str, str]) -> Job:
    """The job as `scontrol show job` tells it; taken for running where it told nothing."""
    return Job(
        told.get("JobState", "RUNNING"),
        told.get("Reason", "None"),
        int(told.get("Restarts", "0")),
        told.get("PreemptTime", "None") != "None",
    )


def _cancelled(events: Sequence[Event], number: str) -> bool:
    return any(event["event"] == "cancelled" and event.get("job") == number for event in events)


def _is_another_element(job: str, number: str) -> bool:
    """Elements of an array that search one sweep write into one ledger."""
    return job != number and "_" in job and job.partition("_")[0] == number.partition("_")[0]


def _requeued_as(attempt: Attempt) -> str:
    return str((attempt.last("requeued") or {}).get("kind", ""))


def _failed_at(attempt: Attempt) -> int:
    """The step of a failure, or the newest one known."""
    failure = attempt.failure or {}
    return int(failure.get("step", attempt.step or attempt.first_step))


def _last_step(folder: Path, attempt: Attempt) -> int:
    """How far the attempt was: what its lock said last, or its newest checkpoint."""
    holder = lock.read(folder)
    same = (holder.get("job"), holder.get("restart")) == (attempt.job, attempt.restart)
    return max(int(holder.get("step", 0)) if same else 0, attempt.saved_step)


def _signals(stopped: Event) -> str:
    return ", ".join(stopped.get("signals", [])) or "asked to stop"


def _end_of(log: Path | None) -> list[str]:
    if log is None or not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    return text.rpartition(START)[2].splitlines()  # what came before was another start's


def _given(arguments: list[str]) -> tuple[Path, dict[str, Any], int]:
    """The run's folder, how often it may be requeued, and the status of srun."""
    status = int(arguments.pop())
    if arguments[0] != "--config":
        policy = json.loads(Path(arguments[0]).read_text())
        return Path(policy["runs"][int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))]), policy, status
    from ien.config import load, run_dir  # not needed above, where any Python will do

    settings = load(arguments[1], arguments[2:])
    launch = settings.launch
    policy = {name: getattr(launch, name) for name in ("requeue", "max_timeouts", "max_failures")}
    return run_dir(settings), policy | {"signal_delay_s": launch.signal_s}, status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
