"""Which settings are tried, and which won? (`python launch/tune.py --config configs/sweeps/digits.yaml`)

The same command goes on with a sweep that was stopped or killed, and says so when it is finished.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the packages lie beside a script's folder, not in it

from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.ledger import job_of
from ien.stopping import JOB_END, STOPPED
from launch import requeue, slurm
from launch.search import job, sampling, submission, sweep
from launch.search.agenda import Element
from launch.search.space import Point
from launch.search.submission import Submission
from launch.search.sweep import Sweep
from launch.sites import site

_EXAMPLES = """examples:
  python launch/tune.py --config configs/sweeps/digits.yaml
  python launch/tune.py --config configs/sweeps/rot_mnist_beta.yaml --dry-run
  python launch/tune.py --config configs/sweeps/rot_mnist_beta.yaml budget.trials=32 name=beta_32
  python launch/tune.py --config configs/sweeps/rot_mnist_beta.yaml set.tot_epochs=20 resources.gpus=1
  python launch/tune.py --config configs/sweeps/digits.yaml --report
  python launch/tune.py --config configs/sweeps/rot_mnist_beta.yaml --executor slurm launch.nodes=2
  python launch/tune.py --config configs/sweeps/rot_mnist_beta.yaml --executor slurm --array 4 --dry-run
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends with status 0, 2 for what cannot be used, 1 if no trial finished, 75 if it was stopped."""
    with told_in_one_line():
        given = _parser().parse_intermixed_args(arguments)
        wanted = sweep.load(given.config, given.overrides)
        command = shlex.join(["python", "launch/tune.py", *(sys.argv[1:] if arguments is None else arguments)])
        if given.requeue is not None:
            sys.exit(_left(wanted, given.requeue))
        asked = None if given.report else _submission(wanted, given, command)
        if given.dry_run:
            print("\n".join([_described(wanted), *(["", *asked.script()] if asked else [])]))
            return
        wanted.refuse_other()
        if asked:
            _offered(wanted)
            print("\n".join([f"{wanted.folder}: {_described(wanted)}", *asked.submit()]))
            return
        if not given.report:
            _offered(wanted)
            _search(wanted, command)
        sys.exit(_reported(wanted))


def _submission(wanted: Sweep, given: argparse.Namespace, command: str) -> Submission | None:
    """The job that was asked for; None for a search in this process. Raises `InputError`."""
    executor = given.executor or wanted.file.launch.executor
    if executor != "slurm":
        if given.array or given.cluster or wanted.file.launch.nodes > 1:
            what = f"--array {given.array}" if given.array else "--cluster" if given.cluster else "launch.nodes"
            raise InputError(f"{what}: is for SLURM; add --executor slurm")
        return None
    if not slurm.available():
        raise InputError("--executor slurm: needs sbatch and srun on the PATH; submit on a login node, or take local")
    place, _ = site(given.cluster, slurm.cluster_name())
    elements = 1 if given.array is None else given.array
    return submission.submission(given.config, given.overrides, place, elements, command)


def _offered(wanted: Sweep) -> None:
    """Raises `InputError` for a sampler that is not installed, and for trials whose settings do not go together."""
    file = wanted.file
    chosen = sampling.sampler(file.sampler, wanted.space, file.seed, list(wanted.goals.values()))
    if file.sampler != "tpe":  # which proposes when others are over; what then cannot be has failed
        numbers = itertools.count() if file.sampler == "grid" else range(file.budget.trials)
        wanted.refuse_impossible(_proposed(chosen, numbers))


def _proposed(chosen: sampling.Sampler, numbers: Iterable[int]) -> Iterator[Point]:
    for number in numbers:
        if (point := chosen.propose(number)) is None:
            return
        yield point


def _left(wanted: Sweep, status: int) -> int:
    """What slurm/tune.sbatch asks when its processes have left, srun with `status`."""
    launch = wanted.file.launch
    policy = {name: getattr(launch, name) for name in ("requeue", "max_timeouts", "max_failures")}
    return requeue.after(wanted.folder, policy | {"signal_delay_s": launch.signal_s}, status)


def _search(wanted: Sweep, command: str) -> None:
    """Run what is left of the sweep in a Ray of its own on this machine."""
    import torch

    job.try_the_first(wanted, _cores(), torch.cuda.device_count())
    driver = _driver()
    with job.held(wanted, None, *job_of(os.environ)):
        end = os.environ.get(JOB_END)
        stop, progress = driver.StopFlag(float(end) - 60 if end else None), driver.Progress()
        print(
            f"{wanted.folder}: {_described(wanted)}\nfollow it with: tensorboard --logdir {wanted.folder}", flush=True
        )
        with stop.heeded(), driver.ray_on_this_machine(_cores()), stop.heeded():  # Ray sets handlers of its own
            driver.search(wanted, Element(), stop, progress)
        progress.end()
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


def _reported(wanted: Sweep) -> int:
    """Write the results of what there is, and print them."""
    text = job.report(wanted)
    if not text:
        raise InputError(f"{wanted.folder}: holds no trial yet; run the sweep without --report")
    print(text)
    return 0 if (wanted.folder / "best.yaml").exists() else 1


def _described(wanted: Sweep) -> str:
    file = wanted.file
    number = len(wanted.space.points()) if file.sampler == "grid" else file.budget.trials
    goals = ", ".join(f"{metric} ({goal})" for metric, goal in wanted.goals.items())
    seeds = f" of {len(wanted.seeds)} seeds" if len(wanted.seeds) > 1 else ""
    lines = [f"{number} trials{seeds}, {file.sampler}, scheduler {file.scheduler}, by {goals}"]
    if file.scheduler == "asha":
        lines[0] += f"; none is stopped before epoch {wanted.grace_epochs} of {wanted.epochs}"
    lines += [f"  {line}" for line in wanted.space.described()]
    each = f"CPU {wanted.cpus:g}" + (f", GPU {wanted.gpus:g}" if wanted.gpus else "")
    lines.append(f"  each trial: up to {wanted.epochs} epochs; {each}")
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
    parser.add_argument(
        "--executor",
        choices=["auto", "slurm", "local"],
        help="who gives the machines: SLURM, or this one alone (auto; default: launch.executor)",
    )
    parser.add_argument(
        "--cluster",
        metavar="SITE",
        help="what the cluster offers: configs/clusters/SITE.yaml, or a file (default: by the SLURM cluster's name)",
    )
    parser.add_argument(
        "--array", type=int, metavar="K", help="SLURM: an array of K jobs of one node that share the trials out"
    )
    parser.add_argument("--requeue", type=int, metavar="STATUS", help=argparse.SUPPRESS)  # slurm/tune.sbatch asks
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the sweep; set.KEY for its trials")
    return parser


if __name__ == "__main__":
    main()
