"""What does a process of a SLURM job do first? (`srun python -u launch/task.py …`, in each process)

    launch/task.py FOLDER                           what submitit left in FOLDER for this job
    launch/task.py --config FILE [key=value …]      these settings (slurm/train.sbatch)
    launch/task.py --sweep FILE [key=value …]       this sweep (slurm/tune.sbatch)

Signals are held back from the first moment: one that comes while Python loads its libraries would end the process, with
nothing saved. The run lets them through when it can answer.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Run this process's share of the job."""
    from ien.errors import told_in_one_line
    from ien.private import refuse_shared

    os.environ["SUBMITIT_EXECUTOR"] = "slurm"
    os.environ["IEN_TASK_START"] = str(time.time())
    with told_in_one_line():
        if arguments and arguments[0] == "--sweep":
            _run_sweep(arguments)
        elif arguments and arguments[0] != "--config":
            refuse_shared(Path(arguments[0]))  # what is read from it is executed
            from submitit.core.submission import process_job

            process_job(arguments[0])
        else:
            _run_settings(arguments)


def _run_settings(arguments: list[str]) -> None:
    from ien.config import load, run_dir
    from ien.errors import OneLineParser
    from ien.private import make_private
    from launch.handover import Job

    parser = OneLineParser(prog="launch/task.py", description="One process of a job that SLURM started.")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args(arguments)
    settings = load(given.config, given.overrides)
    folder = run_dir(settings) / "jobs"
    make_private(folder.parent)
    make_private(folder)
    os.environ["SUBMITIT_FOLDER"] = str(folder)
    Job(settings.model_dump(mode="json"))()


def _run_sweep(arguments: list[str]) -> None:
    from ien.errors import OneLineParser
    from launch.search.job import SweepJob

    parser = OneLineParser(prog="launch/task.py", description="One process, on its node, of a search on SLURM.")
    parser.add_argument("--sweep", required=True, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args(arguments)
    again = shlex.join(["sbatch", "slurm/tune.sbatch", given.sweep, *given.overrides])
    SweepJob(given.sweep, tuple(given.overrides), again)()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM})
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the packages lie beside a script's folder, not in it
    main(sys.argv[1:])
