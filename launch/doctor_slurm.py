"""What does the cluster itself allow? (preemption, requeue, arrays and accounting, as its controller tells them)"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping

from launch import slurm
from launch.doctor_verdict import FAIL, OK, WARN, Row

KILL_WAIT_S = 10  # less is not enough to save in
_NO_TIME = "too short to save in: what is done since the last checkpoint is lost; ask the site for 30 s"
_WHERE = "controller"


def of_slurm(facts: Mapping[str, str], about: Mapping[str, str], sacct: str) -> Iterator[Row]:
    """Rows from the controller's configuration, from what it says `about` the partition, and from `accounting`."""
    if not facts:
        yield Row("slurm", _WHERE, FAIL, "the controller does not answer", "see: scontrol ping")
        return
    yield Row("slurm", _WHERE, OK, f"{facts.get('SLURM_VERSION', '?')}, cluster {facts.get('ClusterName', '?')}")
    yield _preemption(facts, about)
    wait = _seconds(facts.get("KillWait", ""))
    short = wait is not None and wait < KILL_WAIT_S
    yield Row("KillWait", _WHERE, WARN if short else OK, f"{wait} s from TERM to KILL", _NO_TIME if short else "")
    yield Row("MaxArraySize", _WHERE, OK, facts.get("MaxArraySize", "?"))
    requeue = facts.get("JobRequeue") == "1"
    advice = "" if requeue else "only jobs that ask for it are requeued: launch.requeue=true"
    yield Row("JobRequeue", _WHERE, OK if requeue else WARN, facts.get("JobRequeue", "?"), advice)
    needless = "not needed: python -m launch.jobs reads the runs' ledgers"
    if facts.get("AccountingStorageType", "none").endswith("none"):
        yield Row("accounting", _WHERE, OK, f"off ({needless})")
    else:
        yield Row("accounting", _WHERE, WARN if sacct else OK, sacct or "sacct answers", needless if sacct else "")


def partition(name: str | None) -> dict[str, str]:
    """What `scontrol show partition` says of the one that is asked for, or of the default one."""
    told = answer("scontrol", "--oneliner", "show", "partition", *([name] if name else [])) or ""
    partitions = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in told.splitlines()]
    return next((one for one in partitions if name or one.get("Default") == "YES"), {})


def accounting(configuration: Mapping[str, str]) -> str:
    """What is wrong with `sacct`; empty where it answers, or is off."""
    if configuration.get("AccountingStorageType", "none").endswith("none"):
        return ""
    told = answer("sacct", "--noheader", "--allocations", "--starttime=now-1minutes")
    return "sacct does not answer" if told is None else ""


def answer(*command: str, status: int | None = 0) -> str | None:
    """What a command prints; None if it does not answer within 15 s, or ends with another status."""
    try:
        environment = slurm.scrubbed(os.environ)
        ended = subprocess.run(command, capture_output=True, text=True, timeout=15, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout if status in (None, ended.returncode) else None


def _preemption(facts: Mapping[str, str], about: Mapping[str, str]) -> Row:
    kind, mode = facts.get("PreemptType", "?"), about.get("PreemptMode") or facts.get("PreemptMode", "?")
    name, grace = about.get("PartitionName", "?"), _seconds(about.get("GraceTime", ""))
    if kind.endswith("none") or mode == "OFF":
        return Row("preemption", _WHERE, OK, f"no job of partition {name} is preempted")
    first = "USR2" if "preempt_send_user_signal" in facts.get("SlurmctldParameters", "") else "TERM"
    # Without a grace time, KillWait is what a job has.
    notice = grace or _seconds(facts.get("KillWait", "")) or 0
    value = f"{kind}, {mode} in partition {name}, {first} {notice} s before the end"
    if "CANCEL" in mode:
        return Row("preemption", _WHERE, WARN, value, "not requeued: give the submit command again, it goes on")
    if notice < KILL_WAIT_S:
        return Row("preemption", _WHERE, WARN, value, _NO_TIME)
    return Row("preemption", _WHERE, OK, value)


def _seconds(told: str) -> int | None:
    number = told.split()[0] if told.split() else ""
    return int(number) if number.isdecimal() else None
