"""Where do the handwritten digits of many sizes come from? From plain MNIST.

MNIST-scale as Sosnovik et al. use it (arXiv 1910.11093, section 6.1): every image made smaller by a factor of its own,
uniform in [0.3, 1], zero outside; 10,000 to train, 2,000 to validate, 50,000 to test, six realisations by seed. Theirs
are sampled without anti-aliasing and with equal shares of the classes in every part; here the smaller image is
anti-aliased, and the parts are drawn at random.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ien.data.arguments import add_common, count, share, source_path
from ien.data.idx import find_idx, read_both_parts
from ien.data.prepared import Dataset, open_prepared, sha256_of
from ien.data.turning import SPLIT_NUMBERS
from ien.data.writing import Block, Plan
from ien.errors import InputError

NAME = "scale_mnist"
TRAIN, TEST = 12_000, 50_000
SMALLEST = 0.3
SUMMARY = "Scale-MNIST, digits of many sizes, from plain MNIST"
VAL_SPLIT: float | int = 2_000  # of the 12,000; val_split 0 trains on all
_CLASSES = tuple("0123456789")
_BLOCK = 1_000


def opened(
    *, root: Path, name: str | None, reflection: bool, val_split: float | int | None, seed: int, verify: bool
) -> Dataset:
    """See `ien.data.open_dataset`. The images are the same with and without `reflection`."""
    name = name or NAME
    command = f"python -m ien.data scale_mnist --from mnist/ --root {root} --name {name}"
    return open_prepared(root, name, VAL_SPLIT if val_split is None else val_split, seed, verify, command)


def plan(source: Path, *, seed: int = 0, smallest: float = SMALLEST, train: int = TRAIN, test: int = TEST) -> Plan:
    """Scale-MNIST from `source`, a folder with MNIST's IDX files.

    All images are pooled and shuffled, the first `train` and the next `test` are taken, and each is made smaller by its
    own factor, uniform in [`smallest`, 1). Raises `InputError` for a source that is none, or damaged.
    """
    files = _idx_files(source)
    images, labels = read_both_parts(files)
    if train + test > len(labels):
        raise InputError(f"{train} + {test} images are wanted, MNIST here has {len(labels)}; lower --train or --test")
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    counts, chosen = {"train": train, "test": test}, {"train": order[:train], "test": order[train:][:test]}

    def blocks(split: str) -> Iterator[Block]:
        for at in range(0, counts[split], _BLOCK):
            rows = chosen[split][at : at + _BLOCK]
            factors = _factors(seed, split, np.arange(at, at + len(rows)), smallest)
            yield np.stack([shrunk(*one) for one in zip(images[rows, 0], factors, strict=True)])[:, None], labels[rows]

    recipe = {
        "source": "MNIST, both parts pooled and shuffled",
        "sha256": {name: sha256_of(path) for name, path in files.items()},
        "factor": f"uniform in [{smallest:g}, 1), zero outside",
        "interpolation": "bicubic, anti-aliased",
        "seed": seed,
        **counts,
    }
    return Plan(NAME, recipe, _CLASSES, counts, images.shape[2], 1, blocks)


def shrunk(image: np.ndarray, factor: float) -> np.ndarray:
    """An image uint8 (S, S) made smaller about its centre by `factor` ≤ 1, anti-aliased; same size, zero outside."""
    side = len(image)
    margin = int(side * (1 / factor - 1) / 2) + 1
    centre, reach = side / 2 + margin, side / factor / 2
    # Pillow's `box` may have fractions of a pixel: the factor is kept exactly, and so is the centre.
    box = (centre - reach, centre - reach, centre + reach, centre + reach)
    wide = Image.fromarray(np.pad(image, margin))
    return np.asarray(wide.resize((side, side), Image.Resampling.BICUBIC, box=box))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m ien.data scale_mnist`."""
    parser.add_argument(
        "--from", dest="source", type=source_path, required=True, metavar="DIR", help="folder of MNIST's IDX files"
    )
    parser.add_argument(
        "--smallest", type=share, default=SMALLEST, metavar="S", help="smallest factor (default %(default)s)"
    )
    parser.add_argument("--train", type=count, default=TRAIN, metavar="N", help="training images (default %(default)s)")
    parser.add_argument("--test", type=count, default=TEST, metavar="N", help="test images (default %(default)s)")
    add_common(parser)


def plan_from(args: argparse.Namespace) -> Plan:
    """The plan that the options ask for."""
    return plan(args.source, seed=args.seed, smallest=args.smallest, train=args.train, test=args.test)


def _idx_files(source: Path) -> dict[str, Path]:
    if not source.exists():
        raise InputError(f"--from {source} does not exist; give a folder of MNIST's IDX files")
    files = find_idx(source) if source.is_dir() else {}
    if not files:
        names = "train-images-idx3-ubyte[.gz] and the other three"
        raise InputError(f"--from {source} is no folder of MNIST's IDX files ({names}); give one that is")
    return files


def _factors(seed: int, split: str, indices: np.ndarray, smallest: float) -> np.ndarray:
    generators = [np.random.default_rng([seed, SPLIT_NUMBERS[split], int(i) + 1]) for i in indices]
    return np.array([generator.uniform(smallest, 1) for generator in generators])
