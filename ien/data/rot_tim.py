"""Where do the rotated Tiny-ImageNet images come from: the official zip, or the published folders?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ien.data.arguments import add_common, count, source_path
from ien.data.prepared import Dataset, open_prepared
from ien.data.trees import Tree, decoded, image_size, is_image, open_tree
from ien.data.turning import disc, draws, flipped, rotated
from ien.data.writing import Block, Plan
from ien.errors import InputError

SUMMARY = "Rot-TIM, with --reflection R2-TIM, from Tiny-ImageNet or from the published folders"
VAL_SPLIT: float | int = 0.1
CLASSES = 100
_ANNOTATIONS = "val/val_annotations.txt"
Listing = list[tuple[str, str]]  # (path in the tree, class)


def opened(
    *, root: Path, name: str | None, reflection: bool, val_split: float | int | None, seed: int, verify: bool
) -> Dataset:
    """See `ien.data.open_dataset`. With `reflection` the default folder is R2-TIM's."""
    name = name or _name(reflection)
    flag = " --reflection" if reflection else ""
    command = f"python -m ien.data rot_tim --from tiny-imagenet-200.zip{flag} --root {root} --name {name}"
    return open_prepared(root, name, VAL_SPLIT if val_split is None else val_split, seed, verify, command)


def plan(source: Path, *, seed: int = 0, classes: int = CLASSES, reflection: bool = False, workers: int = 1) -> Plan:
    """Rot-TIM (with `reflection` R2-TIM) from `source`, a zip or a folder.

    From Tiny-ImageNet in its official layout: the first `classes` by WordNet id; train from train/, test from val/.
    Each image is turned by its own angle, uniform in [0, 2π), bilinear; with `reflection` then left alone, flipped
    horizontally or vertically, a third each; at last masked to the disc of radius (S-1)/2, zero outside.
    From the published folders `{train,val}/<class>/*`: the images as they are. Only the former has val_annotations.txt.
    Raises `InputError` for anything else, and while writing for images that cannot be decoded.
    """
    tree = open_tree(source)
    official = _ANNOTATIONS in tree.sizes
    listings = _official_listings(tree, classes) if official else _published_listings(tree, classes)
    names = tuple(sorted({name for _, name in listings["train"]}))
    side = _square(tree, listings["train"][0][0])

    def blocks(split: str) -> Iterator[Block]:
        paths, labels = [path for path, _ in listings[split]], _labels(listings[split], names)
        for images, indices in decoded(tree, paths, workers, _Exactly(tree, side)):
            made = _turned(images, split, indices, seed, reflection) if official else images
            yield made, labels[indices]

    recipe = {"source": "published folders, as they are", "tree": tree.fingerprint, "classes": classes}
    if official:
        recipe |= _RECIPE | {
            "flips": "none, horizontal, vertical: a third each" if reflection else "none",
            "seed": seed,
        }
    counts = {split: len(listing) for split, listing in listings.items()}
    return Plan(_name(reflection), recipe, names, counts, side, 3, blocks)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m ien.data rot_tim`."""
    parser.add_argument(
        "--from",
        dest="source",
        type=source_path,
        required=True,
        metavar="PATH",
        help="tiny-imagenet-200.zip or a folder",
    )
    parser.add_argument("--classes", type=count, default=CLASSES, metavar="N", help="the first N (default %(default)s)")
    parser.add_argument("--reflection", action="store_true", help="also flip at random: R2-TIM, folder r2_tim")
    add_common(parser, workers=True)


def plan_from(args: argparse.Namespace) -> Plan:
    """The plan that the options ask for."""
    return plan(args.source, seed=args.seed, classes=args.classes, reflection=args.reflection, workers=args.workers)


_RECIPE = {
    "source": "Tiny-ImageNet in its official layout; train from train/, test from val/",
    "angle": "uniform in [0, 2 pi), bilinear",
    "mask": "disc of radius (side - 1) / 2",
}


def _name(reflection: bool) -> str:
    return "r2_tim" if reflection else "rot_tim"


def _turned(images: np.ndarray, split: str, indices: np.ndarray, seed: int, reflection: bool) -> np.ndarray:
    angles, flips = draws(seed, split, indices)
    turned = rotated(images, angles)
    if reflection:
        turned = flipped(turned, flips)
    return turned * disc(images.shape[-1])


class _Exactly:
    """Takes an image as it is, and refuses one of another size."""

    def __init__(self, tree: Tree, side: int) -> None:
        self.tree, self.side = tree, side

    def __call__(self, image: Image.Image, path: str) -> np.ndarray:
        if image.size != (self.side, self.side):
            width, height = image.size
            raise InputError(
                f"{self.tree.source}: {path} is {width}x{height} pixels, the first image {self.side}x{self.side}; "
                f"use image_folder, which resizes"
            )
        return np.asarray(image)


def _official_listings(tree: Tree, classes: int) -> dict[str, Listing]:
    train = [(path, path.split("/")[1]) for path in tree.images if path.startswith("train/") and path.count("/") > 1]
    chosen = _first(tree, {name for _, name in train}, classes)
    test = [(path, name) for path, name in _annotated(tree) if name in chosen]
    if without := sorted(chosen - {name for _, name in test}):
        raise InputError(f"{tree.source}: {_ANNOTATIONS} names no image of {', '.join(without[:3])}; fetch it again")
    return {"train": [(path, name) for path, name in train if name in chosen], "test": test}


def _annotated(tree: Tree) -> Listing:
    """Path and class of every image of val/, in the order of val_annotations.txt."""
    text = tree.bytes_of(_ANNOTATIONS).decode("utf-8", "replace")
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) < 2 or not is_image(row[0]):
            raise InputError(f"{tree.source}: {_ANNOTATIONS} line {number} is no image, tab, class; fetch it again")
    return [(f"val/images/{row[0]}", row[1]) for row in rows]


def _published_listings(tree: Tree, classes: int) -> dict[str, Listing]:
    listings: dict[str, Listing] = {"train": [], "val": []}
    for path in tree.images:
        parts = path.split("/")
        if len(parts) == 3 and parts[0] in listings:
            listings[parts[0]].append((path, parts[1]))
    if not listings["train"] or not listings["val"]:
        raise InputError(
            f"--from {tree.source} is neither Tiny-ImageNet in its official layout ({_ANNOTATIONS}, "
            f"train/<wnid>/images/) nor a published tree ({{train,val}}/<class>/*); use image_folder for other folders"
        )
    chosen = _first(tree, {name for _, name in listings["train"]}, classes)
    kept = {split: [(p, name) for p, name in listing if name in chosen] for split, listing in listings.items()}
    if without := sorted(chosen - {name for _, name in kept["val"]}):
        raise InputError(f"{tree.source}: val/ has no image of {', '.join(without[:3])}")
    return {"train": kept["train"], "test": kept["val"]}


def _first(tree: Tree, names: set[str], classes: int) -> set[str]:
    if classes > len(names):
        raise InputError(f"{tree.source} holds {len(names)} classes; say --classes N with N from 1 to {len(names)}")
    return set(sorted(names)[:classes])


def _labels(listing: Listing, names: tuple[str, ...]) -> np.ndarray:
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[name] for _, name in listing], dtype=np.int64)


def _square(tree: Tree, path: str) -> int:
    width, height = image_size(tree, path)
    if width != height:
        raise InputError(f"{tree.source}: {path} is {width}x{height} pixels; the images must be square")
    return width
