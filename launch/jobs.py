"""What became of my runs, and why? (`python -m launch.jobs list | status | logs | cancel | why`)

It reads what the runs wrote into their folders, and asks `squeue` once; it needs no accounting, and no SLURM at all.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import getpass
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ien import ledger
from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.ledger import Attempt, Ledger
from launch import logs, slurm, why
from launch.history import ENDED, Ask, Story, found, in_slurm, is_run, last_epoch, story
from launch.slurm import Queued, SlurmError
from launch.why import span

_SHOWN = 20  # runs of a list without --all
_QUEUE_S = 15.0  # between two questions to squeue while a log is followed
_EXAMPLES = """examples:
  python -m launch.jobs list
  python -m launch.jobs status runs/rot_mnist_r4
  python -m launch.jobs logs -f rot_mnist_r4
  python -m launch.jobs why rot_mnist_r4
  python -m launch.jobs cancel rot_mnist_r4 rot_mnist_r8
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends with status 0, 2 for input that cannot be used, 1 where a run or SLURM said no."""
    with told_in_one_line():
        given = _parser().parse_args(arguments)
        given.command(given, functools.cache(_queue))


def _list(given: argparse.Namespace, ask: Ask) -> None:
    """One line per run, the newest first."""
    if not given.root.is_dir():
        raise InputError(f"{given.root}: there is no such folder; say where the runs are: --root FOLDER")
    folders = found(given.root)
    shown = folders if given.all else folders[:_SHOWN]
    if not shown:
        print(f"no runs in {given.root}")
        return
    rows = [("RUN", "STATE", "STEP", "ATTEMPTS", "REQUEUES", "JOB", "")]
    print("\n".join(_table([*rows, *(_row(story(folder, ask), given.root) for folder in shown)])))
    if len(shown) < len(folders):
        print(f"{len(folders) - len(shown)} more; show them with --all")


def _status(given: argparse.Namespace, ask: Ask) -> None:
    """All about one run."""
    known = story(_run(given.run, given.root), ask)
    print("\n".join(f"{name:<12}{text}" for name, text in _facts(known) if text))


def _logs(given: argparse.Namespace, ask: Ask) -> None:
    """The newest log; with -f until the run has ended."""
    folder = _run(given.run, given.root)
    if not given.follow:
        logs.show(story(folder, ask), given.rank)
        return
    recent = _every(_QUEUE_S, _queue)
    try:
        if not logs.follow(lambda: story(folder, recent), given.rank):
            print(why.verdict(story(folder, recent)), file=sys.stderr)
            sys.exit(1)
    except KeyboardInterrupt:
        print(f"\nthe run goes on unwatched; stop it with: python -m launch.jobs cancel {folder}", file=sys.stderr)
        sys.exit(130)


def _cancel(given: argparse.Namespace, ask: Ask) -> None:
    """End runs for good: nobody requeues them."""
    stories = [story(_run(name, given.root), ask) for name in given.runs]
    refused = [line for known in stories for line in _cancelled(known, ask())]
    if refused:
        print(*refused, sep="\n", file=sys.stderr)
        sys.exit(1)


def _why(given: argparse.Namespace, ask: Ask) -> None:
    """The story of a run."""
    print("\n".join(why.told(story(_run(given.run, given.root), ask))))


def _row(known: Story, root: Path) -> tuple[str, ...]:
    percent = f"/{known.of} ({100 * (known.step or 0) // known.of}%)" if known.of else ""
    steps = "" if known.step is None else f"{known.step}{percent}"
    name = str(known.folder.relative_to(root)) if known.folder != root else str(root)
    return name, known.state, steps, str(known.starts), str(known.requeues), known.job, _when(known)


def _when(known: Story) -> str:
    """What is expected, or how long ago the last thing was."""
    if known.state == "running":
        if known.holder and not known.beats:
            return f"silent for {span(known.silent_s or 0)}"
        left = known.seconds_left
        return "starting" if left is None else f"{span(left)} left"
    ago = f"{span(max(0.0, (known.now - known.newest).total_seconds()))} ago" if known.newest else ""
    return why.reason(known) or ago


def _ago(known: Story, event: ledger.Event) -> str:
    return f"{span(max(0.0, (known.now - ledger.when(event)).total_seconds()))} ago"


def _facts(known: Story) -> Iterator[tuple[str, str]]:
    began = [one for one in known.attempts if one.last("started")]
    saved = next(filter(None, (one.last("saved") for one in reversed(known.attempts))), None)
    epoch, log = last_epoch(known.folder), logs.log_of(known)
    yield "run", str(known.folder)
    yield "state", f"{known.state}  {_when(known)}".strip()
    yield "job", f"{known.job}{_nodes(known, began)}"
    yield "step", _progress(known) + ("" if epoch is None else f", figures up to epoch {epoch}")
    if saved:
        yield "checkpoint", f"step {saved['step']}, {_ago(known, saved)}"
    if known.state == "running" and known.silent_s is not None:
        who = f"process {known.holder.get('pid')} on {known.holder.get('host')}"
        yield "alive", f"{span(known.silent_s)} ago, {who}"
    yield "attempts", f"{known.starts}, {_requeues(known)}"
    yield "cost", _cost(known) if began else ""
    yield "log", str(log) if log else ""
    yield "next", _next(known)


def _nodes(known: Story, began: list[Attempt]) -> str:
    if known.queued and known.queued.running and known.queued.nodes:
        return f" on {known.queued.nodes}"
    nodes = (began[-1].last("started") or {}).get("nodes") if began else None
    on = "on" if known.state == "running" else "last on"
    return f", {on} {', '.join(map(str, nodes))}" if isinstance(nodes, list) else ""


def _requeues(known: Story) -> str:
    causes = [f"{count} after {kind}" for kind, count in sorted(why.requeue_causes(known).items())]
    times = {0: "never requeued", 1: "requeued once"}.get(known.requeues, f"requeued {known.requeues} times")
    return times + (f" ({', '.join(causes)})" if causes else "")


def _progress(known: Story) -> str:
    of = f" of {known.of} ({100 * (known.step or 0) // known.of}%)" if known.of else ""
    return f"{known.step or 0}{of}"


def _cost(known: Story) -> str:
    return str(known.cost)


def _next(known: Story) -> str:
    this = "python -m launch.jobs"
    if known.state in ("running", "pending", "requeued"):
        return f"{this} logs -f {known.folder}"
    if known.state == "finished":
        return f"cat {known.folder}/summary.json"
    return f"{this} why {known.folder}"


def _cancelled(known: Story, queue: Mapping[str, Queued] | None) -> Iterator[str]:
    """Cancel what runs or waits of a run, and say so; what was refused is returned line by line."""
    jobs = [number for number in dict.fromkeys(one.job for one in known.attempts) if _is_there(number, queue)]
    if queue is None and in_slurm(known.job) and known.state not in ENDED:
        jobs = [known.job]
    if not jobs and known.process is None:
        elsewhere = (
            f", but process {known.holder.get('pid')} on {known.holder.get('host')} has it" if known.beats else ""
        )
        print(f"{known.folder}: nothing of it runs here or waits ({known.state}){elsewhere}")
        return
    # Before the job hears of it: who is told to stop and finds no such line asks to be requeued.
    for number in jobs or [known.job]:
        Ledger(known.folder, number, _restart(known, number, queue)).add("cancelled", by=_me())
    refused = slurm.cancel(jobs) if jobs else _interrupted(known)
    if refused:
        yield f"error: {known.folder}: {refused}"
    else:
        print(f"{known.folder}: cancelled {', '.join(jobs) or known.job}; it saves and leaves if it can")


def _is_there(job: str, queue: Mapping[str, Queued] | None) -> bool:
    return bool(queue and job in queue and not queue[job].over)


def _restart(known: Story, job: str, queue: Mapping[str, Queued] | None) -> int:
    """The start that is cancelled: of a job that waits to be started again, the next one."""
    newest = max((one for one in known.attempts if one.job == job), key=lambda one: one.restart)
    again = newest.last("started") is not None and bool(queue and job in queue and queue[job].waiting)
    return newest.restart + again


def _interrupted(known: Story) -> str:
    """What Ctrl-C is in a terminal, for the process that leads the run; returns why that was refused."""
    process = known.process
    try:
        if process:
            os.kill(process, signal.SIGINT)
    except OSError as error:
        return f"process {process}: {error.strerror}"
    return ""


def _me() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name
        return f"{os.getuid()}@{socket.gethostname()}"


def _run(name: str, root: Path) -> Path:
    """The folder of a run that is given by its path or by its name below `root`. Raises `InputError`."""
    for folder in (Path(name), root / name):
        if folder.is_dir() and is_run(folder):
            return folder
    names = [str(folder.relative_to(root)) for folder in found(root)] if root.is_dir() else []
    near = (
        difflib.get_close_matches(name.rstrip("/"), names, n=3, cutoff=0.5) or [one for one in names if name in one][:3]
    )
    hint = f"did you mean {', '.join(near)}?" if near else f"see: python -m launch.jobs list --all --root {root}"
    raise InputError(f"{name} is no run folder, and no run in {root}; {hint}")


def _queue() -> dict[str, Queued] | None:
    """The user's jobs; None where there is no SLURM, or where it does not answer, which is said."""
    if not shutil.which("squeue"):
        return None
    try:
        return slurm.queue()
    except SlurmError as error:
        print(f"note: the queue could not be asked: {error}", file=sys.stderr)
        return None


