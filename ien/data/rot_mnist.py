"""Where do the rotated handwritten digits come from: the official files, or plain MNIST by the same protocol?"""

from __future__ import annotations

import argparse
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ien.data.amat import SIDE, amat_files, has_amat, read_rows
from ien.data.arguments import add_common, count, source_path
from ien.data.idx import find_idx, read_both_parts
from ien.data.prepared import Dataset, open_prepared, sha256_of
from ien.data.turning import draws, rotated
from ien.data.writing import Block, Plan
from ien.errors import InputError

NAME = "rot_mnist"
URL = "http://www.iro.umontreal.ca/~lisa/icml2007data/mnist_rotation_new.zip"
TRAIN, TEST = 12_000, 50_000
SUMMARY = "Rot-MNIST, from the official files or from plain MNIST by the same protocol"
VAL_SPLIT: float | int = 2_000  # the usual protocol tunes on 10,000/2,000; val_split 0 trains on all 12,000
_CLASSES = tuple("0123456789")
_BLOCK = 1_000


def opened(
    *, root: Path, name: str | None, reflection: bool, val_split: float | int | None, seed: int, verify: bool
) -> Dataset:
    """See `ien.data.open_dataset`. The images are the same with and without `reflection`."""
    name = name or NAME
    command = f"python -m ien.data rot_mnist --from mnist_rotation_new.zip --root {root} --name {name}"
    return open_prepared(root, name, VAL_SPLIT if val_split is None else val_split, seed, verify, command)


def plan(source: Path, *, seed: int = 0, interpolation: str = "bilinear", train: int = TRAIN, test: int = TEST) -> Plan:
    """Rot-MNIST from `source`: the official zip, a folder with its two .amat files, or one of plain MNIST in IDX files.

    From the official files, `train` and `test` are the numbers of rows that they must have. From plain MNIST (by the
    protocol of Larochelle et al., ICML 2007): all images are pooled, shuffled, the first `train` and the next `test`
    are taken, and each is turned by its own angle, uniform in [0, 2π), zero outside.
    Raises `InputError` for a source that is neither, or damaged.
    """
    if not source.exists():
        raise InputError(
            f"--from {source} does not exist; give mnist_rotation_new.zip, or a folder of .amat or IDX files"
        )
    counts = {"train": train, "test": test}
    if has_amat(source):
        return _amat_plan(source, counts)
    if source.is_dir() and (files := find_idx(source)):
        return _idx_plan(files, counts, seed, interpolation)
    raise InputError(
        f"--from {source} is no zip and holds neither .amat files nor MNIST's IDX files "
        f"(train-images-idx3-ubyte[.gz] and the other three)"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m ien.data rot_mnist`."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--from", dest="source", type=source_path, metavar="PATH", help="the zip or the folder to read")
    where.add_argument("--download", action="store_true", help=f"fetch {URL} into the root first")
    parser.add_argument(
        "--interpolation", choices=("bilinear", "nearest"), default="bilinear", help="(plain MNIST only)"
    )
    parser.add_argument("--train", type=count, default=TRAIN, metavar="N", help="training images (default %(default)s)")
    parser.add_argument("--test", type=count, default=TEST, metavar="N", help="test images (default %(default)s)")
    add_common(parser)


def plan_from(args: argparse.Namespace) -> Plan:
    """The plan that the options ask for; downloads the official zip if they say so."""
    source = _download(args.root) if args.download else args.source
    return plan(source, seed=args.seed, interpolation=args.interpolation, train=args.train, test=args.test)


def _amat_plan(source: Path, counts: dict[str, int]) -> Plan:
    def blocks(split: str) -> Iterator[Block]:
        rows = 0
        for images, labels in read_rows(source, split):
            rows += len(labels)
            if rows > counts[split]:
                break
            yield images, labels
        if rows != counts[split]:
            found = f"more than {counts[split]}" if rows > counts[split] else str(rows)
            raise InputError(
                f"{source}: {found} {split} rows, expected {counts[split]}; the file is truncated, "
                f"or say --{split} N if it is meant to differ"
            )

    digests = {path.name: sha256_of(path) for path in amat_files(source)}
    recipe = {"source": "official .amat files", "sha256": digests, **counts}
    return Plan(NAME, recipe, _CLASSES, counts, SIDE, 1, blocks)


def _idx_plan(files: dict[str, Path], counts: dict[str, int], seed: int, interpolation: str) -> Plan:
    images, labels = read_both_parts(files)
    if sum(counts.values()) > len(labels):
        total = f"{counts['train']} + {counts['test']}"
        raise InputError(f"{total} images are wanted, MNIST here has {len(labels)}; lower --train or --test")
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    chosen = {"train": order[: counts["train"]], "test": order[counts["train"] :][: counts["test"]]}

    def blocks(split: str) -> Iterator[Block]:
        for at in range(0, counts[split], _BLOCK):
            rows = chosen[split][at : at + _BLOCK]
            angles, _ = draws(seed, split, np.arange(at, at + len(rows)))
            yield rotated(images[rows], angles, interpolation), labels[rows]

    recipe = {
        "source": "MNIST, both parts pooled and shuffled",
        "sha256": {name: sha256_of(path) for name, path in files.items()},
        "angle": "uniform in [0, 2 pi), zero outside",
        "interpolation": interpolation,
        "seed": seed,
        **counts,
    }
    return Plan(NAME, recipe, _CLASSES, counts, images.shape[2], 1, blocks)


def _download(root: Path) -> Path:
    """The official zip, kept in the root, so that the same command finds it there the next time."""
    target = root / "mnist_rotation_new.zip"
    if target.is_file():
        return target
    root.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    print(f"fetching {URL}", flush=True)
    try:
        with urllib.request.urlopen(URL, timeout=30) as answer, partial.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
        partial.rename(target)
    except (OSError, urllib.error.URLError) as error:
        raise InputError(
            f"{URL} cannot be fetched ({error}); fetch it elsewhere and give its path: --from mnist_rotation_new.zip"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target
