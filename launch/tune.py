"""Which settings are tried, and which won? (`python launch/tune.py --config configs/sweeps/digits.yaml`)

The same command goes on with a sweep that was stopped or killed, and says so when it is finished.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the packages lie beside a script's folder, not in it

from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.ledger import job_of
from ien.lock import Lock
from ien.private import make_private
from ien.stopping import JOB_END, STOPPED
from ien.tracking import write_text
from launch.search import book, results, sampling, sweep
from launch.search.sweep import Sweep

_EXAMPLES = """examples:
  python launch/tune.py --config configs/sweeps/digits.yaml
  python launch/tune.py --config configs/sweeps/rot_mnist_beta.yaml --dry-run
  python launch/tune.py --config configs/sweeps/rot_mnist_beta.yaml budget.trials=32 name=beta_32
  python launch/tune.py --config configs/sweeps/rot_mnist_beta.yaml set.tot_epochs=20 resources.gpus=1
  python launch/tune.py --config configs/sweeps/digits.yaml --report
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends with status 0, 2 for what cannot be used, 1 if no trial finished, 75 if it was stopped."""
    with told_in_one_line():
        given = _parser().parse_intermixed_args(arguments)
        wanted = sweep.load(given.config, given.overrides)
        if given.dry_run:
            print(_described(wanted))
            return
        wanted.refuse_other()
        command = shlex.join(["python", "launch/tune.py", *(sys.argv[1:] if arguments is None else arguments)])
        if not given.report:
            _search(wanted, command)
        sys.exit(_reported(wanted))


def _search(wanted: Sweep, command: str) -> None:
    """Run what is left of the sweep in a Ray of its own on this machine."""
    sampling.sampler(wanted.file.sampler, wanted.space, wanted.file.seed, list(wanted.goals.values()))
    _try_the_first(wanted)
    driver = _driver()
    make_private(wanted.folder.parent)
    make_private(wanted.folder)
    lock = Lock(wanted.folder, *job_of(os.environ))
    try:
        if not (wanted.folder / sweep.NAME).exists():
            write_text(wanted.folder / sweep.NAME, wanted.text)
        end = os.environ.get(JOB_END)
        stop, progress = driver.StopFlag(float(end) - 60 if end else None), driver.Progress()
        print(
            f"{wanted.folder}: {_described(wanted)}\nfollow it with: tensorboard --logdir {wanted.folder}", flush=True
        )
        with stop.heeded(), driver.ray_on_this_machine(_cores()), stop.heeded():  # Ray sets handlers of its own
            driver.refuse_too_large(wanted)
            driver.search(wanted, driver.Element(), stop, progress)
        progress.end()
    finally:
        lock.release()
    if stop:
        why = stop.signal or "the end of its job"
        print(f"stopped by {why}; the same command goes on: {command}", file=sys.stderr)
        sys.exit(130 if stop.signal == "SIGINT" else STOPPED)


def _driver() -> ModuleType:
    try:
        from launch.search import driver
    except ImportError as error:
        raise InputError(f'Ray Tune is not installed ({error}); type pip install -e ".[tune]"') from error
    return driver


def _try_the_first(wanted: Sweep) -> None:
    """Open the data and build the network once: what no trial could use is refused before the first."""
    from ien import build
    from ien.models import MODELS

    settings = wanted.run(0, {}, wanted.seeds[0])
    data = build.open_data(settings)
    if not len(data.val):
        raise InputError(
            f"{wanted.path}: metrics: are measured on held-out images; write set: {{data: {{val_split: 0.1}}}}"
        )
    build.make_network(settings, build.make_group(settings), data)
    taps = MODELS[settings.model].build.taps
    for metric in wanted.goals:
        kind, slash, tap = metric.partition("/")
        if slash and tap not in taps:
            allowed = ", ".join(f"{kind}/{name}" for name in taps)
            raise InputError(f"{wanted.path}: metrics: {metric} is not measured; {settings.model} has {allowed}")


def _reported(wanted: Sweep) -> int:
    """Write the results of what there is, and print them."""
    known = book.outcomes(wanted, list(book.read(wanted.folder).values()))
    if not known:
        raise InputError(f"{wanted.folder}: holds no trial yet; run the sweep without --report")
    again = f"python launch/submit.py --config {wanted.folder}/best.yaml"
    text = results.write(
        wanted.folder, wanted.name, known, wanted.goals, lambda one: wanted.best(one.settings), again, wanted.epochs
    )
    print(text)
    return 0 if any(one.state == "finished" for one in known) else 1


def _described(wanted: Sweep) -> str:
    file = wanted.file
    number = len(wanted.space.points()) if file.sampler == "grid" else file.budget.trials
    goals = ", ".join(f"{metric} ({goal})" for metric, goal in wanted.goals.items())
    seeds = f" of {len(wanted.seeds)} seeds" if len(wanted.seeds) > 1 else ""
    lines = [f"{number} trials{seeds}, {file.sampler}, scheduler {file.scheduler}, by {goals}"]
    if file.scheduler == "asha":
        lines[0] += f"; none is stopped before epoch {wanted.grace_epochs} of {wanted.epochs}"
    lines += [f"  {line}" for line in wanted.space.described()]
    each = f"{wanted.cpus:g} CPUs" + (f" and {wanted.gpus:g} GPUs" if wanted.gpus else "")
    lines.append(f"  each trial: up to {wanted.epochs} epochs on {each}")
    return "\n".join(lines)


def _cores() -> int:
    """The cores that this process may use: in a job those that were allotted, not those that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python launch/tune.py",
        description="Search settings with Ray Tune, or go on with a search that was stopped.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="a sweep, as in configs/sweeps")
    parser.add_argument("--dry-run", action="store_true", help="say what would be searched, and start nothing")
    parser.add_argument("--report", action="store_true", help="write the results of what there is, and start nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the sweep; set.KEY for its trials")
    return parser


if __name__ == "__main__":
    main()
