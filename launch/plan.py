"""What would be submitted? (runs, where they go, the script, what it may cost)"""

from __future__ import annotations

import getpass
import shlex
import socket
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ien import ledger
from ien.config import Config, flat, run_dir
from ien.errors import InputError
from launch import slurm
from launch.sites import Site

if TYPE_CHECKING:
    from launch.handover import Order, Submitted

_ARRAY = 1001  # SLURM's own limit where it cannot be asked: one more than the highest index


@dataclass
class Run:
    """A run's settings, where each is from, and its state: new, unfinished or finished."""

    settings: Config
    origins: dict[str, str]
    state: str = "new"

    @property
    def done(self) -> bool:
        return self.settings.training and self.state == "finished"


@dataclass
class Plan:
    """Runs and where they go; `folder` takes what the jobs print."""

    runs: list[Run]
    cluster: str
    why: str
    site: Site
    site_why: str
    folder: Path
    command: str

    @property
    def waiting(self) -> list[Config]:
        """The runs that are not finished."""
        return [run.settings for run in self.runs if not run.done]

    def orders(self, snapshot: bool) -> list[Order]:
        """The jobs and arrays that the runs become, each within what SLURM takes at once. Raises `InputError`."""
        from launch.handover import order

        runs, size = self.waiting, slurm.max_array_size() or _ARRAY
        parts = [runs[at : at + size] for at in range(0, len(runs), size)]
        return [order(part, self.site, self.folder, snapshot) for part in parts]

    def handed_over(self) -> Iterator[Submitted]:
        """Submit all. Raises `InputError` before anything is submitted if SLURM would refuse it."""
        refuse_queued([run_dir(run) for run in self.waiting])
        for asked in self.orders(snapshot=False):
            accepted, verdict = slurm.test_only(asked.script)
            if not accepted:
                raise InputError(f"SLURM would not take the job: {verdict}; see it with --dry-run")
        for asked in self.orders(snapshot=True):
            yield from asked.submit(self.command)

    def notes(self, job: Submitted) -> list[str]:
        """What a user does next; of an array, with its last run's numbers."""
        many = len(self.waiting) > 1 and self.cluster == "slurm"
        number = job.number.partition("_")[0] if many else job.number
        processes = "1 process" if job.processes == 1 else f"{job.processes} processes"
        each = f"{len(self.waiting)} runs of {processes} each" if many else processes
        folder = run_dir(job.run).parent if many else run_dir(job.run)
        root = job.run.run.root
        notes = [
            f"job     {number} ({each})",
            f"run     {folder}",
            f"follow  tail -F {job.log}",
            f"stop    {job.stop.replace(job.number, number)}    (the same command goes on from the last checkpoint)",
        ]
        if self.cluster == "slurm":
            here = f"{getpass.getuser()}@{socket.getfqdn()}"
            board = f"tensorboard --logdir {shlex.quote(str(Path(root).absolute()))} --port 6006"
            name = root if many else run_dir(job.run)
            return [
                *notes[:2],
                f"follow  python -m launch.jobs logs -f {run_dir(job.run)}",
                f"state   python -m launch.jobs {'list --root' if many else 'status'} {name}",
                f"stop    {f'scancel {number}' if many else f'python -m launch.jobs cancel {run_dir(job.run)}'}",
                f"curves  ssh -t -L 6006:localhost:6006 {here} {board}    (then open http://localhost:6006)",
            ]
        return [*notes, f"curves  tensorboard --logdir {root}"]


def told(plan: Plan) -> str:
    """The whole of it, for `--dry-run`. Raises `InputError`."""
    run = plan.runs[0]
    settings, launch = run.settings, run.settings.launch
    lines = []
    for key, value in flat(settings).items():
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        lines.append(f"{key:<28} {shown:<24} {run.origins[key]}")
    share, parts = settings.batch_size // launch.processes, settings.optimizer.accumulate
    passes = f" in {parts} passes of {share // parts}" if parts > 1 else ""
    lines += ["", f"executor    {plan.cluster}: {plan.why}"]
    if plan.site_why:
        lines.append(f"cluster     {plan.site.path or 'nothing is known'}: {plan.site_why}")
    lines.append(f"processes   {launch.nodes} × {launch.tasks}, {share} images of a step in each{passes}")
    lines += [f"run folder  {run_dir(one.settings)} ({one.state})" for one in plan.runs]
    if plan.cluster != "slurm" or not plan.waiting:
        return "\n".join(lines)
    lines.append(f"at most     {_hours(plan)}")
    for order in plan.orders(snapshot=False):
        lines += ["", *checked(order)]
    return "\n".join(lines)


def checked(order: Order) -> list[str]:
    """The script of a job, and what bash and SLURM say to it."""
    accepted, verdict = slurm.test_only(order.script)
    syntax = subprocess.run(["bash", "-n"], input=order.script, capture_output=True, text=True, check=False).stderr
    return [
        *order.script.rstrip().splitlines(),
        "",
        f"bash        {'no mistake found (bash -n)' if not syntax else ' '.join(syntax.split())}",
        f"slurm       {'would take it' if accepted else 'REFUSES it'} (sbatch --test-only): {verdict}",
    ]


def refuse_queued(folders: Iterable[Path]) -> None:
    """Raises `InputError` for the folder of a run that a job waits to train, or trains."""
    try:
        known = slurm.queue()
    except slurm.SlurmError as error:
        raise InputError(f"SLURM does not answer: {error}; try again, or take --executor local") from error
    for folder in folders:
        for attempt in ledger.attempts(ledger.read(folder)):
            queued = known.get(attempt.job)
            if queued and not queued.over and attempt.outcome != "finished":
                state = f"{folder} has job {queued.job} already ({queued.state})"
                raise InputError(f"{state}; wait for it, or type: python -m launch.jobs cancel {folder}")


def _hours(plan: Plan) -> str:
    """What the jobs may take before they are requeued for the first time."""
    launch, runs = plan.waiting[0].launch, len(plan.waiting)
    whole = launch.nodes * launch.timeout_min / 60 * runs
    each = f"{launch.nodes} × {{}} × {launch.timeout_min / 60:g} h" + (f" × {runs} runs" if runs > 1 else "")
    if launch.gpus_per_node:
        return (
            f"{whole * launch.gpus_per_node:g} GPU-hours until its first requeue ({each.format(launch.gpus_per_node)})"
        )
    return f"{whole * launch.tasks:g} process-hours until its first requeue ({each.format(launch.tasks)})"