def _every(seconds: float, ask: Ask) -> Ask:
    """The same question, asked again only after some time."""
    answers: list[tuple[float, Mapping[str, Queued] | None]] = []

    def recent() -> Mapping[str, Queued] | None:
        if not answers or time.monotonic() - answers[-1][0] > seconds:
            answers[:] = [(time.monotonic(), ask())]
        return answers[-1][1]

    return recent


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _parser() -> argparse.ArgumentParser:
    common = OneLineParser(add_help=False)
    common.add_argument(
        "--root", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of all runs (default: runs)"
    )
    parser = OneLineParser(
        prog="python -m launch.jobs",
        description="What became of my runs, and why? RUN is a run folder, or a save_dir in the folder of all runs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace, Ask], None], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=summary, description=summary)
        added.set_defaults(command=command)
        return added

    listed = add("list", _list, "all runs, the newest first: how far each is, and what it waits for")
    listed.add_argument("--all", action="store_true", help=f"more than the {_SHOWN} newest")
    add("status", _status, "all about one run").add_argument("run", metavar="RUN")
    log = add("logs", _logs, "what a run printed")
    log.add_argument("run", metavar="RUN")
    log.add_argument("-f", "--follow", action="store_true", help="go on until it has ended, through requeues")
    log.add_argument("--rank", type=int, default=0, metavar="N", help="of this process (default: the first)")
    add("cancel", _cancel, "end runs for good").add_argument("runs", nargs="+", metavar="RUN")
    add("why", _why, "what happened to a run, and what to do next").add_argument("run", metavar="RUN")
    return parser


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `list | head` ends in silence
    main()
