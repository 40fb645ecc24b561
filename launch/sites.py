"""What does a cluster offer? (`configs/clusters/<site>.yaml`)

A site's file holds `launch:` settings that stand below an experiment's, and what only its owner may say, because a
shell runs it: `setup` lines, the `python` command of a task, variables of the `environment`. Experiments cannot.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ien.config import SECTIONS
from ien.config.files import Setting, read
from ien.errors import InputError

_ROOT = Path(__file__).resolve().parent.parent
_OWN = ("setup", "python", "environment")


@dataclass(frozen=True)
class Site:
    """A cluster's settings: `launch` by dotted key with their origins, and what a shell runs there."""

    name: str = "none"
    path: Path | None = None
    launch: dict[str, Setting] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    python: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """What the batch script does before the run."""
        return [*self.setup, *(f"export {name}={value}" for name, value in self.environment.items())]


def site(asked: str | None, cluster: str | None) -> tuple[Site, str]:
    """The site that was `asked` for, by name or by file; else the one of the SLURM `cluster`'s name; and why.

    Raises `InputError` for a site that is not there or cannot be read.
    """
    if asked:
        path = Path(asked) if asked.endswith((".yaml", ".yml")) else _found(asked)
        if path is None or not path.is_file():
            places = ", ".join(str(folder) for folder in _folders())
            known = ", ".join(sorted({file.stem for folder in _folders() for file in folder.glob("*.yaml")})) or "none"
            raise InputError(f"--cluster {asked}: there is no such file in {places}; there are: {known}")
        return _read(path), "as --cluster says"
    found = _found(cluster) if cluster else None
    if found:
        return _read(found), f"the SLURM cluster's name is {cluster}"
    name = f"SLURM calls itself {cluster}" if cluster else "SLURM does not tell its name"
    return Site(), f"{name}; what it offers could stand in configs/clusters/{cluster or 'NAME'}.yaml"


def _folders() -> list[Path]:
    """Where sites are looked for: this directory's, the project's, the user's own."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ien" / "clusters"
    return [Path("configs/clusters"), _ROOT / "configs" / "clusters", own]


def _found(name: str) -> Path | None:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        return None
    return next((path for folder in _folders() if (path := folder / f"{name}.yaml").is_file()), None)


def _read(path: Path) -> Site:
    settings = read(path, SECTIONS)
    launch = {key: setting for key, setting in settings.items() if key.startswith("launch.")}
    for key, setting in settings.items():
        if key not in launch and key not in _OWN:
            raise InputError(f"{setting.origin}: {key}: is no cluster's; write launch: and {', '.join(_OWN)} alone")
    setup = _own(settings, "setup", [])
    if isinstance(setup, str) or not all(isinstance(line, str) and "\n" not in line for line in setup):
        raise InputError(
            f"{settings['setup'].origin}: setup: is a list of shell lines; write one below the other with -"
        )
    variables = _own(settings, "environment", {})
    if not isinstance(variables, dict) or not all(_is_variable(*item) for item in variables.items()):
        allowed = "NAME: value, the value of A-Z a-z 0-9 . _ : = , @ + / - (in quotes if it is a number)"
        raise InputError(f"{settings['environment'].origin}: environment: write {allowed}")
    python = _own(settings, "python", None)
    if python is not None and (not isinstance(python, str) or "\n" in python):
        raise InputError(
            f"{settings['python'].origin}: python: is the command that starts Python in a task, on one line"
        )
    return Site(path.stem, path, launch, tuple(setup), python, variables)


def _own(settings: dict[str, Setting], key: str, default: Any) -> Any:
    return settings[key].value if key in settings and settings[key].value is not None else default


def _is_variable(name: Any, value: Any) -> bool:
    words = isinstance(name, str) and isinstance(value, str)
    return words and bool(re.fullmatch(r"[A-Za-z_]\w*", name) and re.fullmatch(r"[A-Za-z0-9._:=,@+/-]*", value))
