"""Which pages of the site come from the code? (a hook of MkDocs, see mkdocs.yml)

Every setting, from the schema that checks it; the API, from the docstrings of the public names; the tour, from its
notebook and what it printed; the changes. And a link that leaves docs/ for the code becomes plain text: on the site
there is nothing behind it.
"""

from __future__ import annotations

import ast
import base64
import html
import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import ien
from ien.config import Config
from ien.config.problems import allowed, by_dotted_key

_ROOT = Path(__file__).resolve().parent.parent
_LEAVES = re.compile(r"\[([^\]]+)\]\((?:\.\./|results\))[^)]*\)?")
_SECTIONS = {
    "": "The published settings",
    "group": "group: how elements act",
    "network": "network: its size",
    "objective": "objective: what is minimised",
    "symmetry": "symmetry: which weights are equivariant",
    "optimizer": "optimizer: how weights move",
    "data": "data: where images come from",
    "run": "run: how it is computed",
    "launch": "launch: where it is computed",
}

# Beside the names that `ien` itself offers, those that these pages show.
_BESIDE = {
    "ien.alignment.tracing": ("trace", "Trace", "Step"),
    "ien.alignment.proof": ("prove", "Proof"),
    "ien.alignment.sizes": ("exact_sizes",),
    "ien.report.activity": ("activity",),
    "ien.report.lie": ("local_errors",),
    "ien.config": ("load",),
    "ien.train": ("run",),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are not in docs/."""
    changes = (_ROOT / "CHANGELOG.md").read_text()
    for path, content in {"settings.md": settings(), "api.md": api(), "changes.md": changes, **tour()}.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page without the links that lead to the code."""
    return _LEAVES.sub(r"\1", markdown)


def settings() -> str:
    """A table for each section."""
    sections: dict[str, list[str]] = {}
    for key, schema in by_dotted_key(Config).items():
        sections.setdefault(key.rpartition(".")[0], []).append(_row(key, schema))
    pages = [
        "# Every setting",
        "What a YAML file may say, and `key=value` on a command line over it. `python -m ien.config` lists the same.",
    ]
    for section, rows in sections.items():
        pages.append(f"## {_SECTIONS.get(section, section)}")
        pages.append("\n".join(["| setting | default | allowed | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(pages) + "\n"


def _row(key: str, schema: dict[str, Any]) -> str:
    default = f"`{json.dumps(schema['default'], ensure_ascii=False)}`" if "default" in schema else "required"
    choice = "R4, R8 or R<N>, or R1" if key == "mode" else allowed(schema)
    # Signs that Markdown would take for its own, as in __init__.
    words = (re.sub(r"([|_*])", r"\\\1", html.escape(text, quote=False)) for text in (choice, schema["description"]))
    return " | ".join((f"| `{key}`", default, *words)) + " |"


def api() -> str:
    """One entry for each public name, under the module that is its home and the question which that answers."""
    parts = ["# API", "What `from ien import …` offers; each is loaded when it is first asked for."]
    own = {home: tuple(names) for home, names in groupby(ien._HOME, key=ien._HOME.__getitem__)}
    for home, names in {**own, **_BESIDE}.items():
        parts += [f"## {home}", _question(home), *(f"::: {home}.{name}" for name in names)]
    return "\n\n".join(parts) + "\n"


def _question(module: str) -> str:
    """The first line of its docstring."""
    path = _ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]


def tour() -> dict[str, str | bytes]:
    """The page of examples/tour.ipynb, and its pictures."""
    cells = json.loads((_ROOT / "examples" / "tour.ipynb").read_text())["cells"]
    page, pictures = [], {}
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            page.append(source)
            continue
        page.append(f"```python\n{source}\n```")
        for text, picture in _outputs(cell):
            if picture:
                name = f"tour_{len(pictures)}.png"
                pictures[name] = picture
            page.append(f"![{text}]({name})" if picture else f"```\n{text}\n```")
    return {"tour.md": "\n\n".join(page) + "\n", **pictures}


def _outputs(cell: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """What a cell printed, as one text, and each picture that it showed."""
    printed = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
    if printed.strip():
        yield printed.strip("\n"), b""
    for output in cell["outputs"]:
        if "image/png" in output.get("data", {}):
            yield "what this cell shows", base64.b64decode(output["data"]["image/png"])
