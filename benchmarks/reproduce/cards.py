"""How does a cell's network leave the table? (its weights as safetensors, with a card that says what it is)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.reproduce.cells import Cell, Content, Place
from ien import config
from ien.errors import InputError
from ien.export import export
from ien.tracking import write_text
from ien.trained import of_run

LIMITS = """It was trained for the figures above, on pictures of the kind named, and says nothing of others: whatever it
is shown, it answers with one of its classes. Between the group's elements nothing was learned, unless its row says
so."""


def ship(finished: Sequence[tuple[Cell, Content]], place: Place, out: Path) -> list[Path]:
    """The first finished seed of each variant: OUT/VARIANT.safetensors and OUT/VARIANT.md; returns what was written.

    Raises `InputError` where a run's folder is gone, with the command that makes it again.
    """
    written: list[Path] = []
    shipped: set[str] = set()
    for cell, content in sorted(finished, key=lambda one: one[0].seed):
        if cell.variant in shipped:
            continue
        shipped.add(cell.variant)
        folder = config.run_dir(cell.settings(place))
        if not (folder / "summary.json").exists():
            raise InputError(f"{folder} is gone, and with it the weights; make it again: {_command(cell)}")
        out.mkdir(parents=True, exist_ok=True)
        weights = out / f"{cell.variant}.safetensors"
        export(of_run(folder, "best", [f"data.root={place.data}"]), "safetensors", weights, force=True)
        write_text(weights.with_suffix(".md"), card(cell, content, weights.name))
        written += [weights, weights.with_suffix(".md")]
    return written


def card(cell: Cell, content: Content, file: str) -> str:
    """Markdown: what the network is, its data, protocol, figures and limits, and how it is made again."""
    settings = content["settings"]
    images = [f"{name} sha256 {sha[:12]}" for name, sha in content["data"].items() if "images" in name]
    git = content["git"] or {"commit": "unknown", "clean": True}
    turned = ", images turned by any angle" if settings["data.random_rotation"] else ""
    lines = [
        "---\nlicense: mit\nlibrary_name: ien\ntags: [image-classification, equivariance]\n---",
        f"# {cell.table.title}: {cell.table.variants[cell.variant].label}",
        "",
        f"{settings['model']}, {content['parameters']:,} parameters, seed {cell.seed}. Weights in `{file}`, under the",
        "names of its `state_dict`; settings in its metadata. At inference it is an ordinary network.",
        "",
        "## Data and protocol",
        "",
        f"{settings['dataset']}: {', '.join(images)}.",
        f"Trained for {content['epochs']} epochs in {content['seconds']:.0f} s on {content['device']} with torch",
        f"{content['packages']['torch']}, commit {git['commit']}{'' if git['clean'] else ' (changed)'}.",
        f"Second views: {settings['objective.augment']}; beta {settings['beta_weight']:g}{turned}.",
        f"{_selected(settings)} Made again by",
        "",
        f"```sh\n{_command(cell)}\n```",
        "",
        "## Figures",
        "",
        *_figures(content),
        "",
        "| layer | relative equivariance error | interpolation floor | |",
        "|---|---|---|---|",
        *(
            f"| {name} | {_number(tap['mean_error'])} | {_number(tap['mean_floor'])} | {tap['verdict']} |"
            for name, tap in content["taps"].items()
        ),
        "",
        "## Limits",
        "",
        LIMITS,
    ]
    return "\n".join(lines) + "\n"


def _figures(content: Content) -> list[str]:
    figures, measured = content["figures"], content["measured"]
    return [
        f"Test error {100 * (1 - content['test']['accuracy']):.2f} % of {measured['of']:,} images. On",
        f"{measured['images']:,} of them:",
        f"over all angles {100 * (1 - figures['accuracy over the orbit']):.2f} %; one answer from all of",
        f"{measured['group']} for {100 * figures['agreement over the group']:.1f} %; calibration error",
        f"{100 * figures['calibration error']:.2f} %.",
    ]


def _selected(settings: Content) -> str:
    if settings["data.val_split"] == 0:
        return "Nothing was selected: these are the last weights, tested once."
    return "The weights of the best validation, tested once."


def _command(cell: Cell) -> str:
    number = list(cell.table.cells()).index((cell.variant, cell.seed))
    return f"python -m benchmarks.reproduce {cell.name} --cell {number}"


def _number(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.3g}"
