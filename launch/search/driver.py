"""How are the trials of a sweep run side by side? (Ray Tune; the only importer of it)

Ray gives each trial its share of the machines, asks the sampler for the next settings and the scheduler who goes on.
It keeps nothing that matters: what was proposed and decided stands in the book, what was trained in the run folders. So
a sweep that was killed is not restored from Ray's own state; the same command begins a new Ray, which is told what
there is.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ien.stopping import SIGNALS
from launch.search import book, sampling
from launch.search.book import Book, Entry
from launch.search.progress import Progress
from launch.search.sweep import Sweep
from launch.search.trial import InterruptedTrialError, Metrics, Trial, TrialFailedError

os.environ |= {
    "RAY_AUTH_MODE": "token",  # nobody else on the machine, or the network, can speak to it
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

_STOP = "ien-stop"
_PREFIX = "ien-ray-"
_LONGEST = 7  # bytes of the folder in which Ray has its own
STORE_BYTES = 80 * 2**20  # the least; trials pass through it only small things


def search(sweep: Sweep, element: Element, stop: StopFlag, progress: Progress) -> None:
    """Run what is left of a sweep, or of an element's share of it, until it is done or `stop` is asked."""
    told: Any = ray.remote(_Stop).options(name=_STOP, num_cpus=0).remote()  # trials ask it by its name
    ray.get(told.asked.remote())
    storage = sweep.folder / (".ray" if element.book is None else f".ray-{element.book}")
    shutil.rmtree(storage, ignore_errors=True)
    proposals = _Proposals(sweep, element, stop, progress)
    actor = tune.with_resources(
        tune.with_parameters(_Actor, sweep=sweep),
        tune.PlacementGroupFactory([{"CPU": sweep.cpus} | ({"GPU": sweep.gpus} if sweep.gpus else {})]),
    )
    tuner = tune.Tuner(
        actor,
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=proposals,
            scheduler=_scheduler(sweep),
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['number']:03}",
            trial_dirname_creator=lambda trial: f"{trial.config['number']:03}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage.absolute()),
            stop=_AskedTo(stop, told),
            failure_config=tune.FailureConfig(max_failures=sweep.file.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


class Element:
    """Which share of the trials is this search's: those whose number leaves `index` when divided by `count`."""

    def __init__(self, index: int = 0, count: int = 1):
        self.index, self.count = index, count

    @property
    def book(self) -> int | None:
        return self.index if self.count > 1 else None

    def has(self, number: int) -> bool:
        return number % self.count == self.index


class StopFlag:
    """Whether the search is to stop: by a signal, or by the approaching end of its job."""

    def __init__(self, job_end: float | None = None):
        self.signal: str | None = None
        self._end = job_end

    def __bool__(self) -> bool:
        return self.signal is not None or (self._end is not None and time.time() > self._end)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Let INT, USR1, USR2 and TERM ask for a stop."""
        before = {number: signal.signal(number, self._note) for number in (*SIGNALS, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name


class _Stop:
    """An actor: tells trials, on whatever node they are, that the search is to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def asked(self) -> bool:
        return self._asked


class _AskedTo(Stopper):
    def __init__(self, stop: StopFlag, told: Any):
        self._stop, self._told, self._said = stop, told, False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._stop and not self._said:
            self._told.ask.remote()
            self._said = True
        return self._said


class _Actor(tune.Trainable):
    """A trial in a process of Ray's: an epoch is a step."""

    def setup(self, config: dict[str, Any], sweep: Sweep | None = None) -> None:
        assert sweep  # Ray gives it, here and in `reset_config`
        self._sweep, self._left, self._stopped_at = sweep, config["attempts_left"], config["stopped_at"]
        point = json.loads(config["point"])
        stop = ray.get_actor(_STOP)
        self._trial = Trial(
            [sweep.run(config["number"], point, seed) for seed in sweep.seeds],
            threads=max(1, int(sweep.file.resources.cpus)),
            asked=lambda: bool(ray.get(stop.asked.remote())),
        )

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial.end()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        failures: list[str] = []
        while True:
            try:
                metrics = self._trial.next()
                self._refuse_what_is_not_finite(metrics)
            except InterruptedTrialError:
                return {"done": True, "end": "interrupted"}
            except TrialFailedError as failure:
                failures.append(str(failure))
                self._left -= 1
                if not failure.again or self._left < 0:
                    return {"done": True, "end": "failed", "failures": failures}
                continue
            epoch = self._trial.epoch
            facts = {**metrics, "epoch": epoch, "failures": failures}
            if epoch in (self._trial.epochs, self._stopped_at):
                return {**facts, "done": True, "end": "whole" if epoch == self._trial.epochs else "as before"}
            return facts

    def cleanup(self) -> None:
        self._trial.end()

    def _refuse_what_is_not_finite(self, metrics: Metrics) -> None:
        for metric in self._sweep.goals:
            if not math.isfinite(metrics.get(metric, math.nan)):
                known = "is not finite" if metric in metrics else "could not be measured"
                self._trial.end()
                raise TrialFailedError(f"{metric} {known} after epoch {self._trial.epoch}", again=False)


class _Proposals(Searcher):
    """What is tried next, and what is written down about it."""

    def __init__(self, sweep: Sweep, element: Element, stop: StopFlag, progress: Progress):
        super().__init__()
        self._sweep, self._element, self._stop, self._progress = sweep, element, stop, progress
        self._book = Book(sweep.folder, element.book)
        self._until = time.monotonic() + 3600 * (sweep.file.budget.hours or math.inf)
        directions = list(sweep.goals.values())
        self._sampler = sampling.sampler(sweep.file.sampler, sweep.space, sweep.file.seed, directions)
        self._entries = book.read(sweep.folder)
        self._trials: dict[str, Entry] = {}
        self._settled: set[int] = set()
        self._queue: deque[Entry] = deque()
        self._next = 0
        self._take_up()

    def _take_up(self) -> None:
        """Tell the sampler what there is; what is unfinished comes first."""
        again: list[Entry] = []
        for number, entry in self._entries.items():
            known = book.outcome(self._sweep, entry)
            if known.state == "unfinished" and not self._element.has(number):
                continue  # another element trains it
            if known.state == "unfinished":
                self._sampler.running(number, entry.point)
                again.append(entry)
                continue
            self._settled.add(number)
            self._tell(entry, known.metrics, known.state)
            # A scheduler compares with those that are over, so it sees them pass once more; nothing is trained.
            if self._sweep.file.scheduler == "asha" and known.state != "failed":
                self._queue.append(entry)
        self._queue.extend(again)
        self._progress.begin(self._sweep, len(self._settled))

    def suggest(self, trial_id: str) -> Any:
        entry = self._queue.popleft() if self._queue else self._new()
        if entry is None or self._stop:
            return Searcher.FINISHED
        self._trials[trial_id] = entry
        return {
            "number": entry.number,
            "point": json.dumps(entry.point),
            "stopped_at": entry.stopped_at,
            "attempts_left": self._sweep.file.max_failures - len(entry.failures),
        }

    def _new(self) -> Entry | None:
        """The next trial of this search; its settings are drawn for the whole sweep, so that a share of it is one."""
        while self._next < self._limit and time.monotonic() < self._until:
            number, self._next = self._next, self._next + 1
            if number in self._entries or not self._element.has(number):
                continue
            point = self._sampler.propose(number)
            if point is None:
                return None
            entry = self._entries[number] = Entry(number, point)
            self._book.proposed(number, point)
            return entry
        return None

    @property
    def _limit(self) -> float:
        return math.inf if self._sweep.file.sampler == "grid" else self._sweep.file.budget.trials

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        entry = self._trials[trial_id]
        self._note_failures(entry, result, given_up=False)
        if entry.number not in self._settled:
            self._progress.epoch(entry, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        entry = self._trials[trial_id]
        if entry.number in self._settled:
            return
        end = "failed" if error else (result or {}).get("end")
        if end == "interrupted" or (end is None and self._stop):
            return
        if error:
            result = {"failures": ["its worker process was lost"]}
        self._note_failures(entry, result or {}, given_up=end == "failed")
        if end is None:
            entry.stopped_at = int((result or {})["epoch"])
            self._book.stopped(entry.number, entry.stopped_at)
        self._settled.add(entry.number)
        known = book.outcome(self._sweep, entry)
        self._tell(entry, known.metrics, known.state)
        self._progress.over(entry, known)

    def _note_failures(self, entry: Entry, result: dict[str, Any], given_up: bool) -> None:
        causes = result.get("failures") or []
        for place, cause in enumerate(causes, start=1):
            entry.failures.append(cause)
            entry.given_up = given_up and place == len(causes)
            self._book.failed(entry.number, cause, entry.given_up)
            self._progress.failed(entry, cause, entry.given_up)

    def _tell(self, entry: Entry, metrics: Metrics, state: str) -> None:
        values = [metrics[metric] for metric in self._sweep.goals] if metrics and state != "failed" else None
        self._sampler.told(entry.number, entry.point, values, entry.stopped_at if state == "stopped" else None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the book has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def _scheduler(sweep: Sweep) -> TrialScheduler:
    if sweep.file.scheduler == "none":
        return FIFOScheduler()
    (metric, mode), *_ = sweep.goals.items()
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=metric,
        mode=mode,
        max_t=sweep.epochs,
        grace_period=sweep.grace_epochs,
        reduction_factor=sweep.file.asha.reduction_factor,
    )


@contextmanager
def ray_on_this_machine(cpus: int, gpus: int | None = None) -> Iterator[None]:
    """A Ray of one's own, which listens on this machine alone and ends with the block, whatever others run here."""
    import ray._private.ray_constants as constants

    # Ray's own switch for machines where it must not be seen from outside; without it, it listens everywhere.
    constants.ENABLE_RAY_CLUSTER = False
    folder = own_folder()
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,  # None: what the machine has
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def own_folder() -> Path:
    """A new folder for Ray, private and short (sockets' paths have 107 bytes); those of the dead are removed."""
    place = Path(tempfile.gettempdir())
    place = place if len(str(place)) <= _LONGEST else Path("/tmp")  # Ray adds a hundred bytes
    for left in place.glob(f"{_PREFIX}{os.getuid()}-*"):
        if not _runs(int(left.name.split("-")[3])):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getuid()}-{os.getpid()}-", dir=place))


def _runs(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def refuse_too_large(sweep: Sweep) -> None:
    """Raises `InputError` where no node of Ray's has what one trial needs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU"))
    sweep.refuse_too_large(cpus, gpus)
