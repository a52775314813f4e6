"""What a run would do: stages, rows, bytes and times, estimated before anything is read but the beginning of files."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.data.raw_blocks import expand_path
from tfdlrm.distribute.planner import plan_tables
from tfdlrm.distribute.topology import DeviceGroup, Topology
from tfdlrm.models.build import storage_of
from tfdlrm.pipelines.work_dir import WorkDir
from tfdlrm.spec.byte_sizes import bytes_in_words
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_spec import model_spec
from tfdlrm.spec.raw import Split

_SAMPLE_BYTES = 1 << 20
_ENOUGH_MEMORY = 1 << 60
RATES = {"prepare": 100_000, "train": 20_000}
"""Rows/s of two cores, where an earlier run in the work dir does not say better."""
SECONDS = {"evaluate": 2, "export": 11, "verify": 9, "report": 3}
"""Of the other stages, with few rows: TensorFlow starts anew to check what was exported."""
_PROCESS_BYTES = 1 << 30
"""TensorFlow itself and batches on their way."""


def forecast(config: RunConfig, work_dir: WorkDir, stages: Sequence[str]) -> Iterator[str]:
    """Yield lines that say what a run would do.

    Args:
        config: Its configuration.
        work_dir: Where it would run; what lies there already is counted as done.
        stages: What was asked for.
    """
    done = [name for name in stages if name in work_dir.metrics().get("stages", {})]
    yield f"would run: {', '.join(stages)} in {work_dir.path}" + (f"; done before: {', '.join(done)}" if done else "")
    manifest = Manifest.load(work_dir.data) if (work_dir.data / MANIFEST).is_file() else None
    rows, said = _rows(config, manifest)
    yield f"rows:      {said}"
    if rows is None:
        return
    training = _training_rows(config, manifest, rows)
    epochs, batch = config.train.epochs, config.train.batch_size
    yield f"training:  {training:,} samples an epoch, {epochs} epoch{'s' * (epochs > 1)}, batches of {batch:,}"
    width = 4 * (len(config.data.dense) + sum(column.hotness for column in config.data.sparse) + 1)
    yield f"prepared:  about {bytes_in_words(rows * width)} in {work_dir.data}"
    spec, known = _spec(config, manifest, rows if config.data.vocabulary_rows == "all" else training)
    held = _table_bytes(config, spec)
    most = "" if known else "at most "
    yield f"tables:    {most}{spec.table_rows:,} rows, {most}{bytes_in_words(held)} with the optimizer's slots"
    if not known:
        yield "           (vocabularies are counted when rows are prepared; they are no larger than this)"
    yield f"memory:    {most}about {bytes_in_words(held + _PROCESS_BYTES)}"
    samples = training * config.train.epochs
    if config.train.max_steps is not None:
        samples = min(samples, config.train.max_steps * config.train.batch_size)
    yield from _times(work_dir, stages, rows, samples)


def _rows(config: RunConfig, manifest: Manifest | None) -> tuple[int | None, str]:
    if manifest is not None:
        rows = sum(split.rows for split in manifest.splits.values())
        return rows, f"{rows:,}, prepared"
    if not config.data.raw:
        return config.data.planted.rows, f"{config.data.planted.rows:,}, planted"
    paths = [expand_path(name) for name in config.data.raw]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        return None, f"unknown: {missing[0]} is not there"
    rows = sum(max(0, _estimated_lines(path) - config.data.format.header) for path in paths)
    size = bytes_in_words(sum(path.stat().st_size for path in paths))
    return rows, f"about {rows:,} in {len(paths)} file{'s' * (len(paths) > 1)} of {size}"


def _estimated_lines(path: Path) -> int:
    """Return the lines of a text file, estimated by its beginning; counted where that is all of it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if path.suffix == ".gz":
            try:
                with gzip.open(file) as plain:
                    sample = plain.read(_SAMPLE_BYTES)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(f"{path}: cannot be read as gzip: {error}.") from None
            read = min(file.tell(), size)
        else:
            sample = file.read(_SAMPLE_BYTES)
            read = len(sample)
    return round(sample.count(b"\n") * size / read) if read else 0


def _training_rows(config: RunConfig, manifest: Manifest | None, rows: int) -> int:
    if manifest is not None:
        return manifest.splits["train"].rows
    # What is left out is of label 0, whose share is not known yet.
    return round(rows * _training_share(config.data.split, len(config.data.raw)))


def _training_share(split: Split, files: int) -> float:
    if split.by == "fold":
        return 1 - 1 / split.folds
    if split.by == "days":
        return 1 - 1 / (split.days or files)
    return 1.0 if split.by == "whole_and_half" else split.fractions[0]


def _spec(config: RunConfig, manifest: Manifest | None, counted: int) -> tuple[FeatureSpec, bool]:
    """Return the features with the sizes of their tables, and whether these are known."""
    if manifest is not None:
        return model_spec(manifest.spec, config.model), True
    sizes, known = {}, True
    hotness: Counter[str] = Counter()
    for column in config.data.sparse:
        hotness[column.table or column.name] += column.hotness
    for name, coding in encoding_of(config.data).tables.items():
        if coding.buckets is not None:
            sizes[name] = coding.first_id + coding.buckets
        else:
            known = False
            sizes[name] = coding.first_id + max(1, counted * hotness[name] // coding.min_count)
    return model_spec(spec_of(config.data, sizes, config.model.embedding_dim), config.model), known


def _table_bytes(config: RunConfig, spec: FeatureSpec) -> int:
    storage = storage_of(config.model.name, config.model)
    plan = plan_tables(
        storage.tables_of(spec),
        optimizer=config.train.embedding.name,
        batch_size=config.train.batch_size,
        topology=Topology(devices=(DeviceGroup(kind="server", count=1, memory=_ENOUGH_MEMORY),), workers=1),
        linear=storage.beside,
    )
    return sum(device.bytes for device in plan.devices)


def _times(work_dir: WorkDir, stages: Sequence[str], rows: int, samples: int) -> Iterator[str]:
    for stage, count in (("prepare", rows), ("train", samples)):
        if stage not in stages:
            continue
        before = (work_dir.stage(stage) or {}).get("rows_per_second")
        rate = before or RATES[stage]
        whence = "as it was here before" if before else "as on two cores with the paper's network"
        yield f"{stage + ':':<10} about {_duration(count / rate)} at {rate:,.0f} rows/s, {whence}"

    others = [stage for stage in stages if stage not in RATES]
    if others:
        seconds = sum(SECONDS[stage] for stage in others)
        yield f"others:    about {_duration(seconds)} for a small model ({', '.join(others)})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
