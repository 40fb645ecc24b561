"""`python -m ien.alignment MODEL --size S`: is this network exact under quarter turns of images of this size?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from torch import nn

from ien.alignment.proof import Proof, prove
from ien.alignment.report import Report
from ien.alignment.sizes import exact_sizes
from ien.alignment.subjects import subject
from ien.alignment.tracing import Trace, trace
from ien.data.arguments import count
from ien.errors import InputError, OneLineParser, told_in_one_line

DESCRIPTION = """Name every operation of a network that breaks exact quarter turns of images of one size, prove it with
averaged kernels in float64, and give the nearest sizes at which the whole network is exact. Weights play no part."""
EXAMPLES = """examples:
  python -m ien.alignment configs/rot_tim_r8.yaml                 (at the size that the config trains at)
  python -m ien.alignment configs/rot_tim_r8.yaml --size 64
  python -m ien.alignment runs/quickstart
  python -m ien.alignment torchvision/resnet18 --size 224
  python -m ien.alignment timm/convnext_tiny --size 224 --all
  python -m ien.alignment mymodule:make_network --size 96 --channels 1 --json

exit status: 0 exact, 1 not, 2 the network or the size cannot be used
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = _parser().parse_args(arguments)
    name, model, channels, side = subject(given.model, given.channels)
    side = given.size or side
    if side is None:
        raise InputError(f"{name} is made for images of any size; write which: --size 224")
    found = trace(model, side, channels)
    report = Report(name, found, *_measured(model, found))
    print(json.dumps(report.as_json(), indent=2, allow_nan=False) if given.json else report.as_text(given.all))
    return 0 if report.aligned else 1


def _measured(model: nn.Module, found: Trace) -> tuple[Proof, dict[int, float | None]]:
    """The proof at the given size and, where that is not exact, exact sizes nearby: the nearest ones are measured."""
    proof = prove(model, found)
    if proof.exact:
        return proof, {}
    sizes: dict[int, float | None] = dict.fromkeys(exact_sizes(model, found))
    below, above = [s for s in sizes if s < found.side][-1:], [s for s in sizes if s > found.side][:1]
    for side in below + above:
        sizes[side] = prove(model, trace(model, side, found.channels)).error
    return proof, sizes


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m ien.alignment",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a config, a run folder, BasicCNN, Resnet18, VGG, torchvision/NAME, timm/NAME, or MODULE:FUNCTION",
    )
    parser.add_argument("--size", type=count, metavar="S", help="side of the images (default: the config's)")
    parser.add_argument("--channels", type=count, metavar="C", help="channels of the images (default: the config's, 3)")
    parser.add_argument("--all", action="store_true", help="list every operation on pixels, not only those in question")
    parser.add_argument("--json", action="store_true", help="print everything that was found as JSON")
    return parser


if __name__ == "__main__":
    with told_in_one_line():
        sys.exit(main())
