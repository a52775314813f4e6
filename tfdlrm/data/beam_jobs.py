"""Three jobs of Apache Beam, one after the other, and between them what one machine decides."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from tfdlrm.data.bad_rows import BadRows
from tfdlrm.data.beam_io import BeamFile, Place, is_remote
from tfdlrm.data.beam_steps import (
    COUNTS,
    OUT,
    PLAN,
    MergeRuns,
    ParsePart,
    SaveRun,
    WriteShard,
    bad_rows_name,
    chunk_rows,
    part_note,
    shard_note,
)
from tfdlrm.data.beam_survey import Job, SurveyFile, raise_noted, survey_note
from tfdlrm.data.encoder_files import EncoderParts, save_parts
from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.data.parsing_pass import refuse_no_training_rows
from tfdlrm.data.partial import SUFFIX, partial_data
from tfdlrm.data.prepare import BAD_ROWS_FILE, Progress, manifest_of, refuse_foreign
from tfdlrm.data.raw_blocks import RawFile, Span
from tfdlrm.data.raw_parts import FilePart, parts_of
from tfdlrm.data.recipe_reader import feature_reader, key_columns
from tfdlrm.data.shard_plan import ChunkRows, ShardPlan
from tfdlrm.data.shard_writing import Written, written
from tfdlrm.data.splits import SplitPlan
from tfdlrm.data.transforms import DenseStats, FileMinimums, StatsCounter
from tfdlrm.data.vocabulary import Vocabulary
from tfdlrm.data.vocabulary_builder import VocabularyBuilder
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import ConfigError, DataError


class _Parsed(NamedTuple):
    """What parsing all parts told: rows of each chunk, statistics, bad rows, and which parts had some."""

    chunks: list[ChunkRows]
    stats: dict[str, DenseStats]
    bad: Counter[str]
    bad_parts: list[int]


@contextmanager
def growing(location: str, identity: Mapping[str, Any], replace: bool) -> Iterator[Place]:
    """Yield where the data of a directory grow; what is in `out` there gets its name when the block ends well.

    Args:
        location: An absolute path, or a URL, which is not locked: two runs at a time would disturb each other.
        identity: All that the result depends on, ready for JSON.
        replace: Whether prepared data may be replaced.

    Raises:
        ConfigError: the directory holds something else, or prepared data that may not be replaced.
    """
    if is_remote(location):
        with _growing_remote(location.rstrip("/"), replace) as place:
            yield place
        return
    directory = Path(location)
    refuse_foreign(directory)
    if not replace and (directory / MANIFEST).exists():
        raise ConfigError(f"{directory}: holds prepared data. Choose another directory or overwrite.")
    with partial_data(directory, identity) as partial:
        for folder in filter(Path.is_dir, list(partial.folder.iterdir())):  # of a run that was broken off
            shutil.rmtree(folder)
        partial.out.mkdir()
        yield Place(str(partial.folder))


@contextmanager
def _growing_remote(root: str, replace: bool) -> Iterator[Place]:
    target, place = Place(root), Place(root + SUFFIX)
    has_manifest = FileSystems.exists(f"{root}/{MANIFEST}")
    if has_manifest and not replace:
        raise ConfigError(f"{root}: holds prepared data. Choose another directory or overwrite.")
    if not has_manifest and target.names():
        raise ConfigError(f"{root}: must be empty or hold prepared data. Received: something else.")
    try:
        place.remove(place.names())
        yield place
        # The manifest goes first and comes last: while it is there, all that it names must be.
        target.remove([MANIFEST] if has_manifest else [])
        target.remove(target.names())
        for name in sorted(place.names(OUT), key=lambda name: name == f"{OUT}/{MANIFEST}"):
            place.hand_over(name, target, name.removeprefix(f"{OUT}/"))
    finally:
        place.remove(place.names())


def run_jobs(
    job: Job, embedding_dim: int, pipeline_options: Sequence[str], part_bytes: int, progress: Progress
) -> Manifest:
    """Prepare a job's files into the folder `out` of its place, the manifest last, which is returned.

    Args:
        job: What to do.
        embedding_dim: Width of the tables in the manifest's spec.
        pipeline_options: Options of Beam.
        part_bytes: Bytes of a plain file that make a unit of work.
        progress: Told of each phase.
    """
    manifest = _Run(job, pipeline_options, part_bytes, progress).run(embedding_dim)
    with job.place.scratch() as scratch:
        manifest.save(scratch)
        job.place.take(scratch / MANIFEST, f"{OUT}/{MANIFEST}")
    return manifest


class _Run:
    def __init__(self, job: Job, pipeline_options: Sequence[str], part_bytes: int, progress: Progress) -> None:
        self._job = job
        self._options = pipeline_options
        self._progress = progress
        self._part_bytes = part_bytes

    def run(self, embedding_dim: int) -> Manifest:
        """Write everything but the manifest into the place and return what it must say."""
        job, data = self._job, self._job.data
        # Refuses columns that are not there before any job starts.
        feature_reader(data, [BeamFile(path) for path in job.locations], job.chunk_bytes, key_columns(data))
        files, parts = self._survey()
        parsed = self._parse(parts, [file.rows for file in files])
        refuse_no_training_rows(parsed.chunks)
        with job.place.scratch() as scratch:
            vocabularies = self._vocabularies(scratch)
            spec = spec_of(data, {name: vocabulary.rows for name, vocabulary in vocabularies.items()}, embedding_dim)
            encoder = EncoderParts(spec, encoding_of(data), vocabularies, parsed.stats)
            (scratch / OUT).mkdir()
            save_parts(encoder, scratch / OUT)
            job.place.take_folder(scratch / OUT, OUT)
        job.place.write(PLAN, json.dumps(parsed.chunks))
        shards = self._write_shards(encoder, ShardPlan(data.rows_per_shard, parsed.chunks))
        self._gather_bad_rows(parsed.bad_parts)
        for file in files:
            stat = file.path.stat()
            if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
                raise DataError(f"{file.path}: changed while it was read.")
        return manifest_of(data, encoder.spec, files, shards, parsed.bad, engine="beam")

    def _survey(self) -> tuple[list[RawFile], list[FilePart]]:

        job, done = self._job, self._progress("count", 0)
        with self._pipeline() as pipeline:
            numbers = pipeline | beam.Create(range(len(job.locations))) | beam.Reshuffle()
            _ = numbers | "survey files" >> beam.ParDo(SurveyFile(job))
        files, surveys = [], []
        for number, location in enumerate(job.locations):
            noted = job.read_note(survey_note(number))
            raise_noted(noted)
            path = BeamFile(location) if is_remote(location) else Path(location)
            files.append(RawFile(path, noted["rows"], noted["size"], noted["mtime_ns"], noted["sha256"]))
            surveys.append(([Span(*span) for span in noted["spans"]], noted["packed"]))
            done(noted["rows"])
        return files, parts_of(surveys, job.data.format.header, self._part_bytes)

    def _parse(self, parts: Sequence[FilePart], rows_per_file: Sequence[int]) -> _Parsed:

        job, data, rows = self._job, self._job.data, sum(rows_per_file)
        done = self._progress("vocabulary", rows)
        plan = SplitPlan.make(data.split, rows_per_file)
        limit = math.floor(data.max_bad_share * rows)
        with self._pipeline() as pipeline:
            numbered = pipeline | beam.Create(list(enumerate(parts))) | beam.Reshuffle()
            counts = numbered | "parse and count" >> beam.ParDo(ParsePart(job, plan, limit))
            _ = counts | beam.CombinePerKey(MergeRuns()) | "save counts" >> beam.ParDo(SaveRun(job))
        chunks: list[ChunkRows] = []
        counters = {c.name: StatsCounter() for c in data.dense if c.transform == "standardize"}
        minimums = FileMinimums([c.name for c in data.dense if c.transform == "log_file_minimum"])
        bad, bad_parts = BadRows(lambda: limit), []
        for number in range(len(parts)):  # in the order of the files, so that the same error comes every time
            noted = job.read_note(part_note(number))
            if noted.get("bad", {}).get("counts"):
                bad.merge(noted["bad"])
                bad_parts.append(number)
            raise_noted(noted)
            chunks += chunk_rows(noted["chunks"])
            minimums.merge(noted["minimums"])
            for name, counter in counters.items():
                counter.merge(noted["stats"][name])
        done(rows)
        stats = {**{name: counter.build() for name, counter in counters.items()}, **minimums.build()}
        return _Parsed(chunks, stats, bad.counts, bad_parts)

    def _vocabularies(self, scratch: Path) -> dict[str, Vocabulary]:

        builder = VocabularyBuilder(encoding_of(self._job.data), self._job.table_of)
        folders = sorted(self._job.place.fetch_folder(COUNTS, scratch).iterdir())
        merged = scratch / "merged"
        merged.mkdir()
        return builder.build(folders, merged, self._job.memory_bytes, some_tables=True)[0]

    def _write_shards(self, encoder: EncoderParts, plan: ShardPlan) -> Written:
        job, shards = self._job, plan.shards()
        rows = sum(sum(chunk.splits) for chunk in plan.chunks)
        done = self._progress("encode", rows)
        with self._pipeline() as pipeline:
            keys = pipeline | beam.Create([tuple(shard) for shard in shards]) | beam.Reshuffle()
            _ = keys | "write shards" >> beam.ParDo(WriteShard(job))
        notes = {shard: job.read_note(shard_note(shard)) for shard in shards}
        for noted in notes.values():
            raise_noted(noted)
        done(rows)
        return written(plan, encoder.spec, encoder.encoding, notes.__getitem__)

    def _gather_bad_rows(self, parts: Sequence[int]) -> None:

        if parts:
            with self._job.place.scratch() as scratch:
                with open(scratch / BAD_ROWS_FILE, "wb") as file:
                    for part in parts:
                        file.write(self._job.place.read(bad_rows_name(part)))
                self._job.place.take(scratch / BAD_ROWS_FILE, f"{OUT}/{BAD_ROWS_FILE}")

    def _pipeline(self) -> Any:
        """Return a new pipeline; one without a runner is run on this machine by Beam's portable runner."""
        options = PipelineOptions(list(self._options))
        is_here = options.view_as(StandardOptions).runner in (None, FnApiRunner.__name__)
        return beam.Pipeline(runner=FnApiRunner() if is_here else None, options=options)
