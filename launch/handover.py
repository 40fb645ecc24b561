"""How does a run travel to its processes? (the only importer of submitit)"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, JobPaths

from ien.config import Config, run_dir
from ien.errors import InputError
from ien.ledger import Ledger, job_of
from ien.private import make_private
from ien.stopping import JOB_END, Stopped, hold_back
from launch import slurm
from launch.detached import detached
from launch.requeue import START
from launch.sites import Site
from launch.snapshot import code_of

_ROOT = Path(__file__).resolve().parent.parent
_FIRST_LINE = f'echo "{START}${{SLURM_RESTART_COUNT:-0}} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"'
_SAFE = re.compile(r"/[A-Za-z0-9._=,@+/-]{0,254}")


@dataclass(frozen=True)
class Order:
    """Runs that go to SLURM together: one job, or one array. All ask for the same resources.

    `folder` takes what submitit writes; `code` is the tree that the job runs; `call` is what each process does, the run
    itself if None.
    """

    runs: tuple[Config, ...]
    site: Site
    folder: Path
    code: Path = _ROOT
    call: Callable[[], Any] | None = None

    @property
    def script(self) -> str:
        """The sbatch script, to the letter."""
        executor = self._executor()
        if len(self.runs) > 1:
            executor.parameters["map_count"] = len(self.runs)
        return executor._make_submission_file_text(executor._submitit_command_str, uid="")

    def submit(self, command: str) -> list[Submitted]:
        """Hand it over; `command` is what a person types to do it again.

        Raises `InputError` of one line if SLURM, or the disk, refuses it.
        """
        try:
            make_private(self.folder)
            for run in self.runs:
                make_private(run_dir(run))
            self._index.write_text(json.dumps(self._policy, indent=2))
            jobs = [self.call or Job(run.model_dump(mode="json")) for run in self.runs]
            with _environment(slurm.scrubbed(os.environ)):
                executor = self._executor()
                with executor.batch():
                    numbers = [executor.submit(job) for job in jobs]
        except (OSError, RuntimeError, FailedJobError) as error:
            raise InputError(f"{self.folder}: slurm refused the job: {' '.join(str(error).split())}") from error
        tasks = self.runs[0].launch.processes
        pairs = zip(self.runs, numbers, strict=True)
        return [
            Submitted(run, number.job_id, "slurm", self.folder, tasks).noted(command, self.code)
            for run, number in pairs
        ]

    def _executor(self) -> _Executor:
        executor = _Executor(self.folder, python=self.site.python)
        executor.code = self.code
        executor.update_parameters(**self._parameters())
        return executor

    def _parameters(self) -> dict[str, Any]:
        launch = self.runs[0].launch
        named = ("partition", "account", "qos", "constraint", "gres", "exclude", "comment", "mail_user", "mail_type")
        more: dict[str, Any] = {"requeue": True} if launch.requeue else {"no-requeue": True}
        steps = ["--kill-on-bad-exit=1"]
        # srun takes neither from the job in every version.
        steps += [f"--cpus-per-task={launch.cpus_per_task}"] if launch.cpus_per_task else []
        steps += [f"--container-image={launch.container}"] if launch.container else []
        asked: dict[str, Any] = {
            "job_name": launch.job_name or self.runs[0].save_dir.replace("/", "-")[:128],
            "time": launch.timeout_min,
            "nodes": launch.nodes,
            "ntasks_per_node": launch.tasks,
            "cpus_per_task": launch.cpus_per_task,
            "gpus_per_node": launch.gpus_per_node or None,
            "mem": None if launch.mem_gb is None else f"{round(1024 * launch.mem_gb)}MB",
            **{name: getattr(launch, name) for name in named},
            "signal_delay_s": launch.signal_s,
            "array_parallelism": launch.array_parallel or len(self.runs),
            "stderr_to_stdout": True,  # one log to follow
            "srun_args": steps,
            "additional_parameters": more | ({"reservation": launch.reservation} if launch.reservation else {}),
            # The batch shell outlives its step, so that it can queue the job again.
            "setup": ["trap : TERM USR1 USR2", _FIRST_LINE, *self.site.lines],
            "teardown": [shlex.join([sys.executable, f"{self.code}/launch/requeue.py", str(self._index)]) + " $?"],
        }
        return {"wckey": None} | {name: value for name, value in asked.items() if value is not None}

    @property
    def _index(self) -> Path:
        """Names the runs for the batch script, which knows its number in the array alone."""
        digest = hashlib.sha256(json.dumps(self._policy).encode()).hexdigest()[:12]
        return self.folder / f"runs-{digest}.json"

    @property
    def _policy(self) -> dict[str, Any]:
        launch = self.runs[0].launch
        limits = {"max_timeouts": launch.max_timeouts, "max_failures": launch.max_failures}
        runs = [str(run_dir(run).absolute()) for run in self.runs]
        return {"requeue": launch.requeue, **limits, "signal_delay_s": launch.signal_s, "runs": runs}


class _Executor(submitit.SlurmExecutor):
    """submitit's, with a task of our own that misses no signal while Python starts."""

    code: Path

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u {shlex.quote(f'{self.code}/launch/task.py')} {shlex.quote(str(self.folder))}"


