from __future__ import annotations

import fcntl
import hashlib
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ien.data.prepared import open_prepared
from ien.data.writing import Plan, already_prepared, write_prepared
from ien.errors import InputError

Planner = Callable[..., Plan]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def breaking(plan: Plan, error: BaseException) -> Plan:
    """The same plan, which fails after its first block."""

    def blocks(split: str) -> Iterator:
        yield next(plan.blocks(split))
        raise error

    return replace(plan, blocks=blocks)


def test_meta_says_what_is_there(tmp_path: Path, plan_of: Planner) -> None:
    advanced: list[int] = []
    write_prepared(plan_of(seed=3), tmp_path, "numbers", advanced.append)
    meta = json.loads((tmp_path / "numbers" / "meta.json").read_text())
    assert meta["recipe"] == {"seed": 3}
    assert (meta["name"], meta["counts"], meta["side"], meta["channels"]) == ("numbers", {"train": 10, "test": 6}, 4, 1)
    for file, digest in meta["sha256"].items():
        assert hashlib.sha256((tmp_path / "numbers" / file).read_bytes()).hexdigest() == digest
    assert names(tmp_path / "numbers") == sorted([*meta["sha256"], "meta.json"])
    assert names(tmp_path) == ["numbers"]
    assert sum(advanced) == 16


@pytest.mark.parametrize("error", [InputError("x"), KeyboardInterrupt()])
def test_interrupted_it_leaves_nothing(tmp_path: Path, plan_of: Planner, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_prepared(breaking(plan_of(), error), tmp_path, "numbers")
    assert names(tmp_path) == []


def test_interrupted_it_leaves_the_older_set(tmp_path: Path, plan_of: Planner) -> None:
    write_prepared(plan_of(seed=1), tmp_path, "numbers")
    with pytest.raises(InputError):
        write_prepared(breaking(plan_of(seed=2), InputError("x")), tmp_path, "numbers")
    assert already_prepared(plan_of(seed=1), tmp_path, "numbers")
    write_prepared(plan_of(seed=2), tmp_path, "numbers")
    assert already_prepared(plan_of(seed=2), tmp_path, "numbers")
    assert names(tmp_path) == ["numbers"]


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from ien.data.writing import Plan, write_prepared
def blocks(split):
    yield np.zeros((4, 1, 4, 4), np.uint8), np.zeros(4, np.int64)
    print("half", flush=True)
    time.sleep(60)
write_prepared(Plan("numbers", {}, ("a", "b"), {"train": 8, "test": 4}, 4, 1, blocks), Path(sys.argv[1]), "numbers")
"""


def test_killed_it_leaves_nothing_that_looks_prepared(tmp_path: Path, plan_of: Planner) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        with pytest.raises(InputError, match="by another process"):
            write_prepared(plan_of(), tmp_path, "numbers")
        process.send_signal(signal.SIGKILL)
    assert not already_prepared(plan_of(), tmp_path, "numbers")
    assert names(tmp_path) == [".numbers.partial"]
    write_prepared(plan_of(), tmp_path, "numbers")
    assert names(tmp_path) == ["numbers"]


def test_killed_between_the_two_renames_the_older_set_comes_back(tmp_path: Path, plan_of: Planner) -> None:
    write_prepared(plan_of(seed=1), tmp_path, "numbers")
    (tmp_path / "numbers").rename(tmp_path / ".numbers.replaced")
    with pytest.raises(InputError):
        write_prepared(breaking(plan_of(seed=2), InputError("x")), tmp_path, "numbers")
    assert already_prepared(plan_of(seed=1), tmp_path, "numbers")


def test_a_full_disk_is_told_and_the_older_set_stays(tmp_path: Path, plan_of: Planner) -> None:
    write_prepared(plan_of(seed=1), tmp_path, "numbers")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # the kernel refuses further bytes, as a full disk does
    try:
        with pytest.raises(InputError, match=r"cannot write .*numbers.*make room"):
            write_prepared(plan_of(seed=2), tmp_path, "numbers")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert already_prepared(plan_of(seed=1), tmp_path, "numbers")
    assert names(tmp_path) == ["numbers"]


def test_a_prepared_set_is_not_taken_for_another(tmp_path: Path, plan_of: Planner) -> None:
    write_prepared(plan_of(seed=1), tmp_path, "numbers")
    with pytest.raises(InputError, match=r"another recipe \(differs in: seed\).*--force"):
        already_prepared(plan_of(seed=2), tmp_path, "numbers")
    (tmp_path / "numbers" / "test_labels.npy").write_bytes(b"")
    with pytest.raises(InputError, match="--force"):
        already_prepared(plan_of(seed=1), tmp_path, "numbers")
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="no prepared data set"):
        already_prepared(plan_of(), tmp_path, "photos")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a b"])
def test_names_that_leave_the_root(tmp_path: Path, plan_of: Planner, name: str) -> None:
    with pytest.raises(InputError, match="--name"):
        write_prepared(plan_of(), tmp_path, name)


def test_a_root_that_is_a_file(tmp_path: Path, plan_of: Planner) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*root"):
        write_prepared(plan_of(), tmp_path / "root", "numbers")


def test_the_lock_is_free_afterwards(tmp_path: Path, plan_of: Planner) -> None:
    write_prepared(plan_of(), tmp_path, "numbers")
    with (tmp_path / ".numbers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert len(open_prepared(tmp_path, "numbers", 0, 0).train) == 10
