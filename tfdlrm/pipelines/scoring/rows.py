"""The rows of a file as the columns of a question, chunk by chunk, and the answers as a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.files import sha256_of
from tfdlrm.data.parallel import ordered_map
from tfdlrm.data.raw_blocks import expand_path
from tfdlrm.data.reader import RawChunk, RawReader
from tfdlrm.pipelines.scoring.models import Scorer
from tfdlrm.spec.errors import ConfigError, DataError, did_you_mean
from tfdlrm.spec.raw import RawFormat

ROW = "row"
PARQUET_ROWS = 65_536

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scored:
    """The answers to some rows that follow each other.

    Attributes:
        read: How many rows were read for them.
        frame: `row` (UInt64, from 0 over all files), the columns kept, and one column for each output.
    """

    read: int
    frame: pl.DataFrame


class RowSource:
    """Rows of delimited text or Parquet, to be scored in order.

    Args:
        paths: The files: delimited text, plain or gzip, or Parquet.
        format: How text is laid out; Parquet needs none.
        scorer: Who answers.
        keep: Columns to carry along.
        batch_size: Rows per question.
        threads: How many chunks are at work at a time.

    Raises:
        ConfigError: a column that the model reads, or that is to be kept, is in none of the files.
        DataError: a file is missing, or has no rows.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        format: RawFormat,
        scorer: Scorer,
        keep: Sequence[str],
        batch_size: int,
        threads: int,
    ) -> None:
        self._scorer, self._keep, self._batch_size, self._threads = scorer, tuple(keep), batch_size, threads
        self._format = format
        self._tables = [_ParquetRows(path) for path in paths] if _are_parquet(paths) else []
        self._reader: RawReader | None = None
        if self._tables:
            known = self._tables[0].columns
            for name in (*scorer.numbers, *scorer.strings, *keep):
                if any(name not in table.columns for table in self._tables):
                    raise ConfigError(f"{paths[0]}: no column `{name}`.{did_you_mean(name, known)}")
        else:
            self._reader = RawReader(
                format, paths, dense=scorer.numbers, strings=scorer.strings, extra=keep, labelled=False
            )
        self._paths = paths

    def layout(self) -> dict[str, Any]:
        """Return how rows are read, ready for JSON: the form of text files, and what their side tables hold."""
        if self._reader is None:
            return {}
        sides = [expand_path(side.file) for side in self._format.side_tables]
        return {"format": self._format.model_dump(mode="json"), "side_tables": [sha256_of(path) for path in sides]}

    def identity(self, progress: Callable[[int], None]) -> list[dict[str, Any]]:
        """Return what tells the files from others, ready for JSON; text is read once for it."""
        if self._reader is None:
            stats = [path.stat() for path in self._paths]
            return [
                {"path": str(p), "bytes": s.st_size, "time": s.st_mtime_ns, "rows": t.rows}
                for p, s, t in zip(self._paths, stats, self._tables, strict=True)
            ]
        return [
            {"path": str(path), "rows": file.rows, "sha256": file.sha256}
            for path, file in zip(self._paths, self._reader.survey(progress), strict=True)
        ]

    def scored(self, done: Sequence[int]) -> Iterator[Scored]:
        """Yield the answers in order, without the first chunks, of which `done` has the rows.

        Raises:
            DataError: a row cannot be read; the message says where.
        """
        if self._reader is not None:
            yield from self._reader.map(self._score_chunk, self._threads, done)
            return
        yield from ordered_map(self._score_part, self._parts(sum(done)), self._threads)

    def _parts(self, skipped: int) -> Iterator[tuple[_ParquetRows, int, int]]:
        """Yield table, first row in it and first row over all files of each part of the Parquet files."""
        before = 0
        for table in self._tables:
            for start in range(max(skipped - before, 0), table.rows, PARQUET_ROWS):
                yield table, start, before + start
            before += table.rows

    def _score_part(self, part: tuple[_ParquetRows, int, int]) -> Scored:
        table, start, first = part
        frame = table.rows_from(start)
        kept = {name: frame[name] for name in self._keep}
        try:
            return self._score(frame, kept, np.arange(first, first + frame.height), frame.height)
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{table.path}: a column is not what the model reads: {_first_line(error)}") from None

    def _score_chunk(self, chunk: RawChunk) -> Scored:
        kept = {name: chunk.frame[f"extra:{name}"] for name in self._keep}
        return self._score(chunk.frame, kept, chunk.rows, chunk.read)

    def _score(
        self, frame: pl.DataFrame, kept: Mapping[str, pl.Series], rows: npt.NDArray[np.int64], read: int
    ) -> Scored:
        numbers, strings = self._scorer.numbers, self._scorer.strings
        columns: dict[str, Array] = {
            name: frame[name].cast(pl.Float32).fill_null(float("nan")).to_numpy() for name in numbers
        }
        columns |= {name: frame[name].cast(pl.String).fill_null("").to_numpy() for name in strings}
        answers = [
            self._scorer.score({name: values[start : start + self._batch_size] for name, values in columns.items()})
            for start in range(0, frame.height, self._batch_size)
        ]
        outputs = {name: _as_series(name, np.concatenate([answer[name] for answer in answers])) for name in answers[0]}
        taken = sorted({ROW, *outputs} & set(self._keep))
        if taken:
            raise ConfigError(f"`--keep` must not name what the answers have already. Received: {', '.join(taken)}.")
        return Scored(read, pl.DataFrame({ROW: pl.Series(rows, dtype=pl.UInt64), **kept, **outputs}))


class _ParquetRows:
    """The rows of a Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._scan = pl.scan_parquet(path, glob=False)
            self.columns = self._scan.collect_schema().names()
            self.rows = int(self._scan.select(pl.len()).collect().item())
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{path}: cannot be read as Parquet: {_first_line(error)}") from None
        if not self.rows:
            raise DataError(f"{path}: no rows.")

    def rows_from(self, start: int) -> pl.DataFrame:
        try:
            return self._scan.slice(start, PARQUET_ROWS).collect()
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{self.path}: cannot be read: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _are_parquet(paths: Sequence[Path]) -> bool:
    kinds = {path.suffix == ".parquet" for path in paths}
    if len(kinds) > 1:
        raise ConfigError(f"`--in` must name files of one kind. Received: {', '.join(map(str, paths))}.")
    return kinds == {True}


def _as_series(name: str, values: Array) -> pl.Series:
    """Return an output as a column: `[n]` and `[n, 1]` plain, anything else as lists."""
    flat = values.reshape(len(values)) if values.shape[1:] == (1,) else values
    if flat.dtype == object:
        texts = np.vectorize(lambda text: text.decode("utf-8", "replace"), otypes=[object])(flat) if flat.size else flat
        return pl.Series(name, texts.tolist())
    return pl.Series(name, flat) if flat.ndim == 1 else pl.Series(name, flat.tolist())


def default_format(path: Path, given: Mapping[str, Any]) -> RawFormat:
    """Return how a text file lies where nothing else says so: a header, commas in `.csv`, tabs elsewhere."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    comma = suffix == ".csv"
    return RawFormat(**{"header": True, "delimiter": "," if comma else "\t", "quote": '"' if comma else None, **given})
