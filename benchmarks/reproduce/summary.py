"""What do a table's cells say together? (from their files alone: Markdown, and where it stands)"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.reproduce import savings
from benchmarks.reproduce.cells import ROOT, Content
from benchmarks.reproduce.tables import TABLES
from ien.tracking import write_text

RESULTS = ROOT / "docs" / "results.md"
_COMMITTED = ROOT / "docs" / "results" / "reproduce"
NOT_RUN = "not run"
Rows = dict[str, list[Content]]  # variant → its cells, by seed

COLUMNS: dict[str, Callable[[Content], float | None]] = {
    "test error %": lambda cell: 100 * (1 - cell["test"]["accuracy"]),
    "over all angles %": lambda cell: 100 * (1 - cell["figures"]["accuracy over the orbit"]),
    "one answer over the group %": lambda cell: 100 * cell["figures"]["agreement over the group"],
    "error of layers": lambda cell: cell["figures"]["error of living layers"],
    "first … last layer": lambda cell: None,
    "s": lambda cell: cell["seconds"],
}
_DIGITS = {"test error %": 2, "over all angles %": 2, "one answer over the group %": 1, "error of layers": 3, "s": 0}


def write(name: str, cells: Sequence[Content], out: Path) -> str:
    """Write the table and its picture; those of the committed cells stand in docs/. Returns the Markdown."""
    from benchmarks.reproduce import pareto  # only now: it loads matplotlib

    rows = by_variant(name, cells)
    committed = out.resolve() == _COMMITTED
    picture = (ROOT / "docs" if committed else out / name) / f"{name}.png"
    drawn = pareto.draw(TABLES[name].title, {TABLES[name].variants[v].label: some for v, some in rows.items() if some})
    if drawn:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(drawn)
    text = markdown(name, rows, picture.name if drawn else None)
    if committed:
        page = RESULTS.read_text()
        if _block(name).search(page):
            write_text(RESULTS, _block(name).sub(lambda _: _marked(name, text), page))
    elif drawn:
        write_text(out / name / "table.md", text)
    return text


def generated(name: str, page: str) -> str | None:
    """What stands on a page between the marks of a table; None if it has none."""
    found = _block(name).search(page)
    return found[1] if found else None


def by_variant(name: str, cells: Sequence[Content]) -> Rows:
    """The cells of each variant, in the table's order."""
    return {
        variant: sorted((cell for cell in cells if cell["variant"] == variant), key=lambda cell: cell["seed"])
        for variant in TABLES[name].variants
    }


def markdown(name: str, rows: Rows, picture: str | None = None) -> str:
    """The table with what it rests on, and a link to its picture."""
    table = TABLES[name]
    saves = any(variant.against for variant in table.variants.values())
    head = ["", *COLUMNS, *(["channels", "saves"] if saves else []), "parameters", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for variant, some in rows.items():
        label = table.variants[variant].label
        counted = savings.told(name, variant) if saves else ()
        cells = [*(_cell(column, some) for column in COLUMNS), *counted, _parameters(some), _seeds(some, table.seeds)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    shown = f"\n![Test error against equivariance error]({picture})\n" if picture else ""
    return "\n".join([_caption(name, rows), "", *lines, shown])


def _cell(column: str, some: Sequence[Content]) -> str:
    if not some:
        return NOT_RUN if column == "test error %" else ""
    if column == "first … last layer":
        taps = [list(cell["taps"].values()) for cell in some]
        ends = [_mean([tap[place]["mean_error"] for tap in taps]) for place in (0, -1)]
        return " … ".join("not measurable" if end is None else _error(end) for end in ends)
    values = [COLUMNS[column](cell) for cell in some]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "not measurable"
    if column == "error of layers" and max(known) < 1e-4:
        return _error(max(known))
    digits = _DIGITS[column]
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 and column != "s" else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


def _error(value: float) -> str:
    return f"{value:.3f}" if value >= 1e-4 else f"{value:.0e}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _parameters(some: Sequence[Content]) -> str:
    return f"{some[0]['parameters']:,}" if some else ""


def _seeds(some: Sequence[Content], wanted: int) -> str:
    return str(wanted) if len(some) == wanted else f"{len(some)} of {wanted}"


def _caption(name: str, rows: Rows) -> str:
    table, cells = TABLES[name], [cell for some in rows.values() for cell in some]
    words = f"`python -m benchmarks.reproduce {name}`: `{table.config}`, `{' '.join(table.settings)}`."
    if not cells:
        return f"{words} No cell has run."
    commits = _each(f"{cell['git']['commit'][:7]}{'' if cell['git']['clean'] else ' (changed)'}" for cell in cells)
    devices = _each(f"{cell['device']} ({cell['threads']} threads)" for cell in cells)
    images = [name for name in cells[0]["data"] if "images" in name]
    data = "; ".join(f"{name} sha256 {_each(cell['data'][name][:12] for cell in cells)}" for name in images)
    measured = cells[0]["measured"]
    return (
        f"{words} Commit {commits}; {devices}; torch {_each(cell['packages']['torch'] for cell in cells)}; {data}. "
        f"Test error: of the weights that training ended with, once, on all {measured['of']:,} test images; the other "
        f"figures on {measured['images']:,} of them, elements of {_each(cell['measured']['group'] for cell in cells)}. "
        "Mean ± standard deviation (n − 1) over seeds; seconds are of training and that test."
    )


def _each(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- reproduce: {name} -->\n(.*?)<!-- end -->\n", re.DOTALL)


def _marked(name: str, text: str) -> str:
    return f"<!-- reproduce: {name} -->\n{text}<!-- end -->\n"
