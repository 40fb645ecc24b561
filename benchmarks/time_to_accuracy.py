"""How many seconds from nothing to 1 % test error on Rot-MNIST? (one device; `python -m benchmarks.time_to_accuracy`)

A trial is a process of its own: from its start, over torch's import, the data, the training and the test of all 50,000
test images, to its end. Time, hardware, versions, mean and number of trials stand in the file that it writes
(docs/results/performance/time_to_accuracy.json), and nowhere else: where that is missing, nobody has measured it.

What is trained: BasicCNN with weights tied for the quarter turns (exact, no second view), its images turned by any
angle anew in each epoch, all 12,000 training images, one cycle. Its settings are to be chosen on 10,000/2,000.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.page import COMMITTED
from benchmarks.reproduce.cells import last_line
from benchmarks.training import ON_A_GPU, ROOT
from ien import environment
from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.tracking import write_json

TARGET = 1.0  # per cent of test error
CONFIG = ROOT / "configs" / "rot_mnist_r4_tied.yaml"
SETTINGS = (
    "batch_size=128", "max_lr=5e-3", "data.val_split=0", "data.random_rotation=true", "run.equivariance_images=1",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    with told_in_one_line():
        given = _parser().parse_args(arguments)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        trials = [_trial(given, device, seed) for seed in range(given.trials)]
        reached = [seconds for seconds, error in trials if error <= TARGET]
        made = environment.describe(device)
        content = {
            **{key: made[key] for key in ("git", "device", "cpus", "threads", "packages", "cuda")},
            "target_error_percent": TARGET,
            "settings": [f"tot_epochs={given.epochs}", f"network.width={given.width}", *SETTINGS],
            "trials": [{"seconds": round(seconds, 2), "error_percent": round(error, 3)} for seconds, error in trials],
            "reached": len(reached),
            "mean_seconds": round(statistics.fmean(reached), 2) if reached else None,
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.out, content)
        print(json.dumps(content, indent=2))
    sys.exit(0 if len(reached) == len(trials) else 1)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m benchmarks.time_to_accuracy",
        description=f"Seconds from the start of a process to {TARGET:g} % test error on Rot-MNIST, over some trials.",
        epilog="exit status: 0 every trial reached it, 1 some did not, 2 nothing could be begun",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--trials", type=_count, default=5, help="processes one after another, each with a seed of its own"
    )
    parser.add_argument("--epochs", type=_count, default=12, help="of one cycle (default: 12)")
    parser.add_argument("--width", type=_count, default=64, help="of the network (default: 64; published: 128)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where rot_mnist lies (default: data)")
    parser.add_argument(
        "--out", type=Path, default=COMMITTED / "time_to_accuracy.json", help="the file that is written"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number; write 1 or more")
    return int(text)


def _trial(given: argparse.Namespace, device: torch.device, seed: int) -> tuple[float, float]:
    """Seconds and per cent of test error of one process. Raises `InputError` if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *SETTINGS,
            *(ON_A_GPU if device.type == "cuda" else ()),
            f"tot_epochs={given.epochs}", f"cyc_size={given.epochs}", f"network.width={given.width}",
            f"data.root={given.data.resolve()}", f"run.root={folder}", "save_dir=trial", f"run.seed={seed}",
        ]  # fmt: skip
        began = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "ien.train", "--config", str(CONFIG), *words],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        if ended.returncode:
            raise InputError(last_line(ended.stderr))
        accuracy = json.loads((Path(folder) / "trial" / "summary.json").read_text())["accuracy"]
    return seconds, 100 * (1 - accuracy)


if __name__ == "__main__":
    main()
