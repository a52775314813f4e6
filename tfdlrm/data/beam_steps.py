"""What Beam's workers do once files are surveyed: parse a part of one, merge counts, write a shard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.utils.shared import Shared

from tfdlrm.data.beam_io import BeamFile
from tfdlrm.data.beam_survey import NOTES, Job
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.encoder_files import part_names
from tfdlrm.data.key_counts import Counted
from tfdlrm.data.key_runs import Run, merge_runs
from tfdlrm.data.parsing_pass import ParsingPass
from tfdlrm.data.partial import PartialData
from tfdlrm.data.raw_parts import FilePart, PartReader
from tfdlrm.data.reader import RawReader
from tfdlrm.data.recipe_reader import feature_reader, key_columns
from tfdlrm.data.shard_plan import ChunkRows, Shard, ShardPlan
from tfdlrm.data.shard_writing import ShardWriting
from tfdlrm.data.splits import SplitPlan
from tfdlrm.data.staged_rows import StagedRows
from tfdlrm.data.transforms import FileMinimums
from tfdlrm.data.vocabulary_builder import VocabularyBuilder
from tfdlrm.spec.derive import encoding_of

OUT, COUNTS, PLAN = "out", "counts", "plan.json"
_STAGED, _SHARDS, _STATS = "staged", "shards", "stats.json"
_RANGES = 16
_SMALL = 1 << 12  # keys; a run of fewer is not worth being cut
_MERGE_ABOVE = 1 << 18


def part_note(part: int) -> str:
    """Return the name of the note on a part."""
    return f"{NOTES}/part-{part:06d}.json"


def shard_note(shard: Shard) -> str:
    """Return the name of the note on a shard."""
    return f"{_SHARDS}/{shard.note}"


def bad_rows_name(part: int) -> str:
    """Return the name of the file that has the bad rows of a part."""
    return f"{NOTES}/part-{part:06d}.tsv"


class ParsePart(beam.DoFn):
    """Parses and counts a part of a raw file as the local engine does a whole one; rows go to the place.

    Yields:
        Pairs of (table number, range of keys) and `Run`.
    """

    def __init__(self, job: Job, plan: SplitPlan, bad_limit: int) -> None:
        self._job = job
        self._plan = plan
        self._bad_limit = bad_limit
        self._reader = Shared()

    def process(self, numbered: tuple[int, FilePart]) -> Iterator[tuple[tuple[int, int], Run]]:
        """Parse a part of that number."""
        number, part = numbered
        runs: list[tuple[tuple[int, int], Run]] = []
        self._job.note(part_note(number), lambda noted: self._parse(number, part, noted, runs))
        yield from runs

    def _parse(self, number: int, part: FilePart, noted: dict[str, Any], runs: list[Any]) -> None:
        job, data, place = self._job, self._job.data, self._job.place
        standardize = [c.name for c in data.dense if c.transform == "standardize"]
        builder = VocabularyBuilder(encoding_of(data), job.table_of, standardize)
        minimums = FileMinimums([c.name for c in data.dense if c.transform == "log_file_minimum"])
        location = job.locations[part.file]
        reader = PartReader(
            self._reader.acquire(lambda: self._new_reader(location), tag=location).reader,
            *(BeamFile(location), part, data.format.header, self._bad_limit),
        )
        with place.scratch() as scratch:
            segments = scratch / "segments"
            segments.mkdir()
            with StagedRows((place.local or scratch) / _STAGED) as staged:
                parsing = ParsingPass(
                    *(data, reader, self._plan, builder, minimums, segments, staged),
                    *(1, job.memory_bytes, len(part.spans)),
                )
                try:
                    for _ in parsing.run(lambda rows: None, lambda staged_bytes: None):
                        pass
                finally:
                    noted["bad"] = parsing.bad.state
            if place.local is None:
                place.take_folder(scratch / _STAGED, _STAGED)
            parsing.write_bad_rows(scratch / "bad_rows.tsv")
            if (scratch / "bad_rows.tsv").exists():
                place.take(scratch / "bad_rows.tsv", bad_rows_name(number))
            noted["chunks"] = parsing.chunks
            noted["minimums"] = minimums.state
            noted["stats"] = json.loads((parsing.segments[-1] / _STATS).read_text(encoding="utf-8"))
            runs += [found for folder in parsing.segments for found in self._runs(folder)]

    def _runs(self, folder: Path) -> Iterator[tuple[tuple[int, int], Run]]:
        for table in range(len(encoding_of(self._job.data).tables)):
            run = Run.load(folder, f"{table:05d}")
            if run is not None:
                for place, part in enumerate(_ranges(run)):
                    yield (table, place), part

    def _new_reader(self, location: str) -> _Held:
        data = self._job.data
        return _Held(feature_reader(data, [BeamFile(location)], self._job.chunk_bytes, key_columns(data)))


class _Held:
    """A reader, in what `Shared` can hold."""

    def __init__(self, reader: RawReader) -> None:
        self.reader = reader


def _ranges(run: Run) -> Iterator[Run]:
    """Cut a run by its keys, in memory; the same key of another run may be in another range if one is small."""
    keys = run.counted.keys
    ranges = 1 if len(keys) < _SMALL else _RANGES
    for number in range(ranges):
        here = np.flatnonzero(keys % ranges == number)
        counted = Counted(*(None if array is None else np.array(array[here]) for array in run.counted))  # type: ignore[arg-type]
        yield Run(counted, None if run.texts is None else run.texts[here])


class MergeRuns(beam.CombineFn):
    """Adds up counts."""

    def create_accumulator(self) -> list[Run]:
        """Return no runs."""
        return []

    def add_input(self, runs: list[Run], run: Run) -> list[Run]:
        """Add one run; they are merged once those that wait are as many as those that are merged."""
        runs = [*runs, run]
        waiting = sum(len(other.counted.keys) for other in runs[1:])
        return [merge_runs(runs)] if waiting >= max(_MERGE_ABOVE, len(runs[0].counted.keys)) else runs

    def merge_accumulators(self, accumulators: Iterable[list[Run]]) -> list[Run]:
        """Add up all runs."""
        return self.compact([run for runs in accumulators for run in runs])

    def compact(self, runs: list[Run]) -> list[Run]:
        """Return one run, before runs are sent elsewhere."""
        return [merge_runs(runs)] if len(runs) > 1 else runs

    def extract_output(self, runs: list[Run]) -> Run:
        """Return the merged run."""
        return self.compact(runs)[0]


class SaveRun(beam.DoFn):
    """Puts merged counts into the place, a folder for each range of keys."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, keyed: tuple[tuple[int, int], Run]) -> None:
        """Save one run."""
        (table, number), run = keyed
        with self._job.place.scratch() as scratch:
            run.save(scratch, f"{table:05d}")
            self._job.place.take_folder(scratch, f"{COUNTS}/{number:05d}")


