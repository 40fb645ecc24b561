"""Why did a run end as it did, and what is to be done? (told in sentences)"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ien import ledger
from ien.ledger import Attempt
from launch.history import WAITING, Story, in_slurm
from launch.logs import log_of

_TAIL = 1 << 18  # bytes of a log in which its end is looked for
_BEGIN = re.compile(r"Starting with JobEnvironment\(")  # submitit's first line of each start, of the same job too
_TOLD = re.compile(r"^(srun|slurmstepd|slurmd)[^:]*: |\bCANCELLED AT\b|oom[-_]kill|Out Of Memory", re.IGNORECASE)
_NOISE = re.compile(r"Job step aborted: Waiting up to|launch/slurm: \w+: |Force Terminated")
# What the last lines of a log give away, the most telling first; and what helps.
_KILLERS = (
    (
        re.compile(r"oom[-_]kill|Out Of Memory|out-of-memory", re.IGNORECASE),
        "it needed more memory than it had asked for",
        "ask for more with launch.mem_gb, or take a smaller batch_size",
    ),
    (
        re.compile(r"DUE TO TIME LIMIT"),
        "its time was up before it had saved",
        "ask for more with launch.timeout_min",
    ),
    (re.compile(r"DUE TO PREEMPTION"), "another job took its place before it had saved", ""),
    (re.compile(r"DUE TO NODE FAILURE|NODE_FAIL|Node failure", re.IGNORECASE), "a node failed", ""),
    (re.compile(r"CANCELLED AT"), "the job was ended by SLURM: cancelled, requeued or preempted", ""),
    (re.compile(r"task \S+: Killed"), "a process was killed: out of memory as a rule, or by hand", ""),
)


def told(story: Story) -> Iterator[str]:
    """The story of the run, the newest last, and what to do next."""
    yield f"{story.folder}: {story.state}"
    for number, attempt in enumerate(story.attempts, 1):
        yield ""
        yield f"{number}. " + _began(attempt)
        for sentence in _course(story, attempt):
            yield f"   {sentence}"
    yield ""
    yield verdict(story)


def verdict(story: Story) -> str:
    """What to do next, in one line."""
    run, attempt = shlex.quote(str(story.folder)), story.current
    if story.state == "finished":
        return f"finished: nothing is to be done; its figures: {run}/summary.json"
    if story.state == "running":
        return f"running: watch it with: python -m launch.jobs logs -f {run}"
    if story.state in WAITING:
        starts = "starts" if story.state == "pending" else "goes on"
        return f"{story.state}: it {starts} by itself ({reason(story) or 'nobody says when'})"
    return f"{story.state}: {_remedy(story, attempt) if attempt else ''}go on with it: {command(story)}"


def _remedy(story: Story, attempt: Attempt) -> str:
    """What helps before it is started again, with `; ` at its end."""
    failure, given_up = attempt.failure, attempt.last("given up")
    cause = str(failure.get("cause", "nobody knows why")) if failure else ""
    help_ = _killer([*_evidence(story, attempt), cause])[1]
    if story.state == "lost":
        return f"{help_}; then " if help_ else "nothing of it runs or waits any more; "
    if story.state == "failed" and failure and failure.get("kind") != "interrupt":
        return f"{help_ or ('mend this' if failure.get('kind') == 'input' else 'look into this') + ': ' + cause}; then "
    return f"{given_up['why']}; " if given_up and given_up.get("why") and story.state == "stopped" else ""


def command(story: Story) -> str:
    """What starts the run again."""
    given = story.submission("command")
    if isinstance(given, list):
        return shlex.join(map(str, given))
    return str(given or f"python launch/submit.py --config {shlex.quote(str(story.folder / 'config.yaml'))}")


def reason(story: Story) -> str:
    """Why a job waits, and until when."""
    queued = story.queued
    if not queued or not queued.waiting:
        return ""
    start = f"starts about {clock(queued.start)}" if queued.start else ""
    return ", ".join(filter(None, [queued.reason or queued.state, start]))


def requeue_causes(story: Story) -> Counter[str]:
    """How often which kind of end was followed by another start of the same job."""
    pairs = zip(story.attempts, [*story.attempts[1:], None], strict=True)
    again = [one for one, other in pairs if (other.job == one.job if other else story.state == "requeued")]
    return Counter(_kind_of_end(attempt) for attempt in again)


def clock(time: float | datetime) -> str:
    """A time of today's clock, with the date where that is another day's."""
    moment = (datetime.fromtimestamp(time) if isinstance(time, float) else time).astimezone()
    same = moment.date() == datetime.now().astimezone().date()
    return f"{moment:%H:%M:%S}" if same else f"{moment:%Y-%m-%d %H:%M}"


def span(seconds: float) -> str:
    """A duration as a person says it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _kind_of_end(attempt: Attempt) -> str:
    """time limit, preemption or failure, as it was noted; else as it looks."""
    kind = str((attempt.last("requeued") or {}).get("kind", "")).replace("preempted", "preemption")
    seen = "failure" if attempt.failure else "preemption" if attempt.last("stopped") else "an end without a word"
    return kind or seen


