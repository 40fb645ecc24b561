"""`python -m ien.data <name> …`: prepare a data set."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ien.data import DATASETS
from ien.data.writing import Plan, already_prepared, write_prepared
from ien.errors import OneLineParser, told_in_one_line

EXAMPLES = """examples:
  python -m ien.data rot_mnist --from mnist_rotation_new.zip
  python -m ien.data rot_mnist --from path/to/MNIST/raw          (built from plain MNIST by the same protocol)
  python -m ien.data rot_mnist --download
  python -m ien.data scale_mnist --from path/to/MNIST/raw
  python -m ien.data rot_tim --from tiny-imagenet-200.zip
  python -m ien.data rot_tim --from tiny-imagenet-200.zip --reflection
  python -m ien.data rot_tim --from ImageNet-rot-masked           (the published folders, taken as they are)
  python -m ien.data image_folder --from my_photos --side 64 --name photos
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare one data set as the command line says."""
    args = _parser().parse_args(argv)
    plan = DATASETS[args.dataset].plan_from(args)
    if plan is None:
        print(f"{args.dataset} is embedded: nothing to prepare, use it with dataset={args.dataset}")
        return
    _prepare(plan, args.root, args.name or plan.name, args.force)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m ien.data",
        description="Prepare a data set under --root (default: data).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(dest="dataset", metavar="{" + ",".join(DATASETS) + "}", required=True)
    for name, module in DATASETS.items():
        module.add_arguments(names.add_parser(name, help=module.SUMMARY, description=module.SUMMARY))
    return parser


def _prepare(plan: Plan, root: Path, name: str, force: bool) -> None:
    for note in plan.notes:
        print(note)
    if not force and already_prepared(plan, root, name):
        print(f"{root / name} is already prepared with this recipe: nothing to do (--force makes it again)")
        return
    began = time.monotonic()
    total = sum(plan.counts.values())
    shape = f"{plan.channels}x{plan.side}x{plan.side}"
    print(f"preparing {root / name}: {_counts(plan)} images of {shape}, {len(plan.classes)} classes", flush=True)
    with tqdm(total=total, unit=" images", disable=not sys.stderr.isatty(), leave=False) as bar:
        meta = write_prepared(plan, root, name, bar.update)
    digest = meta["sha256"]["train_images.npy"][:12]
    seconds = time.monotonic() - began
    print(f"prepared {root / name}: {_counts(plan)} images, train_images sha256 {digest}, {seconds:.1f} s")


def _counts(plan: Plan) -> str:
    return " + ".join(f"{count:,} {split}" for split, count in plan.counts.items())


if __name__ == "__main__":
    with told_in_one_line():
        try:
            main()
        except KeyboardInterrupt:
            print("interrupted: nothing was changed", file=sys.stderr)
            sys.stderr.flush()
            # Decoding threads may still be in the middle of an image; nothing is left that they could spoil.
            os._exit(130)