def order(
    runs: Sequence[Config], site: Site, folder: Path, snapshot: bool, call: Callable[[], Any] | None = None
) -> Order:
    """What `runs` become on SLURM; with `snapshot`, the code's copy is made now.

    Raises `InputError` for a path that a script, or SLURM, would not take as it is.
    """
    runs = tuple(runs)
    folder = folder.absolute()
    code = code_of(Path(runs[0].run.root).absolute() / ".code", make=snapshot) if runs[0].launch.snapshot else _ROOT
    for path in (folder, code, *(run_dir(run).absolute() for run in runs)):
        if not _SAFE.fullmatch(str(path)):
            shown = str(path) if len(str(path)) <= 80 else f"{str(path)[:80]}…"
            allowed = "at most 255 characters from A-Z a-z 0-9 . _ = , @ + / -"
            raise InputError(f"run.root: {shown!r} cannot stand in a job's script; write a path of {allowed}")
    return Order(runs, site, folder, code, call)


@dataclass(frozen=True)
class Job:
    """A run as it travels to its processes: plain data, so that an edited file does not change a waiting job.

    `visible_gpus`: CUDA_VISIBLE_DEVICES of the shell that submitted to this machine.
    """

    settings: dict[str, Any]
    visible_gpus: str | None = None

    def __call__(self) -> dict[str, Any]:
        """In each process: take its place among the others, then run."""
        hold_back()  # in place of submitit's handlers, which save and requeue wherever the process is
        environment = submitit.JobEnvironment()
        if environment.cluster == "local":
            self._see_the_shells_gpus()
        os.environ.update(process_variables(environment))
        self._share_the_cores(environment)
        from ien import train  # only now: torch reads the environment when it is loaded

        try:
            return train.run(Config.model_validate(self.settings))
        except Stopped:
            return {"stopped": True}  # in order, so that srun does not end the other processes for this one
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)

    def _see_the_shells_gpus(self) -> None:
        """submitit's local executor hides all GPUs but the `gpus_per_node` first ones, by default every one."""
        if self.visible_gpus is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus

    def _share_the_cores(self, environment: submitit.JobEnvironment) -> None:
        """Processes that each take all cores slow one another down many times over."""
        cores = self.settings["launch"]["cpus_per_task"]
        neighbours = environment.num_tasks // environment.num_nodes
        if cores or neighbours > 1:
            cores = cores or max(1, _cores_here() // neighbours)
            os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def _cores_here() -> int:
    """The cores that this process may use, which in a container or a job are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def nodes_here() -> tuple[int, tuple[str, ...]]:
    """This process's number among those of its job, and the names of the job's nodes."""
    environment = submitit.JobEnvironment()
    return environment.global_rank, tuple(environment.hostnames)


def process_variables(environment: submitit.JobEnvironment, folder: Path | None = None) -> dict[str, str]:
    """torchrun's names, which `ien.distributed` reads. LOCAL_RANK picks the GPU among all that are visible.

    The processes meet through a file in `folder` (submitit's, if None), which is named after the job and its restart: a
    process that is left over from before a requeue waits at another.
    """
    from ien.distributed import RENDEZVOUS

    local = environment.cluster == "local"
    job, restart = (f"local-{os.getppid()}", 0) if local else job_of(os.environ)
    place = (folder or environment.paths.folder) / f"rendezvous-{job}-{restart}.json"
    variables = {
        "MASTER_ADDR": "127.0.0.1" if local else environment.hostnames[0],
        RENDEZVOUS: str(place),
        "RANK": str(environment.global_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_RANK": str(environment.local_rank),
        "LOCAL_WORLD_SIZE": str(environment.num_tasks // environment.num_nodes),
    }
    if local:
        variables["IEN_JOB"] = job
    elif environment.global_rank == 0 and (end := slurm.job_end(job)):
        variables[JOB_END] = str(end)
    return variables


@dataclass(frozen=True)
class Submitted:
    """A job that was handed over: `number` is SLURM's, or the process id of submitit's controller."""

    run: Config
    number: str
    cluster: str
    folder: Path
    processes: int

    @property
    def log(self) -> Path:
        """What the first process prints."""
        return self.folder / JobPaths(self.folder, self.number, 0).stdout.name

    @property
    def job(self) -> str:
        """Its name in the ledger."""
        return self.number if self.cluster == "slurm" else f"local-{self.number}"

    @property
    def stop(self) -> str:
        return f"scancel {self.number}" if self.cluster == "slurm" else f"kill -INT {self.number}"

    def noted(self, command: str, code: Path | None = None) -> Submitted:
        """Write it into the run's ledger, with the command that does it again."""
        book = Ledger(run_dir(self.run), self.job)
        book.add(
            "submitted",
            log=str(self.log.absolute()).replace("_0_log.out", "_{rank}_log.out"),
            code=str(code) if code else None,
            timeout_min=self.run.launch.timeout_min if self.cluster == "slurm" else None,
            command=command,
        )
        return self


def submit_locally(settings: Config, command: str) -> Submitted:
    """Start the run in processes of this machine; `command` is what a person types to do it again.

    Raises `InputError` where that fails.
    """
    folder = run_dir(settings) / "jobs"
    launch = settings.launch
    # The job's Python finds these packages as this one did, also where they are not installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    job = Job(settings.model_dump(mode="json"), os.environ.get("CUDA_VISIBLE_DEVICES"))
    try:
        make_private(run_dir(settings))
        make_private(folder)
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(
            tasks_per_node=launch.tasks,
            gpus_per_node=launch.gpus_per_node,
            timeout_min=launch.timeout_min,
            signal_delay_s=launch.signal_s,
            stderr_to_stdout=True,
        )
        number = detached(lambda: executor.submit(job).job_id)
    except (OSError, RuntimeError, FailedJobError) as error:
        raise InputError(f"{folder}: cannot start the processes: {' '.join(str(error).split())}") from error
    return Submitted(settings, number, "local", folder, launch.processes).noted(command)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """What a command that is started in this block inherits."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
