"""A run folder belongs to one living process; what a dead one left there does not keep others out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from ien import lock
from ien.errors import InputError
from ien.lock import Lock

HOLDER = """
import sys, time
from pathlib import Path
from ien.lock import Lock
held = Lock(Path(sys.argv[1]), "77", 1)
held.at(5, 9)
held._write()
print("held", flush=True)
time.sleep(60)
"""


def left_behind(folder: Path, **facts: object) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    holder = {"host": "elsewhere", "pid": 1, "job": "77", "restart": 0, "step": 3, "of": 9, "time": now}
    (folder / lock.NAME).write_text(json.dumps(holder | facts))


def test_a_living_holder_is_named_and_a_killed_one_is_no_hindrance(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"in use by process {holder.pid} on .*, job 77 \(restart 1\)"):
            Lock(tmp_path, "78", 0)
        assert lock.read(tmp_path)["step"] == 5
    finally:
        holder.kill()
        holder.communicate()
    mine = Lock(tmp_path, "78", 0)
    assert mine.previous_alive is not None
    mine.release()


def test_released_it_is_free(tmp_path: Path) -> None:
    Lock(tmp_path, "1", 0).release()
    second = Lock(tmp_path, "2", 0)
    assert second.previous_alive is None
    second.release()
    assert lock.read(tmp_path) == {}


def test_an_earlier_start_of_the_same_job_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_beats", lambda *_: pytest.fail("it was waited for"))
    left_behind(tmp_path, restart=2)
    Lock(tmp_path, "77", 3).release()


def test_the_same_start_of_the_same_job_may_be_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_beats", lambda *_: True)
    left_behind(tmp_path, restart=2)
    with pytest.raises(InputError, match="in use by process 1 on elsewhere"):
        Lock(tmp_path, "77", 2)


def test_on_another_machine_a_beat_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that does not carry the kernel's locks from machine to machine."""
    monkeypatch.setattr(lock, "BEAT_S", 0.2)
    left_behind(tmp_path)
    began = time.monotonic()
    taken = Lock(tmp_path, "78", 0)
    assert time.monotonic() - began >= 0.5
    taken.release()
    left_behind(tmp_path)
    beating = subprocess.Popen(
        [sys.executable, "-c", BEATING, str(tmp_path / lock.NAME)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert beating.stdout is not None
        beating.stdout.readline()
        with pytest.raises(InputError, match="in use by process 1 on elsewhere"):
            Lock(tmp_path, "78", 0)
    finally:
        beating.kill()
        beating.communicate()


BEATING = """
import json, os, sys, time
path, number = sys.argv[1], 0
file = os.open(path, os.O_RDWR)
print("beats", flush=True)
while True:
    number += 1
    line = {"host": "elsewhere", "pid": 1, "job": "77", "restart": 0, "time": str(number)}
    os.pwrite(file, json.dumps(line).ljust(400).encode(), 0)
    time.sleep(0.05)
"""


def test_the_beat_says_how_far_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    held = Lock(tmp_path, "1", 0)
    held.at(123456, 9999999)
    time.sleep(0.3)
    assert (lock.read(tmp_path)["step"], lock.read(tmp_path)["pid"]) == (123456, os.getpid())
    held.release()
