"""What is one attempt at a run, from its newest checkpoint, or its start, to its end, or to a stop?"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ien import checkpoint, records
from ien.build import Parts
from ien.config import hyperparameters
from ien.distributed import Agreement
from ien.errors import InputError
from ien.ledger import Ledger
from ien.lock import Lock
from ien.metrics import mean_errors
from ien.pace import Pace
from ien.records import Record, evaluation_record
from ien.runs import Folder
from ien.stopping import Stopped
from ien.tracking import Tracker, write_json

Report = Callable[[Record], None]
FORMAT = 2  # of a checkpoint


@dataclass
class Progress:
    """Where a run stands: all that changes besides weights, optimizer, sums and random states."""

    epoch: int = 0
    step_in_epoch: int = 0
    seconds: float = 0.0
    best: Record | None = None  # the record of the best validation


class Trainer:
    """One attempt. `lock` is the first process's; `report` is given the record of every epoch."""

    def __init__(
        self,
        parts: Parts,
        folder: Folder,
        ledger: Ledger,
        lock: Lock | None = None,
        report: Report | None = None,
    ):
        self.parts, self.folder, self.ledger, self.lock, self.report = parts, folder, ledger, lock, report
        self.settings, self.processes, self.engine = parts.settings, parts.processes, parts.engine
        self.stop, self.agreement = parts.engine.stop, Agreement(parts.processes, questions=2)
        self.steps_per_epoch = parts.batches.steps_per_epoch
        self.total = self.settings.tot_epochs * self.steps_per_epoch
        self.pace = Pace(self.settings.run.checkpoint_minutes, self.settings.launch.nodes)
        self.progress = self._restored()
        self.began = self.saved = time.monotonic()
        self.seconds_before = self.progress.seconds
        self._note_position()
        self.read_at, self.read_time = self.step, self.began
        self.tracker = None
        if self.processes.first:
            self.tracker = Tracker(folder.path, self.total, self.step, hparams=hyperparameters(self.settings))

    @property
    def step(self) -> int:
        """Batches seen in the whole run."""
        return self.progress.epoch * self.steps_per_epoch + self.progress.step_in_epoch

    def train(self) -> Record:
        """To the end. Raises `Stopped`, with everything saved, when that was asked for before."""
        try:
            while self.progress.epoch < self.settings.tot_epochs:
                rate = self._train_epoch()
                record = self._validate(rate)
                self._save("epoch")
                if self.report:
                    self.report(record)
                if self.processes.any(self.stop.asked()):
                    self._note_signal()
                    raise Stopped
            result = self._finish()
        finally:
            if self.tracker:
                self.tracker.close()
        say(self.processes.first, f"\n{records.report_table(result)}\n\n{_where(self.folder)}")
        return result

    def _train_epoch(self) -> float:
        """The rest of the epoch, batch by batch; returns images per second."""
        progress, every = self.progress, self.settings.run.log_every
        first, began = progress.step_in_epoch, time.monotonic()
        self.read_at, self.read_time = self.step, began
        for images, labels in self.parts.batches.epoch(progress.epoch, first):
            self.engine.train_step(images, labels, self.step)
            progress.step_in_epoch += 1
            self._note_position()
            if progress.step_in_epoch % every == 0 or progress.step_in_epoch == self.steps_per_epoch:
                self._read_losses()
            stop, save = self.agreement.heard(self.stop.asked(self.step), self._due())
            # At an epoch's end the validation comes first, which may find the weights ruined.
            if save and not stop and progress.step_in_epoch < self.steps_per_epoch:
                self._save("interval")
            if stop:
                self._note_signal()
                self._save("stop")
                raise Stopped
        return (progress.step_in_epoch - first) * self.settings.batch_size / (time.monotonic() - began)

    def _due(self) -> bool:
        """Whether it is time for a checkpoint; the first process's clock decides."""
        return self.processes.first and time.monotonic() - self.saved > self.pace.interval

    def _note_signal(self) -> None:
        if self.processes.first:
            self.ledger.add("signal", signal=self.stop.why(), step=self.step)

    def _note_position(self) -> None:
        self.processes.at(self.step)
        self.ledger.step = self.step
        if self.lock:
            self.lock.at(self.step, self.total)

    def _read_losses(self) -> None:
        """Read the losses of the steps since the last reading, and stop if one was not finite."""
        losses, bad_step = self.engine.read()
        if bad_step is not None:
            raise InputError(_not_finite(f"the loss of step {bad_step}", self.folder))
        now = time.monotonic()
        if self.tracker and self.step > self.read_at:
            rate = (self.step - self.read_at) * self.settings.batch_size / (now - self.read_time)
            self.tracker.interval(self.step, self.engine.lr(self.step - 1), losses, rate)
        self.read_at, self.read_time = self.step, now

    def _validate(self, rate: float) -> Record:
        """Close the epoch: validate, keep the best weights, write the lines; the position moves to the next epoch."""
        progress, step = self.progress, self.step
        val = None
        if len(self.parts.data.val):
            try:
                with self.engine.averaged():
                    val = evaluation_record("val", progress.epoch + 1, step, self.parts.validate())
                    if self._measures_equivariance(progress.epoch + 1):
                        errors = records.equivariance_by_element(self.parts, self.parts.tapped, "val")
                        val["relative_equivariance_error"] = mean_errors(errors)
            except Stopped:
                self._note_signal()
                self._save("stop")
                raise
        # Only now: a pass that is broken off leaves the epoch open.
        train = evaluation_record("train", progress.epoch + 1, step, dict(self.engine.close_epoch()))
        train |= {"lr": self.engine.lr(step - 1), "images_per_second": rate}
        record = val or train
        self._refuse_ruined(record)
        if val is None or progress.best is None or _merit(val) > _merit(progress.best):
            progress.best = record
            self._save_best(record)
        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
        if self.tracker:
            self.tracker.epoch(progress.epoch, self.settings.tot_epochs, train, val)
        return record

    def _measures_equivariance(self, epoch: int) -> bool:
        every = self.settings.run.equivariance_every
        return every is not None and (epoch % every == 0 or epoch == self.settings.tot_epochs)

    def _finish(self) -> Record:
        """Test the best weights, once (with `run.test: false` on the held-out images), and write `summary.json`."""
        self.processes.wait()  # the first process has written them
        best = self._best()
        split, when = "test" if self.settings.run.test else "val", (best["record"]["epoch"], best["record"]["step"])
        tested = records.test(self.parts, best["model"], *when, split)
        result = {
            **tested,
            "epochs": self.settings.tot_epochs,
            "weights": best.get("file", checkpoint.BEST),
            "tested_epoch": best["record"]["epoch"],
            "validation": best["record"] if best["record"]["split"] == "val" else None,
            "parameters": sum(p.numel() for p in self.parts.tapped.parameters()),
            "seconds": self._seconds(),
            "processes": self.processes.count,
            "data": self.parts.data.fingerprint,
        }
        if self.tracker:
            if self.settings.run.test:
                self.tracker.evaluation(tested)
            write_json(self.folder.summary, result)
        return result

    def _best(self) -> dict[str, Any]:
        """What `best.pt` holds; the last weights, with a message, if that is damaged or gone."""
        path = self.folder.checkpoints / checkpoint.BEST
        try:
            return checkpoint.load(path)
        except (checkpoint.DamagedError, FileNotFoundError) as error:
            say(self.processes.first, f"passed over {path}: {error}; testing the last weights instead")
            record = {"split": "train", "epoch": self.progress.epoch, "step": self.step}
            with self.engine.averaged():
                model = {name: one.clone() for name, one in self.parts.tapped.model.state_dict().items()}
            return {"model": model, "record": record, "file": checkpoint.LAST}

    def _refuse_ruined(self, record: Record | None = None) -> None:
        """Raises `InputError` before anything is saved, if the weights, or a record's loss, are not finite."""
        weights = torch.stack([weight.detach().isfinite().all() for weight in self.parts.tapped.parameters()]).all()
        if not bool(weights) or (record and not math.isfinite(record["class_loss"])):
            raise InputError(_not_finite(f"the network after step {self.step - 1}", self.folder))

    def _save(self, why: str) -> None:
        """Write `last.pt`: everything that must survive."""
        began = time.monotonic()
        self._read_losses()
        self._refuse_ruined()
        self.progress.seconds = self._seconds()
        engine, random = self.engine.state(), self.processes.gather(_random_state(self.processes.device))
        if self.processes.first:
            state = {
                "format": FORMAT,
                "data": self.parts.data.fingerprint,
                "progress": asdict(self.progress),
                "model": self.parts.tapped.model.state_dict(),
                "engine": engine,
                "random": random,
            }
            checkpoint.save_last(self.folder.checkpoints, state)
        self.saved = time.monotonic()
        self.pace.saved(self.saved - began)
        self.stop.margin = self.pace.margin
        if self.processes.first:
            self.ledger.add("saved", step=self.step, seconds=round(self.saved - began, 3), why=why)

    def _save_best(self, record: Record) -> None:
        if self.processes.first:
            with self.engine.averaged():
                model = self.parts.tapped.model.state_dict()
                checkpoint.save_best(self.folder.checkpoints, {"format": FORMAT, "model": model, "record": record})

    def _restored(self) -> Progress:
        """Go on from the newest whole checkpoint, the one that the first process sees."""
        found = ""
        if self.processes.first:
            path, passed_over = checkpoint.newest(self.folder.checkpoints)
            found = str(path or "")
            for line in passed_over:
                say(True, f"passed over {line}; going on from {path}")
        found = self.processes.agree(found)
        if not found:
            return Progress()
        state = checkpoint.load(Path(found))
        self._refuse_foreign(state, found)
        self.parts.tapped.model.load_state_dict(state["model"])
        self.engine.restore(state["engine"])
        if len(state["random"]) == self.processes.count:
            _set_random_state(state["random"][self.processes.rank], self.processes.device)
        progress = Progress(**state["progress"])
        say(self.processes.first, f"going on from epoch {progress.epoch}, step {progress.step_in_epoch} ({found})")
        if self.processes.first:
            step = progress.epoch * self.steps_per_epoch + progress.step_in_epoch
            self.ledger.add("resumed", step=step, file=Path(found).name)
        return progress

    def _refuse_foreign(self, state: dict[str, Any], found: str) -> None:
        if state["format"] != FORMAT:
            raise InputError(
                f"{found} is of format {state['format']}, and this version reads {FORMAT}; finish the run with the "
                "version that began it, or take another save_dir"
            )
        if state["data"] != self.parts.data.fingerprint:
            changed = [
                name for name, digest in self.parts.data.fingerprint.items() if state["data"].get(name) != digest
            ]
            raise InputError(
                f"{self.folder.path} was trained on other data ({', '.join(changed)} of {self.parts.data.name} changed "
                "since); prepare the data as they were, or take another save_dir"
            )

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began


def say(first: bool, text: str) -> None:
    """A line for people, from the first process alone."""
    if first:
        print(text, file=sys.stderr, flush=True)


def _not_finite(what: str, folder: Folder) -> str:
    return (
        f"{what} is not finite; the checkpoints in {folder.checkpoints} are from before: "
        "lower max_lr, set optimizer.clip_norm or take run.precision=fp32, in another save_dir"
    )


def _merit(record: Record) -> tuple[float, float]:
    """What makes one validation better than another."""
    return record["accuracy"], -record["class_loss"]


def _random_state(device: torch.device) -> torch.Tensor:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def _set_random_state(state: torch.Tensor, device: torch.device) -> None:
    length = len(torch.get_rng_state())
    torch.set_rng_state(state[:length])
    if device.type == "cuda" and len(state) > length:
        torch.cuda.set_rng_state(state[length:], device)


def _where(folder: Folder) -> str:
    return f"the run lies in {folder.path}\ncurves: tensorboard --logdir {folder.path.parent}"
