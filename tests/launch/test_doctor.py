"""A place that is fit has no wrong line in the doctor's table; each thing that is wrong has one, which names it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ien import build
from ien.config import Config
from launch import doctor, doctor_allocation, doctor_node, doctor_slurm
from launch.doctor_allocation import told
from launch.doctor_verdict import FAIL, OK, WARN, Asked, Row, of_login, of_nodes

ROOT = Path(doctor.__file__).resolve().parent.parent
Reports = dict[int, dict[str, Any]]
FOLDER = {"mode": 0o700, "mine": True, "free": 1 << 40, "no_files": False, "seconds": 0.01}
VERSIONS = {"python": "3.11.7", "torch": "2.15.0", "numpy": "2.4.6", "ien": "0.1.0 (12345678)"}
LOGIN = {"node": "login", "versions": VERSIONS, "folder": FOLDER, "quota": None}
ASKED = Asked("runs", nodes=2, tasks_per_node=2, cpus_per_task=2)


def good() -> Reports:
    """What four tasks on two nodes tell where everything is well."""
    reports: Reports = {}
    for rank in range(4):
        local = rank % 2
        facts: dict[str, Any] = {"node": f"n{rank // 2 + 1}", "local": local, "versions": dict(VERSIONS), "tools": []}
        facts |= {"cpus": [2 * local, 2 * local + 1], "stage": "signals", "ready": 1, "done": True}
        facts |= {"torch": {"seconds": 2.0, "cuda": None, "gpus": [], "smi": None}}
        facts |= {"all_reduce": {"device": "cpu", "seconds": 0.1, "wrong": 0}}
        facts |= {"SIGUSR2": True, "SIGTERM": True, "workers": {"dead": 0, "batches": 250}}
        if local == 0:
            facts |= {"folder": {**FOLDER, "login": True}, "shared": {"seconds": 0.1, "missing": []}}
            facts |= {"lock": "kept" if rank else "held", "unreached": [], "clock_ms": 0.4 if rank else 0.0}
        reports[rank] = facts
    return reports


def wrong(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.verdict != OK]


def test_a_good_place_has_no_wrong_line() -> None:
    rows = list(of_nodes(good(), ASKED, LOGIN, ""))
    assert wrong(rows) == []
    assert {row.where for row in rows} == {"n1", "n2"}
    assert wrong(list(of_login(LOGIN, ASKED))) == []


def gpus(reports: Reports, *numbers: int, errors: str = "0", smi: bool = True) -> None:
    """One GPU of each task's own, of those with these `numbers`."""
    for rank, facts in reports.items():
        mine = [number for number in numbers if number % 2 == rank % 2]
        facts["torch"] = {
            "seconds": 2.0,
            "cuda": "12.8",
            "gpus": [{"name": "H100", "id": f"{facts['node']}-{number}", "gib": 80} for number in mine],
            "smi": [{"name": "H100", "id": f"GPU-{facts['node']}-{number}", "errors": errors} for number in numbers],
        }
        facts["all_reduce"]["device"] = "cuda"
        facts["all_reduce"]["seconds"] = 0.001


def without(reports: Reports, rank: int, *facts: str, **failed: str) -> None:
    for fact in facts:
        del reports[rank][fact]
    reports[rank]["failed"] = {name.replace("_", "-"): text for name, text in failed.items()}


