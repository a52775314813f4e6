"""Hooks of mkdocs: pages written from the package itself, and links that lead out of docs/."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.hooks.configuration import configuration_page  # noqa: E402
from docs.hooks.reference import commands_page, python_page  # noqa: E402

# Pages of the project that lie elsewhere, under the same path in the site.
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "deploy/README.md", "deploy/kubernetes/README.md")
_LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#:]+)(?=(?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of docs/."""
    written = {
        "reference/commands.md": commands_page(),
        "reference/configuration.md": configuration_page(),
        "reference/python.md": python_page(),
    }
    outside = {name: (ROOT / name).read_text(encoding="utf-8") for name in OUTSIDE}
    for name, text in {**written, **outside}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the project into links between pages of the site."""
    place = page.file.src_uri
    source = place if place in OUTSIDE else f"docs/{place}"

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["target"]))
        return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(place) or ".")

    return _LINK.sub(moved, markdown)
