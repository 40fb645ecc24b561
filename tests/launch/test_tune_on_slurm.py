"""A sweep on a real SLURM: over two nodes and as an array, preempted on the way; and nothing of its Ray outlives it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ien import ledger
from tests.launch.cluster import ROOT, quiet, said
from tests.launch.search.sweeps import events, results, written

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm_cluster"), pytest.mark.timeout(900)]
PLACE = re.compile(rf"ien-ray-{os.getuid()}-(\d+)-")


class Sweeps:
    """A folder with a small sweep, which is submitted from there."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "runs/sweeps/small"
        self.places: set[Path] = set()  # folders of its Rays that were seen

    def submit(self, *words: str) -> str:
        command = [sys.executable, str(ROOT / "launch/tune.py"), "--config", "small.yaml", "--executor", "slurm"]
        ended = subprocess.run(
            [*command, *words], cwd=self.folder, env=quiet(), capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    @property
    def runs(self) -> list[Path]:
        return sorted(self.path.glob("[0-9]*/seed-*"))

    def named(self, event: str) -> list[ledger.Event]:
        return [one for one in ledger.read(self.path) if one["event"] == event]

    def until(self, seen: Callable[[], object], seconds: float = 300) -> None:
        """Wait; fails with all that is known."""
        deadline = time.monotonic() + seconds
        while not seen():
            self.places |= places(self.folder)
            assert not self.named("given up"), self.story()
            assert time.monotonic() < deadline, self.story()
            time.sleep(0.1)

    def story(self) -> str:
        logs = [f"{path.name}\n{path.read_text()[-6000:]}" for path in self.path.rglob("*.out")]
        lines = [str(event) for event in ledger.read(self.path)]
        return "\n".join([*lines, *logs, said("squeue")])

    def assert_whole(self, trials: int = 3) -> None:
        """Every trial has finished exactly once, and stands in the results."""
        assert [one["state"] for one in results(self.folder)["trials"]] == ["finished"] * trials, self.story()
        assert len(self.runs) == trials
        assert [len(events(run, "finished")) for run in self.runs] == [1] * trials
        assert not list(self.path.glob("[0-9]*/seed-*/ledger.jsonl.*"))
        assert "failed" not in "".join(path.read_text() for path in self.path.glob("trials*.jsonl"))

    def assert_gone(self) -> None:
        """No process of this sweep, no folder of its Ray's, and not the file that names its port and token."""
        self.until(lambda: not processes(self.folder), 60)
        assert self.places
        assert [place for place in self.places if place.exists()] == []
        assert not list(self.path.glob("jobs/ray-*.json"))


@pytest.fixture
def sweeps(tmp_path: Path) -> Iterator[Sweeps]:
    made = Sweeps(tmp_path)
    yield made
    jobs = {event["job"] for event in ledger.read(made.path)}
    if jobs:
        subprocess.run(["scancel", *jobs], check=False, capture_output=True)


def places(folder: Path) -> set[Path]:
    """The folders of the Rays that work in `folder`."""
    here = processes(folder)
    found = [(one, PLACE.match(one.name)) for one in Path(tempfile.gettempdir()).iterdir()]
    return {one for one, match in found if match and int(match[1]) in here}


def processes(folder: Path) -> dict[int, str]:
    """The command lines of what works in `folder`: Ray's processes, and the trials'."""
    found = {}
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdecimal() and (place / "cwd").readlink() == folder:
                found[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def listening(folder: Path) -> set[tuple[str, int]]:
    """Where the processes of `folder` listen: address and port."""
    inodes = set()
    for process, line in processes(folder).items():
        if line.startswith("srun "):  # listens for its tasks
            continue
        try:
            inodes |= {str(one.readlink()) for one in Path(f"/proc/{process}/fd").iterdir()}
        except OSError:
            continue
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add((address, int(port, 16)))
    return found


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that `ray stop` would take for one of Ray's, as it takes everybody's."""
    raylet = tmp_path / "core/src/ray/raylet/raylet"
    raylet.parent.mkdir(parents=True)
    shutil.copy(shutil.which("sleep") or "/bin/sleep", raylet)
    process = subprocess.Popen([raylet, "900"], cwd="/")
    yield process
    process.kill()
    process.wait()


def test_over_two_nodes_and_a_preemption(sweeps: Sweeps, foreign: subprocess.Popen[bytes]) -> None:
    written(sweeps.folder, launch={"nodes": 2, "cpus_per_task": 1, "timeout_min": 10})
    told = sweeps.submit()
    job = str(sweeps.named("submitted")[0]["job"])
    for line in (
        f"job     {job} (2 nodes, 1 CPUs each)",
        "sweep   runs/sweeps/small",
        "follow  python -m launch.jobs logs -f runs",
    ):
        assert f"\n{line}" in told
    assert "ssh -t -L 6006:localhost:6006" in told
    sweeps.until(lambda: list(sweeps.path.rglob("last.pt")))
    # While it runs: everything is private, and every port is of a block that this Ray chose.
    meeting = next(sweeps.path.glob("jobs/ray-*-0.json"))
    assert stat.S_IMODE(meeting.stat().st_mode) == 0o600
    own = places(sweeps.folder)
    assert len(own) == 2
    for place in own:
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert stat.S_IMODE((place / "token").stat().st_mode) == 0o600
    ports = {port for address, port in listening(sweeps.folder) if not _is_loopback(address)}
    assert ports
    assert len({(port - 10_000) // 512 for port in ports}) == 2  # a block for each of the two nodes
    assert max(ports) < 32_768
    # To every process of the step, Ray's as well, as SLURM does it.
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    sweeps.until(lambda: sweeps.named("requeued"), 60)
    assert [event["signals"] for event in sweeps.named("stopped")] == [["SIGUSR2"]]
    sweeps.until(lambda: sweeps.named("finished"))
    sweeps.assert_whole()
    assert [event["kind"] for event in sweeps.named("requeued")] == ["preempted"]
    assert [event["nodes"] for event in sweeps.named("started")] == [["n1", "n2"]] * 2
    assert {node for run in sweeps.runs for event in events(run, "started") for node in event["nodes"]} == {"n1", "n2"}
    assert [event for run in sweeps.runs for event in events(run, "resumed")]
    sweeps.assert_gone()
    assert foreign.poll() is None


def _is_loopback(address: str) -> bool:
    """As the kernel writes it, also inside of IPv6."""
    return address.endswith("0100007F") or address == "00000000000000000000000001000000"


def test_an_array_shares_the_trials_out(sweeps: Sweeps) -> None:
    """Two searches with a Ray each, on one node: one ends while the other works on, and is preempted."""
    written(sweeps.folder, launch={"timeout_min": 10})
    told = sweeps.submit("--array", "2")
    assert "(2 elements, 1 CPUs each)" in told
    job = str(sweeps.named("submitted")[0]["job"]).partition("_")[0]
    sweeps.until(lambda: (sweeps.path / "000/seed-0/checkpoints/last.pt").exists())
    heard = listening(sweeps.folder)
    assert heard
    assert all(_is_loopback(address) for address, _ in heard)
    trial = next(process for process, line in processes(sweeps.folder).items() if "launch.search.process" in line)
    variables = Path(f"/proc/{trial}/environ").read_text().split("\0")
    code = next(line.partition("=")[2].split(":")[0] for line in variables if line.startswith("PYTHONPATH="))
    assert Path(code).parent == sweeps.folder / "runs/.code"  # the job's copy, whatever is edited, or installed
    (sweeps.folder / "base.yaml").write_text("dataset: no_such\n")
    assert said("scontrol", "requeue", f"{job}_0") == ""
    sweeps.until(lambda: len(sweeps.named("finished")) == 2)
    sweeps.assert_whole()
    assert [event["job"] for event in sweeps.named("requeued")] == [f"{job}_0"]
    mine = {(event["job"], run.parent.name) for run in sweeps.runs for event in events(run, "started")}
    assert mine == {(f"{job}_0", "000"), (f"{job}_1", "001"), (f"{job}_0", "002")}
    sweeps.assert_gone()


def test_without_python_on_the_login_node(sweeps: Sweeps) -> None:
    written(sweeps.folder, budget={"trials": 1})
    for name in ("ien", "launch"):
        (sweeps.folder / name).symlink_to(ROOT / name)
    words = ["--cpus-per-task=1", "--parsable", "--time=10", str(ROOT / "slurm/tune.sbatch"), "small.yaml"]
    sent = subprocess.run(
        ["sbatch", *words, "set.tot_epochs=2", "set.cyc_size=2"],
        cwd=sweeps.folder,
        env=quiet() | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    sweeps.until(lambda: list(sweeps.path.rglob("last.pt")))
    subprocess.run(["scancel", "--signal=TERM", sent.stdout.strip()], check=True)
    sweeps.until(lambda: sweeps.named("requeued"), 60)
    sweeps.until(lambda: sweeps.named("finished"))
    sweeps.assert_whole(trials=1)
    sweeps.assert_gone()


def test_the_head_is_killed_and_the_other_node_does_not_wait(sweeps: Sweeps) -> None:
    written(sweeps.folder, budget={"trials": 2}, launch={"nodes": 2, "cpus_per_task": 1, "timeout_min": 10})
    sweeps.submit()
    sweeps.until(lambda: list(sweeps.path.rglob("last.pt")))
    first = [
        process
        for process, line in processes(sweeps.folder).items()
        if "launch/task.py" in line
        and not line.startswith("srun")
        and "SLURM_PROCID=0" in Path(f"/proc/{process}/environ").read_text().split("\0")
    ]
    os.kill(first[0], signal.SIGKILL)
    sweeps.until(lambda: sweeps.named("requeued"), 60)
    assert [event["kind"] for event in sweeps.named("requeued")] == ["failure"]
    sweeps.until(lambda: sweeps.named("finished"))
    sweeps.assert_whole(trials=2)
    sweeps.assert_gone()