Fault = Callable[[Reports], Any]
FAULTS: list[tuple[str, Fault, Row]] = [
    (
        "python",
        lambda r: r[2]["versions"].update(python="3.10.1"),
        Row("versions", "n2", FAIL, "python 3.10.1, here 3.11"),
    ),
    ("code", lambda r: r[2]["versions"].update(ien="0.1.0 (0)"), Row("versions", "n2", FAIL, r"ien 0.1.0 \(0\), here")),
    ("absent", lambda r: r[0]["versions"].update(torch=None), Row("versions", "n1", FAIL, "not installed: torch")),
    ("torch", lambda r: without(r, 0, "torch", torch="no libcudart"), Row("torch", "n1", FAIL, "no libcudart")),
    ("slow", lambda r: r[1]["torch"].update(seconds=70), Row("torch", "n1", WARN, "loaded in 70")),
    (
        "no GPU",
        lambda r: r[0]["torch"].update(smi=[{"id": "GPU-1", "errors": "0"}]),
        Row("devices", "n1", WARN, "none, CPU"),
    ),
    (
        "ECC",
        lambda r: gpus(r, 0, 1, errors="3"),
        Row("devices", "n[12]", FAIL, "memory errors in GPU-n[12]-0, GPU-n[12]-1"),
    ),
    ("cores", lambda r: r[3].update(cpus=[3]), Row("CPUs", "n2", FAIL, "1 for each of 2 tasks, 3 in all, asked for 2")),
    ("same cores", lambda r: r[3].update(cpus=[0, 1]), Row("CPUs", "n2", FAIL, "2 for each .* tasks share cores")),
    ("scontrol", lambda r: r[2].update(tools=["scontrol"]), Row("scontrol", "n2", WARN, "not on the node")),
    ("unseen", lambda r: r[2]["folder"].update(login=False), Row("run folder", "n2", FAIL, "another folder there")),
    (
        "read-only",
        lambda r: r[2].update(folder={"error": "cannot make a folder in it: Read-only file system", "errno": 30}),
        Row("run folder", "n2", FAIL, "runs: cannot make a folder in it: Read-only"),
    ),
    (
        "0777",
        lambda r: r[0]["folder"].update(mode=0o777),
        Row("private", "n1", FAIL, "mode 0777: other users can write"),
    ),
    ("0770", lambda r: r[0]["folder"].update(mode=0o770), Row("private", "n1", FAIL, "other users can write")),
    ("0755", lambda r: r[0]["folder"].update(mode=0o755), Row("private", "n1", WARN, "other users can read")),
    ("1777", lambda r: r[0]["folder"].update(mode=0o1777), Row("private", "n1", WARN, "take the name of a run")),
    ("theirs", lambda r: r[0]["folder"].update(mine=False), Row("private", "n1", FAIL, "belongs to another user")),
    ("full", lambda r: r[0]["folder"].update(free=1 << 20), Row("space", "n1", FAIL, "1 MiB free")),
    ("nearly full", lambda r: r[0]["folder"].update(free=500 << 20), Row("space", "n1", WARN, "500 MiB free")),
    ("inodes", lambda r: r[0]["folder"].update(no_files=True), Row("space", "n1", FAIL, "no more files")),
    (
        "not shared",
        lambda r: r[2]["shared"].update(missing=["n1"]),
        Row("shared", "n2", FAIL, "files of n1 not seen within 20"),
    ),
    ("late", lambda r: r[2]["shared"].update(seconds=9.0), Row("shared", "n2", WARN, "seen after 9.00 s")),
    ("lost lock", lambda r: r[2].update(lock="lost"), Row("lock", "n2", WARN, "two nodes get the same lock")),
    (
        "no lock",
        lambda r: r[2].update(lock="Function not implemented"),
        Row("lock", "n2", WARN, "Function not implemented"),
    ),
    (
        "port",
        lambda r: r[0].update(unreached=["n2 (timed out)"]),
        Row("ports", "n1", FAIL, r"cannot reach n2 \(timed out\)"),
    ),
    ("clock", lambda r: r[2].update(clock_ms=-1500.0), Row("clock", "n2", FAIL, "1500.0 ms")),
    ("clock a little", lambda r: r[2].update(clock_ms=300.0), Row("clock", "n2", WARN, "300.0 ms")),
    (
        "wrong sum",
        lambda r: r[3]["all_reduce"].update(wrong=5),
        Row("all-reduce", "n2", FAIL, "5 of the sums are wrong"),
    ),
    (
        "slow network",
        lambda r: r[3]["all_reduce"].update(seconds=6.7),
        Row("all-reduce", "n2", WARN, "10 MB/s over 4 tasks"),
    ),
    (
        "no NCCL",
        lambda r: without(r, 3, "all_reduce", all_reduce="NCCL error: no device"),
        Row("all-reduce", "n2", FAIL, "NCCL error: no device"),
    ),
    (
        "deaf",
        lambda r: without(r, 3, "workers", signals="no SIGUSR2 came"),
        Row("signals", "n2", FAIL, "no SIGUSR2 came"),
    ),
    ("hit worker", lambda r: r[3]["workers"].update(dead=1), Row("signals", "n2", FAIL, "1 data-loader workers died")),
    (
        "hung",
        lambda r: (r[3].pop("workers"), r[3].pop("SIGTERM")),
        Row("signals", "n2", FAIL, "no answer; the last was at: signals"),
    ),
    ("gone", lambda r: r.pop(3), Row("answer", "nodes", FAIL, "task 3 said nothing")),
]


