"""Would a run of these settings survive its cluster to the bit? (`python -m launch.rehearse --config FILE`)

A few steps are trained without a stop, and once more with stops at random moments, each followed by a new start. Both
runs must end in the same checkpoint.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType

from ien import ledger
from ien.config import Config, load
from ien.errors import InputError, OneLineParser, told_in_one_line
from launch.rehearse_attempt import Attempt, Failed, Orders, Pause

SIGNALS = ("USR2", "TERM", "KILL")
IN_VAIN = 3  # runs in a row whose steps are over before a signal comes
LEAVE_S = 30.0  # for a last save, besides run.timeout_s, in which processes miss one another
APART_S = 0.1  # between the checkpoints of a run that is not stopped
_PAGE = "docs/reliability.md"
_EXAMPLES = """examples:
  python -m launch.rehearse --config configs/quickstart.yaml
  python -m launch.rehearse --config configs/quickstart.yaml --processes 2 --rounds 3
  python -m launch.rehearse --config configs/rot_tim_r8.yaml data.resident=never data.workers=4 --steps 50
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends with status 0 if bit-equal, 1 if not, 2 for what cannot be used."""
    with told_in_one_line():
        given = _parser().parse_intermixed_args(arguments)
        try:
            with _broken_off_by_signals() as pause, _scratch(given.scratch, given.keep) as folder:
                orders = _orders(given, folder, pause)
                _progress(f"the moments are drawn from --seed {given.seed}")
                result = rehearsed(orders, list(SIGNALS) * given.rounds, random.Random(given.seed))
        except KeyboardInterrupt:
            _progress("interrupted; nothing is left behind")
            sys.exit(130)
        except Failed as failure:
            print("\n".join([*failure.words, f"not proven: {failure}"]))
            sys.exit(1)
    print("\n".join([*table(result.hits), "", result.verdict]))
    sys.exit(0 if result.equal else 1)


@dataclass(frozen=True)
class Whole:
    """A run that was not stopped: where it ended, and what its steps and checkpoints took (medians).

    `quick_s` is the quickest step: others may keep the machine busy now, and not when the next attempt runs.
    """

    last: Path
    step: int
    finished: bool  # the settings ask for no more steps than these
    step_s: float  # without checkpoints
    quick_s: float
    save_s: float


@dataclass
class Hit:
    """A signal that came, and what the run made of it."""

    signal: str
    to: str
    step: str
    saved: int
    lost: str
    left_s: float
    resumed: int | None = None


@dataclass
class Result:
    """The verdict, in words, and what it is founded on."""

    hits: list[Hit] = field(default_factory=list)
    equal: bool = False
    verdict: str = ""


def rehearsed(orders: Orders, wanted: Sequence[str], chance: random.Random) -> Result:
    """Train without a stop, then with one for each of the signals in `wanted`, and compare.

    Raises `InputError` for settings that a run refuses, `Failed` for a run that does not survive, or is not hit.
    """
    from launch.rehearse_difference import first_difference  # only now: it loads torch

    whole = _whole(orders, "whole")
    coming, result, in_vain = chance.sample(list(wanted), len(wanted)), Result(), 0
    while coming:
        _progress(f"training them with {_listed(coming)} …")
        hits, last = _interrupted(orders, whole, coming, chance)
        result.hits += hits
        if hits and (difference := first_difference(whole.last, last)):
            again = first_difference(whole.last, _whole(orders, "again").last)
            result.verdict = f"first difference: {difference}\n{_reason(again)}"
            return result
        for hit in hits:
            coming.remove(hit.signal)
        in_vain = 0 if hits else in_vain + 1
        if in_vain == IN_VAIN:
            more = "more epochs (tot_epochs=…)" if whole.finished else f"more steps (--steps {4 * orders.steps})"
            late = f"did not come, or not before the {whole.step} steps were over"
            raise Failed(f"{_listed(coming)} {late}; give the run {more}")
        if coming:
            _progress("  they were over before all had come: once more from the start")
    result.equal = True
    result.verdict = f"bit-equal: {whole.step} steps, with {_number(len(result.hits), 'stop')} and without"
    return result


def table(hits: Sequence[Hit]) -> Iterator[str]:
    """What came when, and from where the run went on."""
    shown = [("signal", "to", "at step", "saved", "lost", "resumed from", "left after")]
    for hit in hits:
        resumed = f"step {hit.resumed}" if hit.resumed else "the start"
        saved = f"step {hit.saved}" if hit.saved else "nothing"
        shown.append((hit.signal, hit.to, hit.step, saved, hit.lost, resumed, f"{hit.left_s:.1f} s"))
    widths = [max(len(cells[column]) for cells in shown) for column in range(len(shown[0]))]
    for cells in shown:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _whole(orders: Orders, name: str) -> Whole:
    """Train the steps without a stop. Raises `InputError` with the run's own words where it refuses its settings."""
    _progress(f"training {orders.steps} steps without a stop …")
    with orders.attempt(name, APART_S) as attempt:
        attempt.wait()
    if 2 in attempt.codes:
        raise InputError(attempt.refusal())
    if not attempt.in_order:
        raise attempt.failed("the run failed by itself, before any signal")
    last = attempt.folder / "checkpoints" / "last.pt"
    whole = Whole(last, attempt.saved, attempt.finished, *_times(attempt))
    size, over = last.stat().st_size / 1e6, ", which are all that it has" if whole.finished else ""
    speed = f"{1 / whole.step_s:.3g} steps/s, {whole.save_s:.2g} s for a checkpoint of {size:.3g} MB"
    _progress(f"  {whole.step} steps{over}: {speed}")
    return whole


