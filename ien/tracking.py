"""Where do numbers go? (TensorBoard, JSON lines, screen)"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

METRICS = "metrics.jsonl"
MEAN = "relative_equivariance_error"  # of the taps' values TensorBoard gets the mean too
_SHOWN = ("val/accuracy", "val/class_loss", f"val/{MEAN}", "test/accuracy")  # in the HParams tab


class Tracker:
    """The numbers of one run, in its folder and on the screen; made by the first process alone.

    `step` counts the batches of the whole run. A run that goes on from step `start` drops what was written after it.
    `hparams`: what TensorBoard's HParams tab shows beside the curves' last values.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        start: int = 0,
        screen: TextIO = sys.stderr,
        hparams: Mapping[str, Any] | None = None,
    ):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

        self.path = folder / METRICS
        _rewind(self.path, start)
        self._board = SummaryWriter(str(folder), purge_step=start + 1 if start else None)
        if hparams and not start:
            self._write_hparams(hparams)
        self._screen = screen
        terminal = screen.isatty()
        self._bar = tqdm(total=total_steps, initial=start, file=screen, disable=not terminal, unit="step")
        self._total, self._first, self._began = total_steps, start, time.monotonic()

    def interval(self, step: int, lr: float, losses: dict[str, float], images_per_second: float) -> None:
        """What the host read after a number of steps: onto the bar and into TensorBoard."""
        self._bar.update(step - self._bar.n)
        shown: dict[str, str] = {
            name: f"{losses[name]:.4f}" for name in ("classification", "equivariance") if name in losses
        }
        shown["img/s"] = f"{images_per_second:.0f}"
        self._bar.set_postfix(shown)
        for name, value in losses.items():
            self._board.add_scalar(f"step/{name}", value, step)
        self._board.add_scalar("step/lr", lr, step)
        self._board.add_scalar("step/images_per_second", images_per_second, step)

    def evaluation(self, record: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`, and the same to TensorBoard."""
        with self.path.open("a") as lines:
            lines.write(json.dumps(record, allow_nan=False) + "\n")
        for name, value in scalars(record):
            self._board.add_scalar(f"{record['split']}/{name}", value, record["step"])

    def epoch(self, epoch: int, epochs: int, train: dict[str, Any], val: dict[str, Any] | None) -> None:
        """The lines of an epoch, and one on the screen."""
        for record in (train, val):
            if record:
                self.evaluation(record)
        left = self._seconds_left(train["step"])
        parts = [f"epoch {epoch:>{len(str(epochs))}}/{epochs}", f"class {train['class_loss']:.4f}"]
        parts += [f"equi {train['equivariance']:.4f}"] if train["equivariance"] is not None else []
        parts += [f"val accuracy {100 * val['accuracy']:.2f} %"] if val else []
        parts += [f"lr {train['lr']:.2g}", f"{train['images_per_second']:.0f} images/s", f"{_clock(left)} left"]
        self._bar.clear()
        print("  ".join(parts), file=self._screen, flush=True)

    def close(self) -> None:
        self._bar.close()
        self._board.close()

    def _write_hparams(self, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        shown = {name: _hparam(value) for name, value in settings.items()}
        # Named by their curves: an attempt that ends early, for whatever reason, leaves their last values.
        for summary in hparams(shown, dict.fromkeys(_SHOWN, 0.0)):
            self._board._get_file_writer().add_summary(summary)

    def _seconds_left(self, step: int) -> float:
        done = step - self._first
        return (time.monotonic() - self._began) / max(1, done) * (self._total - step)


def write_report(
    folder: Path, scalars: Iterable[tuple[str, float, int]], pictures: Mapping[str, bytes], step: int = 0
) -> None:
    """The figures of a report (name, value, step) and its pictures (PNG) for TensorBoard, in place of earlier ones."""
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter  # all of them slow to import, and only needed here

    for stale in folder.glob("events.out.tfevents.*"):
        stale.unlink()
    with SummaryWriter(str(folder)) as board:
        for name, value, at in scalars:
            board.add_scalar(name, value, at)
        for name, picture in pictures.items():
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
            board.add_image(name, pixels, step, dataformats="HWC")


def progress(what: str, batches: Iterable[T], screen: TextIO = sys.stderr) -> Iterator[T]:
    """The batches as they are; how far they are is seen on a terminal, and one line elsewhere."""
    if not screen.isatty():
        print(what, file=screen, flush=True)
    yield from tqdm(batches, desc=what, file=screen, disable=not screen.isatty(), unit="batch", leave=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a text file whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns of text, the first one flush left and the others flush right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in [head, *rows])
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _rewind(path: Path, step: int) -> None:
    """Drop what was written after `step`, and a last test: the run takes it from there again."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _stays(json.loads(line), step)]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def _stays(record: dict[str, Any], step: int) -> bool:
    return record["step"] <= step and record["split"] != "test"


def scalars(record: dict[str, Any]) -> list[tuple[str, float]]:
    """A record's numbers by name, those of a tap as `kind/tap`; of the relative equivariance error also the mean."""
    flat: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            parts = {part: number for part, number in value.items() if isinstance(number, float)}
            flat += [(f"{name}/{part}", number) for part, number in parts.items()]
            flat += [(name, sum(parts.values()) / len(parts))] if name == MEAN and parts else []
        elif isinstance(value, float):
            flat.append((name, value))
    return flat


def _hparam(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
