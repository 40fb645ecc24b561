"""How is one cell trained, measured and written down? (one run, one report, one JSON file)"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reproduce.tables import TABLES, Table
from ien import config
from ien.config import Config
from ien.config.problems import by_dotted_key
from ien.errors import InputError
from ien.report.comparison import compared
from ien.stopping import STOPPED
from ien.tracking import write_json

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1
Content = dict[str, Any]
_running: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True)
class Place:
    """Where runs and cells lie, where the data are, and what a person set over the table's settings."""

    out: Path
    runs: str = "runs"
    data: str = "data"
    overrides: tuple[str, ...] = ()
    threads: int = 1


@dataclass(frozen=True)
class Cell:
    """One variant of a table with one seed."""

    name: str  # of the table
    variant: str
    seed: int

    @property
    def table(self) -> Table:
        return TABLES[self.name]

    @property
    def label(self) -> str:
        return f"{self.table.variants[self.variant].label}, seed {self.seed}"

    @property
    def needs(self) -> str | None:
        return self.table.variants[self.variant].needs

    @property
    def config(self) -> Path:
        return ROOT / (self.table.variants[self.variant].config or self.table.config)

    def path(self, place: Place) -> Path:
        return place.out / self.name / f"{self.variant}_seed{self.seed}.json"

    def words(self, place: Place) -> list[str]:
        """The `key=value`s of its run: a person's, over the variant's, over the table's."""
        given: dict[str, str] = {}
        for word in (*self.table.settings, *self.table.variants[self.variant].settings, *place.overrides):
            key, _, value = word.partition("=")
            given[key] = value
        run = {
            "run.seed": str(self.seed),
            "run.root": place.runs,
            "data.root": place.data,
            "save_dir": f"reproduce/{self.name}/{self.variant}_seed{self.seed}",
        }
        return [f"{key}={value}" for key, value in (given | run).items()]

    def settings(self, place: Place) -> Config:
        return config.load(self.config, self.words(place))

    def command(self, place: Place) -> list[str]:
        return [sys.executable, "-m", "ien.train", "--config", str(self.config), *self.words(place)]


def cells_of(name: str) -> list[Cell]:
    """All cells of a table, the most telling first."""
    return [Cell(name, variant, seed) for variant, seed in TABLES[name].cells()]


def read(cell: Cell, place: Place) -> Content | None:
    """What the cell's file holds; None if it has not run. Raises `InputError` for one of other settings."""
    path = cell.path(place)
    if not path.exists():
        return None
    content: Content = json.loads(path.read_text())
    wanted = _written(cell.settings(place))
    # A setting that came after the cell ran has a default that changes no run from before.
    defaults = {key: schema.get("default") for key, schema in by_dotted_key(Config).items() if key in wanted}
    had = defaults | content["settings"]
    if content["format"] != FORMAT or had != wanted:
        changed = sorted(key for key in had.keys() | wanted.keys() if had.get(key) != wanted.get(key))
        raise InputError(
            f"{path} was made with other settings ({', '.join(changed) or 'another format'}); move it away, or give "
            "another --out"
        )
    return content


def train(cell: Cell, place: Place, deadline: float) -> bool:
    """Train the cell's run, or go on with it, until `deadline` (`time.monotonic()`); whether it is finished.

    At the deadline the run is asked to save and leave. Raises `InputError` if it fails.
    """
    if (config.run_dir(cell.settings(place)) / "summary.json").exists():
        return True
    status, errors = _run(cell.command(place), place, deadline)
    if status not in (0, STOPPED):
        raise InputError(f"{cell.label}: {last_line(errors)} (status {status})")
    return status == 0


def ask_to_leave() -> None:
    """Ask all runs of this process to save and leave."""
    for child in list(_running):
        child.send_signal(signal.SIGTERM)


def measure(cell: Cell, place: Place) -> Content:
    """The report of the cell's finished run, and its JSON file. Raises `InputError` if that fails."""
    settings = cell.settings(place)
    folder = config.run_dir(settings)
    report = folder / "report" / "report.json"
    words = ["--images", str(cell.table.images), "--no-pictures", "--device", settings.run.device]
    command = [sys.executable, "-m", "ien.evaluate", str(folder), f"data.root={place.data}", *words]
    status, errors = _run(command, place, float("inf"))
    if status:
        raise InputError(f"{cell.label}: {last_line(errors)} (status {status})")
    content = _content(cell, settings, folder, json.loads(report.read_text()))
    cell.path(place).parent.mkdir(parents=True, exist_ok=True)
    write_json(cell.path(place), content)
    return content


def _content(cell: Cell, settings: Config, folder: Path, report: Content) -> Content:
    """All that a table needs, and all that says where it is from."""
    summary = json.loads((folder / "summary.json").read_text())
    made = json.loads((folder / "environment.json").read_text())
    (run,) = report["runs"]
    figures = compared([run])[0]["figures"]
    return {
        "format": FORMAT,
        "table": cell.name,
        "variant": cell.variant,
        "seed": cell.seed,
        "settings": _written(settings),
        "git": made["git"],
        "device": made["device"],
        "threads": made["threads"],
        "packages": made["packages"],
        "data": summary["data"],
        "measured": report["measured"],
        "epochs": summary["epochs"],
        "tested_epoch": summary["tested_epoch"],
        "seconds": summary["seconds"],
        "parameters": summary["parameters"],
        "channels": {name: tap["channels"] for name, tap in run["taps"].items()},
        "test": {name: summary[name] for name in ("accuracy", "class_loss", "accuracy_second_view")},
        "figures": {name: figure["mean"] for name, figure in figures.items()},
        "local": {name: tap["local"] for name, tap in run["taps"].items()},
        "taps": {
            name: {key: tap[key] for key in ("mean_error", "mean_floor", "rms", "dead_channels", "verdict")}
            for name, tap in run["taps"].items()
        },
    }


def _written(settings: Config) -> Content:
    """What two runs of one cell must have in common: not where their data and folders are."""
    apart = ("run.root", "data.root", "save_dir", "run.device", "run.log_every", "data.verify", "data.workers")
    values = json.loads(settings.model_dump_json())
    flat = {
        f"{name}.{inner}" if isinstance(value, dict) else name: item
        for name, value in values.items()
        for inner, item in (value.items() if isinstance(value, dict) else [(name, value)])
    }
    return {key: value for key, value in flat.items() if key not in apart and not key.startswith("launch.")}


def _run(command: Sequence[str], place: Place, deadline: float) -> tuple[int, str]:
    """Exit status and stderr. A Ctrl-C is the child's too: it saves and leaves, and then so do we."""
    threads = {"OMP_NUM_THREADS": str(place.threads), "MKL_NUM_THREADS": str(place.threads)}
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | threads, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        _running.add(child)
        left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        try:
            _, errors = child.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGTERM)
            _, errors = child.communicate()
        finally:
            _running.discard(child)
    return child.returncode, errors


def last_line(text: str) -> str:
    """What a command said last: the one line of a refusal, without its `error: `."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it ended without a word"
