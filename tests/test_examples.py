"""The examples run as they stand, for a few steps, and show the five added lines that they promise."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "digits")


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    return importlib.import_module(request.param)


# Lightning's own: it advises srun where there is one, and calls what torch deprecates.
@pytest.mark.filterwarnings("ignore:::lightning.*", "ignore:::torch.jit.*", "ignore:::torch.utils._pytree")
@pytest.mark.parametrize("example", NAMES, indirect=True)
def test_an_example_runs(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    losses = example.main(["--steps", "3"])
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_how_it_is_run(name: str) -> None:
    assert f"python examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text().split('"""')[1]


def test_five_lines_are_added_to_a_loop_of_ones_own() -> None:
    added = [line for line in (EXAMPLES / "own_loop.py").read_text().splitlines() if "# +" in line]
    assert len(added) == 5
