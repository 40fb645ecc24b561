"""How is a report told on a page? (one self-contained HTML file: pictures inside, nothing from the network)"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ien.report.activity import DEAD_SHARE, VARYING_SHARE

Report = Mapping[str, Any]  # what report.json holds
Run = Mapping[str, Any]
_SPACE = "\u00a0"  # that does not break
_PERCENT = (
    "accuracy", "accuracy over the orbit", "lowest accuracy", "averaged over the group", "agreement over the group",
    "calibration error",
)  # fmt: skip

_CSS = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b626b; --line: #d9dce0; --back: #ffffff; --card: #f6f7f8;
  --warn: #a23b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --soft: #a2a9b2; --line: #3a3f45; --back: #16181b;
  --card: #202327; --warn: #ff9d5c; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 68rem;
  margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.8rem; } h3 { font-size: 1.02rem; }
p { max-width: 46rem; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; margin: .4rem 0 1.4rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .55rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; max-width: 7.5rem; }
figure { margin: 1.4rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.bad { color: var(--warn); font-weight: 600; } code { background: var(--card); padding: .1em .3em; border-radius: 4px; }
dt { font-weight: 600; margin-top: .7rem; } dd { margin: 0; max-width: 46rem; }
"""


def page(report: Report, pictures: Mapping[str, tuple[bytes, str]]) -> str:
    """The whole page; `pictures` by file name: PNG and caption."""
    scaled = any(run["square"]["over_scales"] for run in report["runs"])
    title = "Evaluation of " + ", ".join(run["name"] for run in report["runs"])
    parts = [
        f"<h1>{escape(title)}</h1>",
        _introduction(report),
        "<h2>In short</h2>",
        *(_in_short(run, report) for run in report["runs"]),
        _comparison(report) if len(report["runs"]) > 1 else "",
        "<h2>Accuracy over the angle, and over the scale</h2>" if scaled else "<h2>Accuracy over the angle</h2>",
        _what_is_seen(report),
        *_figures(pictures, ("accuracy", "agreement", "scales")),
        *(_per_angle(run) for run in report["runs"]),
        "<h2>Equivariance of each layer</h2>",
        *_figures(pictures, ("layers",)),
        *(_layers(run) for run in report["runs"]),
        _reading_layers(),
        *(["<h2>What the layers see</h2>"] if _figures(pictures, ("stabilised", "filters")) else []),
        *_figures(pictures, ("stabilised", "filters")),
        "<h2>Accuracy by class</h2>",
        _per_class(report),
        "<h2>How it was measured</h2>",
        _definitions(report),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_CSS}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _introduction(report: Report) -> str:
    what, made = report["measured"], report["made"]
    split = "test" if what["split"] == "test" else "held-out"
    which = f"all {what['images']:,}" if what["images"] == what["of"] else f"{what['images']:,} of {what['of']:,}"
    told = (
        f"{what['dataset']}, {which} {split} images; the group {what['group']}; "
        f"{made['device']}, torch {made['packages'].get('torch')}; {made['time']}."
    )
    return f'<p class="soft">{escape(told)}</p>'


def _in_short(run: Run, report: Report) -> str:
    """One paragraph on a run, and a warning where a layer is equivariant only because it says nothing."""
    orbit, group = run["square"]["over_orbit"], report["measured"]["group"]
    turned = [row for row in run["square"]["elements"] if row["scale"] == 1]
    worst = min(turned, key=lambda row: row["accuracy"])
    told = (
        f" ({run['label']}): accuracy {_percent(run['square']['accuracy'])} on the images as they are, "
        f"{_percent(orbit['accuracy'])} on average over all angles, {_percent(worst['accuracy'])} at worst "
        f"({worst['element']}). {_over_scales(run)}{_percent(orbit['agreement_group'])} of the images get one answer "
        f"from all elements of {group}. {_range_of_errors(run)}"
    )
    return f"<p><b>{escape(run['name'])}</b>{escape(told)} {_warning(run)}</p>"


def _over_scales(run: Run) -> str:
    if not (over := run["square"]["over_scales"]):
        return ""
    scales = [row for row in run["square"]["elements"] if not row["degrees"] and not row["mirrored"]]
    worst = min(scales, key=lambda row: row["accuracy"])
    low, high = (of(row["scale"] for row in scales) for of in (min, max))
    return (
        f"Over the scales from {low:g} to {high:g} it is {_percent(over['accuracy'])} on average, "
        f"{_percent(worst['accuracy'])} at worst ({worst['element']}). "
    )