class WriteShard(beam.DoFn):
    """Encodes the rows of a shard and writes it, as the local engine does."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loaded = Shared()

    def process(self, key: tuple[str, int]) -> None:
        """Write one shard."""
        shard = Shard(*key)
        self._job.note(shard_note(shard), lambda noted: self._write(shard, noted))

    def _write(self, shard: Shard, noted: dict[str, Any]) -> None:
        place = self._job.place
        loaded: _Loaded = self._loaded.acquire(lambda: _Loaded(self._job), tag=self._job.root)
        with place.scratch() as scratch:
            partial = PartialData(scratch)
            partial.out.mkdir()
            for part in loaded.plan.slices(shard):
                place.fetch(f"{_STAGED}/{part.chunk:08d}.arrow", scratch)
            with StagedRows((place.local or scratch) / _STAGED) as staged:
                encoder = loaded.encoder
                writing = ShardWriting(
                    *(self._job.data, encoder.spec, encoder.encoding, encoder, {}, partial, staged, loaded.plan, 1)
                )
                writing.write_shard(shard)
            noted |= partial.read(shard_note(shard))
            place.take(partial.out / noted["shard"]["file"], f"{OUT}/{noted['shard']['file']}")


class _Loaded:
    """What a worker needs for all shards, loaded once."""

    def __init__(self, job: Job) -> None:
        place = job.place
        chunks = json.loads(place.read(PLAN))
        self.plan = ShardPlan(job.data.rows_per_shard, chunk_rows(chunks))
        with place.scratch() as scratch:
            for name in part_names(len(encoding_of(job.data).tables)):
                place.fetch(f"{OUT}/{name}", scratch)
            self.encoder = FeatureEncoder.load((place.local or scratch) / OUT)


def chunk_rows(noted: Sequence[Sequence[Any]]) -> list[ChunkRows]:
    """Return the rows of chunks as they come back from JSON."""
    return [ChunkRows(read, kept, tuple(splits), file) for read, kept, splits, file in noted]
