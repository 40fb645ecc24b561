"""What is a run, from settings to last checkpoint? (`python -m ien.train --config configs/quickstart.yaml`)

The same command starts a run, goes on with one that was stopped, and says so when it is finished. Under torchrun it
trains in as many processes as were started.
"""

from __future__ import annotations

import errno
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ien import build, checkpoint, config, distributed, evaluate
from ien.build import Parts
from ien.config import Config
from ien.distributed import Processes
from ien.engine import set_precision
from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.evaluate import Record, evaluation_record
from ien.runs import Folder
from ien.tracking import Tracker, write_json

Report = Callable[[Record], None]
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # what the user mends, not the program


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: `python -m ien.train --config FILE [key=value …]`."""
    parser = OneLineParser(
        prog="python -m ien.train",
        description="Train an implicitly equivariant network, or go on with a run that was stopped.",
        epilog="example: python -m ien.train --config configs/quickstart.yaml beta_weight=0.1 save_dir=beta_0.1",
    )
    parser.add_argument("--config", required=True, type=Path, help="a YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    with told_in_one_line():
        given = parser.parse_args(arguments)
        try:
            run(config.load(given.config, given.overrides))
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            sys.exit(130)


def run(settings: Config, report: Report | None = None) -> Record:
    """Train (or, with `training: false`, test) as the settings say; returns what `summary.json` holds.

    `report` is given the record of every evaluation, after its checkpoint is written. Raises `InputError` for settings,
    data or checkpoints that cannot be used, for a full disk, and for a loss that is not finite.
    """
    with distributed.processes(settings.run.device) as processes:
        folder = Folder(config.run_dir(settings))
        if processes.first:
            folder.check(settings)
        if processes.agree("finished" if settings.training and folder.finished else ""):
            result = folder.result()
            done = f"{folder.path} is finished after {result['epochs']} epochs"
            _say(processes, f"{done}\n\n{evaluate.report_table(result)}")
            return result
        set_precision(settings.run.precision)
        parts = build.parts(settings, processes)
        torch.manual_seed(build.mixed(settings.run.seed, processes.rank))  # dropout differs between processes
        if not settings.training:
            return _test_again(parts, folder)
        # Only now is the folder made: settings that cannot be used leave none behind.
        lock = folder.open(settings, processes.device) if processes.first else None
        _say(processes, _described(parts, folder))
        try:
            return Trainer(parts, folder, report).train()
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise InputError(
                f"cannot write into {folder.path}: {error.strerror}; its checkpoints are untouched: make room and give "
                "the same command again"
            ) from error
        finally:
            if lock:
                lock.close()


@dataclass
class Progress:
    """Where a run stands: all that changes besides weights, optimizer and random states."""

    epoch: int = 0
    step_in_epoch: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)  # their sums over this epoch's steps
    best: Record | None = None  # the record of the best validation


class Trainer:
    """One attempt at a run: from its newest checkpoint, or its start, to its end."""

    def __init__(self, parts: Parts, folder: Folder, report: Report | None = None):
        self.parts, self.folder, self.report = parts, folder, report
        self.settings, self.processes, self.engine = parts.settings, parts.processes, parts.engine
        self.steps_per_epoch = parts.batches.steps_per_epoch
        self.progress = self._restored()
        self.began = self.saved = time.monotonic()
        self.seconds_before = self.progress.seconds
        total = self.settings.tot_epochs * self.steps_per_epoch
        self.tracker = Tracker(folder.path, total, self.step) if self.processes.first else None

    @property
    def step(self) -> int:
        """Batches seen in the whole run."""
        return self.progress.epoch * self.steps_per_epoch + self.progress.step_in_epoch

    def train(self) -> Record:
        while self.progress.epoch < self.settings.tot_epochs:
            rate = self._train_epoch()
            record = self._validate(rate)
            self._save()
            if self.report:
                self.report(record)
        result = self._finish()
        if self.tracker:
            self.tracker.close()
        _say(self.processes, f"\n{evaluate.report_table(result)}\n\n{_where(self.folder)}")
        return result

    def _train_epoch(self) -> float:
        """The rest of the epoch, batch by batch; returns images per second."""
        progress, every = self.progress, self.settings.run.log_every
        first = last = progress.step_in_epoch
        began = read = time.monotonic()
        for images, labels in self.parts.batches.epoch(progress.epoch, first):
            self.engine.train_step(images, labels, self.step)
            progress.step_in_epoch += 1
            if progress.step_in_epoch % every == 0 or progress.step_in_epoch == self.steps_per_epoch:
                self._read_losses(progress.step_in_epoch - last, read)
                last, read = progress.step_in_epoch, time.monotonic()
        return (progress.step_in_epoch - first) * self.settings.batch_size / (time.monotonic() - began)

    def _read_losses(self, steps: int, since: float) -> None:
        """Read the losses of the last `steps` steps, stop if one was not finite, and save if it is time."""
        losses, bad_step = self.engine.read()
        if bad_step is not None:
            raise InputError(_not_finite(f"the loss of step {bad_step}", self.folder))
        sums = self.progress.losses
        self.progress.losses = {name: sums.get(name, 0.0) + mean * steps for name, mean in losses.items()}
        if self.tracker:
            rate = steps * self.settings.batch_size / (time.monotonic() - since)
            self.tracker.interval(self.step, self.engine.lr(self.step - 1), losses, rate)
        due = time.monotonic() - self.saved > 60 * self.settings.run.checkpoint_minutes
        if self.processes.agree("save" if due else "") and self.progress.step_in_epoch < self.steps_per_epoch:
            self._save()

    def _validate(self, rate: float) -> Record:
        """Close the epoch: validate, keep the best weights, write the lines; the position moves to the next epoch."""
        progress, step = self.progress, self.step
        means = {name: total / self.steps_per_epoch for name, total in progress.losses.items()}
        train = evaluation_record("train", progress.epoch + 1, step, dict(means))
        train |= {"lr": self.engine.lr(step - 1), "images_per_second": rate}
        val = None
        if len(self.parts.data.val):
            val = evaluation_record("val", progress.epoch + 1, step, self.parts.validate())
        record = val or train
        self._refuse_ruined(record)
        if val is None or progress.best is None or _merit(val) > _merit(progress.best):
            progress.best = record
            self._save_best(record)
        progress.epoch, progress.step_in_epoch, progress.losses = progress.epoch + 1, 0, {}
        if self.tracker:
            self.tracker.epoch(progress.epoch, self.settings.tot_epochs, train, val)
        return record

    def _finish(self) -> Record:
        """Test the best weights, once, and write `summary.json`."""
        self.processes.wait()  # the first process has written them
        best = self._best()
        tested = evaluate.test(self.parts, best["model"], best["record"]["epoch"], best["record"]["step"])
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
            self.tracker.evaluation(tested)
            write_json(self.folder.summary, result)
        return result

    def _best(self) -> dict[str, Any]:
        """What `best.pt` holds; the last weights, with a message, if that is damaged or gone."""
        path = self.folder.checkpoints / checkpoint.BEST
        try:
            return checkpoint.load(path)
        except (checkpoint.DamagedError, FileNotFoundError) as error:
            _say(self.processes, f"passed over {path}: {error}; testing the last weights instead")
            record = {"split": "train", "epoch": self.progress.epoch, "step": self.step}
            return {"model": self.parts.tapped.model.state_dict(), "record": record, "file": checkpoint.LAST}

    def _refuse_ruined(self, record: Record | None = None) -> None:
        """Raises `InputError` before anything is saved, if the weights, or a record's loss, are not finite."""
        weights = torch.stack([weight.detach().isfinite().all() for weight in self.parts.tapped.parameters()]).all()
        if not bool(weights) or (record and not math.isfinite(record["class_loss"])):
            raise InputError(_not_finite(f"the network after step {self.step - 1}", self.folder))

    def _save(self) -> None:
        """Write `last.pt`: everything that must survive."""
        self._refuse_ruined()
        self.progress.seconds = self._seconds()
        random = self.processes.gather(_random_state(self.processes.device))
        if self.processes.first:
            state = {
                "format": 1,
                "data": self.parts.data.fingerprint,
                "progress": asdict(self.progress),
                "model": self.parts.tapped.model.state_dict(),
                "optimizer": self.engine.optimizer.state_dict(),
                "scaler": self.engine.scaler.state_dict(),
                "random": random,
            }
            checkpoint.save_last(self.folder.checkpoints, state)
        self.saved = time.monotonic()

    def _save_best(self, record: Record) -> None:
        if self.processes.first:
            model = self.parts.tapped.model.state_dict()
            checkpoint.save_best(self.folder.checkpoints, {"format": 1, "model": model, "record": record})

    def _restored(self) -> Progress:
        """Go on from the newest whole checkpoint, the one that the first process sees."""
        found = ""
        if self.processes.first:
            path, passed_over = checkpoint.newest(self.folder.checkpoints)
            found = str(path or "")
            for line in passed_over:
                _say(self.processes, f"passed over {line}; going on from {path}")
        found = self.processes.agree(found)
        if not found:
            return Progress()
        state = checkpoint.load(Path(found))
        if state["data"] != self.parts.data.fingerprint:
            changed = [
                name for name, digest in self.parts.data.fingerprint.items() if state["data"].get(name) != digest
            ]
            raise InputError(
                f"{self.folder.path} was trained on other data ({', '.join(changed)} of {self.parts.data.name} changed "
                "since); prepare the data as they were, or take another save_dir"
            )
        self.parts.tapped.model.load_state_dict(state["model"])
        self.engine.optimizer.load_state_dict(state["optimizer"])
        self.engine.scaler.load_state_dict(state["scaler"])
        if len(state["random"]) == self.processes.count:
            _set_random_state(state["random"][self.processes.rank], self.processes.device)
        progress = Progress(**state["progress"])
        _say(self.processes, f"going on from epoch {progress.epoch}, step {progress.step_in_epoch} ({found})")
        return progress

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began


