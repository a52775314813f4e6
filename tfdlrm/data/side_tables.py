"""Side tables: files of user or item attributes, held in memory and joined to raw rows by a key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl

from tfdlrm.data.fields import Layout, Lines, split_line
from tfdlrm.data.raw_blocks import expand_path, read_pieces
from tfdlrm.data.row_parser import Check, RowParser, filled, finite, hexadecimal, number, readable, text
from tfdlrm.spec.errors import ConfigError, DataError, did_you_mean
from tfdlrm.spec.raw import SideTable

_JOINER = "|"


class SideFile:
    """A side table read from its file; nothing is parsed before `load`.

    Args:
        table: Its description.

    Raises:
        DataError: the file cannot be read, is not text in the stated encoding, or has no rows.
        ConfigError: the encoding is unknown, or a named column is not there.
    """

    def __init__(self, table: SideTable) -> None:
        self.path = expand_path(table.file)
        self._table = table
        self._lines = Lines(_utf8_lines(self.path, table.encoding))
        if len(self._lines) <= int(table.header):
            raise DataError(f"{self.path}: no rows.")
        self.names = table.columns
        if table.header:
            self.names = tuple(split_line(self._lines[0], table.delimiter, None))
            check_header(self.path, self.names, table.columns)
        flags = [flag for flags in table.collect.values() for flag in flags]
        for name in (table.key, *flags):
            if name not in self.names:
                raise ConfigError(f"{self.path}: no column `{name}`.{did_you_mean(name, self.names)}")
        for name in flags:
            if _JOINER in name:
                raise ConfigError(
                    f"{self.path}: a collected column's name must not hold `{_JOINER}`. Received: `{name}`."
                )

    @property
    def provides(self) -> tuple[str, ...]:
        """Columns that a join adds: those of the file but the key, and the collected ones."""
        return (*(n for n in self.names if n != self._table.key), *self._table.collect)

    def load(self, numbers: Collection[str], texts: Collection[str], hex_columns: Mapping[str, str | None]) -> None:
        """Parse the columns that are wanted.

        Args:
            numbers: Columns wanted as numbers.
            texts: Columns wanted as text.
            hex_columns: Text columns that hold hexadecimal keys, with the separator of a bag or `None`.

        Raises:
            DataError: a row is malformed or a key is there twice; the message names file and line.
        """
        table, collected = self._table, self._table.collect
        for name in collected:
            if name in numbers or name in hex_columns:
                raise ConfigError(f'collected column `{name}` holds names, so its coding must have value = "string".')
        flags = [flag for name in collected if name in texts for flag in collected[name]]
        plain = [name for name in texts if name not in collected]
        flag_rule = [Check(f, "must be 0 or 1", text(f).is_in(["0", "1"])) for f in flags]
        checks = [filled(table.key), *(check(c) for c in numbers for check in (readable, finite))]
        checks += [hexadecimal(c, hex_columns[c]) for c in plain if c in hex_columns] + flag_rule
        layout = Layout(self.names, table.delimiter)
        first_row = int(table.header)
        body = Lines(self._lines.block[self._lines.ends[0] + 1 :]) if first_row else self._lines
        parsed = RowParser(layout, numbers, [table.key, *plain, *flags], checks).parse(body)
        if parsed.problems:
            row = min(parsed.problems)
            raise DataError(f"{self.path}:{row + first_row + 1}: {parsed.problems[row]}")
        repeated = (~parsed.frame[f"text:{table.key}"].is_first_distinct()).arg_max()
        if repeated:
            key = parsed.frame[f"text:{table.key}"][repeated]
            raise DataError(f"{self.path}:{repeated + first_row + 1}: `{table.key}` is there twice. Received: {key!r}.")
        multi_hot = [
            pl.concat_str(
                [pl.when(text(f) == "1").then(pl.lit(f)) for f in collected[name]], separator=_JOINER, ignore_nulls=True
            ).alias(f"text:{name}")
            for name in collected
            if name in texts
        ]
        self._frame = parsed.frame.select(
            text(table.key), *(number(c) for c in numbers), *(text(c) for c in plain if c != table.key), *multi_hot
        )

    def join(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return `frame` with the loaded columns added; a row whose key is not in the table gets missing values."""
        joined = frame.join(self._frame, on=f"text:{self._table.key}", how="left", maintain_order="left")
        return joined.with_columns(pl.col(pl.String).fill_null(""))


def check_header(path: object, names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Raise `DataError` unless a header names each column once, and those that are expected."""
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise DataError(f"{path}:1: column names must be unique. Received twice: {', '.join(repeated)}.")
    if expected and names != expected:
        missing = [n for n in expected if n not in names]
        more = [n for n in names if n not in expected]
        difference = f"missing {missing}, unknown {more}" if missing or more else f"another order: {list(names)}"
        raise DataError(f"{path}:1: the header must name the columns of the recipe. Received: {difference}.")


def _utf8_lines(path: Path, encoding: str) -> bytes:
    content = b"".join(read_pieces(path))
    try:
        lines = content.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
    except LookupError:
        raise ConfigError(f"{path}: unknown `encoding`. Received: {encoding!r}.") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not {encoding} text.") from None
    return (lines if lines.endswith("\n") or not lines else lines + "\n").encode("utf-8")
