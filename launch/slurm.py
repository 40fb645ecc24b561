"""What does Slurm say, and what is it told? (squeue, scontrol, sbatch and scancel, each asked in one place)

Every command has a time limit, starts with a clean environment, and fails in one line. Nothing here needs accounting.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

TIMEOUT_S = 15
_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SCANCEL_", "PMIX_", "PMI_")
_FIELDS = "%i|%T|%r|%S|%e|%N"  # job, state, reason, start, end, nodes
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}


class SlurmError(RuntimeError):
    """Slurm did not answer, or refused. The message is one line."""


@dataclass(frozen=True)
class Queued:
    """A job as the controller knows it; times are Unix times, None where Slurm gives none.

    `state` and `reason` are Slurm's words (PENDING, RUNNING …; Priority, BeginTime …). `start` of a job that waits is
    Slurm's estimate.
    """

    job: str
    state: str
    reason: str = ""
    start: float | None = None
    end: float | None = None
    nodes: str = ""

    @property
    def waiting(self) -> bool:
        return self.state in _WAITING

    @property
    def over(self) -> bool:
        return self.state in _OVER

    @property
    def running(self) -> bool:
        """It holds nodes, also while it is being ended."""
        return not self.waiting and not self.over


def available() -> bool:
    """Can jobs be submitted from here?"""
    return bool(shutil.which("sbatch") and shutil.which("srun"))


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a surrounding job left in it, which would change the job that is submitted."""
    return {
        name: value
        for name, value in environment.items()
        if name == "SLURM_CONF" or not name.startswith(_INHERITED)  # SLURM_CONF says where the cluster is
    }


def configuration() -> dict[str, str]:
    """The controller's settings by name; empty where it cannot be asked."""
    try:
        lines = _answer("scontrol", "show", "config").splitlines()
    except SlurmError:
        return {}
    pairs = (line.partition("=") for line in lines)
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def cluster_name() -> str | None:
    """What is the cluster called? None where it cannot be asked."""
    return configuration().get("ClusterName")


def max_array_size() -> int | None:
    """One more than the highest index of a job array; None where it cannot be asked."""
    size = configuration().get("MaxArraySize", "")
    return int(size) if size.isdecimal() else None


def queue() -> dict[str, Queued]:
    """The user's own jobs that wait or run, by number; those of an array singly. Raises `SlurmError`."""
    # --array: one line per element. Without it, squeue shortens the list of those that wait.
    lines = _answer("squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--format={_FIELDS}")
    return {queued.job: queued for queued in parsed(lines)}


def job(number: str) -> Queued | None:
    """One job, also one that ended a moment ago; None if the controller does not know it (any more)."""
    try:
        lines = _answer("squeue", "--noheader", "--array", "--states=all", f"--jobs={number}", f"--format={_FIELDS}")
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return next(parsed(lines), None)


def shown(number: str) -> dict[str, str]:
    """All that `scontrol show job` tells of a job, by Slurm's names; empty where it cannot be asked."""
    try:
        said = _answer("scontrol", "--oneliner", "show", "job", number)
    except SlurmError:
        return {}
    # A value ends where the next name begins: names and paths may hold spaces.
    return dict(re.findall(r"(\S+?)=(.*?)(?= [A-Z][\w/:-]*=|\s*$)", said.partition("\n")[0]))


def job_end(number: str) -> float | None:
    """The Unix time at which Slurm will end the job; None where there is no limit, or nobody to ask."""
    try:
        known = job(number)
    except SlurmError:
        return None
    return known.end if known else None


def parsed(lines: str) -> Iterator[Queued]:
    """What `squeue` printed, job by job; lines of another form are passed over."""
    for line in lines.splitlines():
        fields = [part.strip() for part in line.split("|")]
        if len(fields) == len(_FIELDS.split("|")):
            number, state, reason, start, end, nodes = fields
            yield Queued(number, state, "" if reason == "None" else reason, _unix(start), _unix(end), nodes)


def test_only(script: str) -> tuple[bool, str]:
    """Would `sbatch` take this script? The verdict, and what it says in one line; nothing is submitted."""
    try:
        return True, _answer("sbatch", "--test-only", given=script, told=True)
    except SlurmError as error:
        return False, str(error)


def requeue(number: str) -> str:
    """Have the job start again from its beginning; returns why that was refused, or nothing."""
    return _refusal("scontrol", "requeue", number)


def cancel(numbers: Iterable[str]) -> str:
    """End jobs; returns why that was refused, or nothing."""
    given = list(numbers)
    return _refusal("scancel", *given) if given else ""


def _refusal(*command: str) -> str:
    try:
        _answer(*command)
    except SlurmError as error:
        return str(error)
    return ""


def _answer(*command: str, given: str = "", told: bool = False) -> str:
    """What the command prints; with `told`, what it says on both streams, in one line."""
    environment = scrubbed(os.environ)
    if not told:
        environment["SLURM_TIME_FORMAT"] = "%s"  # Unix times, which depend on no time zone
    try:
        ended = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False
        )
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]} is not on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer within {TIMEOUT_S} s") from error
    except OSError as error:
        raise SlurmError(f"{command[0]}: {error.strerror}") from error
    if ended.returncode:
        raise SlurmError(_one_line(ended.stderr or ended.stdout, command[0]) or f"{command[0]}: {ended.returncode}")
    return _one_line(ended.stdout + ended.stderr, command[0]) if told else ended.stdout


def _one_line(said: str, command: str) -> str:
    """Without the command's name and level before each line; what is fatal alone, what is repeated once."""
    lines = []
    fatal = [line for line in said.splitlines() if line.startswith(f"{command}: fatal: ")]
    for line in fatal or said.splitlines():
        for level in (f"{command}: error: ", f"{command}: fatal: ", f"{command}: "):
            line = line.removeprefix(level)
        lines.append(" ".join(line.split()))
    return "; ".join(dict.fromkeys(filter(None, lines)))


def _unix(told: str) -> float | None:
    """A time that Slurm printed: seconds, or a local time where it does not know `SLURM_TIME_FORMAT=%s`."""
    try:
        return float(told) if told.isdecimal() else datetime.fromisoformat(told).timestamp()
    except ValueError:  # N/A, NONE, Unknown
        return None
