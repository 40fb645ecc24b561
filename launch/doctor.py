"""Is this place fit to train? (`python -m launch.doctor`; with `--nodes 2`, two nodes of the cluster too)

Looks, tries, and prints a table. Ends with status 0, 1 where something is wrong, 2 for arguments that cannot be used.
"""

from __future__ import annotations

import argparse
import re
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ien.config import Config, load
from ien.errors import InputError, OneLineParser, told_in_one_line
from launch import slurm
from launch.doctor_allocation import Allocation, LocalProcesses, SlurmJob, hear
from launch.doctor_node import folder_facts, versions
from launch.doctor_slurm import accounting, answer, of_slurm, partition
from launch.doctor_verdict import FAIL, OK, WARN, Asked, Row, of_login, of_nodes
from launch.sites import site

_EXAMPLES = """examples:
  python -m launch.doctor                                   this machine: a login node, or a laptop
  python -m launch.doctor --nodes 2 --partition gpu --gpus-per-node 4 --cpus-per-task 8
  python -m launch.doctor --nodes 2 --config configs/rot_tim_r8.yaml --setup 'module load cuda'
  python -m launch.doctor --tasks-per-node 2                two processes of this machine, without Slurm
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    with told_in_one_line():
        given = _parser().parse_args(arguments)
        _check(given)
        try:
            with _ended_by_signals():
                rows = list(examined(given))
        except KeyboardInterrupt:
            _progress("interrupted; nothing is left behind")
            sys.exit(130)
    print("\n".join(table(rows)))
    wrong, doubtful = (", ".join(dict.fromkeys(row.check for row in rows if row.verdict == v)) for v in (FAIL, WARN))
    if wrong:
        print(f"\nNOT fit to train: {wrong} (the last column says what to do)")
        sys.exit(1)
    print(f"\nfit to train{f', with doubts: {doubtful}' if doubtful else ''}")


def examined(given: argparse.Namespace) -> Iterator[Row]:
    """Every row of the table: this machine, the controller where there is one, and what the nodes tell."""
    settings = load(given.config) if given.config else None
    root = Path(given.root or (settings.run.root if settings else "runs"))
    if given.nodes and not re.fullmatch(r"/[A-Za-z0-9._:=,@+/-]{0,200}", str(root.absolute())):
        raise InputError(f"--root: {str(root)[:80]!r} cannot be a job's; write at most 200 characters of {_ALPHABET}")
    if given.nodes:
        _as_the_site_says(given)
    data, checkpoints = of_config(settings) if settings else ([], None)
    asked = Asked(
        root=str(root),
        nodes=max(given.nodes, 1),
        tasks_per_node=given.tasks_per_node or max(1, given.gpus_per_node),
        cpus_per_task=given.cpus_per_task,
        gpus_per_node=given.gpus_per_node,
        checkpoint_bytes=checkpoints,
    )
    cluster = slurm.available()
    with _meeting_place(root) as (folder, facts):
        login = {"node": socket.gethostname(), "versions": versions(), "folder": facts, "quota": _quota()}
        if cluster or folder is None:  # else this machine is the node, and says so itself
            yield from of_login(login, asked)
        yield from data
        if cluster:
            configuration = slurm.configuration()
            yield from of_slurm(configuration, partition(given.partition), accounting(configuration))
        if not given.nodes and cluster:
            _progress("the nodes were not asked: add --nodes 2, and what your jobs ask for")
        elif folder is None:
            yield Row("nodes", "nodes", FAIL, "not asked: they have no folder to meet in", "mend the run folder first")
        else:
            yield from _of_nodes(given, asked, login, folder)


def of_config(settings: Config) -> tuple[list[Row], int | None]:
    """Whether its data set can be opened here, and the bytes of checkpoints that a run keeps.

    Those are weights and Adam's two moments in float32, in three files: last, previous and best.
    """
    from ien import build  # only now: it loads torch

    where, unverified = socket.gethostname(), settings.data.model_copy(update={"verify": False})
    try:
        dataset = build.open_data(settings.model_copy(update={"data": unverified}))
        network = build.make_network(settings, build.make_group(settings), dataset)
    except InputError as error:
        return [Row("config", where, FAIL, *_parted(str(error)))], None
    parameters = sum(weight.numel() for weight in network.parameters())
    told = f"data set {dataset.name} is there; {parameters:,} parameters"
    return [Row("config", where, OK, told)], parameters * (1 + 2) * 4 * 3


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows below each other, in columns."""
    shown = [("check", "where", "", "value", "what to do")]
    shown += [(row.check, row.where, row.verdict, row.value, row.advice) for row in rows]
    widths = [max(len(cells[column]) for cells in shown) for column in range(4)]
    widths[3] = min(widths[3], 72)  # one long line must not push the last column away from all
    for cells in shown:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[4]]).rstrip()


def _as_the_site_says(given: argparse.Namespace) -> None:
    """Ask for what the cluster's file offers, below what was given. Raises `InputError` for one that cannot be used."""
    place, why = site(given.cluster, slurm.cluster_name())
    _progress(f"cluster: {place.path or 'nothing is known'} ({why})")
    for name in ("partition", "account", "gpus_per_node", "tasks_per_node", "cpus_per_task"):
        offered = place.launch.get(f"launch.{name}")
        if offered and offered.value is not None and not getattr(given, name):
            setattr(given, name, offered.value)
    given.setup = [*place.lines, *given.setup]
    given.python = place.python
    _check(given)


