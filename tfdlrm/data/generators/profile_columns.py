"""The stack distances of a column of a prepared data set: its locality, without its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.examples import example_dataset
from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.data.generators.stack_profile import StackProfiler
from tfdlrm.data.manifest import Manifest
from tfdlrm.spec.errors import ConfigError, DataError, did_you_mean

_READ_ROWS = 131_072


def profile_columns(
    directory: Path | str,
    columns: Sequence[str] | None = None,
    *,
    split: str = "train",
    rows: int | None = None,
    padding: bool = False,
    keep_ids: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, StackDistances]:
    """Profile sparse features of a prepared data set in file order, bags from left to right.

    Memory does not grow with the rows, only with the different ids.

    Args:
        directory: Folder of the data set.
        columns: Names of sparse features; all of them where `None`.
        split: Name of the split.
        rows: Rows to read from the start; all of them where `None`.
        padding: Whether to count more new ids; see `StackDistances.from_counts`.
        keep_ids: `False` numbers ids as they were first seen, which hides what they were.
        progress: Called with the number of rows just read.

    Raises:
        DataError: there is no such data set, split or column, or a column has no id at all.
        ConfigError: `rows` is below 1.
    """
    manifest = Manifest.load(directory)
    names = manifest.spec.sparse_names
    for name in columns or ():
        if name not in names:
            raise DataError(
                f"`columns` must be sparse features of {directory}. Received: `{name}`.{did_you_mean(name, names)}"
            )
    if rows is not None and rows < 1:
        raise ConfigError(f"`rows` must be at least 1. Received: {rows}.")
    left = min(manifest.split(split).rows, rows or manifest.split(split).rows)
    places = {name: manifest.spec.id_columns[name] for name in columns or names}
    profilers = {name: StackProfiler() for name in places}
    read = packed_dataset if manifest.format == "packed" else example_dataset
    for features, *_ in read(directory, split, _READ_ROWS, manifest=manifest).as_numpy_iterator():
        sparse = features["sparse"][:left]
        for name, (start, stop) in places.items():
            ids = sparse[:, start:stop].ravel()
            profilers[name].add(ids[ids >= 0])
        progress(len(sparse))
        left -= len(sparse)
        if left == 0:
            break
    for name, profiler in profilers.items():
        if not len(profiler.first_seen):
            raise DataError(f"{directory}: feature `{name}` of split `{split}` has no id to profile.")
    return {name: profiler.distribution(padding, keep_ids) for name, profiler in profilers.items()}
