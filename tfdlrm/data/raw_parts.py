"""Parts of raw files that are parsed on their own, each knowing its place among all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tfdlrm.data.bad_rows import BadRows
from tfdlrm.data.fields import Lines
from tfdlrm.data.raw_blocks import RawPath, Span, plain_lines
from tfdlrm.data.reader import RawBlock, RawChunk, RawReader, Result
from tfdlrm.spec.errors import DataError


class FilePart(NamedTuple):
    """Consecutive blocks of one raw file.

    Attributes:
        file: Number of the file.
        chunk: Number of the first block over all files.
        row: Number of the first row over all files.
        line: Its line in the file, from 1.
        spans: Where the blocks lie, as `survey_blocks` tells.
        packed: Whether they must be unpacked; then they are all of the file.
    """

    file: int
    chunk: int
    row: int
    line: int
    spans: Sequence[Span]
    packed: bool


def parts_of(surveys: Sequence[tuple[Sequence[Span], bool]], header: bool, part_bytes: int) -> list[FilePart]:
    """Cut files into parts of about `part_bytes`; a packed file is one part, as it can only be read from its start.

    Args:
        surveys: Of each file, its blocks and whether it is packed.
        header: Whether the first line of each file is a header.
        part_bytes: Bytes of a part, give or take a block.
    """
    parts = []
    chunk = row = 0
    for file, (spans, packed) in enumerate(surveys):
        line, first = 1 + int(header), 0
        for last in range(1, len(spans) + 1):
            if last < len(spans) and (packed or spans[last].stop - spans[first].start <= part_bytes):
                continue
            parts.append(FilePart(file, chunk, row, line, spans[first:last], packed))
            rows = sum(span.rows for span in spans[first:last])
            chunk, row, line, first = chunk + last - first, row + rows, line + rows, last
    return parts


class PartReader:
    """Reads one part as `RawReader` reads whole files: what comes is what that yields of these blocks.

    Args:
        reader: Parses rows.
        path: The file.
        part: Which part of it.
        header: Whether the first line of the file is a header.
        bad_limit: How many bad rows are put up with.
    """

    def __init__(self, reader: RawReader, path: RawPath, part: FilePart, header: bool, bad_limit: int) -> None:
        self._reader = reader
        self._path = path
        self._part = part
        self._header = header
        self._bad_limit = bad_limit

    def map(
        self, work: Callable[[RawChunk], Result], threads: int = 1, done: Sequence[int] = (), bad: BadRows | None = None
    ) -> Iterator[Result]:
        """Yield `work(chunk)` for each block in order; see `RawReader.map`.

        Raises:
            DataError: as there, or the file is not what it was when its blocks were found.
        """
        return self._reader.map_blocks(work, self._blocks(len(done)), threads, bad or self.bad_rows())

    def bad_rows(self, file: Path | None = None) -> BadRows:
        """Return a collector of bad rows."""
        return BadRows(lambda: self._bad_limit, file)

    def _blocks(self, done: int) -> Iterator[RawBlock]:
        part = self._part
        line, row = part.line, part.row
        blocks = self._reader.body(self._path) if part.packed else self._plain_blocks()
        found = -1
        for found, lines in enumerate(blocks):
            if found >= len(part.spans) or len(lines) != part.spans[found].rows:
                raise self._changed()
            if found >= done:
                yield RawBlock(part.chunk + found, part.file, self._path, lines, line, row)
            line, row = line + len(lines), row + len(lines)
        if found + 1 < len(part.spans):
            raise self._changed()

    def _plain_blocks(self) -> Iterator[Lines]:
        try:
            with self._path.open("rb") as file:
                for start, stop, _ in self._part.spans:
                    file.seek(start)
                    block = plain_lines(file.read(stop - start), start == 0)
                    if start == 0 and self._header:
                        block = block[block.find(b"\n") + 1 :]
                    yield Lines(block)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror}.") from None

    def _changed(self) -> DataError:
        return DataError(f"{self._path}: changed while it was read.")
