"""Fenced code blocks of the README and the documentation, and what their marks say about running them.

A mark is an HTML comment on the line before the fence:

- `<!-- not run: a reason -->`: not run anywhere, for one of `REASONS`. Its command lines are parsed all the same.
- `<!-- run: slow -->`: run by `make docs-check` alone.
- `<!-- run: small -->`: the same, with fewer rows or steps (`tests.docs.running.SMALLER`).
- `<!-- file: name -->`: written to that name in the folder in which the page's later blocks run.

A block without a mark is run by `make test`. Output, and anything else that is only to be read, is fenced as `text`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
REASONS = (
    "a fresh clone",  # `make demo`, `make test`, installations: what the checks of a change do
    "another project's code",
    "data not here",
    "needs a cluster",
    "needs a GPU",
    "needs a TPU",
    "needs Docker",
    "needs the network",
    "runs until it is ended",
    "takes long",
)
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+)(?P<language>[\w-]*)\s*$")
_MARK = re.compile(r"^ *<!-- (?P<kind>not run|run|file): (?P<what>.+?) -->\s*$")


class Block(NamedTuple):
    """One fenced block.

    Attributes:
        page: File, from the root of the project.
        line: Line of its fence, from 1.
        language: Word after the fence.
        text: What stands between the fences.
        kind: `"not run"`, `"run"`, `"file"`, or `""` without a mark.
        what: What the mark says.
    """

    page: str
    line: int
    language: str
    text: str
    kind: str
    what: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block, without changes of the environment before them."""
        return [words for line in _shell_lines(self.text) for words in _commands(line)]


def pages() -> list[str]:
    """Return the README and every page of docs/, from the root of the project."""
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", *found]


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page in order."""
    return list(read_blocks(page, (ROOT / page).read_text(encoding="utf-8")))


def read_blocks(page: str, text: str) -> Iterator[Block]:
    """Yield the blocks of a page's text."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        number += 1
        if fence is None:
            continue
        start = number
        while number < len(lines) and lines[number].strip() != fence["ticks"]:
            number += 1
        assert number < len(lines), f"{page}:{start}: the fence is never closed"
        mark = _MARK.match(lines[start - 2]) if start > 1 else None
        inside = [line.removeprefix(fence["indent"]) for line in lines[start:number]]
        number += 1
        yield Block(
            page,
            start,
            fence["language"],
            "\n".join(inside) + "\n",
            mark["kind"] if mark else "",
            mark["what"] if mark else "",
        )


def _shell_lines(text: str) -> list[str]:
    """Return the lines of a shell block, continued ones joined (also those inside quotes)."""
    lines: list[str] = []
    waiting = ""
    for line in text.replace("\\\n", " ").splitlines():
        waiting += line
        try:
            shlex.split(waiting, comments=True)
        except ValueError:  # a quote is still open
            waiting += "\n"
            continue
        lines.append(waiting)
        waiting = ""
    assert not waiting, f"a quote is never closed: {waiting!r}"
    return lines


def _commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    command: list[str] = []
    words = iter([*lexer, ";"])
    for word in words:
        if set(word) <= set("<>"):
            next(words)  # the file that it is redirected to
            continue
        if not set(word) <= set("&|;"):
            command.append(word)
            continue
        while command and re.fullmatch(r"\w+=.*", command[0], re.DOTALL):
            command.pop(0)
        if command:
            yield command
        command = []
