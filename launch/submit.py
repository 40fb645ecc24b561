"""How does a cluster get a run? (`python launch/submit.py --config configs/quickstart.yaml`)

The same settings go to SLURM, to several processes on this machine, or stay in this process; `launch.*` says which.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the packages lie beside a script's folder, not in it

from ien.config import Config, flat, load_with_origins, refuse_other_settings, run_dir
from ien.errors import InputError, OneLineParser, told_in_one_line

_EXAMPLES = """examples:
  python launch/submit.py --config configs/quickstart.yaml
  python launch/submit.py --config configs/rot_mnist_r4.yaml beta_weight=0 save_dir=augmented
  python launch/submit.py --config configs/rot_mnist_r4.yaml --executor local launch.tasks_per_node=2 --wait
  python launch/submit.py --config configs/rot_tim_r8.yaml --executor slurm --dry-run
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends with status 0, 2 for settings that cannot be used, 1 for a run that failed."""
    with told_in_one_line():
        given = _parser().parse_intermixed_args(arguments)
        overrides = given.overrides + ([f"launch.executor={given.executor}"] if given.executor else [])
        settings, origins = load_with_origins(given.config, overrides)
        cluster, why = executor_for(settings)
        state = run_state(settings)
        if given.dry_run:
            print("\n".join(plan(settings, origins, cluster, why, state)))
            return
        print(f"executor {cluster}: {why}", flush=True)
        if cluster == "inline":
            _run_here(settings)
        elif settings.training and state == "finished":
            print(f"{run_dir(settings)} is finished; test it again with training=false, or take another save_dir")
        else:
            _hand_over(settings, cluster, given.wait)


def executor_for(settings: Config) -> tuple[str, str]:
    """`slurm`, `local` or `inline`, and why. Raises `InputError` where the one that was asked for cannot be used."""
    launch = settings.launch
    processes = launch.nodes * launch.tasks_per_node
    slurm = bool(shutil.which("sbatch") and shutil.which("srun"))
    cluster, why = launch.executor, "as launch.executor says"
    if cluster == "auto" and slurm:
        cluster, why = "slurm", "sbatch is on the PATH"
    elif cluster == "auto":
        number = "one process" if processes == 1 else f"{processes} processes"
        cluster, why = "local" if processes > 1 else "inline", f"{number}, and no sbatch on the PATH"
    if cluster == "slurm" and not slurm:
        raise InputError(
            "launch.executor: slurm needs sbatch and srun on the PATH; submit on a login node, or take local"
        )
    if cluster == "local" and launch.nodes > 1:
        raise InputError(
            f"launch.nodes: {launch.nodes} machines need SLURM; write launch.nodes=1 for this machine alone"
        )
    if cluster == "inline" and processes > 1:
        raise InputError(
            f"launch.executor: inline is one process, but {launch.nodes} × {launch.tasks_per_node} are asked for; "
            "write launch.tasks_per_node=1 and launch.nodes=1, or take local"
        )
    return cluster, why


def run_state(settings: Config) -> str:
    """`new`, `unfinished` or `finished`. Raises `InputError` where the run folder does not fit the settings."""
    folder = run_dir(settings)
    refuse_other_settings(settings)
    begun = (folder / "config.yaml").exists()
    if not settings.training and not begun:
        raise InputError(f"{folder} holds no run to test; train it first with training=true")
    if (folder / "summary.json").exists():
        return "finished"
    return "unfinished" if begun else "new"


def plan(settings: Config, origins: dict[str, str], cluster: str, why: str, state: str) -> Iterator[str]:
    """What would be done, line by line."""
    for key, value in flat(settings).items():
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        yield f"{key:<28} {shown:<24} {origins[key]}"
    launch, parts = settings.launch, settings.optimizer.accumulate
    share = settings.batch_size // (launch.nodes * launch.tasks_per_node)
    passes = f" in {parts} passes of {share // parts}" if parts > 1 else ""
    yield ""
    yield f"executor    {cluster}: {why}"
    yield f"processes   {launch.nodes} × {launch.tasks_per_node}, {share} images of a step in each{passes}"
    yield f"run folder  {run_dir(settings)} ({state})"
    if cluster == "slurm":
        from launch.jobs import submitit_parameters

        asked = submitit_parameters(settings).items()
        yield "submitit    " + ", ".join(f"{name}={value}" for name, value in asked)


def _run_here(settings: Config) -> None:
    from ien import train

    try:
        train.run(settings)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _hand_over(settings: Config, cluster: str, wait: bool) -> None:
    from launch import jobs

    submitted = jobs.submit(settings, cluster)
    try:
        print("\n".join(submitted.notes(settings)), flush=True)
        failures = submitted.followed() if wait else []
    except KeyboardInterrupt:
        print(f"\njob {submitted.number} goes on unwatched; stop it with: {submitted.stop}", file=sys.stderr)
        sys.exit(130)
    if failures:
        print(f"job {submitted.number} failed (all of it: {submitted.log})", *failures, sep="\n", file=sys.stderr)
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
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    parser.add_argument("--wait", action="store_true", help="show the log until the job ends, and end as it does")
    return parser


if __name__ == "__main__":
    main()
