"""The notebook runs from its first cell to its last, and is committed with what it showed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "examples" / "tour.ipynb"
SIZES = "EPOCHS, IMAGES = 10, 500"
PICTURES = 5  # the moved images; accuracy, layers and two stabilised views


def read() -> nbformat.NotebookNode:
    return nbformat.read(TOUR, as_version=4)


def outputs(tour: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in tour.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(tour: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(tour))


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the sockets lie
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tour = read()
    head = next(cell for cell in tour.cells if cell.cell_type == "code")
    assert SIZES in head.source
    head.source = head.source.replace(SIZES, "EPOCHS, IMAGES = 1, 20")
    # Over a socket of the file system: nothing listens on a port.
    NotebookClient(tour, timeout=300, config=Config(KernelManager={"transport": "ipc"})).execute()
    assert pictures(tour) == PICTURES


def test_it_is_committed_as_it_ran() -> None:
    tour = read()
    counts = [cell.execution_count for cell in tour.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs(tour) if output.output_type == "error"]
    assert pictures(tour) == PICTURES


def test_it_stays_small() -> None:
    assert TOUR.stat().st_size < 600_000
