from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ien.stopping import SIGNALS

CLUSTER = Path(__file__).parent.parent / "slurm" / "cluster"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    """torch takes a shape that another test had for one that varies, and its code for such shapes is not for all."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A command that a test calls in this process holds signals back; the next test's children would inherit that."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGCONT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@pytest.fixture(scope="session")
def slurm_conf() -> Iterator[str]:
    """The configuration of a real SLURM of two nodes; one that is named by IEN_TEST_SLURM, or one started here.

    Without SLURM's daemons these tests are skipped; where IEN_TEST_SLURM is set (as in CI) they fail instead.
    """
    named = os.environ.get("IEN_TEST_SLURM")
    if named and named != "start":
        yield named
        return
    if not shutil.which("slurmctld"):
        if named:
            pytest.fail("IEN_TEST_SLURM is set, but there is no slurmctld; see slurm/cluster/README.md")
        pytest.skip("SLURM's daemons are not installed; see slurm/cluster/README.md")
    folder = tempfile.mkdtemp(prefix="ien-slurm-", dir="/tmp")  # its sockets want a short path
    where = ["--dir", folder]
    ended = subprocess.run([CLUSTER / "start", *where], capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 0, ended.stderr
    yield ended.stdout.strip().rpartition("=")[2]
    subprocess.run([CLUSTER / "stop", *where], capture_output=True, timeout=120, check=True)


@pytest.fixture
def slurm_cluster(slurm_conf: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, with the commands of this test told where it is."""
    monkeypatch.setenv("SLURM_CONF", slurm_conf)
    return slurm_conf