def _of_nodes(given: argparse.Namespace, asked: Asked, login: dict[str, Any], folder: Path) -> Iterator[Row]:
    allocation: Allocation = LocalProcesses(folder, asked.count)
    what, wait_s = "this machine's processes", 60.0
    if given.nodes:
        allocation = SlurmJob(
            folder,
            nodes=asked.nodes,
            tasks_per_node=asked.tasks_per_node,
            minutes=given.timeout_min,
            cpus_per_task=asked.cpus_per_task,
            gpus_per_node=asked.gpus_per_node,
            partition=given.partition,
            account=given.account,
            setup=given.setup,
            python=given.python,
        )
        what = (
            f"{asked.nodes} nodes of {f'partition {given.partition}' if given.partition else 'the default partition'}"
        )
        wait_s = 60.0 * given.wait_min
    heard = hear(allocation, asked.count, wait_s, what, _progress)
    rows = list(of_nodes(heard.reports, asked, login, heard.ended))
    if heard.words and heard.hitches:
        _progress("the last words of their log:\n" + "\n".join(f"  | {line}" for line in heard.words))
    yield from rows


@contextmanager
def _meeting_place(root: Path) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """A folder of the doctor's own below `root`, None where it cannot be, and what there is to say about `root`.

    A `root` that is not there is made as a run makes it, and goes again.
    """
    made, name = not root.exists(), f".doctor-{secrets.token_hex(4)}"
    folder = root.absolute() / name
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder_facts(root, f"{name}-login")
        with suppress(OSError):  # then the facts say why
            folder.mkdir(mode=0o700)
            (folder / "login").touch()
        yield (folder if (folder / "login").is_file() else None), facts
    except OSError as error:
        yield None, {"error": f"cannot make it: {error.strerror}", "errno": error.errno}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made:
            with suppress(OSError):
                root.rmdir()


def _quota() -> str | None:
    """What `quota` complains of; empty if of nothing, None where there are no quotas to ask."""
    if not shutil.which("quota"):
        return None
    return " ".join((answer("quota", "--quiet", status=None) or "").split())


def _check(given: argparse.Namespace) -> None:
    """Raises `InputError` for what does not fit together, or would be another word to a shell or to Slurm."""
    if given.nodes and not slurm.available():
        advice = "run it on a login node, or leave --nodes out to check this machine alone"
        raise InputError(f"--nodes {given.nodes}: needs sbatch and srun on the PATH; {advice}")
    for name in ("partition", "account", "setup", "cluster"):
        if getattr(given, name) and not given.nodes:
            raise InputError(f"--{name}: is for nodes of a cluster; add --nodes 2")
    for name in ("partition", "account"):
        word = getattr(given, name)
        if word is not None and not re.fullmatch(r"[A-Za-z0-9._:=,@+/-]{1,128}", word):
            raise InputError(f"--{name}: {word[:80]!r} cannot be; write 1 to 128 characters of {_ALPHABET}")
    if broken := next((line for line in given.setup if len(line.splitlines()) > 1), None):
        raise InputError(f"--setup: {broken[:80]!r} is more than one line; give --setup once for each")


_ALPHABET = "A-Z a-z 0-9 . _ : = , @ + / -"


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C, TERM and HUP end the command once, and do not disturb what is then put in order."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parted(message: str) -> tuple[str, str]:
    """What is wrong, and what to do, of an `InputError`."""
    wrong, _, advice = message.rpartition("; ")
    return (wrong, advice) if wrong else (advice, "")


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 10000")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m launch.doctor",
        description="Say whether this place is fit to train: a table of checks, and status 1 where something is wrong.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="settings: is their data set there, is there room for them?")
    parser.add_argument("--root", metavar="FOLDER", help="folder of all runs (default: the config's run.root, or runs)")
    parser.add_argument("--nodes", type=_count, default=0, metavar="N", help="check N nodes of the cluster too")
    parser.add_argument("--cluster", metavar="SITE", help="what it offers: configs/clusters/SITE.yaml, or a file")
    parser.add_argument("--partition", metavar="NAME", help="their partition")
    parser.add_argument("--account", metavar="NAME", help="the account that pays")
    parser.add_argument("--gpus-per-node", type=_count, default=0, metavar="N", help="GPUs that each must have")
    parser.add_argument("--tasks-per-node", type=_count, metavar="N", help="processes on each (default: one per GPU)")
    parser.add_argument("--cpus-per-task", type=_count, metavar="N", help="CPU cores that each process must have")
    parser.add_argument(
        "--setup", action="append", default=[], metavar="LINE", help="shell line before srun; repeatable"
    )
    parser.add_argument("--timeout-min", type=_count, default=5, metavar="N", help="time limit of the job (default: 5)")
    parser.add_argument("--wait-min", type=_count, default=30, metavar="N", help="wait so long for nodes (default: 30)")
    return parser


if __name__ == "__main__":
    main()
