"""Raw files to a prepared directory: count, learn the vocabulary of training rows, encode, pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tfdlrm import __version__
from tfdlrm.data.big_lookup import BigLookup, tables_to_join
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.encoder_checks import refuse_unless_encodable
from tfdlrm.data.encoder_files import ENCODER_FILE, EncoderParts, save_parts
from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.data.packed import packed_row_bytes, refuse_large_blocks
from tfdlrm.data.parallel import usable_cores
from tfdlrm.data.parsing_pass import ParsingPass, refuse_no_training_rows
from tfdlrm.data.partial import PartialData, finish_published, partial_data
from tfdlrm.data.raw_blocks import CHUNK_BYTES, RawFile, expand_path
from tfdlrm.data.recipe import difference, identity_of, recipe_of, refuse_changed_side_tables
from tfdlrm.data.recipe_reader import feature_reader, key_columns, recipe_reader
from tfdlrm.data.row_statistics import summarize
from tfdlrm.data.shard_plan import ShardPlan
from tfdlrm.data.shard_writing import ShardWriting, Written, without_features
from tfdlrm.data.splits import SplitPlan, read_times
from tfdlrm.data.staged_rows import StagedRows, refuse_full_disk
from tfdlrm.data.transforms import DenseStats, FileMinimums
from tfdlrm.data.vocabulary import Vocabulary, table_rows
from tfdlrm.data.vocabulary_builder import VocabularyBuilder, map_vocabularies, save_vocabularies
from tfdlrm.data.vocabulary_growth import VocabularyGrowth
from tfdlrm.spec.coding import Encoding
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.features import FeatureSpec

BAD_ROWS_FILE = "bad_rows.tsv"
LOCAL_ENGINE = "local"
MOST_THREADS = 8
"""Threads beyond these would hold more memory than they save time: each has a chunk of text and its rows."""
MEMORY_BYTES = 256 << 20
"""Memory for counts, and for looking values up. What does not fit waits in sorted files."""
_ID_BYTES = 4
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
    memory_bytes: int = MEMORY_BYTES,
) -> Manifest:
    """Turn raw files into packed records of ids, or find that this was done before.

    `directory` gets `manifest.json`, the encoder's files, the shards of each split, and `bad_rows.tsv` if rows were
    set aside. It appears when all of it is complete. Until then it grows in `<directory>.partial`, and a run that was
    killed, interrupted or out of disk is gone on from by the next one with the same settings and files: the result is
    the same, byte by byte. Memory is bounded by `memory_bytes` and the chunks, not by the number of rows or of distinct
    values. Rows once parsed wait on disk until their shard is written: some 170 bytes a row of Criteo.

    Where `data.growth` names a run, vocabularies grow from those of its prepared data, which are only read. Such a
    vocabulary and the one that it becomes are held in memory, one table at a time.

    Args:
        data: How rows lie in the files, how they are coded and split.
        raw: Raw files in order. `data.raw` is not looked at.
        directory: Where to. If it holds what the same settings made of the same files, that is returned.
        embedding_dim: Width of the tables in the manifest's spec; prepared rows do not depend on it.
        overwrite: Replace data that another recipe made, instead of refusing. Defaults to `False`.
        progress: Called with the name of each phase (`"count"`, `"time"`, `"vocabulary"`, or `"read"` where there is no
            vocabulary to learn, `"look up"`, `"encode"`) and its rows.
        chunk_bytes: Bytes of raw text that a thread holds at a time; there are as many threads as cores, at most
            `MOST_THREADS`, and one chunk more than threads. Defaults to 16 MiB.
        memory_bytes: About how much memory counts, and later the vocabularies that are looked up, may take. Counts
            beyond it are merged from sorted files; columns whose vocabulary does not fit are looked up by a join of
            sorted keys. Defaults to 256 MiB. It does not change the result.

    Returns:
        The manifest. Its `statistics` hold rows and click rate of each split, shares of missing, rare and unseen
        values, values dropped from bags, vocabulary sizes, training ids in `rare_row`, bad rows by reason.

    Raises:
        DataError: raw data are missing or malformed, an earlier result is damaged, or the disk is too full.
        ConfigError: a column is not there, no row would train, `directory` holds something else, another process
            is preparing it, or features or coding are not those of the run that `data.growth` names.
    """
    directory = Path(directory).resolve()  # or a link to a folder would be replaced by one
    identity = {**identity_of(data, raw), "version": __version__, "chunk_bytes": chunk_bytes}
    if finish_published(directory, identity) or not overwrite:
        done = done_before(data, raw, directory)
        if done is not None:
            return done.model_copy(update={"spec": done.spec.with_embedding_dim(embedding_dim)})
    refuse_foreign(directory)
    work = _Work(data, raw, progress, chunk_bytes, memory_bytes)
    with partial_data(directory, identity) as partial:
        manifest = work.run(partial, embedding_dim)
        refuse_changed_side_tables(identity["side_tables"])
        manifest.save(partial.out)
    return manifest


def manifest_of(
    data: DataConfig,
    spec: FeatureSpec,
    files: Sequence[RawFile],
    written: Written,
    bad_rows: Mapping[str, int],
    engine: str = LOCAL_ENGINE,
) -> Manifest:
    """Return the manifest of prepared data.

    Args:
        data: The recipe.
        spec: The features.
        files: The raw files as they were read.
        written: Their shards.
        bad_rows: Bad rows, by reason.
        engine: Name of what prepared them. Defaults to the local engine.
    """
    statistics = {
        **summarize(written.statistics),
        "vocabulary_sizes": {table.name: table.vocabulary_size for table in spec.tables},
        "dropped_values": {c.name: written.dropped[c.name] for c in data.sparse if c.separator is not None},
        "bad_rows": dict(bad_rows),
    }
    return Manifest(
        spec=spec,
        encoding=encoding_of(data),
        recipe={**recipe_of(data, files), "engine": engine},
        splits=written.splits,
        has_sample_weight=data.format.weight is not None,
        statistics=statistics,
    )


def done_before(data: DataConfig, raw: Sequence[str | Path], directory: Path) -> Manifest | None:
    """Return the manifest that `directory` holds, if it is of these settings and files."""
    if not _is_prepared(directory):
        return None
    manifest = Manifest.load(directory)
    changed = difference(manifest.recipe, data, [expand_path(path) for path in raw])
    if changed:
        raise ConfigError(f"{directory}: prepared by another recipe: {changed}. Choose another directory or overwrite.")
    manifest.check(directory)
    return manifest


def _refuse_unfit(data: DataConfig, spec: FeatureSpec, encoding: Encoding) -> None:
    """Raise for settings that cannot be, before any row is read.

    Raises:
        SpecError: a feature has no raw column that could fill its bags.
        ConfigError: a block would be too large, or the split has no time to go by.
    """
    if data.split.by == "time" and data.format.time is None:
        raise ConfigError('`data.format.time` must name a column where split.by = "time".')
    for feature in spec.sparse:
        refuse_unless_encodable(feature, encoding.features[feature.name])
    refuse_large_blocks(spec, data.rows_per_block, data.rows_per_shard, data.format.weight is not None)


def _is_prepared(directory: Path) -> bool:
    return (directory / MANIFEST).exists()


def refuse_foreign(directory: Path) -> None:
    """Raise unless `directory` is absent, empty or holds prepared data: nothing else may be replaced."""
    if directory.exists() and not _is_prepared(directory) and (directory.is_file() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: must be empty or hold prepared data. Received: something else.")


class _Learnt(NamedTuple):
    """What rows told: the vocabulary of each table, and statistics of dense features that need some."""

    vocabularies: dict[str, Vocabulary]
    stats: dict[str, DenseStats]


class _Work:
    """One run of `prepare`: raw files are counted, parsed and put aside; values are learnt; rows are encoded."""

    def __init__(
        self,
        data: DataConfig,
        raw: Sequence[str | Path],
        progress: Progress,
        chunk_bytes: int,
        memory_bytes: int,
    ) -> None:
        self._data = data
        self._raw = raw
        self._progress = progress
        self._chunk_bytes = chunk_bytes
        self._memory_bytes = memory_bytes
        self._threads = min(usable_cores(), MOST_THREADS)
        self._encoding = encoding_of(data)
        self._table_of = {c.name: c.table or c.name for c in data.sparse}
        # Before vocabularies are known; what they add changes the type of ids at most, from 2^31 rows on.
        sizes = {
            name: max(1, table_rows(coding, coding.buckets or 0)) for name, coding in self._encoding.tables.items()
        }
        spec = spec_of(data, sizes, 1)
        _refuse_unfit(data, spec, self._encoding)
        self._row_bytes = packed_row_bytes(spec, data.format.weight is not None)
        self._keys = key_columns(data)
        self._growth = None if data.growth.from_run is None else VocabularyGrowth(data)
        self._main_reader = feature_reader(data, raw, chunk_bytes, self._keys)

    def run(self, partial: PartialData, embedding_dim: int) -> Manifest:
        """Write everything but the manifest into the growing folder and return what it must say."""
        data, reader = self._data, self._main_reader
        files = self._survey(partial)
        rows = sum(file.rows for file in files)
        split_plan = self._split_plan(reader.count(), rows)
        standardize = [c.name for c in data.dense if c.transform == "standardize"]
        builder = VocabularyBuilder(self._encoding, self._table_of, standardize)
        minimums = FileMinimums([c.name for c in data.dense if c.transform == "log_file_minimum"])
        has_vocabulary = any(coding.kind == "vocabulary" for coding in self._encoding.tables.values())
        learns = bool(standardize or minimums.columns or has_vocabulary)
        with StagedRows(partial.subfolder("staged")) as staged:
            parsing = ParsingPass(
                *(data, reader, split_plan, builder, minimums, partial.subfolder("segments"), staged),
                *(self._threads, self._memory_bytes, sum(file.size for file in files) // self._chunk_bytes),
            )
            plan = ShardPlan(data.rows_per_shard, parsing.chunks)

            def first(staged_bytes: float) -> None:
                left = (rows - sum(chunk.read for chunk in parsing.chunks)) * staged_bytes * learns
                self._refuse_full_disk(partial, rows, left)

            if learns:
                for _ in parsing.run(self._progress("vocabulary", rows), first):
                    pass
                refuse_no_training_rows(parsing.chunks)
                learnt = self._vocabularies(builder, minimums, parsing, partial)
                writer = self._writing(learnt, embedding_dim, partial, staged, plan)
            else:
                learnt = _Learnt(*builder.build())
                writer = self._writing(learnt, embedding_dim, partial, staged, plan)
                for _ in parsing.run(self._progress("read", rows), first):
                    writer.write(lambda rows: None, final=False)
                refuse_no_training_rows(parsing.chunks)

            stats = learnt.stats
            del learnt  # whose vocabularies are mapped from disk: what was read of them would stay in memory

            def save() -> None:
                if not (partial.out / ENCODER_FILE).exists():
                    vocabularies = map_vocabularies(partial.subfolder("vocabularies")) or builder.build()[0]
                    save_parts(EncoderParts(writer.spec, self._encoding, vocabularies, stats), partial.out)

            done = self._progress("encode", sum(sum(chunk.splits) for chunk in parsing.chunks))
            with ThreadPoolExecutor(1) as pool:
                saved = pool.submit(save)  # which waits for the disk most of the time
                writer.write(done)
                saved.result()
        parsing.write_bad_rows(partial.out / BAD_ROWS_FILE)
        self._refuse_changed(files)
        manifest = manifest_of(data, writer.spec, files, writer.result(), parsing.bad.counts)
        if self._growth is None:
            return manifest
        self._growth.refuse_changed(data)
        return self._growth.noted(manifest, partial.out, partial.read("growth.json") or {})

    def _survey(self, partial: PartialData) -> list[RawFile]:
        """Count the rows of the raw files and take their checksums, unless an earlier try has."""
        done = self._progress("count", 0)
        known = partial.read("survey.json")
        if known is None:
            files = self._main_reader.survey(done)
            partial.write("survey.json", [{**vars(file), "path": str(file.path)} for file in files])
            return files
        files = [RawFile(**{**file, "path": Path(file["path"])}) for file in known]
        self._main_reader.take_survey(files)
        done(sum(file.rows for file in files))
        return files

    def _split_plan(self, rows_per_file: Sequence[int], rows: int) -> SplitPlan:
        split, column = self._data.split, self._data.format.time
        if split.by != "time" or column is None:
            return SplitPlan.make(split, rows_per_file)
        reader = recipe_reader(self._data, self._raw, self._chunk_bytes, extra=[column])
        times = read_times(reader, column, self._progress("time", rows))
        return SplitPlan.make(split, rows_per_file, times)

    def _vocabularies(
        self, builder: VocabularyBuilder, minimums: FileMinimums, parsing: ParsingPass, partial: PartialData
    ) -> _Learnt:
        """Build vocabularies of what was counted, unless an earlier try has."""
        folder = partial.subfolder("vocabularies")
        known = map_vocabularies(folder)
        if known is not None:
            stats = {name: DenseStats.model_validate(values) for name, values in partial.read("stats.json").items()}
            return _Learnt(known, stats)
        growth = self._growth
        grow = None if growth is None else growth.into(partial.out)
        built, stats = builder.build(parsing.segments, folder, self._memory_bytes, grow=grow)
        stats |= minimums.build()
        if growth is not None:
            stats = growth.stats(stats)
            partial.write("growth.json", growth.told)
        partial.write("stats.json", {name: values.model_dump(mode="json") for name, values in stats.items()})
        save_vocabularies(built, folder)
        parsing.forget_counts()
        return _Learnt(built, stats)

    def _writing(
        self, learnt: _Learnt, embedding_dim: int, partial: PartialData, staged: StagedRows, plan: ShardPlan
    ) -> ShardWriting:
        """Return what writes shards, once the columns of tables too large for memory are looked up."""
        data, encoding, vocabularies = self._data, self._encoding, learnt.vocabularies
        spec = spec_of(data, {name: vocabulary.rows for name, vocabulary in vocabularies.items()}, embedding_dim)
        tables = tables_to_join(spec, encoding, vocabularies, self._keys, self._memory_bytes)
        folder = partial.subfolder("looked_up")
        lookups = {
            feature.name: BigLookup(
                *(folder, f"{number:05d}", feature, encoding),
                *(vocabularies[feature.table], self._memory_bytes),
            )
            for number, feature in enumerate(spec.sparse)
            if feature.table in tables
        }
        self._look_up(lookups, plan, staged, partial)
        small = without_features(spec, lookups)
        own = {table.name: vocabularies[table.name] for table in small.tables}
        kept = Encoding(
            features={f.name: encoding.features[f.name] for f in small.sparse},
            tables={name: encoding.tables[name] for name in own},
        )
        encoder = FeatureEncoder(small, kept, own, learnt.stats)
        return ShardWriting(data, spec, encoding, encoder, lookups, partial, staged, plan, self._threads)

    def _look_up(
        self, lookups: Mapping[str, BigLookup], plan: ShardPlan, staged: StagedRows, partial: PartialData
    ) -> None:
        if not lookups:
            return
        counts = [chunk.kept for chunk in plan.chunks]
        there = [chunk for chunk in range(len(counts)) if staged.has(chunk)]
        found = sum(counts[chunk] for chunk in there) * len(lookups)
        self._refuse_full_disk(partial, sum(counts), found * _ID_BYTES)
        done = self._progress("look up", found)
        for lookup in lookups.values():
            lookup.run(counts, there, staged.read, done)

    @staticmethod
    def _refuse_changed(files: Sequence[RawFile]) -> None:
        for file in files:
            stat = file.path.stat()
            if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
                raise DataError(f"{file.path}: changed while it was read.")

    def _refuse_full_disk(self, partial: PartialData, rows: int, more: float) -> None:
        """Raise unless there is room for the shards of that many rows, as far as they are missing, and for more."""
        written = sum(path.stat().st_size for path in partial.out.iterdir() if path.is_file())
        refuse_full_disk(partial.folder, max(rows * self._row_bytes - written, 0) + more)
