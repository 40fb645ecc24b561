"""The public names: each has its type, is what it is called, and costs nothing before it is asked for."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ien
from ien.groups import Group


def test_each_name_is_typed_and_loaded_from_the_same_module() -> None:
    page = ast.parse(Path(ien.__file__).read_text())
    typed = {
        name.asname: line.module
        for block in page.body
        if isinstance(block, ast.If)
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for name in line.names
    }
    assert typed == ien._HOME
    assert all(getattr(ien, name) is not None for name in ien.__all__)
    assert ien.Group is Group


def test_neither_the_package_nor_its_settings_load_torch() -> None:
    asked = "import ien, ien.config, sys; print({'torch', 'numpy', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("command", ["ien.config", "ien.models BasicCNN --side 28 --channels 1"])
def test_a_reader_that_leaves_early_ends_the_command_in_silence(command: str) -> None:
    """As in `… | head`: no traceback, and the status of SIGPIPE."""
    with subprocess.Popen(
        [sys.executable, "-m", *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as started:
        assert started.stdout
        assert started.stderr
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 128 + signal.SIGPIPE