def _times(attempt: Attempt) -> tuple[float, float, float]:
    """Seconds of a step without its checkpoint, of the quickest step, and of a checkpoint."""
    saves = attempt.saves
    places = [(0, next(event for event in attempt.events() if event["event"] == "started"))]
    places += [(save["step"], save) for save in saves]
    steps = [
        ((ledger.when(save) - ledger.when(before)).total_seconds() - save["seconds"]) / (step - earlier)
        for (earlier, before), (step, save) in pairwise(places)
        if step > earlier  # an epoch's end, and the end of all, can fall on one step
    ]
    warm = [max(seconds, 1e-3) for seconds in steps[1:] or steps]  # loading and warming up are in the first
    return _median(warm), min(warm), _median([save["seconds"] for save in saves])


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _interrupted(orders: Orders, whole: Whole, wanted: Sequence[str], chance: random.Random) -> tuple[list[Hit], Path]:
    """A run to the same step, hit by the signals in `wanted` one after the other: those that came; its checkpoint.

    None came if it ends at another step: then there is nothing to compare.
    """
    last = orders.folder / "interrupted" / "checkpoints" / "last.pt"
    shutil.rmtree(orders.folder / "interrupted", ignore_errors=True)
    hits: list[Hit] = []
    coming = list(wanted)
    while True:
        name = coming.pop(0) if coming else None
        # A checkpoint every few steps, and not at the same ones in each attempt.
        with orders.attempt("interrupted", whole.quick_s * chance.uniform(1.5, 3.5)) as attempt:
            hit = _hit(attempt, whole, name, len(coming) + 1, chance)
        if hits and hits[-1].resumed is None:
            hits[-1].resumed = attempt.first
        if hit:
            hits.append(hit)
        elif not attempt.sent_at and (attempt.saved < whole.step or not attempt.in_order):
            raise attempt.failed(f"the run failed when it went on after {hits[-1].signal if hits else 'nothing'}")
        elif attempt.saved > whole.step:  # stopped so late that several processes could not agree to end there
            return [], last
        elif attempt.saved == whole.step and (not whole.finished or attempt.finished):
            return hits, last


def _hit(attempt: Attempt, whole: Whole, name: str | None, left: int, chance: random.Random) -> Hit | None:
    """See the attempt to its end, and send it the signal `name` on its way; None if that came too late.

    `left` signals have to come in the steps that are left. Not before the first checkpoint, which shows that training
    has begun.
    """
    share, delay, rank = chance.random() / (left + 1), chance.random(), chance.randrange(attempt.orders.processes)
    to = "process and workers" if attempt.orders.processes == 1 else "all processes and workers"
    to = to if name == "USR2" else f"process {rank}"
    while attempt.runs():
        due = attempt.first + share * (whole.step - attempt.first)
        if name and not attempt.sent_at and attempt.saves and due <= attempt.saved < whole.step - attempt.orders.late:
            attempt.orders.pause(delay * (attempt.apart_s + whole.save_s))
            attempt.send(name, rank)
            _progress(f"  {name} to {to}, soon after the checkpoint of step {attempt.saved}")
        if attempt.sent_at and attempt.outlived_s > attempt.orders.timeout_s + LEAVE_S:
            raise attempt.failed(f"{name} to {to} did not end the run within {attempt.outlived_s:.0f} s")
        attempt.orders.pause(min(max(whole.quick_s / 10, 0.002), 0.05))
    if name is None or attempt.sent_at is None or attempt.saved >= whole.step:
        return None
    came = attempt.came(name, rank)
    if not attempt.in_order and not (came and name == "KILL"):
        raise attempt.failed(f"the run did not leave in order after {name} to {to}")
    if not came:
        return None
    if name != "KILL":
        return Hit(name, to, str(attempt.saved), attempt.saved, "0", attempt.outlived_s)
    # Where it stood, it cannot say any more.
    passed = (attempt.sent_at - ledger.when(attempt.saves[-1])).total_seconds()
    lost = min(max(round(passed / whole.step_s), 0), whole.step - attempt.saved)
    return Hit(name, to, f"about {attempt.saved + lost}", attempt.saved, f"about {lost}", attempt.outlived_s)


