"""Raw files to a prepared directory: count, learn the vocabulary of training rows, encode, pack."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.columns import raw_columns
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.manifest import MANIFEST, Manifest, SplitInfo
from tfdlrm.data.packed import PackedWriter
from tfdlrm.data.parallel import ordered_map, usable_cores
from tfdlrm.data.raw_blocks import CHUNK_BYTES, expand_path
from tfdlrm.data.reader import RawChunk, RawReader
from tfdlrm.data.recipe import difference, recipe_of
from tfdlrm.data.row_statistics import RowStatistics, summarize
from tfdlrm.data.side_tables import SideFile
from tfdlrm.data.splits import SPLIT_NAMES, TRAIN, SplitPlan, read_times
from tfdlrm.data.staged_rows import StagedRows, refuse_full_disk
from tfdlrm.data.staging import staged_directory
from tfdlrm.data.transforms import DenseStats
from tfdlrm.data.vocabulary import Vocabulary, VocabularyBuilder
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import ConfigError, DataError

BAD_ROWS_FILE = "bad_rows.tsv"
MOST_THREADS = 8
"""Threads beyond these would hold more memory than they save time: each has a chunk of text and its rows."""
_STAGED = "staged"
_SPLIT = "split:code"  # no column of a recipe: those are there by their own names
Progress = Callable[[str, int], Callable[[int], None]]
"""Told the name of a phase and its rows (0 where not known yet); returns what is called with rows just done."""


def silent(phase: str, rows: int) -> Callable[[int], None]:
    """Report no progress."""
    return lambda rows: None


def prepare(
    data: DataConfig,
    raw: Sequence[str | Path],
    directory: str | Path,
    embedding_dim: int,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
    chunk_bytes: int = CHUNK_BYTES,
) -> Manifest:
    """Turn raw files into packed records of ids, or find that this was done before.

    `directory` gets `manifest.json`, the encoder's files, the shards of each split, and `bad_rows.tsv` if rows were
    set aside. It appears when all of it is complete. Memory is bounded by the chunk and by the number of distinct
    values, not by the number of rows. Where there are vocabularies to learn, rows once parsed wait for them on disk
    beside `directory`: some 170 bytes a row of Criteo.

    Args:
        data: How rows lie in the files, how they are coded and split.
        raw: Raw files in order. `data.raw` is not looked at.
        directory: Where to. If it holds what the same settings made of the same files, that is returned.
        embedding_dim: Width of the tables in the manifest's spec; prepared rows do not depend on it.
        overwrite: Replace data that another recipe made, instead of refusing. Defaults to `False`.
        progress: Called with the name of each phase (`"count"`, `"time"`, `"vocabulary"`, `"encode"`) and its rows.
        chunk_bytes: Bytes of raw text that a thread holds at a time; there are as many threads as cores, at most
            `MOST_THREADS`, and one chunk more than threads. Defaults to 16 MiB.

    Returns:
        The manifest. Its `statistics` hold rows and click rate of each split, shares of missing, rare and unseen
        values, values dropped from bags, vocabulary sizes, training ids in `rare_row`, bad rows by reason, seconds.

    Raises:
        DataError: raw data are missing or malformed, an earlier result is damaged, or the disk is too full.
        ConfigError: a column is not there, no row would train, or `directory` holds something else.
    """
    directory = Path(directory)
    done = None if overwrite else _done_before(data, raw, directory)
    if done is not None:
        return done.model_copy(update={"spec": done.spec.with_embedding_dim(embedding_dim)})
    _refuse_foreign(directory)
    work = _Work(data, raw, progress, chunk_bytes)
    with staged_directory(directory) as temporary:
        manifest = work.run(temporary, embedding_dim)
        manifest.save(temporary)
    return manifest


def _done_before(data: DataConfig, raw: Sequence[str | Path], directory: Path) -> Manifest | None:
    """Return the manifest that `directory` holds, if it is of these settings and files."""
    if not _is_prepared(directory):
        return None
    manifest = Manifest.load(directory)
    changed = difference(manifest.recipe, data, [expand_path(path) for path in raw])
    if changed:
        raise ConfigError(f"{directory}: prepared by another recipe: {changed}. Choose another directory or overwrite.")
    manifest.check(directory)
    return manifest


def _is_prepared(directory: Path) -> bool:
    return (directory / MANIFEST).exists()


def _refuse_foreign(directory: Path) -> None:
    """Raise unless `directory` is absent, empty or holds prepared data: nothing else may be replaced."""
    if directory.exists() and not _is_prepared(directory) and (directory.is_file() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: must be empty or hold prepared data. Received: something else.")


class _Rows(NamedTuple):
    """Parsed rows.

    Attributes:
        frame: The columns that features read, `label`, `weight` if there is one, and the code of each row's split.
        read: Rows read for them, the bad ones included.
    """

    frame: pl.DataFrame
    read: int

    @classmethod
    def of(cls, chunk: RawChunk, plan: SplitPlan) -> _Rows:
        codes = pl.Series(_SPLIT, plan.codes(chunk))
        # As the encoder takes numbers anyway: in float32, and NaN where missing, which is quicker to read than null.
        frame = chunk.frame.select(pl.exclude("^extra:.*$")).with_columns(
            pl.col(pl.Float64).cast(pl.Float32).fill_null(float("nan"))
        )
        return cls(frame.with_columns(codes), chunk.read)


class _Encoded(NamedTuple):
    """Encoded rows.

    Attributes:
        parts: Columns as `PackedWriter.add` takes them, and their statistics, by split.
        dropped: Values dropped from bags, by feature.
        read: Rows read for them, the bad ones included.
    """

    parts: dict[str, tuple[dict[str, npt.NDArray[Any]], RowStatistics]]
    dropped: Counter[str]
    read: int


class _Work:
    """One run of `prepare`: the raw files are read to be counted, and to be parsed; what is parsed is encoded."""

    def __init__(self, data: DataConfig, raw: Sequence[str | Path], progress: Progress, chunk_bytes: int) -> None:
        self._data = data
        self._raw = raw
        self._progress = progress
        self._chunk_bytes = chunk_bytes
        self._threads = min(usable_cores(), MOST_THREADS)
        self._encoding = encoding_of(data)
        self._table_of = {c.name: c.table or c.name for c in data.sparse}
        self._seconds: dict[str, float] = {}

    def run(self, directory: Path, embedding_dim: int) -> Manifest:
        """Write everything but the manifest into `directory` and return what it must say."""
        data, encoding = self._data, self._encoding
        columns = raw_columns(encoding, self._table_of, [c.name for c in data.dense])
        keys = self._key_columns()
        reader = self._reader(
            dense=columns.numbers,
            strings=[name for name in columns.strings if name not in keys],
            hex_columns={name: separator for name, separator in self._hex_columns().items() if name not in keys},
            keys=keys,
            extra=[data.split.key] if data.split.by == "hash" and data.split.key else [],
            bad_rows_file=directory / BAD_ROWS_FILE,
        )
        with self._phase("count", 0) as done:
            files = reader.survey(done)
        rows = sum(reader.count())
        plan = self._plan(reader.count(), rows)
        staged = StagedRows(directory / _STAGED)
        vocabularies, stats, read = self._learn(reader, plan, rows, staged, directory)
        spec = spec_of(data, {name: v.rows for name, v in vocabularies.items()}, embedding_dim)
        encoder = FeatureEncoder(spec, encoding, vocabularies, stats)

        def chunks(encode: Callable[[_Rows], _Encoded]) -> Iterator[_Encoded]:
            if not read:
                return reader.map(lambda chunk: encode(_Rows.of(chunk, plan)), self._threads)
            return ordered_map(lambda at: encode(_Rows(staged.read(at[0]), at[1])), enumerate(read), self._threads)

        with ThreadPoolExecutor(1) as pool:
            saved = pool.submit(encoder.save, directory)  # which waits for the disk most of the time
            splits, statistics = self._encode(encoder, chunks, rows, directory)
            saved.result()
        staged.remove()
        for file in files:
            stat = file.path.stat()
            if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
                raise DataError(f"{file.path}: changed while it was read.")
        return Manifest(
            spec=spec,
            encoding=encoding,
            recipe=recipe_of(data, files),
            splits=splits,
            has_sample_weight=data.format.weight is not None,
            statistics={**statistics, "bad_rows": dict(reader.bad.counts), "seconds": self._seconds},
        )

    def _plan(self, rows_per_file: Sequence[int], rows: int) -> SplitPlan:
        split, column = self._data.split, self._data.format.time
        if split.by != "time":
            return SplitPlan.make(split, rows_per_file)
        if column is None:
            raise ConfigError('`data.format.time` must name a column where split.by = "time".')
        with self._phase("time", rows) as done:
            times = read_times(self._reader(extra=[column]), column, done)
            return SplitPlan.make(split, rows_per_file, times)

    def _learn(
        self, reader: RawReader, plan: SplitPlan, rows: int, staged: StagedRows, directory: Path
    ) -> tuple[dict[str, Vocabulary], dict[str, DenseStats], list[int]]:
        """Count what training rows hold, putting all rows aside; the list has the rows read for each staged frame."""
        standardize = [c.name for c in self._data.dense if c.transform == "standardize"]
        builder = VocabularyBuilder(self._encoding, self._table_of, standardize)
        read: list[int] = []
        if not standardize and all(coding.kind == "hash" for coding in self._encoding.tables.values()):
            return *builder.build(), read  # there is nothing to learn: one pass will do

        def parse(chunk: RawChunk) -> tuple[pl.DataFrame, int, int]:
            frame = _Rows.of(chunk, plan).frame
            size = staged.write(chunk.index, frame)
            here = frame[_SPLIT] == TRAIN
            return frame if here.all() else frame.filter(here), chunk.read, size

        with self._phase("vocabulary", rows) as done:
            for frame, count, size in reader.map(parse, self._threads):
                if not read:
                    refuse_full_disk(directory, rows * (size / count + self._packed_row_bytes()))
                read.append(count)
                builder.add(frame)
                done(count)
        return *builder.build(), read

    def _encode(
        self,
        encoder: FeatureEncoder,
        chunks: Callable[[Callable[[_Rows], _Encoded]], Iterator[_Encoded]],
        rows: int,
        directory: Path,
    ) -> tuple[dict[str, SplitInfo], dict[str, Any]]:
        data, spec = self._data, encoder.spec
        weighted = data.format.weight is not None
        dropped: Counter[str] = Counter()
        counts = {name: RowStatistics(spec, encoder.encoding) for name in SPLIT_NAMES}

        def encode(chunk: _Rows) -> _Encoded:
            beyond: Counter[str] = Counter()
            batch = encoder.encode_frame(chunk.frame, beyond)
            columns = batch | {"label": chunk.frame["label"].to_numpy()}
            if weighted:
                columns["sample_weight"] = chunk.frame["weight"].to_numpy()
            parts = {}
            for code, name in enumerate(SPLIT_NAMES):
                here = np.flatnonzero(chunk.frame[_SPLIT].to_numpy() == code)
                if not len(here):
                    continue
                whole = len(here) == chunk.frame.height
                part = columns if whole else {column: values[here] for column, values in columns.items()}
                own = RowStatistics(spec, encoder.encoding)
                own.add(chunk.frame if whole else chunk.frame[here], part["sparse"])
                parts[name] = (part, own)
            return _Encoded(parts, beyond, chunk.read)

        with self._phase("encode", rows) as done, ExitStack() as stack:
            writers = {
                name: stack.enter_context(
                    PackedWriter(directory, name, spec, data.rows_per_block, data.rows_per_shard, weighted)
                )
                for name in SPLIT_NAMES
            }
            for encoded in chunks(encode):
                for name, (part, own) in encoded.parts.items():
                    writers[name].add(**part)
                    counts[name].merge(own)
                dropped.update(encoded.dropped)
                done(encoded.read)
            splits = {name: writer.close() for name, writer in writers.items()}
        if not splits[SPLIT_NAMES[TRAIN]].rows:
            raise DataError("no row is left to train on: all of its split are bad, or `split` puts none there.")
        statistics = {
            **summarize(counts),
            "vocabulary_sizes": {table.name: table.vocabulary_size for table in spec.tables},
            "dropped_values": {c.name: dropped[c.name] for c in data.sparse if c.separator is not None},
        }
        return splits, statistics

    def _packed_row_bytes(self) -> int:
        """Return how many bytes a row of ids takes, about."""
        return 4 * (len(self._data.dense) + sum(c.hotness for c in self._data.sparse) + 2)

    def _reader(self, extra: Sequence[str] = (), **options: Any) -> RawReader:
        """Return a reader of the raw files; whatever it is for, a row without a time is bad where time splits."""
        data = self._data
        times = [data.format.time] if data.split.by == "time" and data.format.time is not None else []
        return RawReader(
            data.format,
            self._raw,
            extra=list(dict.fromkeys([*extra, *times])),
            required=times,
            max_bad_share=data.max_bad_share,
            chunk_bytes=self._chunk_bytes,
            **options,
        )

    def _hex_columns(self) -> dict[str, str | None]:
        """Return the raw columns that must hold hexadecimal keys, with the separator of their bags."""
        features = self._encoding.features.items()
        hexadecimal = [c for name, c in features if self._encoding.tables[self._table_of[name]].value == "hex"]
        # Where features read one column both as a bag and as a single value, the stricter reading counts.
        return {c.source: c.separator for c in sorted(hexadecimal, key=lambda c: c.separator is None)}

    def _key_columns(self) -> list[str]:
        """Return the raw columns that all features read as one hexadecimal key a row."""
        data, tables = self._data, self._encoding.tables
        readers: dict[str, list[bool]] = {}
        for name, coding in self._encoding.features.items():
            is_key = tables[self._table_of[name]].value == "hex" and coding.separator is None
            readers.setdefault(coding.source, []).append(is_key)
        # Those of side tables are joined as text.
        joined = {name for table in data.format.side_tables for name in SideFile(table).provides}
        return [name for name, are_keys in readers.items() if all(are_keys) and name not in joined]

    @contextmanager
    def _phase(self, name: str, rows: int) -> Iterator[Callable[[int], None]]:
        start = time.perf_counter()
        yield self._progress(name, rows)
        self._seconds[name] = round(time.perf_counter() - start, 3)
