"""The site that `make docs` builds is whole, says what the code says, and needs no network."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ien
from ien import config
from ien.config.problems import by_dotted_key

ROOT = Path(__file__).parent.parent
PAGES = [*(path.name for path in (ROOT / "docs").glob("*.md")), "settings.md", "api.md", "tour.md", "changes.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it, where a link into nothing is an error."""
    folder = tmp_path_factory.mktemp("site") / "site"
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_the_site_has_every_page_in_its_menu(site: Path) -> None:
    menu = re.findall(r'<a href="([^"]+)" class="md-nav__link', (site / "404.html").read_text())
    assert {Path(link).name for link in menu} >= {page.replace(".md", ".html") for page in PAGES}


def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    loaded = [found for page in site.rglob("*.html") for found in _loaded(page.read_text())]
    assert [address for address in loaded if re.match(r"(https?:)?//", address)] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text())


def _loaded(page: str) -> Iterator[str]:
    """What a browser fetches by itself: links that a person follows are not among it."""
    for tag in re.findall(r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*>", page):
        yield from re.findall(r"(?:src|href|srcset|data)=\"?([^\"\s>]+)", tag)


def test_the_site_lists_every_setting(site: Path) -> None:
    told = text_of(site / "settings.html")
    for key, schema in by_dotted_key(config.Config).items():
        assert f"{key}\n" in told
        assert schema["description"] in told


def test_the_site_lists_every_public_name(site: Path) -> None:
    page = (site / "api.html").read_text()
    for name in ien.__all__:
        assert re.search(rf'id="ien\.[\w.]+\.{name}"', page), name


def test_the_site_shows_the_tour_with_its_pictures(site: Path) -> None:
    shown = re.findall(r'<img [^>]*src="(tour_\d+\.png)"', (site / "tour.html").read_text())
    assert len(shown) == (ROOT / "examples" / "tour.ipynb").read_text().count('"image/png"')
    assert all((site / picture).read_bytes().startswith(b"\x89PNG") for picture in shown)


def test_the_site_does_not_lead_to_files_that_it_has_not(site: Path) -> None:
    for page in set(site.glob("*.html")) - {site / "404.html"}:
        for link in re.findall(r'<a [^>]*href="([^"#:]+)["#]', page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)
