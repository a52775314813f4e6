"""The pass over raw text: rows are parsed, put aside and counted, in segments from which a new try goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.bad_rows import BadRows
from tfdlrm.data.dropped_rows import kept_rows
from tfdlrm.data.files import atomic_path, fsync_directory, fsync_file
from tfdlrm.data.raw_parts import PartReader
from tfdlrm.data.reader import RawChunk, RawReader
from tfdlrm.data.shard_plan import ChunkRows
from tfdlrm.data.splits import SPLIT_NAMES, TRAIN, SplitPlan, in_split
from tfdlrm.data.staged_rows import StagedRows
from tfdlrm.data.transforms import FileMinimums
from tfdlrm.data.vocabulary_builder import VocabularyBuilder
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import DataError

SPLIT = "split:code"
"""Column of each row's split; no column of a recipe: those are there by their own names."""
CHUNKS_PER_SEGMENT = 16
MOST_SEGMENTS = 256
"""About: the more segments, the less is lost by a kill; the fewer, the fewer files are merged in the end."""
_SEGMENT, _BAD_ROWS, _NEXT = "segment.json", "bad_rows.tsv", "next.tmp"


class ParsedRows(NamedTuple):
    """Parsed rows of a chunk.

    Attributes:
        frame: The columns that features read, `label`, `weight` if there is one, and the code of each row's split.
        rows: int64 `[rows]`, the number of each row over all files.
    """

    frame: pl.DataFrame
    rows: npt.NDArray[np.int64]

    @classmethod
    def of(cls, chunk: RawChunk, plan: SplitPlan, data: DataConfig) -> ParsedRows:
        """Give each row its split, and leave out the rows without a click that the recipe leaves out."""
        codes = pl.Series(SPLIT, plan.codes(chunk))
        # As the encoder takes numbers anyway: in float32, and NaN where missing, which is quicker to read than null.
        frame = chunk.frame.select(pl.exclude("^extra:.*$")).with_columns(
            pl.col(pl.Float64).cast(pl.Float32).fill_null(float("nan"))
        )
        frame = frame.with_columns(codes)
        kept = kept_rows(chunk.rows, frame["label"].to_numpy(), data.drop_negatives, data.drop_seed)
        if kept.all():
            return cls(frame, chunk.rows)
        return cls(frame.filter(pl.Series(kept)), chunk.rows[kept])

    def training(self) -> ParsedRows:
        """Return the rows that train."""
        here = in_split(self.frame[SPLIT].to_numpy(), SPLIT_NAMES[TRAIN])
        if here.all():
            return self
        return ParsedRows(self.frame.filter(pl.Series(here)), self.rows[here])

    def counts(self, chunk: RawChunk) -> ChunkRows:
        """Return how many rows there are in each split."""
        codes = self.frame[SPLIT].to_numpy()
        splits = tuple(int(np.count_nonzero(in_split(codes, name))) for name in SPLIT_NAMES)
        return ChunkRows(chunk.read, self.frame.height, splits, chunk.file)


class _Work(NamedTuple):
    parsed: ParsedRows
    rows: ChunkRows
    staged_bytes: int


