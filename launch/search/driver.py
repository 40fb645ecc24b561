"""How are the trials of a sweep run side by side? (Ray Tune; the only importer of it)

Ray gives each trial its share of the machines, asks the sampler for the next settings and the scheduler who goes on.
It keeps nothing that matters: what was proposed and decided stands in the book, what was trained in the run folders. So
a sweep that was killed is not restored from Ray's own state; the same command begins a new Ray, which is told what
there is.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import random
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ien.errors import InputError
from ien.stopping import SIGNALS
from launch.search import book
from launch.search.agenda import Agenda, Element
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
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

_STOP = "ien-stop"
_PREFIX = "ien-ray-"
OPEN = "r"  # within it what Ray makes open to everybody
_LONGEST = 5  # bytes of the folder in which Ray has its own
STORE_BYTES = 80 * 2**20  # the least; trials pass through it only small things


def search(sweep: Sweep, element: Element, stop: StopFlag, progress: Progress) -> None:
    """Run what is left of a sweep, or of an element's share of it, until it is done or `stop` is asked."""
    told: Any = ray.remote(_Stop).options(name=_STOP, num_cpus=0).remote()  # trials ask it by its name
    ray.get(told.asked.remote())
    storage = sweep.folder / (".ray" if element.book is None else f".ray-{element.book}")
    shutil.rmtree(storage, ignore_errors=True)
    agenda = Agenda(sweep, element, progress)
    actor = tune.with_resources(
        tune.with_parameters(_Actor, sweep=sweep),
        tune.PlacementGroupFactory([{"CPU": sweep.cpus} | ({"GPU": sweep.gpus} if sweep.gpus else {})]),
    )
    # A population is there from its first epoch on, and Ray takes no sampler for it.
    population = list(iter(agenda.next, None)) if sweep.file.scheduler == "pbt" else []
    tuner = tune.Tuner(
        actor,
        param_space={"trial": tune.grid_search(population)} if population else {},
        tune_config=tune.TuneConfig(
            num_samples=1 if population else -1,
            search_alg=None if population else _Proposals(agenda, stop),
            scheduler=_scheduler(sweep),
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=lambda trial: f"{_name(trial)}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage.absolute()),
            stop=_AskedTo(stop, told),
            callbacks=[_Listener(agenda, stop)],
            failure_config=tune.FailureConfig(max_failures=sweep.file.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


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
        order = config["trial"]
        self._sweep, self._left, self._stopped_at = sweep, order["attempts_left"], order["stopped_at"]
        self._facts = {"point": order["point"], "generation": order["generation"]}
        number, point = _number(self.trial_name), json.loads(order["point"])
        stop = ray.get_actor(_STOP)
        self._trial, self._refusal = None, ""
        try:
            settings = [sweep.run(number, point, seed, order["generation"]) for seed in sweep.seeds]
        except InputError as error:
            self._refusal = str(error)
            return
        self._trial = Trial(
            settings,
            threads=max(1, int(sweep.file.resources.cpus)),
            asked=lambda: bool(ray.get(stop.asked.remote())),
        )

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        failures: list[str] = []
        if self._trial is None:
            return {"done": True, "end": "failed", "failures": [self._refusal]}
        while True:
            try:
                metrics = self._trial.next()
                self._refuse_what_is_not_finite(self._trial, metrics)
            except InterruptedTrialError:
                return {"done": True, "end": "interrupted"}
            except TrialFailedError as failure:
                failures.append(str(failure))
                self._left -= 1
                if not failure.again or self._left < 0:
                    return {"done": True, "end": "failed", "failures": failures}
                continue
            epoch = self._trial.epoch
            facts = {**metrics, **self._facts, "epoch": epoch, "failures": failures}
            if epoch in (self._trial.epochs, self._stopped_at):
                return {**facts, "done": True, "end": "whole" if epoch == self._trial.epochs else "as before"}
            return facts

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self._trial:
            self._trial.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        if self._trial:
            self._trial.take(Path(checkpoint))

    def cleanup(self) -> None:
        if self._trial:
            self._trial.end()

    def _refuse_what_is_not_finite(self, trial: Trial, metrics: Metrics) -> None:
        for metric in self._sweep.goals:
            if not math.isfinite(metrics.get(metric, math.nan)):
                known = "is not finite" if metric in metrics else "could not be measured"
                trial.end()
                raise TrialFailedError(f"{metric} {known} after epoch {trial.epoch}", again=False)


class _Proposals(Searcher):
    def __init__(self, agenda: Agenda, stop: StopFlag):
        super().__init__()
        self._agenda, self._stop = agenda, stop

    def suggest(self, trial_id: str) -> Any:
        order = None if self._stop else self._agenda.next()
        return Searcher.FINISHED if order is None else {"trial": order}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: see `_Listener`."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the book has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Listener(tune.Callback):
    def __init__(self, agenda: Agenda, stop: StopFlag):
        self._agenda, self._stop = agenda, stop

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self._agenda.heard(_number(str(trial)), result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        end = trial.last_result.get("end")
        if end != "interrupted" and not (end is None and self._stop):
            self._agenda.over(_number(str(trial)), trial.last_result)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._agenda.lost(_number(str(trial)))


def _name(trial: Any) -> str:
    return f"trial-{trial.config['trial']['number']:03}"


def _number(name: str) -> int:
    """A scheduler may give a trial another one's config; its name it keeps."""
    return int(name.rpartition("-")[2])


def _scheduler(sweep: Sweep) -> TrialScheduler:
    if sweep.file.scheduler == "none":
        return FIFOScheduler()
    (metric, mode), *_ = sweep.goals.items()
    if sweep.file.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            perturbation_interval=sweep.file.pbt.every_epochs,
            quantile_fraction=sweep.file.pbt.quantile,
            custom_explore_fn=_explorer(sweep),
            synch=True,  # all are compared after the same epoch
            log_config=False,
        )
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=metric,
        mode=mode,
        max_t=sweep.epochs,
        grace_period=sweep.grace_epochs,
        reduction_factor=sweep.file.asha.reduction_factor,
    )


def _explorer(sweep: Sweep) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What gives a trial that takes over another's weights its settings, and a generation that no other had."""
    known = [entry.generation for entry in book.read(sweep.folder).values()]
    generations = itertools.count(1 + max(known, default=0))
    random.seed(sweep.file.seed)  # which trial is taken over is drawn from the same numbers
    shares = iter(random.random, None)

    def explored(config: dict[str, Any]) -> dict[str, Any]:
        order = config["trial"]
        point = json.dumps(sweep.space.perturbed(json.loads(order["point"]), shares))
        return {"trial": order | {"point": point, "generation": next(generations), "stopped_at": None}}

    return explored


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
            _temp_dir=str(folder / OPEN),
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
