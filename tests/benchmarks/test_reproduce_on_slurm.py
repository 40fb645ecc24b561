"""A table as an array on a real SLURM: its cells end as they would have here, also one that was cut on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.cluster import ROOT, quiet

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm_cluster"), pytest.mark.timeout(600)]


def test_a_table_as_an_array_one_cell_cut_on_the_way(tmp_path: Path) -> None:
    where = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    given = ["smoke", "network.width=4", "tot_epochs=6", "cyc_size=6", *where]
    for name in ("ien", "benchmarks", "configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    first = submit(tmp_path, "0-1", given)
    checkpoint = tmp_path / "runs/reproduce/smoke/beta_1_seed0/checkpoints/last.pt"
    until(checkpoint.exists)
    subprocess.run(["scancel", "--signal=USR2", f"{first}_0"], check=True)
    until(lambda: not subprocess.run(["squeue", "-h", "-j", first], capture_output=True, text=True).stdout)
    beta_1, tied = (tmp_path / "out/smoke" / f"{name}_seed0.json" for name in ("beta_1", "tied"))
    assert tied.exists()
    assert not beta_1.exists()
    second = submit(tmp_path, "0", given)
    until(lambda: not subprocess.run(["squeue", "-h", "-j", second], capture_output=True, text=True).stdout)
    assert json.loads(beta_1.read_text())["epochs"] == 6
    events = [json.loads(line) for line in (checkpoint.parents[1] / "ledger.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("resumed") == 1


def test_without_an_array_the_line_to_type_is_told() -> None:
    wrong = subprocess.run(["bash", str(ROOT / "slurm/reproduce.sbatch"), "smoke"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "type: sbatch --array=0-83 slurm/reproduce.sbatch TABLE" in wrong.stderr


def submit(folder: Path, tasks: str, words: list[str]) -> str:
    """The job's number. One CPU a task, so that both run at once."""
    options = [f"--array={tasks}", "--cpus-per-task=1", "--parsable", "--time=10"]
    sent = subprocess.run(
        ["sbatch", *options, str(ROOT / "slurm/reproduce.sbatch"), *words],
        cwd=folder, env=quiet() | {"PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    return sent.stdout.strip()


def until(seen: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.2)
