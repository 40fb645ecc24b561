"""What the README shows a stranger works as it stands there."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest

from ien import config
from ien.data.__main__ import main as prepare
from ien.errors import InputError
from launch.grid import overrides
from launch.search import sweep

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LINES = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def test_its_loop_trains() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    model = names["model"]
    assert all(parameter.grad is not None for parameter in model.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", [line for line in LINES if "--config" in line and "tune.py" not in line])
def test_its_settings_are_allowed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    option = dict(itertools.pairwise(words))
    grid = [option["--grid"]] if "--grid" in option else []
    settings = [word for word in words if re.fullmatch(r"[a-z_.]+=\S+", word) and word not in grid]
    for run in overrides(option.get("--seeds"), grid, "some"):
        assert config.load(option["--config"], settings + run).training


@pytest.mark.parametrize("line", [line for line in LINES if "tune.py" in line])
def test_its_sweeps_can_be_searched(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    assert sweep.load(Path(words[words.index("--config") + 1])).space.axes


def test_the_sweep_that_the_documentation_shows_can_be_searched(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)
    (tmp_path / "shown.yaml").write_text(block)
    shown = sweep.load(tmp_path / "shown.yaml", [f"base={ROOT}/configs/rot_mnist_r4.yaml"])
    assert [shown.run(0, shown.space.drawn(0, number), 0).tot_epochs for number in range(20)] == [30] * 20


@pytest.mark.parametrize("line", re.findall(r"python -m ien\.data (\w+ --from [^`#\n]+)", README))
def test_its_data_commands_are_understood(line: str, tmp_path: Path) -> None:
    """Each ends with the one line about the source that is not there, so its options were understood."""
    words = [str(tmp_path / "missing") if word in ("PATH", "DIR", "mnist/") else word for word in shlex.split(line)]
    with pytest.raises(InputError, match="missing does not exist"):
        prepare([*words, "--root", str(tmp_path / "data")])


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_its_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
