"""How accurate and how equivariant are trained networks? (`python -m ien.evaluate RUN …`: figures, pictures, a page)

report.json    every figure
report.html    the same for people, in one file
*.png          the pictures of the page
tensorboard/   the same for TensorBoard; curves over the angle have degrees for steps, over the scale per cent
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ien import build, distributed, environment
from ien.config import hyperparameters
from ien.distributed import Processes
from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.groups import Group
from ien.report.comparison import compared, labels
from ien.report.figures import LOCAL_IMAGES, MAP_IMAGES, Plan, Subject, common_group, measured
from ien.report.page import page
from ien.report.subjects import Network, networks_of, weights_of
from ien.tracking import progress, write_json, write_report, write_text

FORMAT = 1  # of report.json
JSON, HTML = "report.json", "report.html"
_SHORT = 24  # signs of a label that a picture's title has room for
Report = dict[str, Any]
Pictures = dict[str, tuple[bytes, str]]  # by file name: PNG and caption


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    with told_in_one_line():
        given = _parser().parse_args(arguments)
        try:
            with distributed.processes(given.device) as processes:
                print(run(given, processes))
        except KeyboardInterrupt:
            print("\ninterrupted; nothing of the report was written", file=sys.stderr)
            sys.exit(130)


def run(given: argparse.Namespace, processes: Processes) -> str:
    """Load, measure, draw and write; returns what the screen gets. Raises `InputError`, before anything is measured."""
    if not given.no_pictures:
        _refuse_without_matplotlib()
    networks = _networks(given, processes.device)
    out = given.out or (Path(networks[0].origin["run"]) if given.runs and len(networks) == 1 else Path()) / "report"
    _refuse_foreign(out, [network.origin for network in networks])
    plan = _plan(networks, given)
    beside = [_steerable(networks[0], plan, given.split)] if given.peer else []
    report = _report(networks, beside, plan, given.split, processes)
    pictures = {} if given.no_pictures else _pictures(report, networks, plan.group, given)
    _write(out, report, pictures)
    return _told(report, out)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m ien.evaluate",
        description="Measure how accurate and how equivariant trained networks are: figures, pictures and a page.",
        epilog="example: python -m ien.evaluate runs/beta_1 runs/beta_0 --out compared",
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folders of finished runs; or data.key=value, where data are"
    )
    parser.add_argument("--config", type=Path, help="with --weights: the settings of bare weights")
    parser.add_argument("--weights", type=Path, help="a state_dict or checkpoint (.pt, .safetensors)")
    parser.add_argument(
        "--images", default=2000, type=_count, metavar="N", help="how many (default 2000; 0 or all: all)"
    )
    parser.add_argument("--split", default="test", choices=("test", "val"), help="default: test")
    parser.add_argument(
        "--mirrored", action="store_true", help="mirrored copies too; groups with reflections have them"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/report for one run, else report")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: a GPU where there is one"
    )
    parser.add_argument("--no-pictures", action="store_true", help="figures and page alone (needs no matplotlib)")
    parser.add_argument(
        "--image", default=0, type=int, metavar="I", help="which image the pictures show (default: the first)"
    )
    parser.add_argument(
        "--peer", choices=("escnn",), help="a steerable network of the same group beside them, untrained"
    )
    return parser


def _count(text: str) -> int:
    if text == "all":
        return 0
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of images; write 0, all, or a whole number")
    return int(text)


def _networks(given: argparse.Namespace, device: torch.device) -> list[Network]:
    overrides = [word for word in given.runs if "=" in word]
    given.runs = [Path(word) for word in given.runs if "=" not in word]
    if bool(given.config) != bool(given.weights) or bool(given.runs) == bool(given.weights):
        raise InputError("give the folders of finished runs, or --config FILE and --weights FILE")
    if given.weights:
        return [weights_of(given.config, given.weights, device, overrides)]
    return networks_of(given.runs, device, overrides)


def _plan(networks: Sequence[Network], given: argparse.Namespace) -> Plan:
    """What is measured, the same of all networks."""
    available = min(len(network.split(given.split)) for network in networks)
    if not available:
        raise InputError(f"--split {given.split}: there are no such images; write --split test")
    group = common_group([build.make_group(network.settings) for network in networks])
    if not 0 <= given.image < available:
        raise InputError(f"--image {given.image}: there are {available} images; write 0 to {available - 1}")
    return Plan(group, min(given.images or available, available), given.mirrored or group.reflection)


def _subject(network: Network, split: str) -> Subject:
    whole = network.split(split)
    return Subject(network.tapped, lambda limit: network.images(whole, limit), len(whole), network.data.classes)


def _steerable(beside: Network, plan: Plan, split: str) -> Subject:
    """An untrained steerable network that sees the same images."""
    from ien.report import peer

    own = _subject(beside, split)
    image = next(iter(own.images(1)))[0]
    tapped = peer.steerable(plan.group, len(own.classes), image.shape[1], seed=beside.settings.run.seed)
    return Subject(tapped.to(image.device).eval(), own.images, own.total, own.classes)


def _report(
    networks: Sequence[Network], beside: Sequence[Subject], plan: Plan, split: str, processes: Processes
) -> Report:
    made = environment.describe(processes.device)
    del made["variables"]
    runs = [_run(network, label, plan, split) for network, label in zip(networks, _labels(networks), strict=True)]
    runs += [_peer(subject, plan, networks[0].settings.run.seed) for subject in beside]
    return {
        "format": FORMAT,
        "origin": [network.origin for network in networks],
        "made": {"time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), **made},
        "measured": {
            "dataset": networks[0].data.name,
            "split": split,
            "images": plan.images,
            "of": len(networks[0].split(split)),
            "map_images": min(plan.images, MAP_IMAGES),
            "local_images": min(plan.images, LOCAL_IMAGES),
            "group": plan.group.name,
            "scales": list(plan.group.scales),
            "mirrored": plan.mirrored,
        },
        "runs": runs,
        "comparison": compared(runs),
    }


def _labels(networks: Sequence[Network]) -> list[str]:
    return labels([hyperparameters(network.settings) for network in networks])


def _run(network: Network, label: str, plan: Plan, split: str) -> dict[str, Any]:
    """What the report says of one network."""
    subject = _subject(network, split)
    said = {"name": network.name, "label": label, "weights_sha256": network.digest}
    return said | {"settings": hyperparameters(network.settings)} | _measured(network.name, subject, plan)


def _peer(subject: Subject, plan: Plan, seed: int) -> dict[str, Any]:
    name = f"escnn {plan.group.name}"
    said = {"name": name, "label": "steerable, untrained", "untrained": True, "weights_sha256": None}
    return said | {"settings": {"peer": "escnn", "run.seed": seed}} | _measured(name, subject, plan)


def _measured(name: str, subject: Subject, plan: Plan) -> dict[str, Any]:
    parameters = sum(p.numel() for p in subject.tapped.parameters())
    numbers = measured(subject, plan, lambda what, batches: progress(f"{name}: {what}", batches))
    return {"parameters": parameters, **numbers}


def _pictures(report: Report, networks: Sequence[Network], group: Group, given: argparse.Namespace) -> Pictures:
    """The curves of all runs, and for the first run of each row what its layers see."""
    from ien.report import gallery, pictures, plots

    runs = {run["name"]: run for run in report["runs"]}
    curves = plots.curves(report["comparison"], runs, report["measured"])
    shown = {name: (picture, plots.CAPTIONS[name]) for name, picture in curves.items()}
    first = {row["runs"][0]: row["label"] for row in report["comparison"][: plots.MOST]}
    for network in networks:
        if network.name not in first:
            continue
        tapped, name = network.tapped, _titled(network.name, first[network.name])
        image = _image(network, given.split, given.image)
        view = pictures.draw_stabilised(name, gallery.stabilised(tapped, image, group))
        shown[f"stabilised_{_slug(network.name)}.png"] = (view, f"{name}: {pictures.STABILISED}")
        if (kernels := gallery.first_filters(tapped)) is not None:
            drawn = pictures.draw_filters(name, kernels)
            shown[f"filters_{_slug(network.name)}.png"] = (drawn, f"{name}: {pictures.FILTERS}")
    return shown


def _titled(name: str, label: str) -> str:
    return f"{name} ({label})" if len(label) <= _SHORT else name


def _image(network: Network, split: str, place: int) -> Any:
    return next(iter(network.images(network.split(split).take(np.array([place])))))[0]


def _write(out: Path, report: Report, pictures: Pictures) -> None:
    """The figures first: whatever happens later, the folder then says whose it is."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / JSON, report)
        for stale in out.glob("*.png"):
            stale.unlink()
        for name, (picture, _) in pictures.items():
            (out / name).write_bytes(picture)
        write_text(out / HTML, page(report, pictures))
        for run in report["runs"]:
            write_report(out / "tensorboard" / _slug(run["name"]), _scalars(run), {})
        write_report(out / "tensorboard", [], {name: picture for name, (picture, _) in pictures.items()})
    except OSError as error:
        raise InputError(f"cannot write into {out}: {error.strerror}; mend that, or give another --out") from error


