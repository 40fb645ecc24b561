"""Which pages of the site come from the code? (a hook of MkDocs, see mkdocs.yml)

Every setting, from the schema that checks it; the API, from the docstrings of the public names. And a link that leaves
docs/ for the code becomes plain text: on the site there is nothing behind it.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import ien
from ien.config import Config
from ien.config_problems import allowed, by_dotted_key

_LEAVES = re.compile(r"\[([^\]]+)\]\((?:\.\./|results\))[^)]*\)?")
_SECTIONS = {
    "": "The published settings",
    "group": "group: how elements act",
    "network": "network: its size",
    "objective": "objective: what is minimised",
    "optimizer": "optimizer: how weights move",
    "data": "data: where images come from",
    "run": "run: how it is computed",
    "launch": "launch: where it is computed",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are not on the disk."""
    for path, text in (("settings.md", settings()), ("api.md", api())):
        files.append(File.generated(config, path, content=text))
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
    choice = "R4, R8 or R<N>" if key == "mode" else allowed(schema)
    words = (html.escape(text, quote=False).replace("|", "\\|") for text in (choice, schema["description"]))
    return " | ".join((f"| `{key}`", default, *words)) + " |"


def api() -> str:
    """One entry for each public name of the package."""
    head = "# API\n\nWhat `from ien import …` offers; each is loaded when it is first asked for."
    return "\n\n".join([head, *(f"::: {ien._HOME[name]}.{name}" for name in ien.__all__)]) + "\n"
