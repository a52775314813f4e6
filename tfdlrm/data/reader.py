"""Raw rows from files, streamed in bounded memory: Criteo's format or any delimited text."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.bad_rows import BadRows, Problem
from tfdlrm.data.fields import Layout, Lines, split_line
from tfdlrm.data.parallel import ordered_map
from tfdlrm.data.raw_blocks import CHUNK_BYTES, RawFile, RawPath, expand_path, read_blocks, survey
from tfdlrm.data.row_parser import (
    Check,
    RowParser,
    bag_weights,
    filled,
    finite,
    hexadecimal,
    key,
    label_check,
    label_is_number,
    label_value,
    missing_key,
    number,
    readable,
    sample_weight,
    text,
)
from tfdlrm.data.side_tables import SideFile, check_header
from tfdlrm.spec.errors import ConfigError, DataError, did_you_mean
from tfdlrm.spec.raw import RawFormat

Result = TypeVar("Result")


@dataclass(frozen=True)
class RawChunk:
    """Good rows of one block, in file order.

    Attributes:
        frame: Columns `label` (Float32, 0 or 1), `weight` (Float32, if the format names one), each dense column
            (Float64, null where missing), each string column (String, `""` where missing), each key column (UInt32, or
            UInt64 in a chunk that has longer keys, 0 where missing) with its `missing:<name>` (Boolean), each extra
            column as `extra:<name>` (String).
        rows: int64 `[frame.height]`, number of each row over all files from 0; headers are not counted, bad rows are.
        read: Rows read for this chunk, the bad ones included.
        index: Number of the chunk, from 0 over all files.
        file: Number of the file it is of, from 0.
    """

    frame: pl.DataFrame
    rows: npt.NDArray[np.int64]
    read: int
    index: int = 0
    file: int = 0


class RawBlock(NamedTuple):
    """Lines of one file that are parsed together: number of the block, of its file, first line and first row."""

    number: int
    file: int
    path: RawPath
    lines: Lines
    line: int
    first_row: int


class RawReader:
    """Streams raw rows; iterate it as often as needed, every pass yields the same chunks.

    Args:
        format: How rows lie in the files.
        paths: Files in order, plain or gzip; environment variables are expanded. What is neither a string nor a path
            must open as one does.
        dense: Raw columns read as numbers.
        strings: Raw columns read as text.
        hex_columns: Those of `strings` that hold hexadecimal keys, with the separator of a bag or `None`.
        weights: Those of `strings` that hold the weights of a bag: column to the bag's column and its separator.
        keys: Raw columns that hold one hexadecimal key a row, read as numbers, which is several times faster.
        extra: Raw columns to carry along as text under `extra:<name>`: a split key, a time.
        required: Those of `extra` that must not be empty.
        max_bad_share: Largest share of rows that may be bad. Defaults to 0: the first bad row raises.
        bad_rows_file: Where bad rows are set aside; see `BadRows`.
        chunk_bytes: Bytes of text per chunk. Defaults to 16 MiB, some 70,000 rows of Criteo.
        labelled: Whether label and weight of a row are read. Without, chunks have neither, and files need not have
            their columns; a header may name any columns in any order, the same in all files. Defaults to `True`.

    Attributes:
        bad: The bad rows of the last pass.
        names: Column names in file order.

    Raises:
        DataError: a file is missing, unreadable or has no rows, or its header does not fit.
        ConfigError: a column is not in the files, or is asked for in two ways that exclude each other.

    Example:
        >>> import tempfile
        >>> from tfdlrm.data.planted import write_planted
        >>> from tfdlrm.spec.raw import CRITEO_FORMAT
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summary = write_planted(f"{folder}/rows.tsv", rows=100)
        ...     reader = RawReader(CRITEO_FORMAT, [f"{folder}/rows.tsv"], dense=["I1"], strings=["C1"])
        ...     [chunk.frame.shape for chunk in reader]
        [(100, 3)]
    """

    def __init__(
        self,
        format: RawFormat,
        paths: Sequence[str | RawPath],
        dense: Sequence[str] = (),
        strings: Sequence[str] = (),
        *,
        hex_columns: Mapping[str, str | None] | None = None,
        weights: Mapping[str, tuple[str, str]] | None = None,
        keys: Sequence[str] = (),
        extra: Sequence[str] = (),
        required: Collection[str] = (),
        max_bad_share: float = 0.0,
        bad_rows_file: Path | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        labelled: bool = True,
    ) -> None:
        if not paths:
            raise ConfigError("`raw` must name at least one file. Received: none.")
        for name, character in (("delimiter", format.delimiter), ("quote", format.quote)):
            if character is not None and (not character.isascii() or character in "\r\n\0"):
                raise ConfigError(
                    f"`{name}` must be an ASCII character other than a line end. Received: {character!r}."
                )
        self.paths = [expand_path(path) if isinstance(path, str | Path) else path for path in paths]
        self.bad = BadRows()
        self._files: list[RawFile] | None = None
        self._format = format
        self._max_bad_share = max_bad_share
        self._bad_rows_file = bad_rows_file
        self._chunk_bytes = chunk_bytes
        self._labelled = labelled
        # Every file is opened now, so that a missing one is not found out hours later.
        headers = [self._first_line(path) for path in self.paths]
        self.names = self._names(headers)
        self._plan(dense, strings, hex_columns or {}, weights or {}, keys, extra, required)

    def survey(self, progress: Callable[[int], None] = lambda rows: None) -> list[RawFile]:
        """Return rows, size and checksum of each file; found in a pass of its own and kept.

        Args:
            progress: Called with the number of rows just counted.

        Raises:
            DataError: a file is cut short or has no rows.
        """
        if self._files is None:
            header = self._format.header
            self._files = [survey(path, header, progress=progress) for path in self.paths]
        return self._files

    def take_survey(self, files: Sequence[RawFile]) -> None:
        """Believe what an earlier `survey` of the same files returned."""
        self._files = list(files)

    def count(self) -> list[int]:
        """Return the number of rows of each file, bad ones included."""
        return [file.rows for file in self.survey()]

    def locate(self, row: int) -> str:
        """Return `file:line` of a row by its number over all files."""
        for file in self.survey():
            if row < file.rows:
                return f"{file.path}:{row + 1 + int(self._format.header)}"
            row -= file.rows
        raise IndexError(row)

    def __iter__(self) -> Iterator[RawChunk]:
        """Yield the chunks of one pass.

        Raises:
            DataError: a row is bad and one too many, or a file is cut short; the message says where.
        """
        return self.map(lambda chunk: chunk)

    def map(
        self,
        work: Callable[[RawChunk], Result],
        threads: int = 1,
        done: Sequence[int] = (),
        bad: BadRows | None = None,
    ) -> Iterator[Result]:
        """Yield `work(chunk)` for each chunk of one pass, in their order.

        Args:
            work: Called on the thread that parsed the chunk.
            threads: How many chunks are parsed at a time. Defaults to 1: all is done by the calling thread.
            done: Rows of the first chunks, as many as are to be left out: a pass that was broken off goes on there.
            bad: Collects bad rows; defaults to one that knows of none yet.

        Raises:
            DataError: as iterating does; what `work` made of the chunk at fault, and of later ones, is not yielded.
        """
        return self.map_blocks(work, self._blocks(done), threads, bad)

    def map_blocks(
        self,
        work: Callable[[RawChunk], Result],
        blocks: Iterable[RawBlock],
        threads: int = 1,
        bad: BadRows | None = None,
    ) -> Iterator[Result]:
        """Yield `work(chunk)` for given blocks, which need not be all, nor of the reader's own files; see `map`."""
        self.bad = bad = bad or self.bad_rows()

        def parse(block: RawBlock) -> tuple[RawBlock, dict[int, Problem], Result]:
            problems, chunk = self._parse(block)
            return block, problems, work(chunk)

        with bad.open():
            for block, problems, result in ordered_map(parse, blocks, threads):
                for index in sorted(problems):
                    bad.add(block.path, block.line + index, problems[index], block.lines[index])
                yield result

    def bad_rows(self, file: Path | None = None) -> BadRows:
        """Return a collector of bad rows under this reader's limit, into a file or the reader's."""
        return BadRows(self._bad_limit, file or self._bad_rows_file)

    def _blocks(self, done: Sequence[int]) -> Iterator[RawBlock]:
        index = first_row = 0
        for file, path in enumerate(self.paths):
            chunks, rows = self._whole_file(done[index:], file)
            if chunks:  # nothing of it is left to be read
                index += chunks
                first_row += rows
                continue
            line = first_line = 1 + int(self._format.header)
            for lines in self.body(path):
                rows = done[index] if index < len(done) else len(lines)
                if index >= len(done):
                    yield RawBlock(index, file, path, lines, line, first_row)
                index += 1
                line += rows
                first_row += rows
            if line == first_line:
                raise DataError(f"{path}: no rows.")

    def _whole_file(self, done: Sequence[int], file: int) -> tuple[int, int]:
        """Return how many of the chunks that are done make up a whole file, none if they do not, and its rows."""
        wanted = self._files[file].rows if self._files is not None else 0
        seen = chunks = 0
        while chunks < len(done) and seen < wanted:
            seen += done[chunks]
            chunks += 1
        return (chunks, seen) if chunks and seen == wanted else (0, 0)

    def _parse(self, block: RawBlock) -> tuple[dict[int, Problem], RawChunk]:
        parsed = self._parser.parse(block.lines)
        frame = parsed.frame
        for side in self._sides:
            frame = side.join(frame)
        rows = block.first_row + np.flatnonzero(parsed.good)
        chunk = RawChunk(frame.select(self._output), rows, len(block.lines), block.number, block.file)
        return parsed.problems, chunk

    def _bad_limit(self) -> int:
        return math.floor(self._max_bad_share * sum(self.count())) if self._max_bad_share else 0

    def body(self, path: RawPath) -> Iterator[Lines]:
        """Yield the lines of a file in blocks, without its header."""
        header = self._format.header
        for block in read_blocks(path, self._chunk_bytes):
            body = block[block.index(b"\n") + 1 :] if header else block
            header = False
            if body:
                yield Lines(body)

    def _first_line(self, path: RawPath) -> bytes:
        for block in read_blocks(path, 1 << 16):
            return block[: block.index(b"\n")]
        raise DataError(f"{path}: no rows.")

    def _names(self, first_lines: Sequence[bytes]) -> tuple[str, ...]:
        names = self._format.columns
        if not self._format.header:
            return names if self._labelled else self._without_label(first_lines[0])
        if not self._labelled:
            names = ()
        for path, line in zip(self.paths, first_lines, strict=True):
            found = self._fields(path, line)
            check_header(path, found, names)
            names = found
        return names

    def _without_label(self, first_line: bytes) -> tuple[str, ...]:
        """Return the columns of files without a header, which may have left out what is not read."""
        names, fields = self._format.columns, len(self._fields(self.paths[0], first_line))
        for absent in ({self._format.label_rule.column}, {self._format.label_rule.column, self._format.weight}):
            kept = tuple(name for name in names if name not in absent)
            if fields == len(kept) < len(names):
                return kept
        return names

    def _fields(self, path: RawPath, line: bytes) -> tuple[str, ...]:
        try:
            return tuple(split_line(line, self._format.delimiter, self._format.quote))
        except UnicodeDecodeError:
            raise DataError(f"{path}:1: {Problem('not UTF-8 text')}") from None

    def _plan(
        self,
        dense: Sequence[str],
        strings: Sequence[str],
        hex_columns: Mapping[str, str | None],
        weights: Mapping[str, tuple[str, str]],
        keys: Sequence[str],
        extra: Sequence[str],
        required: Collection[str],
    ) -> None:
        """Decide which column is read from where and as what, and what the output holds."""
        rule, weight = self._format.label_rule, self._format.weight
        special = {"label": rule.column, "weight": weight} if weight else {"label": rule.column}
        if not self._labelled:
            special = {}
        for name in (*dense, *strings, *keys):
            if name in special:
                raise ConfigError(f"a feature must not read column `{name}`: the name stands for the {name} of a row.")
            if (name in dense) + (name in strings) + (name in keys) > 1:
                raise ConfigError(f"column `{name}` must not be read both as a number and as text.")
        sides = [SideFile(table) for table in self._format.side_tables]
        joined_by = [table.key for table in self._format.side_tables]
        numbers, texts = list(dense), [*strings, *extra, *joined_by]
        if "label" in special:
            (numbers if label_is_number(rule) else texts).append(rule.column)
        if "weight" in special:
            numbers.append(special["weight"])
        origin = {name: self._origin(name, sides, joined_by) for name in (*numbers, *texts, *keys)}
        for what, column in (*special.items(), *(("keys", name) for name in keys)):
            if origin[column] is not None:
                raise ConfigError(f"`{what}` must be a column of the raw rows. Received: `{column}` of a side table.")

        checks: list[Check] = [label_check(rule)] if "label" in special else []
        checks += [sample_weight(special["weight"])] if "weight" in special else []
        checks += [check(name) for name in dense if origin[name] is None for check in (readable, finite)]
        checks += [hexadecimal(name, sep) for name, sep in hex_columns.items() if origin[name] is None]
        checks += [hexadecimal(name, None) for name in keys]
        checks += [
            bag_weights(name, *bag) for name, bag in weights.items() if origin[name] is None and origin[bag[0]] is None
        ]
        checks += [filled(name) for name in required if origin[name] is None]
        order = {name: i for i, name in enumerate(special.values())}
        checks.sort(key=lambda c: order.get(c.column, len(order) + self.names.index(c.column)))
        layout = Layout(self.names, self._format.delimiter, self._format.quote)
        here = {name for name, side in origin.items() if side is None}
        self._parser = RowParser(layout, here & set(numbers), here & set(texts), checks, keys)
        for i, side in enumerate(sides):
            there = {name for name, source in origin.items() if source == i}
            side.load(sorted(there & set(numbers)), sorted(there & set(texts)), hex_columns)
        self._sides = sides
        self._output = [label_value(rule).alias("label")] if "label" in special else []
        self._output += [number(special["weight"]).cast(pl.Float32).alias("weight")] if "weight" in special else []
        self._output += [number(name).alias(name) for name in dense] + [text(name).alias(name) for name in strings]
        for name in keys:
            self._output += [key(name).alias(name), missing_key(name).alias(f"missing:{name}")]
        self._output += [text(name).alias(f"extra:{name}") for name in extra]

    def _origin(self, name: str, sides: Sequence[SideFile], joined_by: Sequence[str]) -> int | None:
        """Return the side table that provides a column, `None` for the raw rows."""
        found: list[int | None] = [None] if name in self.names else []
        found += [i for i, side in enumerate(sides) if name in side.provides and not (found and name in joined_by)]
        if not found:
            known = [*self.names, *(n for side in sides for n in side.provides)]
            raise ConfigError(f"{self.paths[0]}: no column `{name}`.{did_you_mean(name, known)}")
        if len(found) > 1:
            raise ConfigError(f"column `{name}` must be in one place only, the raw rows or a side table.")
        return found[0]
