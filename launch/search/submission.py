"""How does a sweep go to SLURM? (one job over some nodes, or an array whose elements share the trials out)"""

from __future__ import annotations

import getpass
import hashlib
import math
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ien import config
from ien.config import Config
from ien.config.files import Setting, as_yaml, from_command_line, nested, read
from ien.errors import InputError
from ien.private import make_private
from ien.tracking import write_text
from launch import slurm
from launch.handover import Order, order
from launch.plan import checked, refuse_queued
from launch.search import sweep
from launch.search.job import SweepJob, refuse_sharing
from launch.search.sweep import Sweep
from launch.sites import Site


@dataclass(frozen=True)
class Submission:
    """A sweep that is to be a job, or an array of several `elements`; `command` is what a person types to go on."""

    sweep: Sweep
    words: tuple[str, ...]
    site: Site
    elements: int
    command: str

    def script(self) -> list[str]:
        """For `--dry-run`: the sbatch script, and what bash and SLURM say to it."""
        return checked(self._order(snapshot=False))

    def submit(self) -> list[str]:
        """Hand it over; what the user does next, line by line. Raises `InputError` before anything is submitted."""
        folder = self.sweep.folder
        refuse_queued([folder])
        accepted, verdict = slurm.test_only(self._order(snapshot=False).script)
        if not accepted:
            raise InputError(f"SLURM would not take the job: {verdict}; see it with --dry-run")
        make_private(folder)
        make_private(folder / "jobs")
        job = self._order(snapshot=True).submit(self.command)[0]
        number, here = job.number.partition("_")[0], f"{getpass.getuser()}@{socket.getfqdn()}"
        root = Path(self.sweep.base.run.root).absolute()
        board = f"tensorboard --logdir {shlex.quote(str(root))} --port 6006"
        launch = self.settings.launch
        shape = f"{launch.nodes} node{'s' * (launch.nodes > 1)}" if self.elements == 1 else f"{self.elements} elements"
        return [
            f"job     {number} ({shape}, {launch.cpus_per_task} CPUs each)",
            f"sweep   {folder}",
            f"follow  {f'python -m launch.jobs logs -f {folder}' if self.elements == 1 else f'tail -F {job.log}'}",
            f"state   python -m launch.jobs list --root {folder}",
            f"so far  python launch/tune.py --config {shlex.quote(str(self.sweep.path))} --report",
            f"stop    python -m launch.jobs cancel {folder}    (the same command goes on with it)",
            f"curves  ssh -t -L 6006:localhost:6006 {here} {board}    (then open http://localhost:6006)",
        ]

    @property
    def settings(self) -> Config:
        """What SLURM is asked for, as a run would ask for it: one process on each node, and the sweep's own folder."""
        asked, one = self.sweep.file.launch, self.sweep
        together = max(1, math.floor(asked.gpus_per_node / one.gpus)) if one.gpus else 1
        cpus = asked.cpus_per_task or math.ceil(one.cpus) * together
        launch = asked.model_copy(update={"tasks_per_node": 1, "cpus_per_task": cpus})
        return one.base.model_copy(update={"save_dir": f"sweeps/{one.name}", "launch": launch})

    def _order(self, snapshot: bool) -> Order:
        asked = (self.settings,) * self.elements
        call = SweepJob(str(self._frozen(write=snapshot)), command=self.command)
        return order(asked, self.site, self.sweep.folder / "jobs", snapshot, call)

    def refuse(self) -> None:
        """Raises `InputError` for what no job could search."""
        launch = self.settings.launch
        refuse_sharing(self.sweep, self.elements)
        if self.elements > 1 and launch.nodes > 1:
            raise InputError(
                f"--array {self.elements}: each element searches on one node; write launch.nodes=1 or drop --array"
            )
        self.sweep.refuse_too_large(launch.cpus_per_task or 1, launch.gpus_per_node)

    def _frozen(self, write: bool) -> Path:
        """The sweep's file and its base as they are now, which no edit changes while the job waits."""
        one = self.sweep
        given = read(one.path, sweep.SECTIONS) | from_command_line(self.words, sweep.SECTIONS)
        file = _nested(given) | {"base": "base.yaml", "name": one.name}
        base = as_yaml(nested(read(one.base_path, config.SECTIONS), config.SECTIONS))
        texts = {"base.yaml": base, "sweep.yaml": as_yaml(file)}
        digest = hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()[:12]
        folder = (one.folder / "jobs" / f"sweep-{digest}").absolute()
        if write:
            make_private(folder)
            for name, text in texts.items():
                write_text(folder / name, text)
        return folder / "sweep.yaml"


def submission(path: Path, words: Sequence[str], site: Site, elements: int, command: str) -> Submission:
    """The sweep of a file over what the site offers. Raises `InputError` of one line for what cannot be submitted."""
    if elements < 1:
        raise InputError(f"--array {elements}: an array has elements; write 2 or more")
    wanted = Submission(sweep.load(path, words, site.launch), tuple(words), site, elements, command)
    wanted.refuse()
    return wanted


def _nested(given: Mapping[str, Setting]) -> dict[str, Any]:
    """What a file says and the command line over it, as one file: `set.data.val_split` stands inside `set: data:`."""
    fixed: dict[str, Any] = {}
    for key, setting in given.items():
        if not key.startswith("set."):
            continue
        section, dot, name = key.removeprefix("set.").partition(".")
        if dot:
            fixed.setdefault(section, {})[name] = setting.value
        elif isinstance(setting.value, dict):
            fixed.setdefault(section, {}).update(setting.value)
        else:
            fixed[section] = setting.value
    rest = {key: setting for key, setting in given.items() if not key.startswith("set.")}
    return nested(rest, sweep.SECTIONS) | ({"set": fixed} if fixed else {})