@pytest.mark.parametrize(("fault", "expected"), [pytest.param(*case[1:], id=case[0]) for case in FAULTS])
def test_what_is_wrong_has_its_line_and_nothing_else_has(fault: Fault, expected: Row) -> None:
    reports = good()
    fault(reports)
    lines = wrong(list(of_nodes(reports, ASKED, LOGIN, "")))
    assert lines, "passed over"
    for line in lines:
        assert (line.check, line.verdict) == (expected.check, expected.verdict)
        assert re.fullmatch(expected.where, line.where)
        assert re.search(expected.value, line.value)
        assert line.advice


def test_gpus_that_were_asked_for_are_counted_over_the_tasks_of_a_node() -> None:
    reports = good()
    gpus(reports, 0, 1)
    two, four = (Asked("runs", nodes=2, tasks_per_node=2, gpus_per_node=count) for count in (2, 4))
    assert wrong(list(of_nodes(reports, two, LOGIN, ""))) == []
    lines = wrong(list(of_nodes(reports, four, LOGIN, "")))
    assert [(line.check, line.where) for line in lines] == [("devices", "n1"), ("devices", "n2")]
    assert "2 × H100 80 GiB, asked for 4" in lines[0].value
    none = wrong(list(of_nodes(good(), two, LOGIN, "")))
    assert "none, CPU only, asked for 2; this torch was built without CUDA" in none[0].value


def test_room_is_compared_with_what_a_run_keeps() -> None:
    reports = good()
    asked = Asked("runs", nodes=2, tasks_per_node=2, checkpoint_bytes=10 << 30)
    for free, verdict in ((9 << 30, FAIL), (15 << 30, WARN), (25 << 30, OK)):
        reports[0]["folder"]["free"] = free
        assert {
            row.verdict for row in of_nodes(reports, asked, LOGIN, "") if row.check == "space" and row.where == "n1"
        } == {verdict}


def test_a_job_that_ended_early_is_told_once() -> None:
    reports = good()
    for facts in reports.values():
        for fact in ("all_reduce", "SIGUSR2", "SIGTERM", "workers", "done"):
            del facts[fact]
    assert [
        row.value for row in wrong(list(of_nodes(reports, ASKED, LOGIN, "the job ended too early (PREEMPTED)")))
    ] == ["the job ended too early (PREEMPTED)"]
    nothing = wrong(list(of_nodes({}, ASKED, LOGIN, "no nodes within 30 min (Priority); ask for fewer")))
    assert [(row.value, row.advice) for row in nothing] == [
        ("all tasks said nothing: no nodes within 30 min (Priority)", "ask for fewer")
    ]


SLURM = {
    "SLURM_VERSION": "22.05.8",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "KillWait": "30 sec",
    "MaxArraySize": "1001",
    "JobRequeue": "1",
    "AccountingStorageType": "accounting_storage/slurmdbd",
}
PARTITION = {"PartitionName": "low", "PreemptMode": "REQUEUE", "GraceTime": "20"}


@pytest.mark.parametrize(
    ("facts", "about", "sacct", "expected"),
    [
        ({}, {}, "", []),
        ({}, {"PreemptMode": "OFF", "GraceTime": "0"}, "", []),
        ({}, {"GraceTime": "0"}, "", []),  # KillWait is long enough
        ({"KillWait": "5 sec"}, {}, "", ["KillWait"]),
        ({"KillWait": "5 sec"}, {"GraceTime": "0"}, "", ["preemption", "KillWait"]),
        ({}, {"PreemptMode": "CANCEL"}, "", ["preemption"]),
        ({"PreemptType": "preempt/none"}, {"PreemptMode": "CANCEL"}, "", []),
        ({"JobRequeue": "0"}, {}, "", ["JobRequeue"]),
        ({}, {}, "sacct does not answer", ["accounting"]),
        ({"AccountingStorageType": "accounting_storage/none"}, {}, "", []),
    ],
)
def test_what_the_controller_allows_is_judged(
    facts: dict[str, str], about: dict[str, str], sacct: str, expected: list[str]
) -> None:
    rows = list(doctor_slurm.of_slurm(SLURM | facts, PARTITION | about, sacct))
    assert [row.check for row in wrong(rows)] == expected
    assert all(row.verdict == WARN for row in wrong(rows))


def test_a_controller_that_does_not_answer_is_wrong() -> None:
    assert [row.verdict for row in doctor_slurm.of_slurm({}, {}, "")] == [FAIL]


