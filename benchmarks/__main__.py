"""`python -m benchmarks`: measure what is still missing, the most telling rows first"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import page
from benchmarks.claims import CLAIMS, Row
from benchmarks.page import COMMITTED
from benchmarks.timing import Effort
from ien import environment
from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.tracking import write_json

EXAMPLES = f"""claims:
{chr(10).join(f"  {name:<10} {claim.question}" for name, claim in CLAIMS.items())}

examples:
  python -m benchmarks --minutes 9
  python -m benchmarks step per_image --out /tmp/here
  python -m benchmarks --list

A row that this kind of device has is not measured again: delete its file first.
exit status: 0 all rows are there, 75 some are left, 1 a row failed, 2 nothing could be begun
"""
LEFT = 75
SMOKE = Effort(repetitions=2, seconds=0.0, warm_up=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    with told_in_one_line():
        given = _parser().parse_args(arguments)
        _refuse(given)
        device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = given.out / _slug(_device_name(device))
        wanted = [(name, row) for name in given.names or CLAIMS for row in CLAIMS[name].rows]
        paths = {(name, row.name): folder / f"{name}_{_slug(row.name)}.json" for name, row in wanted}
        if given.list:
            print("\n".join(_listed(name, row, paths[name, row.name]) for name, row in wanted))
            return
        effort = dataclasses.replace(SMOKE if given.smoke else Effort(given.repetitions), published=given.published)
        deadline, failed = time.monotonic() + 60 * given.minutes, False
        for name, row in wanted:
            if not paths[name, row.name].exists() and time.monotonic() < deadline:
                failed |= not _measured(name, row, device, paths[name, row.name], given.smoke, effort)
        print(page.write(given.out))
        left = sum(not path.exists() for path in paths.values())
    sys.exit(1 if failed else LEFT if left else 0)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m benchmarks",
        description="Measure how fast training is beside what a user would take instead, and write it down.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="CLAIM", help="these alone (default: all)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many minutes")
    parser.add_argument(
        "--out", type=Path, default=COMMITTED, help="where rows lie (default: docs/results/performance)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument(
        "--repetitions", type=int, default=15, metavar="N", help="of each side (default: 15; a CPU may want fewer)"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and two repetitions: tries the harness")
    parser.add_argument("--published", type=Path, metavar="PATH", help="a clone of the published code, to be timed too")
    parser.add_argument("--list", action="store_true", help="the rows, and whether this kind of device has them")
    return parser


def _refuse(given: argparse.Namespace) -> None:
    for name in given.names:
        if name not in CLAIMS:
            raise InputError(f"{name!r} is no claim; write one or several of {', '.join(CLAIMS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; leave it out, or write --device cpu")
    if given.repetitions < 3:
        raise InputError(f"--repetitions: {given.repetitions} has no spread; write 3 or more")
    if given.smoke and given.out == COMMITTED:
        raise InputError("--smoke: its figures mean nothing, and must not lie among real ones; give another --out")


def _measured(name: str, row: Row, device: torch.device, path: Path, smoke: bool, effort: Effort) -> bool:
    """Whether the row could be measured; its file says with what."""
    began = time.monotonic()
    try:
        found = row.measure(device, effort, smoke)
    except InputError as error:
        print(f"{name}, {row.name}: not measured: {error}", file=sys.stderr, flush=True)
        return True
    except RuntimeError as error:
        print(f"error: {name}, {row.name}: {[*str(error).splitlines(), ''][0]}", file=sys.stderr, flush=True)
        return False
    made = environment.describe(device)
    about = {key: made[key] for key in ("git", "device", "cpus", "threads", "packages", "cuda", "python")}
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = round(time.monotonic() - began, 1)
    write_json(path, {"claim": name, "row": row.name, "smoke": smoke, **about, "seconds": seconds, **found})
    print(f"{name}, {row.name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return True


def _device_name(device: torch.device) -> str:
    return str(environment.describe(device)["device"])


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _listed(name: str, row: Row, path: Path) -> str:
    state = f"measured {json.loads(path.read_text())['git']}" if path.exists() else "not measured"
    return f"{name:<10} {row.name:<28} {state}"


if __name__ == "__main__":
    main()
