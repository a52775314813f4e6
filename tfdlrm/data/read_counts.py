"""Which rows of the embedding tables training reads, counted in a sample of the prepared rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tfdlrm.data.blocks import BlockReader, block_places, spread_blocks
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.raw_bags import PADDING
from tfdlrm.data.splits import SPLIT_NAMES, TRAIN
from tfdlrm.spec.table_signal import BinnedCounts, row_steps

SAMPLED_ROWS = 1 << 20


def read_counts(directory: Path | str, manifest: Manifest, rows: int = SAMPLED_ROWS) -> dict[str, BinnedCounts]:
    """Return how often training rows read each run of table rows, by table.

    The same data give the same counts. Memory does not depend on the size of the tables.

    Args:
        directory: Folder of a prepared data set.
        manifest: Its manifest.
        rows: About how many training rows to read, in blocks spread evenly over all shards. Defaults to 2^20.

    Raises:
        DataError: a file is missing, or not what the manifest says.
    """
    spec, split = manifest.spec, SPLIT_NAMES[TRAIN]
    edges = {table.name: row_steps(0, table.vocabulary_size) for table in spec.tables}
    reads = {name: np.zeros(len(own) - 1, np.int64) for name, own in edges.items()}
    reader = BlockReader(directory, manifest)
    share = min(1.0, rows / max(manifest.split(split).rows, 1))
    for place in spread_blocks(block_places(manifest, split), share):
        sparse = reader.read(place)["sparse"]
        for feature in spec.sparse:
            start, stop = spec.id_columns[feature.name]
            ids = sparse[:, start:stop]
            runs = np.searchsorted(edges[feature.table], ids[ids != PADDING], side="right") - 1
            reads[feature.table] += np.bincount(runs, minlength=len(reads[feature.table]))
    return {name: BinnedCounts(edges[name], reads[name]) for name in edges}