class ParsingPass:
    """Reads raw rows once, in segments of chunks, which end early where counts fill the memory.

    When a segment ends, its rows, counts and bad rows are on disk for good. What a pass that was broken off had
    finished is neither parsed nor counted again.

    Args:
        data: The recipe.
        reader: Reads the raw files.
        plan: Tells the split of each row.
        builder: Counts values.
        minimums: Counts the smallest numbers of each file.
        folder: Where segments are noted; what lies there is gone on from.
        staged: Where rows go.
        threads: How many chunks are parsed at a time.
        memory_bytes: Most memory for counts, about.
        raw_chunks: How many chunks there will be, about: of very many, a segment has more.

    Attributes:
        chunks: The chunks of the segments that ended.
        bad: The bad rows so far.
    """

    def __init__(
        self,
        data: DataConfig,
        reader: RawReader | PartReader,
        plan: SplitPlan,
        builder: VocabularyBuilder,
        minimums: FileMinimums,
        folder: Path,
        staged: StagedRows,
        threads: int,
        memory_bytes: int,
        raw_chunks: int,
    ) -> None:
        self.chunks: list[ChunkRows] = []
        self.bad: BadRows = reader.bad_rows(folder / _BAD_ROWS)
        self._data = data
        self._reader = reader
        self._plan = plan
        self._builder = builder
        self._minimums = minimums
        self._segment_chunks = max(CHUNKS_PER_SEGMENT, raw_chunks // MOST_SEGMENTS)
        self._folder = folder
        self._staged = staged
        self._threads = threads
        # Merging holds counts twice.
        self._memory_bytes = memory_bytes // 2
        self._take_over()

    @property
    def segments(self) -> list[Path]:
        """The folders of the segments that ended, in order."""
        return sorted(path for path in self._folder.iterdir() if path.name.isdigit())

    def run(self, done: Callable[[int], None], first: Callable[[float], None]) -> Iterator[None]:
        """Read what is left to read; yields each time a segment has ended.

        Args:
            done: Called with the number of rows just read; at once with those that were read before.
            first: Called as each segment begins, with the bytes that a row takes where it is put aside.

        Raises:
            DataError: as iterating over the reader does.
        """
        read = [chunk.read for chunk in self.chunks]
        done(sum(read))
        waiting: list[ChunkRows] = []
        for work in self._reader.map(self._parse, self._threads, read, self.bad):
            if not waiting and work.rows.read:
                first(work.staged_bytes / work.rows.read)
            training = work.parsed.training()
            self._builder.add(*(work.parsed if self._data.vocabulary_rows == "all" else training))
            self._minimums.add(work.rows.file, work.parsed.frame, trains=bool(len(training.rows)))
            waiting.append(work.rows)
            done(work.rows.read)
            if len(waiting) == self._segment_chunks or self._builder.nbytes > self._memory_bytes:
                self._end_segment(waiting)
                waiting = []
                yield
        if waiting:
            self._end_segment(waiting)
            yield

    def write_bad_rows(self, path: Path) -> None:
        """Write all bad rows that were set aside to one file, if there are any."""
        parts = [folder / _BAD_ROWS for folder in self.segments if (folder / _BAD_ROWS).exists()]
        if parts:
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                for part in parts:
                    file.write(part.read_bytes())

    def forget_counts(self) -> None:
        """Remove what was counted: vocabularies are built."""
        for folder in self.segments:
            for path in folder.iterdir():
                if path.name not in (_SEGMENT, _BAD_ROWS):
                    path.unlink()

    def _parse(self, chunk: RawChunk) -> _Work:
        rows = ParsedRows.of(chunk, self._plan, self._data)
        size = self._staged.write(chunk.index, rows.frame)
        return _Work(rows, rows.counts(chunk), size)

    def _take_over(self) -> None:
        shutil.rmtree(self._folder / _NEXT, ignore_errors=True)
        for folder in self.segments:
            noted: dict[str, Any] = json.loads((folder / _SEGMENT).read_text(encoding="utf-8"))
            self.chunks += [ChunkRows(read, kept, tuple(splits), file) for read, kept, splits, file in noted["chunks"]]
            self.bad.state = noted["bad"]
            self._minimums.state = noted["minimums"]
        if self.segments and (self.segments[-1] / "stats.json").exists():
            self._builder.go_on_from(self.segments[-1])

    def _end_segment(self, chunks: list[ChunkRows]) -> None:
        folder = self._folder / _NEXT
        folder.mkdir()
        self._builder.save(folder)
        self.bad.cut(folder / _BAD_ROWS)
        noted = {"chunks": chunks, "bad": self.bad.state, "minimums": self._minimums.state}
        (folder / _SEGMENT).write_text(json.dumps(noted), encoding="utf-8")
        for path in folder.iterdir():
            fsync_file(path)
        fsync_directory(folder)
        self._staged.sync()
        os.rename(folder, self._folder / f"{len(self.chunks):08d}")
        fsync_directory(self._folder)
        self.chunks += chunks


def refuse_no_training_rows(chunks: list[ChunkRows]) -> None:
    """Raise `DataError` unless some row trains."""
    if not any(chunk.splits[TRAIN] for chunk in chunks):
        raise DataError("no row is left to train on: all of its split are bad, or `split` puts none there.")
