"""A job runs the code as it was when it was submitted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from launch.snapshot import code_of


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "ien").mkdir(parents=True)
    (root / "ien" / "a.py").write_text("A = 1\n")
    (root / ".gitignore").write_text("data/\n")
    (root / "data").mkdir()
    (root / "data" / "huge").write_text("not code")
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)
    return root


def test_an_edit_makes_another_copy_and_leaves_the_first(project: Path, tmp_path: Path) -> None:
    first = code_of(tmp_path / "code", root=project)
    (project / "ien" / "a.py").write_text("A = 2\n")
    second = code_of(tmp_path / "code", root=project)
    assert (first / "ien" / "a.py").read_text() == "A = 1\n"
    assert (second / "ien" / "a.py").read_text() == "A = 2\n"
    assert json.loads((first / ".revision.json").read_text())["clean"] is True
    assert json.loads((second / ".revision.json").read_text())["clean"] is False


def test_the_same_code_is_copied_once_and_a_dry_run_copies_nothing(project: Path, tmp_path: Path) -> None:
    named = code_of(tmp_path / "code", make=False, root=project)
    assert not (tmp_path / "code").exists()
    assert code_of(tmp_path / "code", root=project) == code_of(tmp_path / "code", root=project) == named
    assert [path.name for path in (tmp_path / "code").iterdir()] == [named.name]


def test_files_that_git_does_not_know_yet_travel_and_those_it_ignores_do_not(project: Path, tmp_path: Path) -> None:
    (project / "ien" / "new.py").write_text("N = 1\n")
    copy = code_of(tmp_path / "code", root=project)
    assert (copy / "ien" / "new.py").exists()
    assert not (copy / "data").exists()
    assert not (copy / ".git").exists()


def test_without_git_the_packages_are_copied(tmp_path: Path) -> None:
    root = tmp_path / "installed"
    for package in ("ien", "launch"):
        (root / package / "__pycache__").mkdir(parents=True)
        (root / package / "a.py").write_text("")
        (root / package / "__pycache__" / "a.pyc").write_text("")
    copy = code_of(tmp_path / "code", root=root)
    files = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())
    assert files == [".revision.json", "ien/a.py", "launch/a.py"]