def _test_again(parts: Parts, folder: Folder) -> Record:
    """`training: false`: test the best weights of a run; writes `evaluation.json`."""
    path = folder.checkpoints / checkpoint.BEST
    if not path.exists():
        raise InputError(f"{folder.path} holds no trained network yet ({path} is missing); train it with training=true")
    try:
        best = checkpoint.load(path)
    except checkpoint.DamagedError as damage:
        raise InputError(f"{path}: {damage}; train the run again in another save_dir") from damage
    tested = evaluate.test(parts, best["model"], best["record"]["epoch"], best["record"]["step"])
    if parts.processes.first:
        write_json(folder.path / "evaluation.json", tested)
    _say(parts.processes, evaluate.report_table(tested))
    return tested


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


def _described(parts: Parts, folder: Folder) -> str:
    settings, data, processes = parts.settings, parts.data, parts.processes
    parameters = sum(p.numel() for p in parts.tapped.parameters())
    return (
        f"{folder.path}: {settings.model}, {parameters:,} parameters, group {parts.engine.objective.group.name}, "
        f"beta_weight {settings.beta_weight:g}\n"
        f"{data.name}: {len(data.train):,} images to train on, {len(data.val):,} held out, {len(data.test):,} to test; "
        f"{parts.batches.steps_per_epoch:,} steps of {settings.batch_size} an epoch on {processes.count} × "
        f"{processes.device.type}"
    )


def _where(folder: Folder) -> str:
    return f"the run lies in {folder.path}\ncurves: tensorboard --logdir {folder.path.parent}"


def _say(processes: Processes, text: str) -> None:
    if processes.first:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
