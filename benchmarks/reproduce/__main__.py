"""`python -m benchmarks.reproduce TABLE`: train and measure what is missing of a table, and draw it up"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from benchmarks.reproduce import cards, cells, summary
from benchmarks.reproduce.cells import ROOT, Cell, Content, Place
from benchmarks.reproduce.tables import TABLES
from ien.errors import InputError, OneLineParser, told_in_one_line

COMMITTED = ROOT / "docs" / "results" / "reproduce"
EXAMPLES = f"""tables:
{chr(10).join(f"  {name:<18} {table.title}" for name, table in TABLES.items())}

examples:
  python -m benchmarks.reproduce smoke --out /tmp/smoke
  python -m benchmarks.reproduce rot_mnist --minutes 60 --jobs 4
  python -m benchmarks.reproduce rot_mnist --list
  python -m benchmarks.reproduce rot_mnist --report
  python -m benchmarks.reproduce rot_mnist --ship networks

A cell that is finished is not run again; one that was cut goes on from its checkpoint. Ctrl-C loses nothing.
exit status: 0 all cells are finished, 75 some are left, 1 a cell failed, 2 nothing could be begun
"""
LEFT = 75
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # what a cluster says before it takes a job's node away
_asked_to_leave = threading.Event()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    with told_in_one_line():
        given = _parser().parse_intermixed_args(arguments)
        place = _place(given)
        cells_of = cells.cells_of(given.table)
        made = {cell: cells.read(cell, place) for cell in cells_of}
        if given.list:
            print("\n".join(_listed(number, cell, made[cell]) for number, cell in enumerate(cells_of)))
            return
        if given.ship:
            finished = [(cell, content) for cell, content in made.items() if content]
            if not finished:
                raise InputError(f"--ship: no cell of {given.table} is finished; leave it out to train them")
            print("\n".join(map(str, cards.ship(finished, place, given.ship))))
            return
        failed = False
        if not given.report:
            wanted = cells_of if given.cell is None else [_chosen(cells_of, given.cell)]
            for number in STOPS:
                signal.signal(number, _leave)
            try:
                failed = _all(wanted, place, time.monotonic() + 60 * given.minutes, given.jobs)
            except KeyboardInterrupt:
                _say("interrupted; the same command goes on")
                sys.exit(130)
        made = {cell: cells.read(cell, place) for cell in cells_of}
        if given.cell is None:
            print(summary.write(given.table, [content for content in made.values() if content], place.out))
        left = sum(content is None for content in made.values())
    sys.exit(1 if failed else LEFT if left and given.cell is None and not given.report else 0)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m benchmarks.reproduce",
        description="Train and measure the cells of a table, the most telling first, and draw it up from their files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=TABLES, metavar="TABLE", help="see below")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of every cell")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; the same command goes on")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time (default: 1)")
    parser.add_argument("--cell", type=int, metavar="I", help="this one alone, for a Slurm array (see --list)")
    parser.add_argument("--out", type=Path, default=COMMITTED, help="where cells lie (default: docs/results/reproduce)")
    parser.add_argument("--runs", default="runs", help="where their run folders lie (default: runs)")
    parser.add_argument("--data", default="data", help="where prepared data sets lie (default: data)")
    parser.add_argument("--list", action="store_true", help="the cells and what became of them")
    parser.add_argument(
        "--ship", type=Path, metavar="DIR", help="write a network for each row there, with its card; trains nothing"
    )
    parser.add_argument("--report", action="store_true", help="draw the table up from the files there are")
    return parser


def _place(given: argparse.Namespace) -> Place:
    if given.jobs < 1:
        raise InputError(f"--jobs: {given.jobs} is no number of cells; write 1 or more")
    for word in given.overrides:
        if "=" not in word:
            raise InputError(f"{word!r} is no key=value; see: python -m benchmarks.reproduce --help")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    runs, data = (str(Path(folder).resolve()) for folder in (given.runs, given.data))
    return Place(given.out, runs, data, tuple(given.overrides), max(1, cpus // given.jobs))


def _chosen(of: Sequence[Cell], number: int) -> Cell:
    if not 0 <= number < len(of):
        raise InputError(f"--cell: {number} is none of the table's {len(of)} cells; write 0 to {len(of) - 1}")
    return of[number]


def _listed(number: int, cell: Cell, content: Content | None) -> str:
    state = f"error {100 * (1 - content['test']['accuracy']):.2f} %" if content else "not run"
    return f"{number:>3}  {cell.label:<60} {state}"


def _all(wanted: Sequence[Cell], place: Place, deadline: float, jobs: int) -> bool:
    """Run what is missing, `jobs` at a time; whether one failed."""
    missing = [cell for cell in wanted if cells.read(cell, place) is None]
    _say(f"{len(wanted) - len(missing)} of {len(wanted)} cells are finished")
    with ThreadPoolExecutor(jobs) as workers:
        ended = [workers.submit(_one, cell, place, deadline) for cell in missing]
        try:
            results = [one.result() for one in ended]
            return not all(results)
        except KeyboardInterrupt:
            workers.shutdown(cancel_futures=True)
            raise


def _one(cell: Cell, place: Place, deadline: float) -> bool:
    """Whether it did not fail: a cell for which there is no time left has not."""
    if cell.needs and find_spec(cell.needs) is None:
        _say(f"{cell.label}: left, because it needs {cell.needs}; make .venv-peer/installed, and take its python")
        return True
    if _asked_to_leave.is_set() or time.monotonic() + _expected(cell, place) > deadline:
        return True
    began = time.monotonic()
    try:
        if not cells.train(cell, place, deadline):
            _say(f"{cell.label}: stopped before its end; the same command goes on")
            return True
        content = cells.measure(cell, place)
    except InputError as error:
        _say(f"error: {error}")
        return False
    _say(f"{cell.label}: error {100 * (1 - content['test']['accuracy']):.2f} %, {time.monotonic() - began:.0f} s")
    return True


def _leave(_number: int, _frame: object) -> None:
    _asked_to_leave.set()
    cells.ask_to_leave()


def _expected(cell: Cell, place: Place) -> float:
    """The seconds that training took with another seed; 0 where nobody knows."""
    others = [cells.read(Cell(cell.name, cell.variant, seed), place) for seed in range(cell.table.seeds)]
    return max((content["seconds"] for content in others if content), default=0.0)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
