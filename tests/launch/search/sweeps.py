"""A small sweep over the digits, and what a test asks of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent.parent
BASE = """
dataset: digits
model: BasicCNN
network: {width: 4}
batch_size: 128
max_lr: 0.01
tot_epochs: 3
cyc_size: 3
run: {log_every: 3, equivariance_images: 32, device: cpu}
"""
SWEEP: dict[str, Any] = {
    "base": "base.yaml",
    "space": {"beta_weight": {"loguniform": [0.01, 10]}},
    "metrics": {"accuracy": "max"},
    "budget": {"trials": 3},
}


def written(folder: Path, **changes: Any) -> Path:
    """The file of a sweep in `folder`, which differs by `changes`."""
    (folder / "base.yaml").write_text(BASE)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SWEEP | changes))
    return path


def tune(folder: Path, *words: str, **more: Any) -> subprocess.Popen[str]:
    """`launch/tune.py --config small.yaml …` in `folder`, started."""
    command = [sys.executable, str(ROOT / "launch/tune.py"), "--config", "small.yaml", *words]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=surroundings(), **more
    )


def surroundings() -> dict[str, str]:
    """Of a login shell: nothing of a job, and no more threads than the trial has."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "RAY_"))}


def ended(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    """Its exit status and all that it said."""
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def results(folder: Path, name: str = "small") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "runs/sweeps" / name / "results.json").read_text())
    return content


def events(run: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]
