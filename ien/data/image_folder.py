"""How does any folder of classes become a data set?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ien.data.arguments import add_common, count, share, source_path
from ien.data.prepared import Dataset, open_prepared
from ien.data.trees import Tree, decoded, open_tree
from ien.data.writing import Block, Plan
from ien.errors import InputError

SUMMARY = "any folder of classes, resized to squares"
VAL_SPLIT: float | int = 0.1
SIDE = 64
TEST_SPLIT = 0.2
_SPLITS = ("train", "val", "test")


def opened(
    *, root: Path, name: str | None, reflection: bool, val_split: float | int | None, seed: int, verify: bool
) -> Dataset:
    """See `ien.data.open_dataset`. There is no default folder: `name` is the one given when it was prepared."""
    if not name:
        raise InputError("dataset image_folder needs the name that its set was prepared with: say data.name=NAME")
    command = f"python -m ien.data image_folder --from FOLDER --root {root} --name {name}"
    return open_prepared(root, name, VAL_SPLIT if val_split is None else val_split, seed, verify, command)


def plan(
    source: Path,
    *,
    name: str,
    side: int = SIDE,
    grey: bool = False,
    test_split: float | None = None,
    seed: int = 0,
    workers: int = 1,
) -> Plan:
    """The images of a folder or zip `{train,test}/<class>/…`, `{train,val}/<class>/…`, all three, or only `<class>/…`.

    Of train and val alone, val is the test set; of all three, val is the validation set. Of `<class>/…` a seeded,
    uniformly drawn share `test_split` (default 0.2) is the test set. Each image is cropped about its centre to a square
    and resized to `side` (bilinear, antialiased), RGB or grey.
    Raises `InputError` for other layouts, and while writing for images that cannot be decoded.
    """
    tree = open_tree(source)
    paths = _by_split(tree, test_split, seed)
    names, depth = _classes(tree, paths), _depth(tree)
    number = {name: i for i, name in enumerate(names)}

    def fit(image: Image.Image, path: str) -> np.ndarray:
        return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR))

    def blocks(split: str) -> Iterator[Block]:
        labels = np.array([number[path.split("/")[depth]] for path in paths[split]], dtype=np.int64)
        for images, indices in decoded(tree, paths[split], workers, fit, grey):
            yield images, labels[indices]

    recipe: dict[str, Any] = {
        "source": "a folder of classes",
        "tree": tree.fingerprint,
        "resized": f"centre square to {side}x{side}, bilinear",
        "colour": "grey" if grey else "RGB",
    }
    if depth == 0:
        recipe |= {"test_split": TEST_SPLIT if test_split is None else test_split, "seed": seed}
    counts = {split: len(listing) for split, listing in paths.items()}
    return Plan(name, recipe, names, counts, side, 1 if grey else 3, blocks, _notes(tree))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m ien.data image_folder`."""
    parser.add_argument(
        "--from", dest="source", type=source_path, required=True, metavar="DIR", help="a folder or a zip"
    )
    parser.add_argument("--side", type=count, default=SIDE, metavar="S", help="pixels (default %(default)s)")
    parser.add_argument("--grey", action="store_true", help="one channel instead of three")
    parser.add_argument(
        "--test-split", type=share, metavar="SHARE", help=f"of <class>/… folders (default {TEST_SPLIT})"
    )
    add_common(parser, workers=True)


def plan_from(args: argparse.Namespace) -> Plan:
    """The plan that the options ask for."""
    if not args.name:
        raise InputError("image_folder needs --name NAME: the folder under the root, and data.name of a run")
    return plan(
        args.source,
        name=args.name,
        side=args.side,
        grey=args.grey,
        test_split=args.test_split,
        seed=args.seed,
        workers=args.workers,
    )


def _depth(tree: Tree) -> int:
    """Which part of a path is the class: 1 below train/, 0 without it."""
    return int(any(path.startswith("train/") for path in tree.images))


def _by_split(tree: Tree, test_split: float | None, seed: int) -> dict[str, list[str]]:
    depth = _depth(tree)
    if not tree.images:
        raise InputError(
            f"--from {tree.source} holds no image; expected <class>/<image> or {{train,test}}/<class>/<image>"
        )
    for path in tree.images:
        if path.count("/") <= depth or (depth and path.split("/")[0] not in _SPLITS):
            raise InputError(
                f"{tree.source}: {path} lies in no class; expected {'{train,test}/' if depth else ''}<class>/<image>"
            )
    return _given_splits(tree, test_split) if depth else _drawn_splits(tree, test_split, seed)


def _given_splits(tree: Tree, test_split: float | None) -> dict[str, list[str]]:
    if test_split is not None:
        raise InputError(f"{tree.source} has a train/ folder, so that --test-split has no meaning; leave it out")
    found = {split: [path for path in tree.images if path.startswith(f"{split}/")] for split in _SPLITS}
    if not found["test"]:
        found["test"] = found.pop("val")
    if not found["test"]:
        raise InputError(
            f"{tree.source} has train/ but no images in test/ or val/; add them, or give --from its train/"
        )
    return {split: listing for split, listing in found.items() if listing}


def _drawn_splits(tree: Tree, test_split: float | None, seed: int) -> dict[str, list[str]]:
    images = tree.images
    tested = round(len(images) * (TEST_SPLIT if test_split is None else test_split))
    if not 0 < tested < len(images):
        raise InputError(
            f"--test-split {test_split or TEST_SPLIT} of {len(images)} images leaves none; give another share"
        )
    order = np.random.default_rng([seed, 0]).permutation(len(images))
    return {
        "train": [images[i] for i in sorted(order[tested:])],
        "test": [images[i] for i in sorted(order[:tested])],
    }


def _classes(tree: Tree, paths: dict[str, list[str]]) -> tuple[str, ...]:
    depth = _depth(tree)
    per_split = {split: {path.split("/")[depth] for path in listing} for split, listing in paths.items()}
    names = per_split["train"]
    for split, found in per_split.items():
        if unknown := sorted(found - names):
            raise InputError(f"{tree.source}: class {unknown[0]!r} of the {split} images has no training image")
    if len(names) < 2:
        raise InputError(f"{tree.source} holds {len(names)} class; at least two are needed")
    return tuple(sorted(names))


def _notes(tree: Tree) -> tuple[str, ...]:
    images = set(tree.images)
    others = [path for path in tree.paths if path not in images]
    return (f"left out {len(others)} files that are no images (the first: {others[0]})",) if others else ()
