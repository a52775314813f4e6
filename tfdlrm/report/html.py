"""One HTML page that needs no other file, and no script."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --back: #ffffff; --inset: #f6f8fa;
  --link: #0550ae; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b1; --line: #3d444d; --back: #0d1117;
  --inset: #161b22; --link: #79b8ff; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 1060px;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; margin: .4rem 0; padding: .5rem 0;
  border-block: 1px solid var(--line); }
section > p { max-width: 46rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
.figures { display: flex; flex-wrap: wrap; gap: 1.4rem; align-items: flex-start; margin: .8rem 0; }
figure { margin: 0; max-width: 100%; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .92em; margin-top: .3rem; }
pre { background: var(--inset); padding: .8rem; overflow-x: auto; font-size: 13px; border-radius: 4px; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--link); }
@media print { nav { display: none; } body { max-width: none; margin: 0; font-size: 11px; } .wide { overflow: visible; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } pre { white-space: pre-wrap; } }
"""
_MOST_LINES = 30
_CSS_PIXELS = 96
RESOLUTION = 150
"""Pixels an inch of the images: more than the page shows them in, for sharper screens."""


@dataclass(frozen=True)
class Table:
    """A table of text; numbers are formatted by the caller."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A PNG image and what it shows, in words.

    Attributes:
        caption: Stands under it: what it says, with the numbers that matter.
        png: The image.
        alt: What is to be seen, for those who do not see it. Defaults to the caption.
    """

    caption: str
    png: bytes
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in this order: text, tables, plots, preformatted text."""

    heading: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    code: Sequence[str] = field(default=())


def render(title: str, sections: Sequence[Section]) -> str:
    """Return the page; every text is escaped, every image is inside. Long tables and code are folded.

    Example:
        >>> "<h1>a &lt; b</h1>" in render("a < b", [])
        True
    """
    names = _names([section.heading for section in sections])
    body = "\n".join(_section(section, name) for section, name in zip(sections, names, strict=True))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{_contents(sections, names)}<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _names(headings: Sequence[str]) -> list[str]:
    """Return what each section is called in links: its heading in lower case, told apart where two are equal."""
    found: list[str] = []
    for heading in headings:
        name = plain = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        while name in found:
            name = f"{plain}-{len(found)}"
        found.append(name)
    return found


def _contents(sections: Sequence[Section], names: Sequence[str]) -> str:
    if len(sections) < 2:
        return ""
    links = "".join(
        f'<li><a href="#{name}">{escape(section.heading)}</a></li>'
        for section, name in zip(sections, names, strict=True)
    )
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'


def _section(section: Section, name: str) -> str:
    parts = [f'<section id="{name}">', f"<h2>{escape(section.heading)}</h2>"]
    parts += [f"<p>{escape(line)}</p>" for line in section.text]
    parts += [_table(table) for table in section.tables]
    if section.plots:
        parts.append('<div class="figures">' + "\n".join(_plot(plot) for plot in section.plots) + "</div>")
    for code in section.code:
        lines = code.count("\n") + 1
        parts.append(_folded(f"<pre>{escape(code)}</pre>", f"{section.heading}, {lines} lines", lines))
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    # What is wider than the page is scrolled on its own, by keyboard too.
    found = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.caption)}">'
        f"<table>\n<caption>{escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )
    return _folded(found, f"{table.caption}: {len(table.rows)} lines", len(table.rows))


def _folded(html: str, summary: str, lines: int) -> str:
    return html if lines <= _MOST_LINES else f"<details><summary>{escape(summary)}</summary>\n{html}\n</details>"


def _plot(plot: Plot) -> str:
    image = base64.b64encode(plot.png).decode("ascii")
    caption, alt = escape(plot.caption), escape(plot.alt or plot.caption)
    width, height = _shown_size(plot.png)
    return (
        f'<figure style="width: {width}px"><img alt="{alt}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{image}"><figcaption>{caption}</figcaption></figure>'
    )


def _shown_size(png: bytes) -> tuple[int, int]:
    """Return the width and height of an image on the page, in its pixels: as large as it was drawn, in inches."""
    width, height = struct.unpack(">II", png[16:24])
    return round(width * _CSS_PIXELS / RESOLUTION), round(height * _CSS_PIXELS / RESOLUTION)
