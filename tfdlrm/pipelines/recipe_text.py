"""What `prepare explain` and `prepare diff` print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tfdlrm.spec.published import Published
from tfdlrm.spec.recipe_words import Explanation

if TYPE_CHECKING:  # it loads TensorFlow, which `explain` does without
    from tfdlrm.data.recipe_diff import RecipeDiff

_WIDTH = 110
_LABEL = 18


def explanation_lines(name: str, known: Published | None, explanation: Explanation) -> Iterator[str]:
    """Yield the lines that say a recipe in words.

    Args:
        name: What it was called by.
        known: The named recipe, if it is one.
        explanation: What it does.
    """
    yield f"{name}: {known.title}" if known else name
    if known:
        yield from _labelled("Read in", known.source + ".")
    for topic, text in explanation.topics.items():
        yield from _labelled(topic, text)
    if known:
        for note in known.notes:
            yield from _labelled("Note", note)
    for warning in explanation.warnings:
        yield from _labelled("WARNING", warning)


def diff_lines(diff: RecipeDiff) -> Iterator[str]:
    """Yield the lines that say what two recipes make of the same rows."""
    a, b = diff.names
    yield f"{a} and {b} on {diff.rows:,} rows"
    yield f"Settings that differ: {len(diff.settings)}"
    for change in diff.settings:
        yield from _labelled("", f"{change.key}: {_short(change.a)} in {a}, {_short(change.b)} in {b}")
    yield f"Rows in another place: {diff.moved:,} of {diff.rows:,}"
    yield from _places(diff)
    for name, features in diff.only.items():
        if features:
            yield f"Features of {name} alone: {', '.join(features)}"
    if diff.bags:
        names = ", ".join(f"{name} ({one} in {a}, {other} in {b})" for name, (one, other) in diff.bags.items())
        yield from _labelled("NOT COMPARED", f"ids in bags of different lengths: {names}")
    differ = [feature for feature in diff.dense if feature.differ]
    yield f"Numbers: {len(differ)} of {len(diff.dense)} columns differ"
    if differ:
        titles = ("column", "rows that differ", "largest difference", "mean difference")
        yield from _table(titles, ((f.name, f"{f.differ:,}", f"{f.largest:.6g}", f"{f.mean:.6g}") for f in differ))
    verdicts = [feature.verdict for feature in diff.sparse]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("equal", "renumbered", "regrouped"))
    yield f"Ids: {counts} of {len(verdicts)} columns"
    if diff.sparse:
        head = ("column", f"rows in {a}", f"rows in {b}", "ids that differ", "", f"split by {b}", f"merged by {b}")
        yield from _table(
            head,
            (
                (
                    *(f.name, f"{f.rows_a:,}", f"{f.rows_b:,}", f"{f.differ / max(f.ids, 1):.1%}"),
                    *(f.verdict, f"{f.split:,}", f"{f.merged:,}"),
                )
                for f in diff.sparse
            ),
        )
    for name, leaks in diff.leaks.items():
        for leak in leaks:
            yield from _labelled("WARNING", f"{name}: {leak}")


def _places(diff: RecipeDiff) -> Iterator[str]:
    a, b = diff.names
    columns = list(dict.fromkeys(place for row in diff.places.values() for place in row))
    rows = ((one, *(f"{row.get(other, 0):,}" for other in columns)) for one, row in diff.places.items())
    yield from _table((f"{a} \\ {b}", *columns), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield f"  {first.ljust(widths[0])}  {'  '.join(cells)}"


def _labelled(label: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, _WIDTH - _LABEL, break_long_words=False, break_on_hyphens=False)
    return [f"  {(label if i == 0 else '').ljust(_LABEL)}{line}" for i, line in enumerate(lines)]


def _short(value: object) -> str:
    return textwrap.shorten(repr(value), 60, placeholder="...")