def _scalars(run: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """What TensorBoard gets: (name, value, step); steps are degrees of a turn, per cent of a scale."""
    for row in run["square"]["elements"]:
        kind, step = "mirrored" if row["mirrored"] else "turned", round(row["degrees"])
        if row["scale"] != 1:
            if row["degrees"] or row["mirrored"]:
                continue
            kind, step = "scaled", round(100 * row["scale"])
        for name in ("accuracy", "agreement", "ece", "nll", "logit_error"):
            if row[name] is not None:
                yield f"{kind}/{name}", row[name], step
    for over in ("over_orbit", "over_scales"):
        for name, value in (run["square"][over] or {}).items():
            yield f"{over}/{name}", value, 0
    for tap, found in run["taps"].items():
        for name in ("mean_error", "mean_floor", "rms", "varying", "dead_channels"):
            if found[name] is not None:
                yield f"{name}/{tap}", found[name], 0


def _told(report: Report, out: Path) -> str:
    lines = []
    for run in report["runs"]:
        orbit, parts = run["square"]["over_orbit"], {**run["taps"], "logits": run["logits"]}
        bad = [f"{name} ({part['verdict']})" for name, part in parts.items() if part["verdict"] != "alive"]
        numbers = f"accuracy {100 * run['square']['accuracy']:.2f} %, over the orbit {100 * orbit['accuracy']:.2f} %"
        if scales := run["square"]["over_scales"]:
            numbers += f", over scales {100 * scales['accuracy']:.2f} %"
        agreement = f"agreement over {report['measured']['group']} {100 * orbit['agreement_group']:.1f} %"
        lines.append(f"{run['name']} ({run['label']}): {numbers}, {agreement}")
        lines += [f"  warning: equivariant because they say nothing: {', '.join(bad)}"] if bad else []
    return "\n".join([*lines, f"the report lies in {out / HTML}"])


def _refuse_foreign(out: Path, origin: list[dict[str, str]]) -> None:
    """Raises `InputError` where the folder holds a report of something else, or other files."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    there = sorted(islice(out.iterdir(), 1)) if out.exists() else []
    try:
        before = json.loads((out / JSON).read_text())["origin"] if there else origin
    except FileNotFoundError as error:
        raise InputError(
            f"{out} holds other files ({there[0].name} …); give an empty or new folder as --out"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out / JSON} is no report of this program; give another folder as --out") from error
    if before != origin:
        whose = ", ".join(str(one.get("run") or one.get("weights")) for one in before)
        raise InputError(f"{out} holds the report of {whose}; give another folder as --out")


def _refuse_without_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            'the pictures need matplotlib; type: pip install -e ".[report]", or add --no-pictures'
        ) from error


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


if __name__ == "__main__":
    main()
