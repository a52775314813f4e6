"""Preparing raw files on a cluster with Apache Beam; what comes out is what `tfdlrm.data.prepare.prepare` makes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from tfdlrm.data.manifest import Manifest
from tfdlrm.data.prepare import MEMORY_BYTES, Progress, done_before, silent
from tfdlrm.data.raw_blocks import CHUNK_BYTES
from tfdlrm.data.recipe import identity_of, refuse_changed_side_tables
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import ConfigError

PART_BYTES = 64 << 20
"""Bytes of a plain file that make a unit of work."""


def prepare_with_beam(
    data: DataConfig,
    raw: Sequence[str | Path],
    directory: str | Path,
    embedding_dim: int,
    *,
    pipeline_options: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress = silent,
    chunk_bytes: int = CHUNK_BYTES,
    part_bytes: int = PART_BYTES,
    memory_bytes: int = MEMORY_BYTES,
) -> Manifest:
    """Turn raw files into packed records of ids by Apache Beam.

    The result is that of `tfdlrm.data.prepare.prepare`, shard by shard and byte by byte, but for the recipe's `engine`,
    and for `standardize` features, whose mean and deviation agree to rounding. Three jobs run one after the other:
    files are surveyed; parts of them are parsed and counted; shards are encoded. Rows once parsed wait in
    `<directory>.partial`, some 170 bytes a row of Criteo. A run that was broken off starts anew.

    Args:
        data: How rows lie in the files, how they are coded and split; `split.by = "time"` is for the local engine.
        raw: Raw files in order, paths or URLs that Beam can read; gzip files are parsed by one worker each.
        directory: Where to: a path that is the same folder on all machines, or a URL. It is complete once it has its
            manifest.
        embedding_dim: Width of the tables in the manifest's spec; prepared rows do not depend on it.
        pipeline_options: Options of Beam, `--runner` among them. Without a runner all is done on this machine:
            by this process, or with `--direct_running_mode=multi_processing --direct_num_workers=N` by N others.
        overwrite: Replace data that another recipe made, instead of refusing. Defaults to `False`.
        progress: Called with the name of each phase (`"count"`, `"vocabulary"`, `"encode"`) and its rows.
        chunk_bytes: Bytes of raw text that a worker parses at a time. Defaults to 16 MiB.
        part_bytes: Bytes of a plain file that make a unit of work. Defaults to 64 MiB.
        memory_bytes: About how much memory counts may take in a worker, and their merging here. Vocabularies are held
            whole by each worker that encodes.

    Returns:
        The manifest.

    Raises:
        DataError: raw data are missing or malformed, or a disk is too full.
        ConfigError: apache-beam is not installed, a column is not there, no row would train, `directory` holds
            something else, or the split needs the local engine.
    """
    refuse_without_beam()
    if data.split.by == "time":
        raise ConfigError('`split.by` must not be "time" for the engine "beam": take the local one for this split.')
    if data.growth.from_run is not None:
        raise ConfigError('`data.growth` must not be given for the engine "beam": take the local one.')
    # Only now, as they import apache-beam.
    from tfdlrm.data.beam_io import is_remote, location_of
    from tfdlrm.data.beam_jobs import growing, run_jobs
    from tfdlrm.data.beam_survey import Job

    locations = tuple(location_of(path) for path in raw)
    target = location_of(directory) if is_remote(str(directory)) else str(Path(directory).absolute())
    some_remote = any(is_remote(path) for path in (target, *locations))
    if not some_remote and not overwrite:
        done = done_before(data, locations, Path(target))
        if done is not None:
            return done.model_copy(update={"spec": done.spec.with_embedding_dim(embedding_dim)})
    identity = {**identity_of(data, [] if some_remote else locations), "engine": "beam", "locations": locations}
    with growing(target, identity, overwrite or not some_remote) as place:
        job = Job(data, place.root, locations, chunk_bytes, memory_bytes)
        manifest = run_jobs(job, embedding_dim, pipeline_options, part_bytes, progress)
        refuse_changed_side_tables(identity["side_tables"])
        return manifest


def refuse_without_beam() -> None:
    """Raise `ConfigError` unless apache-beam is installed."""
    if importlib.util.find_spec("apache_beam") is None:
        raise ConfigError('the engine "beam" needs apache-beam. To install it: pip install "tfdlrm[beam]"')