def _began(attempt: Attempt) -> str:
    again = f", restart {attempt.restart}" if attempt.restart else ""
    name = f"Job {attempt.job}" if "@" not in attempt.job else f"By hand (process {attempt.job})"
    begin = attempt.last("started")
    if not begin:
        return f"{name}{again}, submitted {clock(ledger.when(attempt.events[0]))}, did not begin to train."
    nodes = begin.get("nodes") or "?"
    where = ", ".join(nodes) if isinstance(nodes, list) else str(nodes)
    count, kind = (begin["gpus"], "GPU") if begin.get("gpus") else (begin.get("processes", 1), "process")
    many = "" if count == 1 else "es" if kind == "process" else "s"
    origin = f"from step {attempt.first_step}" if attempt.last("resumed") else "from the beginning"
    return f"{name}{again}, started {clock(ledger.when(begin))} on {where} ({count} {kind}{many}), {origin}."


def _course(story: Story, attempt: Attempt) -> Iterator[str]:
    lives = attempt is story.current and story.state == "running"
    for event in attempt.events:
        sentence = _sentence(event)
        if sentence:
            yield f"{clock(ledger.when(event))}: {sentence}"
    failures = [event for event in attempt.events if event["event"] == "failed" and event.get("kind") == "peer"]
    if failures and attempt.failure not in failures:
        yield f"{len(failures)} other process{'es' * (len(failures) > 1)} saw that and ended."
    if lives:
        yield _alive(story)
    elif attempt.outcome == "running":
        yield from _silent(story, attempt)
    elif attempt.failure and attempt.failure.get("kind") in ("lost", "peer"):
        yield from _log_says(_evidence(story, attempt))
    if attempt.last("started") and not lives:
        yield from _lost(story, attempt)


def _sentence(event: dict[str, Any]) -> str:
    name, why = event["event"], event.get("why", "")
    if name == "signal":
        return f"it was asked to stop ({event.get('signal', 'a signal')})."
    if name == "stopped":
        signals = ", ".join(event.get("signals") or []) or "its job's end"
        left = event.get("remaining_s")
        return f"it saved and left ({signals}{'' if left is None else f', {left:.0f} s left'})."
    if name == "failed" and event.get("kind") != "peer":
        where = "".join([f"process {event['rank']}"] if "rank" in event else []) or "it"
        host = f" on {event['host']}" if event.get("host") else ""
        return f"{where}{host} failed: {event.get('cause', 'nobody knows why')}"
    if name == "finished":
        return f"it finished at step {event.get('step', '?')}."
    if name == "requeued":
        return "it was requeued." if event.get("kind") == "failure" else f"it was requeued{f': {why}' if why else ''}."
    if name == "given up":
        return f"it was not requeued{f': {why}' if why else ''}."
    if name == "cancelled":
        by = event.get("by") or why
        return f"it was cancelled{f' by {by}' if by else ''}."
    return ""


def _alive(story: Story) -> str:
    of = f" of {story.of}" if story.of else ""
    silence = f"last heard of {span(story.silent_s)} ago" if story.silent_s is not None else "not heard of yet"
    return f"It runs: step {story.step or 0}{of}, {silence}."


def _silent(story: Story, attempt: Attempt) -> Iterator[str]:
    """An attempt without an end: killed, or its node failed."""
    heard = story.heard(attempt)
    step = story.holder.get("step") if attempt is story.attempts[-1] else None
    where = f" at step {step}" if step else ""
    yield f"It ended without a word; last sign of life{where}: {clock(heard)}."
    evidence = _evidence(story, attempt)
    yield from _log_says(evidence)
    words = _killer(evidence)[0]
    if words:
        yield f"So {words}."


def _lost(story: Story, attempt: Attempt) -> Iterator[str]:
    later = [one for one in story.attempts[story.attempts.index(attempt) + 1 :] if one.last("started")]
    restart = attempt.last("resumed")
    seconds, lost = ledger.spent(attempt, later, story.heard(attempt), over=True)
    began = attempt.last("started")
    if restart and began:
        lost -= (ledger.when(restart) - ledger.when(began)).total_seconds()
    if lost >= 1 and attempt.last("saved"):
        yield f"{span(lost)} of work after its checkpoint of step {attempt.saved_step} were lost, of {span(seconds)}."
    elif lost >= 1:
        yield f"It had saved nothing: {span(lost)} of work were lost."


def _log_says(lines: list[str]) -> Iterator[str]:
    yield from (f"The log says: {line}" for line in lines)


def _evidence(story: Story, attempt: Attempt) -> list[str]:
    """What SLURM said in the attempt's log when it ended; at most its last three lines."""
    path = log_of(story) if attempt.job == story.job else _log_of_job(story, attempt)
    lines = [line for line in _part(path, attempt) if _TOLD.search(line) and not _NOISE.search(line)]
    return list(dict.fromkeys(line.strip()[:200] for line in lines))[-3:]


def _log_of_job(story: Story, attempt: Attempt) -> Path | None:
    told = next((event["log"] for event in attempt.events if "log" in event), None)
    return story.folder / "jobs" / Path(str(told)).name.replace("{rank}", "0") if told else None


def _part(path: Path | None, attempt: Attempt) -> list[str]:
    """The lines of this attempt in its job's log, which goes on at every restart of the job."""
    if path is None or not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    begins = [number for number, line in enumerate(lines) if _BEGIN.search(line)]
    if not begins or not in_slurm(attempt.job) or path.stat().st_size > _TAIL:
        return lines[begins[-1] :] if begins else lines
    ends = [*begins[1:], len(lines)]
    return lines[begins[attempt.restart] : ends[attempt.restart]] if attempt.restart < len(begins) else []


def _killer(lines: list[str]) -> tuple[str, str]:
    text = "\n".join(lines)
    return next(((words, help_) for pattern, words, help_ in _KILLERS if pattern.search(text)), ("", ""))