def _reason(again: str) -> str:
    """What a difference comes from, by the difference between two runs that were not stopped."""
    if again:
        why = f"two runs without a stop differ as well ({again})"
        return f"{why}: it need not come from the stops but from kernels that are not deterministic, see {_PAGE}"
    why = "two runs without a stop are equal: a stop loses what is not saved, or not restored"
    return f"{why}; on a GPU it may also be a kernel that is not deterministic, see {_PAGE}"


def _orders(given: argparse.Namespace, folder: Path, pause: Pause) -> Orders:
    """Raises `InputError` for what cannot be rehearsed."""
    if given.steps < 5:
        raise InputError(f"--steps {given.steps}: are too few to stop in between; write 5 or more")
    settings = load(given.config, given.overrides)
    if not settings.training:
        raise InputError("training: false only tests a run, there is nothing to rehearse; write training=true")
    count = _processes(given.processes, settings)
    threads = settings.launch.cpus_per_task or (max(1, _cores() // count) if count > 1 else None)
    timeout = settings.run.timeout_s
    orders = Orders(given.config, given.overrides, count, given.steps, folder, timeout, pause, threads)
    load(given.config, given.overrides + orders.settings("whole"))  # does the batch divide?
    return orders


def _processes(asked: int | None, settings: Config) -> int:
    """As many as were asked for; by default, those of one machine, as far as this one can hold them."""
    import torch  # only now: it takes seconds

    gpus = torch.cuda.device_count() if settings.run.device != "cpu" else 0
    room, kind = (gpus, "GPU") if gpus else (_cores(), "core")
    if asked and asked > gpus > 0:
        raise InputError(f"--processes {asked}: this machine has {_number(gpus, 'GPU')}; write {gpus} or fewer")
    wanted, parts = settings.launch.tasks, settings.optimizer.accumulate
    count = asked or next(n for n in range(min(wanted, room), 0, -1) if settings.batch_size % (n * parts) == 0)
    asks = f"launch asks for {settings.launch.nodes} × {_number(wanted, 'process')}, "
    asks = asks if settings.launch.processes != count else ""
    _progress(f"{asks}this machine has {_number(room, kind)}: rehearsing with {_number(count, 'process')}")
    if settings.launch.gpus_per_node and not gpus:
        _progress("  without a GPU; whether kernels of yours are deterministic shows on a machine that has one alone")
    return count


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _scratch(parent: Path | None, keep: bool) -> Iterator[Path]:
    """A folder of the rehearsal's own, which goes again."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="ien-rehearsal-", dir=parent)).resolve()
    except OSError as error:
        raise InputError(f"--scratch {parent}: {error.strerror}; give a folder that can be written") from error
    try:
        yield folder
    finally:
        if keep:
            _progress(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _broken_off_by_signals() -> Iterator[Pause]:
    """Gives a sleep that Ctrl-C, TERM and HUP break off, and nothing else: no process can be started and forgotten."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    def pause(seconds: float) -> None:
        until = time.monotonic() + seconds
        while not came and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        if came:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield pause
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))


def _number(count: int, what: str) -> str:
    plural = "" if count == 1 else "es" if what.endswith("s") else "s"
    return f"{count} {what}{plural}"


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m launch.rehearse",
        description="Train a few steps of your settings, with stops at random (USR2 to all, TERM to one process, KILL "
        "to one) and without, and say whether both end with the same bits. Ends with status 0 if they do, 1 if not.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="a YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps to train (default: 20)")
    parser.add_argument("--rounds", type=_rounds, default=1, metavar="N", help="times of each signal (default: 1)")
    parser.add_argument(
        "--processes", type=_rounds, metavar="N", help="on this machine (default: launch's, as many as fit)"
    )
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(2**32), metavar="N", help="of the moments (default: a new one)"
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="try the disk of this folder (default: the temporary one)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the runs and their logs where they are")
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1000")
    return int(text)


if __name__ == "__main__":
    main()
