"""The Criteo columns and the published cardinalities of the Kaggle and Terabyte data sets."""

from __future__ import annotations

from collections.abc import Sequence

from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.features import DenseFeature, FeatureSpec, SparseFeature, TableConfig

LABEL = "label"
DENSE_COLUMNS: tuple[str, ...] = tuple(f"I{i}" for i in range(1, 14))
SPARSE_COLUMNS: tuple[str, ...] = tuple(f"C{i}" for i in range(1, 27))
COLUMNS: tuple[str, ...] = (LABEL, *DENSE_COLUMNS, *SPARSE_COLUMNS)

# Distinct values per column as facebookresearch/dlrm counts them: 33,762,577 rows, 2.01 GiB at d = 16 float32.
KAGGLE = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27),
    *(14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
# Terabyte, hashes modulo 10 M, negatives sub-sampled at 0.875 (the paper's d = 64 script).
TERABYTE_10M = (
    *(9980333, 36084, 17217, 7378, 20134, 3, 7112, 1442, 61, 9758201, 1333352, 313829, 10, 2208),
    *(11156, 122, 4, 970, 14, 9994222, 7267859, 9946608, 415421, 12420, 101, 36),
)
# Terabyte, modulo 40 M, as tensorflow/models' ranking config has it (187.8 M rows).
TERABYTE_40M = (
    *(39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10, 2208),
    *(11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36),
)
# MLPerf training v2 (DLRM-DCNv2), with the multi-hot bag length of each feature.
MLPERF_V2 = (
    *(40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10, 2209),
    *(11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36),
)
MLPERF_V2_HOTNESS = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)

CARDINALITIES: dict[str, tuple[int, ...]] = {
    "kaggle": KAGGLE,
    "terabyte_10m": TERABYTE_10M,
    "terabyte_40m": TERABYTE_40M,
    "mlperf_v2": MLPERF_V2,
}


def criteo_spec(
    vocabulary_sizes: Sequence[int], embedding_dim: int, hotness: Sequence[int] | None = None
) -> FeatureSpec:
    """Return the Criteo spec: 13 dense `log1p` features and 26 sparse ones, each with a table of its own.

    Args:
        vocabulary_sizes: Rows of the 26 tables, for example `CARDINALITIES["kaggle"]`.
        embedding_dim: Row width of every table.
        hotness: Bag length of each sparse feature. Defaults to one-hot.

    Raises:
        SpecError: a sequence does not have 26 entries.

    Example:
        >>> criteo_spec(KAGGLE, 16).table_rows
        33762577
    """
    n = len(SPARSE_COLUMNS)
    hotness = (1,) * n if hotness is None else hotness
    for name, values in (("vocabulary_sizes", vocabulary_sizes), ("hotness", hotness)):
        if len(values) != n:
            raise SpecError(f"`{name}` must have {n} entries. Received: {len(values)}.")
    return click_log_spec(vocabulary_sizes, embedding_dim, hotness)


def click_log_spec(vocabulary_sizes: Sequence[int], embedding_dim: int, hotness: Sequence[int]) -> FeatureSpec:
    """Return Criteo's 13 dense features and sparse ones C1, C2, ..., any number of them, each with a table of its own.

    Args:
        vocabulary_sizes: Rows of the tables.
        embedding_dim: Row width of every table.
        hotness: Bag length of each sparse feature; as many as there are tables.
    """
    names = [f"C{number}" for number in range(1, len(vocabulary_sizes) + 1)]
    return FeatureSpec(
        dense=tuple(DenseFeature(name=c) for c in DENSE_COLUMNS),
        sparse=tuple(SparseFeature(name=c, table=c, hotness=h) for c, h in zip(names, hotness, strict=True)),
        tables=tuple(
            TableConfig(name=c, vocabulary_size=v, embedding_dim=embedding_dim)
            for c, v in zip(names, vocabulary_sizes, strict=True)
        ),
    )
