"""How does a run travel to its processes, and how is it watched? (the only importer of submitit)"""

from __future__ import annotations

import os
import signal
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, JobPaths, pickle_load

from ien.config import Config, run_dir
from ien.errors import InputError

_ROOT = Path(__file__).resolve().parent.parent


def submit(settings: Config, cluster: str) -> Submitted:
    """Start the run on `slurm` or `local`. Raises `InputError` where the cluster, or the disk, refuses it."""
    folder = run_dir(settings) / "jobs"
    # The job's Python finds these packages as this one did, also where they are not installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    local = cluster == "local"
    port = _free_port() if local else None
    job = Job(settings.model_dump(mode="json"), port, os.environ.get("CUDA_VISIBLE_DEVICES"))
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**submitit_parameters(settings))
        number = _submitted_detached(executor, job) if local else executor.submit(job).job_id
    except (OSError, RuntimeError, FailedJobError) as error:
        raise InputError(f"{folder}: {cluster} refused the job: {' '.join(str(error).split())}") from error
    return Submitted(number, cluster, folder, settings.launch.nodes * settings.launch.tasks_per_node)


def submitit_parameters(settings: Config) -> dict[str, Any]:
    """What `submitit.AutoExecutor.update_parameters` is given; what is not set is left to the cluster."""
    launch = settings.launch
    asked = {
        "name": settings.save_dir.replace("/", "-"),
        "nodes": launch.nodes,
        "tasks_per_node": launch.tasks_per_node,
        "cpus_per_task": launch.cpus_per_task,
        "gpus_per_node": launch.gpus_per_node or None,
        "mem_gb": launch.mem_gb,
        "timeout_min": launch.timeout_min,
        "stderr_to_stdout": True,  # one log to follow
    }
    return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """A run as it travels to its processes: plain data, so that an edited file does not change a waiting job.

    `port`: where the processes of one machine meet; None: from the job's number, the same in all of them.
    `visible_gpus`: CUDA_VISIBLE_DEVICES of the shell that submitted.
    """

    settings: dict[str, Any]
    port: int | None = None
    visible_gpus: str | None = None

    def __call__(self) -> dict[str, Any]:
        """In each process: take its place among the others, then run."""
        environment = submitit.JobEnvironment()
        os.environ.update(process_variables(environment, self.port))
        if environment.cluster == "local":
            self._see_the_shells_gpus()
        self._share_the_cores(environment)
        from ien import train  # only now: torch reads the environment when it is loaded

        return train.run(Config.model_validate(self.settings))

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


def process_variables(environment: submitit.JobEnvironment, port: int | None) -> dict[str, str]:
    """torchrun's names, which `ien.distributed` reads. LOCAL_RANK picks the GPU among all that are visible."""
    local = environment.cluster == "local"
    return {
        "MASTER_ADDR": "127.0.0.1" if local else environment.hostnames[0],
        "MASTER_PORT": str(port or 20000 + zlib.crc32(environment.job_id.encode()) % 10000),
        "RANK": str(environment.global_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_RANK": str(environment.local_rank),
        "LOCAL_WORLD_SIZE": str(environment.num_tasks // environment.num_nodes),
    }


@dataclass(frozen=True)
class Submitted:
    """A job that was handed over: `number` is SLURM's, or the process id of submitit's controller."""

    number: str
    cluster: str
    folder: Path
    processes: int

    @property
    def log(self) -> Path:
        """What the first process prints."""
        return self.folder / JobPaths(self.folder, self.number, 0).stdout.name

    @property
    def stop(self) -> str:
        return f"scancel {self.number}" if self.cluster == "slurm" else f"kill -INT {self.number}"

    def notes(self, settings: Config) -> list[str]:
        """What a user does next."""
        return [
            f"job     {self.number} ({self.processes} {'process' if self.processes == 1 else 'processes'})",
            f"run     {run_dir(settings)}",
            f"follow  tail -F {self.log}",
            f"stop    {self.stop}    (the same command goes on from the last checkpoint)",
            f"curves  tensorboard --logdir {settings.run.root}",
        ]

    def followed(self) -> list[str]:
        """Print the log until the job ends; returns how its processes failed, nothing if none did."""
        screen = _LogOnScreen(self.log)
        while not self._over():
            screen.show()
            time.sleep(0.3)
        screen.show()
        return list(self._failures())

    def _over(self) -> bool:
        if self.cluster == "local":
            return not _alive(int(self.number))
        return submitit.SlurmJob(self.folder, self.number, tasks=list(range(self.processes))).done()

    def _failures(self) -> Iterator[str]:
        """The end of each failed process's error, a text that several share once."""
        told: set[str] = set()
        for process in range(self.processes):
            path = JobPaths(self.folder, self.number, process).result_pickle
            outcome, result = (
                pickle_load(path) if path.exists() else ("error", "ended without a result: was it killed?")
            )
            text = _end_of(result) if outcome == "error" else ""
            if text and text not in told:
                told.add(text)
                yield f"process {process}: {text}"


def _end_of(traceback: str) -> str:
    """The line of an `InputError`, which says all; of any other error where it was raised, and the error."""
    _, told, line = traceback.strip().rpartition("ien.errors.InputError: ")
    return line if told else "\n".join(traceback.strip().splitlines()[-3:])


class _LogOnScreen:
    """A growing log, printed line by line without what submitit says itself."""

    def __init__(self, path: Path):
        self._path, self._position, self._hidden = path, 0, False

    def show(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            whole = file.read().rpartition(b"\n")
        self._position += len(whole[0] + whole[1])
        for line in whole[0].decode(errors="replace").splitlines():
            self._hidden |= line.startswith("submitit ERROR")  # its traceback follows; `_failures` tells the end of it
            if not self._hidden and not line.startswith("submitit "):
                print(line, flush=True)


def _submitted_detached(executor: submitit.AutoExecutor, job: Job) -> str:
    """Submit from a session of its own, so that neither Ctrl-C nor the terminal's end reaches the processes.

    submitit starts the local controller as an ordinary child: in this session it would be interrupted with us, and
    would keep our output open.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        _submit_and_exit(executor, job, tell)
    os.close(tell)
    with os.fdopen(told) as answer:
        number = answer.read()
    os.waitpid(child, 0)
    if not number.isdecimal():
        raise RuntimeError(number or "the local controller did not start")
    return number


def _submit_and_exit(executor: submitit.AutoExecutor, job: Job, tell: int) -> None:
    """In the forked child; the controller inherits its session, its output and its handling of SIGINT."""
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell has it ignored, and `kill -INT` stops the job
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        os.write(tell, executor.submit(job).job_id.encode())
    except Exception as error:
        os.write(tell, f"{error}".encode())
    finally:
        os._exit(0)


def _alive(process: int) -> bool:
    """Whether a process runs; one that ended but was not collected by its parent does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")  # not on every system
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