def _range_of_errors(run: Run) -> str:
    alive = [tap["mean_error"] for tap in run["taps"].values() if tap["verdict"] == "alive"]
    errors = sorted(error for error in alive if error is not None)
    return (
        f"Its layers' relative equivariance error is {_number(errors[0])} to {_number(errors[-1])}." if errors else ""
    )


def _warning(run: Run) -> str:
    bad = [f"{name} is {tap['verdict']}" for name, tap in run["taps"].items() if tap["verdict"] != "alive"]
    if run["logits"]["verdict"] == "collapsed":
        bad.append("the logits are collapsed")
    elif run["logits"]["verdict"] != "alive":
        bad.append("every image gets the same class, so that agreement says nothing")
    return f'<span class="bad">No merit: {escape("; ".join(bad))}.</span>' if bad else "No layer is collapsed."


def _comparison(report: Report) -> str:
    figures = list(report["comparison"][0]["figures"])
    rows = [
        [f"{row['label']} ({_seeds(row['n'])})"] + [_spread(row["figures"][name], name in _PERCENT) for name in figures]
        for row in report["comparison"]
    ]
    return "<h2>Side by side</h2>" + _table(
        ["", *figures],
        rows,
        "Runs that differ in the seed alone are one row: mean ± standard deviation (n − 1) over the seeds. "
        "Averaged over the group: the accuracy of the mean probabilities over its elements (test-time averaging, at as "
        "many forwards). The calibration error is that of all answers over the orbit; layers that are not alive are "
        "left out of means.",
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _what_is_seen(report: Report) -> str:
    corners = max(run["corner_power"] for run in report["runs"])
    disc = any(run["disc"] for run in report["runs"])
    text = (
        "<p>Multiples of 90° and mirrors move pixels; every other angle is resampled bilinearly about the centre, with "
        "zeros outside. At those angles a network also meets the blur of interpolation and, where the corners of the "
        f"images are not empty, black corners. Here {_percent(corners)} of the images' power lies in the corners"
    )
    if disc:
        text += ": the table also gives the accuracy with all but the disc black at every angle, 0° too."
    else:
        text += ": they are as good as empty and play no part."
    if report["measured"].get("scales"):
        text += " Scaled images are resampled with anti-aliasing about the centre, with zeros outside."
    return text + "</p>"


def _per_angle(run: Run) -> str:
    rows = []
    for place, row in enumerate(run["square"]["elements"]):
        disc = [_percent(run["disc"]["elements"][place]["accuracy"])] if run["disc"] else []
        name = row["element"] + (" *" if row["in_group"] else "")
        numbers = [_percent(row["accuracy"]), *disc, _percent(row["agreement"]), _number(row["logit_error"])]
        rows.append([name, *numbers, _percent(row["ece"]), _number(row["nll"])])
    head = ["moved by", "accuracy", *(["in the disc"] if run["disc"] else []), "as at 0°", "logit error"]
    table = _table([*head, "calibration error", "nll (nats)"], rows, "* an element of the group")
    return f"<details><summary>{escape(run['name'])}: every element in figures</summary>{table}</details>"


def _layers(run: Run) -> str:
    rows = [[name, *_layer_cells(tap, tap["mean_error"], tap["mean_floor"])] for name, tap in run["taps"].items()]
    logits = run["logits"]
    own = [row["logit_error"] for row in run["square"]["elements"][1:] if row["in_group"]]
    error = None if None in own else sum(own) / len(own)
    rows.append(["logits", *_layer_cells(logits, error, None)])
    head = [
        "layer",
        "map",
        "error",
        "… of what varies",
        "floor",
        "rms",
        "spatial variance",
        "varying",
        "dead",
        "verdict",
    ]
    table = _table([*head, "local, per degree", "local, per pixel"], rows, f"{run['name']}: {run['label']}")
    elements = _table(
        ["layer", *next(iter(run["taps"].values()))["elements"]],
        [[name, *(_number(one["error"]) for one in tap["elements"].values())] for name, tap in run["taps"].items()],
        "The relative error by element",
    )
    local = _table(
        ["output", "rotation: LEE (per rad²)", "translation: LEE (per pixel²)"],
        [[name, *(_number(one[motion]["lee"]) for motion in ("rotation", "translation"))] for name, one in _local(run)],
        "The local error as Gruver et al. define it",
    )
    more = f"<details><summary>by element, and the local errors</summary>{elements}{local}</details>"
    return table + more


def _layer_cells(found: Mapping[str, Any], error: float | None, floor: float | None) -> list[str]:
    turn, shift = (found["local"][motion]["relative"] for motion in ("rotation", "translation"))
    scale = found["varying"] ** 0.5
    return [
        f"{found['side']}×{found['side']}" if found["side"] > 1 else "–",
        _number(error),
        _number(found.get("mean_error_of_varying", error / scale if error is not None and scale else None)),
        _number(floor) if floor is not None else "–",
        _number(found["rms"]),
        _number(found["spatial_variance"]) if found["side"] > 1 else "–",
        _percent(found["varying"]),
        _percent(found["dead_channels"]),
        found["verdict"],
        _number(None if turn is None else turn / 57.29577951),
        _number(shift),
    ]


def _local(run: Run) -> Iterable[tuple[str, Mapping[str, Any]]]:
    yield from ((name, tap["local"]) for name, tap in run["taps"].items())
    yield "logits", run["logits"]["local"]
    yield "probabilities", run["logits"]["local_probabilities"]


def _reading_layers() -> str:
    return (
        '<p class="soft">0 is a layer that commutes with the group; about 1.4 are maps that have nothing to do with '
        "one another. The floor is what interpolation alone costs: an error near it cannot be told from none. A layer "
        f"is <i>collapsed</i> where at least {_percent(DEAD_SHARE)} of its channels are constant over all images and "
        f"pixels, or less than {100 * VARYING_SHARE:g}{_SPACE}% of its mean square varies; <i>flat</i> where less than "
        "that varies within an image. Such layers commute with everything, and it is no merit. The last two columns "
        "are the local error relative to the size of the output, for one degree and for one pixel of the image.</p>"
    )


def _per_class(report: Report) -> str:
    runs = report["runs"]
    classes = list(runs[0]["square"]["per_class"])
    rows = [[name, *(_percent(run["square"]["per_class"].get(name)) for run in runs)] for name in classes]
    table = _table(["class", *(run["name"] for run in runs)], rows, "On the images as they are")
    return table if len(classes) <= 30 else f"<details><summary>{len(classes)} classes</summary>{table}</details>"


def _definitions(report: Report) -> str:
    what = report["measured"]
    scaled = " Scaled views are compared in the coarser of their frames, on what both show." * bool(what.get("scales"))
    terms = {
        "relative equivariance error": "‖f(g·x) − g·f(x)‖ / ‖f(x)‖ of the pooled maps, over "
        f"{what['map_images']:,} images, for every element g of {what['group']} but the identity, in float32 with TF32 "
        f"off; turns that resample are compared inside the inscribed disc.{scaled} “Of what varies”: divided by "
        "√varying, so that constant means of the channels make no layer look better.",
        "floor": "‖g⁻¹·g·f(x) − f(x)‖ / ‖f(x)‖, the mean over the elements; 0 where all of them move pixels.",
        "varying, dead": "The share of the mean square that is variance about each channel's mean, over images and "
        "pixels; the share of pooled channels that are constant.",
        "logit error": "‖z(g·x) − z(x)‖ / ‖z(x)‖ over all images.",
        "calibration error": "The expected calibration error with 15 bins of equal width (Guo et al. 2017, arXiv "
        "1706.04599).",
        "local error (LEE)": "E‖L f‖²/dim f with L f(x) = d/dt g(−t)·f(g(t)·x) at t = 0 (Gruver et al., arXiv "
        f"2210.02984), over {what['local_images']:,} images, in float64, in forward mode; slopes are central "
        "differences; maps on the pixels whose neighbours are all in the frame; rotation per radian, translation per "
        "image pixel (the mean of both directions).",
        "every figure": "is in report.json beside this file.",
    }
    return "<dl>" + "".join(f"<dt>{term}</dt><dd>{escape(said)}</dd>" for term, said in terms.items()) + "</dl>"


def _figures(pictures: Mapping[str, tuple[bytes, str]], kinds: Sequence[str]) -> list[str]:
    return [
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for kind in kinds
        for name, (picture, caption) in pictures.items()
        if name.startswith(kind)
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    def cell(text: str) -> str:
        bad = ' class="bad"' if text in ("collapsed", "flat", "one class") else ""
        return f"<td{bad}>{escape(text)}</td>"

    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "\n".join(f"<tr>{''.join(cell(text) for text in row)}</tr>" for row in rows)
    return (
        f'<p class="soft">{escape(caption)}</p><div class="scroll"><table><thead><tr>{top}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _spread(figure: Mapping[str, float | None], percent: bool) -> str:
    mean, std = figure["mean"], figure["std"]
    if mean is None:
        return "–"
    if percent:
        return f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "") + f"{_SPACE}%"
    return _number(mean) + (f" ± {_number(std)}" if std is not None else "")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}{_SPACE}%"


def _number(value: float | None) -> str:
    """Three digits that say something."""
    if value is None:
        return "n/a"
    return f"{value:.3f}" if 0.001 <= abs(value) < 100 else "0" if value == 0 else f"{value:.2g}"
