"""The documentation site: built as `make docs` builds it, its links followed, and nothing in it from another host."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from docs.hooks.floors import PICTURE, floors_svg, stated_floors
from tests.docs.blocks import ROOT
from tests.test_floors import MAY_IMPORT
from tfdlrm.pipelines import cli

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "use": "href",
}
"""What a browser loads by itself; and `<link>`, but for links that only say something."""
TELLING = {"canonical", "next", "prev", "alternate", "license"}


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and not set(values.get("rel", "").split()) & TELLING:
            self.loaded.append(values.get("href", ""))
        elif tag in LOADED and LOADED[tag] in values:
            self.loaded.append(values[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(needed, reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def html(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_every_page_is_there(site: Path, html: dict[Path, Page]) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    generated = {Path(f"reference/{name}.html") for name in ("commands", "configuration", "python")}
    built = {path.relative_to(site) for path in html}
    assert pages | generated <= built


def test_links_and_anchors_resolve(site: Path, html: dict[Path, Page]) -> None:
    broken = []
    for path, page in html.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = html[target].anchors if target in html else set()
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_another_host(site: Path, html: dict[Path, Page]) -> None:
    foreign = [
        f"{path.relative_to(site)}: {url}"
        for path, page in html.items()
        for url in page.loaded
        if urlsplit(url).netloc or urlsplit(url).scheme not in ("", "data")
    ]
    for path in site.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)", path.read_text(encoding="utf-8"))
        foreign += [f"{path.relative_to(site)}: {url}" for url in urls]
    assert foreign == []


def test_reference_has_every_public_name(site: Path, html: dict[Path, Page]) -> None:
    import tfdlrm
    import tfdlrm.serving

    anchors = {anchor.rpartition(".")[2] for anchor in html[site / "reference/python.html"].anchors}
    assert {*tfdlrm.__all__, *tfdlrm.serving.__all__} - anchors == set()


def test_configuration_has_every_section(site: Path, html: dict[Path, Page]) -> None:
    anchors = html[site / "reference/configuration.html"].anchors
    assert {
        "run.data.sparse",
        "run.train.schedule",
        "run.model.tables",
        "cluster",
        "compare.models",
        "plan.topology",
    } <= anchors
    text = (site / "reference/configuration.html").read_text(encoding="utf-8")
    assert "checkpoint_seconds" in text and "max_worker_restarts" in text


def test_picture_of_the_floors_is_that_of_the_floors() -> None:
    floors = stated_floors((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    assert floors == MAY_IMPORT
    assert PICTURE.read_text(encoding="utf-8") == floors_svg(floors), "draw it anew: python -m docs.hooks.floors"


def test_exit_codes_are_those_of_commands() -> None:
    page = (ROOT / "docs/reference/exit_codes.md").read_text(encoding="utf-8")
    stated = [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    codes = [cli.EXIT_CHECK_FAILED, cli.EXIT_USER_ERROR, cli.EXIT_INTERRUPTED, cli.EXIT_STOPPED]
    assert stated == [0, *codes]
