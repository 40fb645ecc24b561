"""How does a cluster get a run? (`python launch/submit.py --config configs/quickstart.yaml`)

The same settings go to SLURM, to several processes on this machine, or stay in this process; `launch.*` says which, and
a cluster's own file what it offers.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the packages lie beside a script's folder, not in it

from ien.config import Config, load_with_origins, refuse_other_settings, run_dir
from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.private import refuse_shared
from ien.stopping import STOPPED, Stopped, hold_back
from launch import grid, slurm
from launch.plan import Plan, Run, told
from launch.sites import Site, site

_EXAMPLES = """examples:
  python launch/submit.py --config configs/quickstart.yaml
  python launch/submit.py --config configs/rot_mnist_r4.yaml beta_weight=0 save_dir=augmented
  python launch/submit.py --config configs/rot_mnist_r4.yaml --executor local launch.tasks_per_node=2 --wait
  python launch/submit.py --config configs/rot_tim_r8.yaml --cluster mysite launch.nodes=2 launch.gpus_per_node=4
  python launch/submit.py --config configs/rot_tim_r8.yaml --dry-run
  python launch/submit.py --config configs/rot_mnist_r4.yaml --seeds 0-4 --grid beta_weight=0,0.1,1
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends with status 0, 2 for what cannot be used, 1 for a failed run, 75 for one that stopped."""
    with told_in_one_line():
        given = _parser().parse_intermixed_args(arguments)
        plan = planned(given, sys.argv[1:] if arguments is None else arguments)
        if given.dry_run:
            print(told(plan))
            return
        print(f"executor {plan.cluster}: {plan.why}", flush=True)
        for run in plan.runs:
            if run.done:
                again = "test it again with training=false, or take another save_dir"
                print(f"{run_dir(run.settings)} is finished; {again}", flush=True)
        if plan.cluster == "inline":
            _run_here(plan)
        elif plan.waiting:
            _hand_over(plan, given.wait)


def planned(given: argparse.Namespace, arguments: Sequence[str]) -> Plan:
    """What the command line asks for, checked. Raises `InputError`."""
    words = given.overrides + ([f"launch.executor={given.executor}"] if given.executor else [])
    first, _ = load_with_origins(given.config, words)
    # What a site offers may be what makes the batch divide, so it is asked for before the runs are made.
    slurm_here, place, where = slurm.available(), Site(), ""
    if given.cluster or (slurm_here and first.launch.executor in ("auto", "slurm")):
        place, where = site(given.cluster, slurm.cluster_name() if slurm_here else None)
    sets = grid.overrides(given.seeds, given.grid, first.save_dir)
    base, _ = load_with_origins(given.config, words, place.launch)
    cluster, why = executor_for(base, slurm_here)
    below = place.launch if cluster == "slurm" else {}
    runs = [Run(*load_with_origins(given.config, words + more, below)) for more in sets]
    for run in runs:
        run.state = run_state(run.settings)
    command = shlex.join(["python", "launch/submit.py", *arguments])
    return Plan(runs, cluster, why, place if cluster == "slurm" else Site(), where, run_dir(first) / "jobs", command)


def executor_for(settings: Config, slurm_here: bool) -> tuple[str, str]:
    """`slurm`, `local` or `inline`, and why. Raises `InputError` where the one that was asked for cannot be used."""
    launch = settings.launch
    cluster, why = launch.executor, "as launch.executor says"
    if cluster == "auto" and slurm_here:
        cluster, why = "slurm", "sbatch is on the PATH"
    elif cluster == "auto":
        number = "one process" if launch.processes == 1 else f"{launch.processes} processes"
        cluster, why = "local" if launch.processes > 1 else "inline", f"{number}, and no sbatch on the PATH"
    if cluster == "slurm" and not slurm_here:
        raise InputError(
            "launch.executor: slurm needs sbatch and srun on the PATH; submit on a login node, or take local"
        )
    if cluster == "local" and launch.nodes > 1:
        raise InputError(
            f"launch.nodes: {launch.nodes} machines need SLURM; write launch.nodes=1 for this machine alone"
        )
    if cluster == "inline" and launch.processes > 1:
        raise InputError(
            f"launch.executor: inline is one process, but {launch.nodes} × {launch.tasks} are asked for; "
            "write launch.tasks_per_node=1 and launch.nodes=1, or take local"
        )
    return cluster, why


def run_state(settings: Config) -> str:
    """`new`, `unfinished` or `finished`. Raises `InputError` where the run folder does not fit the settings."""
    folder = run_dir(settings)
    refuse_shared(folder)
    refuse_other_settings(settings)
    begun = (folder / "config.yaml").exists()
    if not settings.training and not begun:
        raise InputError(f"{folder} holds no run to test; train it first with training=true")
    if (folder / "summary.json").exists():
        return "finished"
    return "unfinished" if begun else "new"


def _run_here(plan: Plan) -> None:
    hold_back()
    from ien import train

    for run in plan.runs:
        if len(plan.runs) > 1 and run.done:
            continue
        try:
            train.run(run.settings)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            sys.exit(130)
        except Stopped:
            sys.exit(STOPPED)


def _hand_over(plan: Plan, wait: bool) -> None:
    from launch.following import followed
    from launch.handover import submit_locally

    failed = 0
    local = (submit_locally(run, plan.command) for run in plan.waiting)
    for job in plan.handed_over() if plan.cluster == "slurm" else local:
        try:
            if plan.cluster == "local" or job.run is plan.waiting[-1]:
                print("\n".join(plan.notes(job)), flush=True)
            # Processes of several runs would slow one another down on one machine.
            if wait or (plan.cluster == "local" and len(plan.waiting) > 1):
                problem = followed(job)
                failed += bool(problem)
                if problem:
                    print(f"job {job.number} failed (all of it: {job.log})", problem, sep="\n", file=sys.stderr)
        except KeyboardInterrupt:
            print(f"\njob {job.number} goes on unwatched; stop it with: {job.stop}", file=sys.stderr)
            sys.exit(130)
    if failed:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python launch/submit.py",
        description="Train an implicitly equivariant network here, in several processes, or on a SLURM cluster. "
        "The same command goes on with a run that was stopped.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="a YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    parser.add_argument(
        "--executor",
        choices=["auto", "slurm", "local", "inline"],
        help="who starts the processes: SLURM, this machine, or this process alone (default: launch.executor)",
    )
    parser.add_argument(
        "--cluster",
        metavar="SITE",
        help="what the cluster offers: configs/clusters/SITE.yaml, or a file (default: by the SLURM cluster's name)",
    )
    parser.add_argument("--seeds", metavar="0-4", help="a run for each of these seeds, as one array")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="KEY=V,V…", help="a run for each value; again for each pair"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    parser.add_argument("--wait", action="store_true", help="show the log until the job ends, and end as it does")
    return parser


if __name__ == "__main__":
    main()
