"""A Ray takes ports that nobody has, no more of a node than it was allotted, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")

from launch.search import nodes
from launch.search.nodes import Place, Ports, allotted
from tests.launch.search.sweeps import ROOT


def test_every_port_is_set_and_of_the_block() -> None:
    with Ports() as ports:
        head = ports.options(head=True)
        numbers = [int(option.partition("=")[2]) for option in head]
        assert len(set(numbers)) == len(numbers)
        assert len({(number - 10_000) // 512 for number in numbers}) == 1
        names = {option.partition("=")[0] for option in head}
        shown = subprocess.run(
            [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        # Those of a dashboard that is not started and of a database that Ray does not use any more are left.
        unset = {"--dashboard-port", "--redis-shard-ports", "--worker-port-list"}
        assert set(re.findall(r"--[a-z-]*port[a-z-]*", shown)) - unset <= names
        assert {"--port", "--ray-client-server-port"} == names - {
            option.partition("=")[0] for option in ports.options(head=False)
        }


def test_two_rays_of_one_node_have_no_port_in_common() -> None:
    blocks = range(10_000, 32_000, 512)[:2]
    with Ports(blocks) as one, Ports(blocks) as other:
        assert not set(one.options(head=True)) & set(other.options(head=True))
        with pytest.raises(RuntimeError, match=r"has no 512 free ports in a row"):
            Ports(blocks)
    with Ports(blocks), Ports(blocks):
        pass  # they are given back


def test_a_block_in_which_somebody_listens_is_passed_over() -> None:
    with Ports() as ports:
        begin = ports.first["port"] - 1
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", begin + 200))
        somebody.listen()
        with pytest.raises(RuntimeError, match="free ports"):
            Ports([begin])
    Ports([begin]).__exit__()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "2"}, (1, 0)),
        ({"SLURM_CPUS_ON_NODE": "1"}, (1, 0)),
        ({"SLURM_CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_ON_NODE": "4"}, (1, 2)),
        ({"SLURM_CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": ""}, (1, 0)),
        ({"SLURM_CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, (1, 0)),
        ({"SLURM_CPUS_PER_TASK": "1", "SLURM_GPUS_ON_NODE": "4"}, (1, 4)),
        ({"SLURM_CPUS_PER_TASK": "4096"}, (len(os.sched_getaffinity(0)), 0)),
    ],
)
def test_what_was_allotted_counts_and_not_what_the_machine_has(told: dict[str, str], expected: tuple[int, int]) -> None:
    assert allotted(told) == expected


def test_a_requeued_job_meets_at_another_place() -> None:
    assert Place(0, ("n1",), "7", 0).meeting != Place(0, ("n1",), "7", 1).meeting != Place(0, ("n1",), "8", 1).meeting


def test_what_was_published_is_its_owners_alone(tmp_path: Path) -> None:
    nodes._publish(tmp_path / "ray-7-0.json", {"address": "n1:10001", "token": "secret"})
    assert (tmp_path / "ray-7-0.json").stat().st_mode & 0o777 == 0o600
    assert nodes._met(tmp_path / "ray-7-0.json") == {"address": "n1:10001", "token": "secret"}
    assert [path.name for path in tmp_path.iterdir()] == ["ray-7-0.json"]


def test_one_that_waits_for_the_head_heeds_a_signal(tmp_path: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        # To this thread: those that a library has started have not blocked it.
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        assert nodes._met(tmp_path / "never.json") is None
    finally:
        signal.sigwait([signal.SIGUSR2])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])


def test_what_was_started_ends_and_nobody_elses(tmp_path: Path) -> None:
    """Also a daemon, whose parents have left it, and what ignores TERM."""
    code = f"""
import signal, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
from launch.search import nodes
with nodes._alone():
    for name in ("one", "other"):
        daemon = f"import time, pathlib, os; pathlib.Path('{{name}}').write_text(str(os.getpid())); time.sleep(600)"
        subprocess.Popen(["sh", "-c", 'setsid "$0" -c "$1" & exit', sys.executable, daemon]).wait()
    import pathlib
    while not all(pathlib.Path(n).exists() and pathlib.Path(n).read_text() for n in ("one", "other")):
        time.sleep(0.05)
"""
    somebody = subprocess.Popen(["sleep", "60"])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    started = [int((tmp_path / name).read_text()) for name in ("one", "other")]
    time.sleep(0.1)
    left = [process for process in started if Path(f"/proc/{process}").exists()]
    lives = somebody.poll() is None
    for process in (*left, somebody.pid):
        os.kill(process, signal.SIGKILL)
    somebody.wait()
    assert left == []
    assert lives
