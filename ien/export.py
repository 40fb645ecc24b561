"""How does a trained network leave this package? (`python -m ien.export runs/quickstart --format onnx`)

The taps are taken off, and what is left is an ordinary network: images (B, C, S, S) → logits (B, K). It is written with
what one must know to serve it, loaded again, and compared with the original on real images before it takes its place.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ien
from ien import build, config
from ien.data import InOrder
from ien.data.prepared import sha256_of
from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.formats import FORMATS, Answer, Format
from ien.tracking import table
from ien.trained import WEIGHTS, Trained, of_run, of_weights

IMAGES = 64  # on which the file is compared with the network
SIZES = (1, 2, 5, 56)  # the batches that these come in
TOLERANCE = 1e-4  # of the largest logit: other kernels add up in another order, a wrong graph is far beyond


@dataclass(frozen=True)
class Exported:
    """A file, and how far its logits lay from the network's: the largest difference, and the largest logit."""

    path: Path
    bytes: int
    sha256: str
    difference: float
    largest: float
    batches: tuple[int, ...]


def export(trained: Trained, form: str, out: Path, force: bool = False) -> Exported:
    """Write the plain network to `out` in the format `form` (a key of `FORMATS`), whole or not at all.

    The taps are taken off it. Raises `InputError` for a file that is there already (unless `force`), a network that the
    format cannot express, and a file that does not answer as the network does.
    """
    format = FORMATS[form]
    format.need_packages()
    _refuse_place(out, format, force)
    trained.tapped.close()
    network, images = trained.tapped.model.eval(), _images(trained)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            fresh = aside / out.name
            format.write(network, torch.zeros_like(images[:2]), fresh, about(trained))
            difference, largest, batches = _compared(network, format.answer(fresh, network), images)
            exported = Exported(out, fresh.stat().st_size, sha256_of(fresh), difference, largest, batches)
            fresh.replace(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; name another file with --out") from error
    return exported


def about(trained: Trained) -> dict[str, str]:
    """What a file says about itself: JSON by name."""
    settings, data = trained.settings, trained.data
    facts: dict[str, Any] = {
        "classes": data.classes,
        "input": {
            "name": "images",
            "shape": ["batch", data.channels, *[build.image_side(settings) or data.side] * 2],
            "type": "float32",
            "range": [0, 1],
            "normalisation": "none: 8-bit values divided by 255, resized bilinearly to this shape",
        },
        "output": {"name": "logits", "shape": ["batch", len(data.classes)], "type": "float32"},
        "model": settings.model,
        "group": build.make_group(settings).name,
        "test_accuracy": trained.test_accuracy,
        "data": {"name": data.name, "sha256": (trained.summary or {}).get("data")},
        "weights": trained.weights.name,
        "revision": trained.revision,
        "ien": ien.__version__,
        # What a cluster was told says nothing about the network, and names accounts.
        "config": settings.model_dump(mode="json", exclude={"launch"}),
    }
    return {name: json.dumps(fact, ensure_ascii=False) for name, fact in facts.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: `python -m ien.export RUN --format FORMAT`."""
    with told_in_one_line():
        given = _parser().parse_args(arguments)
        overrides = [word for word in given.words if re.match(r"[a-z_.]+=", word)]
        runs = [Path(word) for word in given.words if word not in overrides]
        if given.config:
            if runs or not given.weights:
                raise InputError("--config needs --weights FILE and no RUN; or give a RUN alone")
            trained = of_weights(config.load(given.config, overrides), Path(given.weights), str(given.config))
            out = given.out or Path(given.weights).with_suffix(FORMATS[given.format].suffix)
        else:
            trained = of_run(_one(runs), _which(given.weights), overrides)
            out = given.out or runs[0] / f"network{FORMATS[given.format].suffix}"
        print(_report(trained, export(trained, given.format, out, given.force), FORMATS[given.format]))


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m ien.export",
        description="Write a trained network as a file that is served without this package.",
        epilog="example: python -m ien.export runs/quickstart --format onnx",
    )
    parser.add_argument("words", nargs="*", metavar="RUN", help="the folder of a finished run (and data.root=…)")
    parser.add_argument("--format", required=True, choices=FORMATS, help="safetensors: the weights alone")
    parser.add_argument("--weights", help="of a RUN: best (default) or last; with --config: a file of weights")
    parser.add_argument("--config", type=Path, help="settings for bare weights, with key=value over them")
    parser.add_argument("--out", type=Path, help="the file; default: network.<format> in the run's folder")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    return parser


def _one(runs: list[Path]) -> Path:
    if len(runs) != 1:
        raise InputError(f"{len(runs)} runs are given; give one, such as runs/quickstart, or --config and --weights")
    return runs[0]


def _which(weights: str | None) -> str:
    if weights not in (None, *WEIGHTS):
        raise InputError(f"--weights {weights} of a run is unknown; take {' or '.join(WEIGHTS)}, or give --config too")
    return weights or "best"


def _refuse_place(out: Path, format: Format, force: bool) -> None:
    if out.suffix != format.suffix:
        raise InputError(f"{out} must end in {format.suffix}; write --out {out.with_suffix(format.suffix)}")
    if out.is_dir() or (out.exists() and not force):
        raise InputError(f"{out} is there already; take another --out, or write over it with --force")


def _images(trained: Trained) -> Tensor:
    """Real ones (B, C, S, S), as the network sees them: training images, so that the test set stays unseen."""
    side = build.image_side(trained.settings)
    reader = InOrder(trained.data.train, batch_size=IMAGES, side=side, resident=False, limit=IMAGES)
    images, _ = next(iter(reader))
    return images


@torch.no_grad()
def _compared(network: nn.Module, answer: Answer, images: Tensor) -> tuple[float, float, tuple[int, ...]]:
    """The largest difference between the logits, the largest logit, and the batches they came in."""
    batches = [batch for batch in images.tensor_split(list(accumulate(SIZES))) if len(batch)]
    expected = torch.cat([network(batch) for batch in batches])
    found = torch.cat([_asked(answer, batch) for batch in batches])
    if found.shape != expected.shape:
        raise InputError(f"the file answers {tuple(found.shape)} and not {tuple(expected.shape)}; {_ADVICE}")
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= TOLERANCE * largest:  # also where either is not a number
        raise InputError(
            f"the file answers otherwise than the network: logits of up to {largest:.3g} differ by {difference:.3g}; "
            f"{_ADVICE}"
        )
    return difference, largest, tuple(map(len, batches))


def _asked(answer: Answer, batch: Tensor) -> Tensor:
    try:
        return answer(batch)
    except Exception as error:  # each runtime has its own
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"the file does not take a batch of {len(batch)} images ({reason}); {_ADVICE}") from error


_ADVICE = "nothing was written; take another --format"


def _report(trained: Trained, exported: Exported, format: Format) -> str:
    parameters = sum(weight.numel() for weight in trained.tapped.parameters())
    measured = trained.test_accuracy
    accuracy = "test accuracy not measured" if measured is None else f"test accuracy {100 * measured:.2f} %"
    group, batches = build.make_group(trained.settings).name, ", ".join(map(str, exported.batches))
    row = [str(exported.path), f"{exported.bytes / 1e6:.1f} MB", f"{exported.difference:.1e}"]
    lines = [
        f"{trained.weights}: {trained.settings.model}, {parameters:,} parameters, group {group}, {accuracy}",
        "",
        table(["file", "size", "largest difference"], [row]),
        "",
        f"compared on {sum(exported.batches)} images in batches of {batches}; logits up to {exported.largest:.3g}",
        f"sha256 {exported.sha256}",
        "",
        "load it:",
        *(f"  {line.format(file=exported.path)}" for line in format.load),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
