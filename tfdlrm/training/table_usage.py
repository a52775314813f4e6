"""How the rows of embedding tables are used, and how long their vectors have grown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tf_keras as keras
from scipy import stats

from tfdlrm.spec.features import FeatureSpec

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_GROUPS = 10
_CURVE_POINTS = 40
_CHUNK_ROWS = 1 << 20


@dataclass(frozen=True)
class RowGroup:
    """Rows of similar use.

    Attributes:
        rows: How many.
        share: Their share of the table's reads.
        most: Reads of the most read of them.
        least: Reads of the least read.
        norm: Mean norm of their vectors.
    """

    rows: int
    share: float
    most: int
    least: int
    norm: float


@dataclass(frozen=True)
class TableUsage:
    """What became of one table. Norms are Euclidean.

    Attributes:
        table: Its name, after that of its collection where the model has several.
        rows: Its rows.
        dim: Their width.
        used: Rows that were read at least once; `None`, like all that follows from reads, where they are not known.
        reads: Ids that were looked up.
        top_share: Share of the reads that went to the most read 1% of the table's rows (at least one row).
        norm_mean: Mean norm of all rows.
        norm_quantiles: Their norms at `QUANTILES`.
        norm_used: Mean norm of the rows that were read; nan where there are none.
        norm_unused: Mean norm of those that were not, as they were drawn; nan where there are none.
        correlation: Spearman's rank correlation of norm and reads among the rows that were read; nan below 3 rows.
        deciles: Ten equal groups of the rows that were read, most read first.
        curve: Rank by reads, mean reads and mean norm of rows around it, at ranks that grow by a factor.
    """

    table: str
    rows: int
    dim: int
    norm_mean: float
    norm_quantiles: tuple[float, ...]
    used: int | None = None
    reads: int | None = None
    top_share: float | None = None
    norm_used: float | None = None
    norm_unused: float | None = None
    correlation: float | None = None
    deciles: tuple[RowGroup, ...] = ()
    curve: tuple[tuple[float, float, float], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return everything by name, groups as mappings."""
        return asdict(self)


def count_reads(
    spec: FeatureSpec, batches: Iterable[tuple[Any, ...]], progress: Callable[[int], None] = lambda rows: None
) -> dict[str, Counts]:
    """Count how often each row of each table is looked up; padding is not.

    Args:
        spec: Says which columns read which table.
        batches: Rows of the batch contract.
        progress: Called with the number of rows just read.

    Returns:
        int64 `[vocabulary_size]` by table: 8 bytes for each table row.
    """
    reads = {table.name: np.zeros(table.vocabulary_size, np.int64) for table in spec.tables}
    for inputs, *_ in batches:
        sparse = np.asarray(inputs["sparse"])
        for feature in spec.sparse:
            ids = sparse[:, slice(*spec.id_columns[feature.name])]
            np.add.at(reads[feature.table], ids[ids >= 0], 1)
        progress(len(sparse))
    return reads


def usage_of_tables(model: keras.Model, reads: Mapping[str, Counts]) -> list[TableUsage]:
    """Return the usage of every table of a model; one table at a time is in memory.

    Args:
        model: A built `ClickModel`.
        reads: What `count_reads` returned. A table that only the model knows has norms alone.
    """
    found = []
    for collection_name, collection in model.collections.items():
        for table in collection.spec.tables:
            name = table.name if len(model.collections) == 1 else f"{collection_name}/{table.name}"
            own = reads.get(table.name)
            known = own if own is not None and len(own) == table.vocabulary_size else None
            found.append(table_usage(name, collection.get_table(table.name), known))
    return found


def table_usage(name: str, vectors: Floats, reads: Counts | None) -> TableUsage:
    """Return the usage of one table.

    Args:
        name: What to call it.
        vectors: `[rows, dim]`.
        reads: How often each row was read, `[rows]`, or `None`.

    Raises:
        ValueError: `reads` has another length.

    Example:
        >>> usage = table_usage("t", np.array([[3.0, 4.0], [0.0, 1.0]], np.float32), np.array([9, 0]))
        >>> usage.used, usage.top_share, usage.norm_used, usage.norm_unused
        (1, 1.0, 5.0, 1.0)
    """
    rows, dim = vectors.shape
    norms = np.concatenate([np.linalg.norm(vectors[i : i + _CHUNK_ROWS], axis=1) for i in range(0, rows, _CHUNK_ROWS)])
    norms = norms.astype(np.float64)
    quantiles = tuple(np.quantile(norms, QUANTILES).tolist())
    if reads is None:
        return TableUsage(name, rows, dim, float(norms.mean()), quantiles)
    if reads.shape != (rows,):
        raise ValueError(f"`reads` must have shape [{rows}]. Received: {list(reads.shape)}.")
    order = np.argsort(-reads, kind="stable")
    used = int(np.count_nonzero(reads))
    sorted_reads, sorted_norms = reads[order], norms[order]
    total = int(reads.sum())
    top = -(-rows // 100)
    known = sorted_reads[:used], sorted_norms[:used]
    return TableUsage(
        name,
        rows,
        dim,
        float(norms.mean()),
        quantiles,
        used=used,
        reads=total,
        top_share=float(sorted_reads[:top].sum() / total) if total else float("nan"),
        norm_used=_mean(sorted_norms[:used]),
        norm_unused=_mean(sorted_norms[used:]),
        correlation=_correlation(*known),
        deciles=_deciles(*known),
        curve=_curve(*known),
    )


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")


def _correlation(reads: Counts, norms: npt.NDArray[np.float64]) -> float:
    if reads.size < 3 or reads[0] == reads[-1] or np.ptp(norms) == 0:
        return float("nan")  # there are no ranks
    return float(stats.spearmanr(reads, norms).statistic)


def _deciles(reads: Counts, norms: npt.NDArray[np.float64]) -> tuple[RowGroup, ...]:
    """Cut rows, most read first, into groups of equal size; fewer rows than groups are a group each."""
    places = [place for place in np.array_split(np.arange(reads.size), _GROUPS) if place.size]
    return tuple(
        RowGroup(
            rows=place.size,
            share=float(reads[place].sum() / reads.sum()),
            most=int(reads[place[0]]),
            least=int(reads[place[-1]]),
            norm=float(norms[place].mean()),
        )
        for place in places
    )


def _curve(reads: Counts, norms: npt.NDArray[np.float64]) -> tuple[tuple[float, float, float], ...]:
    if not reads.size:
        return ()
    edges = np.unique(np.geomspace(1, reads.size + 1, _CURVE_POINTS + 1).round().astype(np.int64)) - 1
    counts = np.diff(edges)
    ranks = np.sqrt((edges[:-1] + 1.0) * edges[1:])
    means = (np.add.reduceat(values, edges[:-1]) / counts for values in (reads, norms))
    return tuple(zip(ranks.tolist(), *(mean.tolist() for mean in means), strict=True))
