"""What do the measured rows say together? (Markdown, from their files alone)"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims import CLAIMS
from benchmarks.training import ROOT
from ien.tracking import write_text

PAGE = ROOT / "docs" / "performance.md"
COMMITTED = ROOT / "docs" / "results" / "performance"
BLOCK = re.compile(r"<!-- benchmarks -->\n(.*?)<!-- end -->\n", re.DOTALL)
Content = dict[str, Any]


def write(out: Path) -> str:
    """The tables of all rows in a folder; of the committed ones they stand in docs/performance.md."""
    text = markdown(read(out))
    if out.resolve() == COMMITTED and PAGE.exists():
        write_text(PAGE, BLOCK.sub(lambda _: f"<!-- benchmarks -->\n{text}<!-- end -->\n", PAGE.read_text()))
    return text


def read(out: Path) -> list[Content]:
    """The rows there are, of all devices."""
    return [json.loads(path.read_text()) for path in sorted(out.glob("*/*.json"))]


def markdown(rows: Sequence[Content]) -> str:
    """A section for each claim: its goal, and each row on each device; `not measured` where there is none."""
    devices = list(dict.fromkeys(row["device"] for row in rows)) or ["no device"]
    parts = []
    for name, claim in CLAIMS.items():
        parts += [f"### {claim.question}", f"Goal: {claim.goal}.", ""]
        parts += ["| | device | measured | ratio (quartiles) | memory |", "|---|---|---|---|---|"]
        for row in claim.rows:
            for device in devices:
                found = [one for one in rows if (one["claim"], one["row"], one["device"]) == (name, row.name, device)]
                parts.append(_line(row.name, device, found[0] if found else None))
        parts.append("")
    return "\n".join([*parts, _made(rows), ""])


def _line(name: str, device: str, row: Content | None) -> str:
    if row is None:
        return f"| {name} | {device} | not measured | | |"
    sides = "; ".join(f"{side} {_ms(one['ms'])}" for side, one in row["sides"].items())
    if "floor_ms" in row:
        sides += "; floor: " + ", ".join(f"{floor} {_ms(ms)}" for floor, ms in row["floor_ms"].items())
    if "peak_tflops" in row:
        sides += f"; {row['reached_tflops']['median']:g} of {row['peak_tflops']['median']:g} TFLOP/s"
    if "construction_s" in row:
        sides += "; construction " + ", ".join(f"{side} {s:g} s" for side, s in row["construction_s"].items())
    if "extra_s" in row:
        return f"| {name} | {device} | {sides} | {_ratio(row['extra_s'])} s more | |"
    ratio = "; ".join(_ratio(one["time"]) for one in row["ratio"].values())
    memory = "; ".join(f"{one['memory']:.2f}" for one in row["ratio"].values() if one["memory"]) or "not measured"
    return f"| {name}{_size(row)} | {device} | {sides} | {ratio} | {memory} |"


def _size(row: Content) -> str:
    return f", batch {row['images']}" if "images" in row else ""


def _ms(ms: Content) -> str:
    return f"{ms['median']:,.0f} ms" if ms["median"] >= 100 else f"{ms['median']:.3g} ms"


def _ratio(ratio: Content) -> str:
    return f"**{ratio['median']:.2f}** ({ratio['low']:.2f} … {ratio['high']:.2f})"


def _made(rows: Sequence[Content]) -> str:
    said = {
        f"{row['device']}, {row['threads']} threads, torch {row['packages']['torch']}, commit {_commit(row['git'])}"
        for row in rows
    }
    return "\n".join(["Measured on:", "", *(f"- {one}" for one in sorted(said))]) if said else "Nothing was measured."


def _commit(git: Content | None) -> str:
    return "unknown" if git is None else git["commit"][:7] + ("" if git["clean"] else " (changed)")