def test_facts_arrive_whole_between_the_lines_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    long = {"text": "an × ü  " * 400}
    for rank in range(2):
        tell = doctor_node.Told(rank)
        tell(node=f"n{rank}", long=long)
        tell(failed={"ports": "a"})
        tell(failed={"clock": "b"})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 1024  # longer ones are cut by srun
    half = len(lines) // 2
    mixed = [line for pair in zip(lines[:half], lines[half:], strict=True) for line in pair]
    mixed[3] = "[W socket.cpp] no newline at its end " + mixed[3]
    log = "\n".join([*mixed, f"{doctor_node.MARK} 0 9 1/2 {{'half a li"])
    assert told(log) == {
        rank: {"node": f"n{rank}", "long": long, "failed": {"ports": "a", "clock": "b"}} for rank in range(2)
    }


def test_a_signal_is_sent_only_to_processes_that_wait_for_it() -> None:
    ready = doctor_allocation._ready
    waiting, through, busy = {"ready": 1}, {"ready": 1, "done": True}, {"node": "n1"}
    both = ["SIGUSR2", "SIGTERM"]
    assert ready({0: waiting, 1: waiting}, 2, both)
    assert ready({0: waiting, 1: through}, 2, both)  # it is gone, and cannot be hit
    assert not ready({0: waiting, 1: busy}, 2, both)
    assert not ready({0: waiting}, 2, both)
    assert not ready({0: through, 1: through}, 2, both)
    assert not ready({0: waiting, 1: waiting}, 2, both[1:])
    assert ready({0: waiting | {"SIGUSR2": True}, 1: waiting | {"SIGUSR2": True}}, 2, both[1:])


def test_the_folder_is_tried_as_a_run_uses_it(tmp_path: Path) -> None:
    facts = doctor_node.folder_facts(tmp_path, "probe")
    assert "error" not in facts
    assert facts["mine"]
    assert facts["free"] > 0
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    assert doctor_node.folder_facts(tmp_path / "no", "probe")["error"] == "cannot see it: No such file or directory"
    (tmp_path / "file").touch()
    assert (
        doctor_node.folder_facts(tmp_path / "file", "probe")["error"] == "cannot make a folder in it: Not a directory"
    )
    tmp_path.chmod(0o777)
    rows = of_login({**LOGIN, "folder": doctor_node.folder_facts(tmp_path, "probe")}, ASKED)
    assert ("private", FAIL) in [(row.check, row.verdict) for row in rows]


def test_a_full_disk_is_wrong(tmp_path: Path) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", tmp_path], capture_output=True
    ).returncode:
        pytest.skip("may not mount")
    try:
        (tmp_path / "old").write_bytes(bytes(600_000))
        facts = doctor_node.folder_facts(tmp_path, "probe")
        assert facts["error"] == "cannot write 1 MiB, with fsync: No space left on device"
        rows = {row.check: row for row in of_login({**LOGIN, "folder": facts}, ASKED)}
        assert rows["space"].verdict == rows["run folder"].verdict == FAIL
        assert "the disk is full" in rows["run folder"].advice
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_nvidia_smi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor_node.gpu_errors() is None
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'NVIDIA H100, GPU-1-a, 0'\necho 'NVIDIA T4, GPU-2-b, [N/A]'\n")
    script.chmod(0o755)
    assert doctor_node.gpu_errors() == [
        {"name": "NVIDIA H100", "id": "GPU-1-a", "errors": "0"},
        {"name": "NVIDIA T4", "id": "GPU-2-b", "errors": "[N/A]"},
    ]
    script.write_text("#!/bin/sh\necho 'no driver'; exit 9\n")
    assert doctor_node.gpu_errors() == []


def test_the_size_of_checkpoints_is_that_of_three_files(tmp_path: Path) -> None:
    given = {"dataset": "digits", "model": "BasicCNN", "save_dir": "a"}
    settings = Config.model_validate(given)
    rows, size = doctor.of_config(settings)
    assert wrong(rows) == []
    network = build.make_network(settings, build.make_group(settings), build.open_data(settings))
    optimizer = torch.optim.Adam(network.parameters())
    sum(weight.sum() for weight in network.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.pt")
    assert size == pytest.approx(3 * (tmp_path / "last.pt").stat().st_size, rel=0.05)
    rows, size = doctor.of_config(
        Config.model_validate({**given, "dataset": "rot_mnist", "data": {"root": str(tmp_path)}})
    )
    assert [(row.check, row.verdict) for row in rows] == [("config", FAIL)]
    assert "python -m ien.data rot_mnist" in rows[0].advice
    assert size is None
