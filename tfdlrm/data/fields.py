"""Blocks of lines to fields: structure is checked byte-wise with NumPy, fields are parsed by Polars."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.bad_rows import Problem
from tfdlrm.data.raw_blocks import count_lines

_NEWLINE = ord("\n")


@dataclass(frozen=True)
class Layout:
    """How a line falls into fields.

    Attributes:
        names: Column names in file order.
        delimiter: One character.
        quote: Quote character; inside quotes a delimiter is text and a doubled quote is one. `None` for no quoting.
    """

    names: tuple[str, ...]
    delimiter: str
    quote: str | None = None


class Lines:
    r"""A block of lines, each ending with `\n`, and where each lies.

    Args:
        block: The bytes.
    """

    def __init__(self, block: bytes) -> None:
        self.block = block
        self.bytes = np.frombuffer(block, np.uint8)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return count_lines(self.block)

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """Offset of the end of each line."""
        return np.flatnonzero(self.bytes == _NEWLINE)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Offset of the first byte of each line."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1] + 1])

    def __getitem__(self, index: int) -> bytes:
        """Return one line without its end."""
        start = self.ends[index - 1] + 1 if index else 0
        return self.block[start : self.ends[index]]

    def having(self, mask: npt.NDArray[np.bool_]) -> list[int]:
        """Return the indices of the lines with a byte where `mask`, one entry per byte, is true."""
        lines: list[int] = np.unique(np.searchsorted(self.ends, np.flatnonzero(mask))).tolist()
        return lines

    def keep(self, mask: npt.NDArray[np.bool_]) -> Lines:
        """Return the lines where `mask` is true."""
        lengths = np.diff(self.ends, prepend=-1)
        return Lines(self.bytes[np.repeat(mask, lengths)].tobytes())


def find_broken_lines(lines: Lines, layout: Layout) -> dict[int, Problem]:
    """Return what is wrong with the structure of lines, by index; lines not named hold one field per column.

    Args:
        lines: The lines.
        layout: The expected columns.
    """
    blank = np.flatnonzero(np.diff(lines.ends, prepend=-1) == 1).tolist()
    problems = dict.fromkeys(blank, Problem("blank line"))
    if b"\0" in lines.block:
        problems.update(dict.fromkeys(lines.having(lines.bytes == 0), Problem("NUL byte")))
    for index in _not_utf8(lines):
        problems.setdefault(index, Problem("not UTF-8 text"))
    inside = None
    if layout.quote is not None and layout.quote.encode() in lines.block:
        inside, misquoted = _inside_quotes(lines, layout.quote, layout.delimiter)
        for index in misquoted:
            problems.setdefault(index, Problem("misplaced quote"))
    is_delimiter = lines.bytes == ord(layout.delimiter)
    if inside is not None:
        is_delimiter &= ~inside
    delimiters, expected = np.flatnonzero(is_delimiter), len(layout.names)
    if not _evenly_spread(delimiters, lines, expected - 1):
        fields = np.diff(np.searchsorted(delimiters, lines.ends), prepend=0) + 1
        for index in np.flatnonzero(fields != expected).tolist():
            problems.setdefault(index, Problem(f"expected {expected} fields", f", found {fields[index]}"))
    return problems


def parse_fields(lines: Lines, layout: Layout, types: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Parse lines whose structure is whole.

    Args:
        lines: Lines of one field per column of `layout`.
        layout: The columns.
        types: Columns to return, with their types. An empty field is `""` as text and null as a number.

    Returns:
        One row per line.

    Raises:
        polars.exceptions.ComputeError: a field is no number where a number is asked for.
    """
    if not lines.block:
        return pl.DataFrame(schema=dict(types))
    return (
        pl.scan_csv(
            lines.block,
            has_header=False,
            separator=layout.delimiter,
            quote_char=layout.quote,
            schema={name: types.get(name, pl.String()) for name in layout.names},
            empty_string_is_null=False,
        )
        .select(list(types))
        .collect()
    )


def split_line(line: bytes, delimiter: str, quote: str | None) -> list[str]:
    """Return the fields of one line, a header for example.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    text = line.decode("utf-8")
    if quote is None:
        return text.split(delimiter)
    return next(csv.reader([text], delimiter=delimiter, quotechar=quote), [""])


def _evenly_spread(delimiters: npt.NDArray[np.int64], lines: Lines, per_line: int) -> bool:
    """Tell whether every line has `per_line` delimiters, without counting them line by line."""
    if len(delimiters) != per_line * len(lines):
        return False
    by_line = delimiters.reshape(len(lines), per_line)
    return per_line == 0 or bool((by_line[:, 0] >= lines.starts).all() and (by_line[:, -1] < lines.ends).all())


def _not_utf8(lines: Lines) -> list[int]:
    """Return the lines that hold a byte sequence no UTF-8 text has."""
    if lines.block.isascii() or _is_utf8(lines.block):
        return []
    return [index for index in lines.having(lines.bytes > 127) if not _is_utf8(lines[index])]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _inside_quotes(lines: Lines, quote: str, delimiter: str) -> tuple[npt.NDArray[np.bool_], list[int]]:
    """Tell which bytes lie inside quotes, and which lines have a quote where none may be.

    A quote may open a field, close it, or be doubled inside. Lines end quotes here, so that a stray one spoils
    its own line only.
    """
    is_quote = lines.bytes == ord(quote)
    seen = np.cumsum(is_quote, dtype=np.int64)
    lengths = np.diff(lines.ends, prepend=-1)
    before = np.concatenate([np.zeros(1, np.int64), seen[lines.ends[:-1]]])
    odd = (seen - np.repeat(before, lengths)) % 2 == 1  # counting this byte
    border = (lines.bytes == ord(delimiter)) | (lines.bytes == _NEWLINE)
    previous_border = np.concatenate([np.ones(1, bool), border[:-1]])
    previous_quote = np.concatenate([np.zeros(1, bool), is_quote[:-1]])
    next_border = np.concatenate([border[1:], np.ones(1, bool)])
    next_quote = np.concatenate([is_quote[1:], np.zeros(1, bool)])
    opens, closes = is_quote & odd, is_quote & ~odd
    wrong = (opens & ~previous_border & ~previous_quote) | (closes & ~next_border & ~next_quote)
    wrong |= odd & (lines.bytes == _NEWLINE)
    return odd, lines.having(wrong)
