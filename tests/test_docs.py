"""What the README and docs/ show a stranger works as it stands there: every block and every link."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ien import config
from launch import sites, slurm
from launch.search import sweep
from tests.commands_tried import COMMANDS, prepare_place

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
# Shown and not tried: they are another program's.
SHOWN = ("git", "grep", "python3", "scontrol", "source", "tensorboard")
ALONE = "docs/serving.md"  # its Python is for a place without this package
OUTPUT = ""  # a block of no language is what a command printed


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """The commands of a shell block, without comments, those that go on in the next line put together."""
        whole = re.sub(r"\s+\\\n\s*", " ", re.sub(r"(^|\s+)#.*", "", self.text, flags=re.MULTILINE))
        return [part.strip() for line in whole.splitlines() for part in re.split(r"&&|\|", line) if part.strip()]


BLOCKS = [
    Block(page, language, text)
    for page in PAGES
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
]
LINES = list(dict.fromkeys(line for block in BLOCKS if block.language == "sh" for line in block.lines))
WITH_PYTHON = sorted({block.page for block in BLOCKS if block.language == "python"})
LINKS = [
    (page, link)
    for page in PAGES
    for link in re.findall(r"\]\(((?!http)[^)\s]+)\)", (ROOT / page).read_text())
    if link not in ("settings.md", "api.md", "tour.md", "changes.md")  # the site's own: see test_site
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    prepare_place(place)
    return place


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(slurm, "available", lambda: False)  # also where the tests have one


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}-{block.language or 'output'}")
def test_every_block_is_of_a_kind_that_is_tried(block: Block) -> None:
    assert block.language in ("python", "sh", "yaml", OUTPUT)


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page != ALONE])
def test_its_python_runs(page: str) -> None:
    """All blocks of a page, one after the other, as one would type them."""
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if (block.page, block.language) == (page, "python"):
            exec(compile(block.text, page, "exec"), names)
    if page == "README.md":
        assert all(parameter.grad is not None for parameter in names["model"].parameters())


NO_IEN = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ien", "launch"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, NotInstalled())
"""


def test_what_is_served_needs_nothing_of_this_package(place: Path) -> None:
    shown = [block for block in BLOCKS if block.language == "python" and block.page in (ALONE, "README.md")]
    code = [NO_IEN, *(block.text for block in shown if "from ien import" not in block.text)]
    proof = "\ntry:\n    import ien\nexcept ModuleNotFoundError:\n    print('without it')\n"
    ended = subprocess.run(
        [sys.executable, "-I", "-c", "\n".join(code) + proof], cwd=place, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("0") > 4
    assert ended.stdout.endswith("without it\n")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=lambda block: block.page)
def test_its_settings_files_can_be_used(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(re.sub(r"\b(extends|base): (\.\./)?", rf"\1: {ROOT}/", block.text))
    if "\nspace:" in block.text:
        path.write_text(path.read_text().replace(f"{ROOT}/rot", f"{ROOT}/configs/rot"))
        shown = sweep.load(path)
        assert [shown.run(0, shown.space.drawn(0, number), 0).tot_epochs for number in range(20)] == [30] * 20
    elif "\nsetup:" in block.text:
        place, _ = sites.site(str(path), None)
        assert place.setup
        assert config.load_with_origins(ROOT / "configs/rot_tim_r8.yaml", below=place.launch)
    else:
        assert config.load(path).training


@pytest.mark.parametrize("line", LINES)
def test_its_commands_run(line: str, tmp_path: Path) -> None:
    words = shlex.split(re.sub(r"\bRUN\b", "quickstart", line.replace("<this repository>", "URL")))
    if words[0] in SHOWN:
        return
    if words[0] == "torchrun":
        words = ["python", *words[2:]]
    name = words[0] if words[0] != "python" else words[2] if words[1] == "-m" else words[1]
    assert name in COMMANDS, f"no test knows how to try {line!r}: add it to COMMANDS, or to SHOWN"
    COMMANDS[name](words[words.index(name) + 1 :], tmp_path)


@pytest.mark.parametrize(
    "words", re.findall(r"`python -m ien\.data (\w+ --from [^`#\n]+)`", (ROOT / "README.md").read_text())
)
def test_its_tables_of_data_commands_run(words: str, tmp_path: Path) -> None:
    COMMANDS["ien.data"](shlex.split(words), tmp_path)


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_its_links_lead_somewhere(page: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    if anchor:
        titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
