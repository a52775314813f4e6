"""What a model reads: embedding tables, sparse and dense features, and the `FeatureSpec` that holds them.

A spec is data. It is frozen, refuses unknown keys, survives a JSON round trip, and travels in the
dataset manifest, the checkpoint and the SavedModel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Literal

from pydantic import Field, model_validator

from tfdlrm.spec.compression import Compression, StoredPart, stored_parts
from tfdlrm.spec.errors import SpecError, did_you_mean
from tfdlrm.spec.frozen import Frozen

Combiner = Literal["sum", "mean"]
DenseTransform = Literal["log1p", "identity", "standardize", "log3", "log3_half", "log3_filled", "log_file_minimum"]
Initializer = Literal["uniform_rows", "uniform", "normal", "zeros"]


class TableConfig(Frozen):
    """One embedding table of `vocabulary_size` rows by `embedding_dim` float32 columns.

    Attributes:
        name: Unique name. Checkpoints and weight import address the table by it.
        vocabulary_size: Number of rows, reserved rows (missing, rare, unseen) included. At least 1.
        embedding_dim: Row width. At least 1.
        initializer: `"uniform_rows"` is the paper's code, U(-1/sqrt(rows), 1/sqrt(rows));
            `"uniform"` is U(-0.05, 0.05), `"normal"` is N(0, 0.05^2), `"zeros"` is zero.
        compression: How the table is stored in less; `None` keeps one row of `embedding_dim` float32 an id.

    Raises:
        SpecError: the compression does not fit the table.

    Example:
        >>> TableConfig(name="user", vocabulary_size=1000, embedding_dim=16).stored_bytes
        64000
    """

    name: str = Field(min_length=1)
    vocabulary_size: int = Field(ge=1)
    embedding_dim: int = Field(ge=1)
    initializer: Initializer = "uniform_rows"
    compression: Compression | None = None

    @model_validator(mode="after")
    def _compressible(self) -> TableConfig:
        if self.compression is not None:
            self.compression.refuse_misfit(self.name, self.vocabulary_size, self.embedding_dim)
        return self

    @property
    def stored(self) -> tuple[StoredPart, ...]:
        """The arrays that hold the table."""
        return stored_parts(self.vocabulary_size, self.embedding_dim, self.compression)

    @property
    def stored_bytes(self) -> int:
        """Bytes of those arrays."""
        return sum(part.bytes for part in self.stored)


class SparseFeature(Frozen):
    """A categorical feature: a bag of up to `hotness` ids looked up in `table`.

    Attributes:
        name: Unique name; also the raw column unless a coding names another source.
        table: Name of the `TableConfig` it reads. Several features may share one table.
        hotness: Fixed bag length; shorter bags are padded with -1. Defaults to 1 (one-hot).
        combiner: How a bag becomes one vector, `"sum"` or `"mean"`. Defaults to `"sum"`.
        weighted: Whether the batch carries one float weight per id. Defaults to `False`.
        learned_weights: Whether each id has a learned weight that its vector is multiplied by before the bag is pooled;
            a mean is not divided by it. Defaults to `False`.

    Example:
        >>> SparseFeature(name="genres", table="genre", hotness=3, combiner="mean").hotness
        3
    """

    name: str = Field(min_length=1)
    table: str
    hotness: int = Field(default=1, ge=1)
    combiner: Combiner = "sum"
    weighted: bool = False
    learned_weights: bool = False


class DenseFeature(Frozen):
    """A numeric feature.

    Attributes:
        name: Unique name and raw column.
        transform: What the network reads of a number x. Computed in float64, rounded to float32 at the end.

            `"log1p"`: ln(max(x, 0) + 1), 0 where missing. The rule of facebookresearch/dlrm and of tensorflow/models.
            `"identity"`: x, 0 where missing.
            `"standardize"`: (x - mean) / std of the training rows, 0 where missing.
            `"log3"`: ln(x + 3), 0 where missing and where x is -3 or less. The rule of NVIDIA's Spark job, whose
            logarithm of what is not positive is null, as a missing number is, and becomes 0 in the end.
            `"log3_half"`: the same, rounded to half precision (11 bits), which is what NVIDIA's files hold.
            `"log3_filled"`: ln(x + 3) where a missing number counts as 0, and so becomes ln(3); 0 where x is -3 or
            less. The rule of TorchRec's NVTabular scripts, and of its NumPy script in its first years.
            `"log_file_minimum"`: ln(x - m + 2), where a missing number counts as 0 and m is the smallest number of the
            raw file over all columns of this transform. The rule of TorchRec's NumPy script. Serving knows no file: it
            takes the smallest m of the files that train, and ln(2) below it.

    Example:
        >>> DenseFeature(name="price").transform
        'log1p'
    """

    name: str = Field(min_length=1)
    transform: DenseTransform = "log1p"


class FeatureSpec(Frozen):
    """The features of one model, in batch column order.

    The batch contract: `dense` is float32 `[B, n_dense]`, `sparse` is an integer tensor `[B, n_ids]` where
    `n_ids` is the sum of hotness, both with columns in the order given here.

    Attributes:
        dense: Numeric features. May be empty.
        sparse: Categorical features. May be empty only if `dense` is not.
        tables: Embedding tables; every one must be read by some feature.

    Raises:
        SpecError: names are repeated, a table is unknown or unread, or there is no feature at all.

    Example:
        >>> spec = FeatureSpec(
        ...     dense=[DenseFeature(name="price")],
        ...     sparse=[SparseFeature(name="user", table="user")],
        ...     tables=[TableConfig(name="user", vocabulary_size=100, embedding_dim=8)],
        ... )
        >>> spec.n_dense, spec.n_ids
        (1, 1)
    """

    dense: tuple[DenseFeature, ...] = ()
    sparse: tuple[SparseFeature, ...] = ()
    tables: tuple[TableConfig, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> FeatureSpec:
        if not self.dense and not self.sparse:
            raise SpecError("`dense` and `sparse` must not both be empty. Received: no features.")
        for label, names in (
            ("feature", [*self.dense_names, *self.sparse_names]),
            ("table", [t.name for t in self.tables]),
        ):
            repeated = sorted({n for n in names if names.count(n) > 1})
            if repeated:
                raise SpecError(f"{label} names must be unique. Received twice: {', '.join(repeated)}.")
        tables = {t.name for t in self.tables}
        for feature in self.sparse:
            if feature.table not in tables:
                raise SpecError(
                    f"`table` of feature `{feature.name}` must name a table of the spec. "
                    f"Received: `{feature.table}`.{did_you_mean(feature.table, tables)}"
                )
        unread = sorted(tables - {f.table for f in self.sparse})
        if unread:
            raise SpecError(f"every table must be read by a sparse feature. Received unread: {', '.join(unread)}.")
        return self

    @property
    def n_dense(self) -> int:
        """Number of dense columns."""
        return len(self.dense)

    @property
    def n_ids(self) -> int:
        """Number of id columns: the sum of hotness."""
        return sum(f.hotness for f in self.sparse)

    @property
    def id_dtype(self) -> Literal["int32", "int64"]:
        """Type of encoded ids: int32 unless a table has 2^31 rows or more."""
        return "int64" if any(t.vocabulary_size >= 2**31 for t in self.tables) else "int32"

    @property
    def has_weights(self) -> bool:
        """Whether any feature is weighted, so that batches carry `weights`."""
        return any(f.weighted for f in self.sparse)

    @cached_property
    def dense_names(self) -> tuple[str, ...]:
        """Names of the dense features in column order."""
        return tuple(f.name for f in self.dense)

    @cached_property
    def sparse_names(self) -> tuple[str, ...]:
        """Names of the sparse features in column order."""
        return tuple(f.name for f in self.sparse)

    @cached_property
    def id_columns(self) -> dict[str, tuple[int, int]]:
        """Half-open column range of each sparse feature in the id matrix."""
        ranges, start = {}, 0
        for feature in self.sparse:
            ranges[feature.name] = (start, start + feature.hotness)
            start += feature.hotness
        return ranges

    @property
    def table_rows(self) -> int:
        """Embedding rows over all tables."""
        return sum(t.vocabulary_size for t in self.tables)

    def with_embedding_dim(self, embedding_dim: int) -> FeatureSpec:
        """Return the same features over tables of another width; prepared rows do not depend on it.

        Raises:
            SpecError: a table is compressed in a way that does not fit the width.
        """
        tables = tuple(TableConfig(**{**dict(t), "embedding_dim": embedding_dim}) for t in self.tables)
        return self.model_copy(update={"tables": tables})

    def linear_spec(self) -> FeatureSpec:
        """Return the same features over tables of one weight an id that start at zero.

        Of a table's compression only the sharing of rows stays: a weight is too narrow for anything else.
        """
        tables = tuple(
            table.model_copy(
                update={
                    "embedding_dim": 1,
                    "initializer": "zeros",
                    "compression": Compression(hash_rows=stored.hash_rows, exact_rows=stored.exact_rows)
                    if (stored := table.compression) is not None and stored.hash_rows
                    else None,
                }
            )
            for table in self.tables
        )
        # Weights are learned for the vectors of a bag; here each id has a weight that is learned anyway.
        sparse = tuple(feature.model_copy(update={"learned_weights": False}) for feature in self.sparse)
        return self.model_copy(update={"sparse": sparse, "tables": tables})

    def only(self, names: Sequence[str]) -> FeatureSpec:
        """Return these sparse features, in the order of the spec, and the tables they read, without dense features."""
        sparse = tuple(f for f in self.sparse if f.name in names)
        tables = tuple(t for t in self.tables if t.name in {f.table for f in sparse})
        return FeatureSpec(sparse=sparse, tables=tables)

    def crosses_spec(self, crosses: Sequence[Sequence[str]], rows: int) -> FeatureSpec:
        """Return one feature for each combination of sparse features, with a table of `rows` weights, zero at first.

        A combination of bags is the bag of all combinations of their ids: its mean counts if that of any feature does,
        and it is weighted if any feature is.
        """
        by_name = {feature.name: feature for feature in self.sparse}
        sparse = []
        for cross in crosses:
            parts, name = [by_name[name] for name in cross], " x ".join(cross)
            mean = any(part.combiner == "mean" for part in parts)
            sparse.append(
                SparseFeature(
                    name=name,
                    table=name,
                    hotness=prod(part.hotness for part in parts),
                    combiner="mean" if mean else "sum",
                    weighted=any(part.weighted for part in parts),
                )
            )
        tables = [TableConfig(name=f.name, vocabulary_size=rows, embedding_dim=1, initializer="zeros") for f in sparse]
        return FeatureSpec(sparse=tuple(sparse), tables=tuple(tables))

    def plain(self) -> FeatureSpec:
        """Return what prepared rows depend on: tables of width 1, none compressed, no learned weights."""
        return self.model_copy(
            update={
                "sparse": tuple(f.model_copy(update={"learned_weights": False}) for f in self.sparse),
                "tables": tuple(t.model_copy(update={"embedding_dim": 1, "compression": None}) for t in self.tables),
            }
        )

    def table(self, name: str) -> TableConfig:
        """Return the table called `name`.

        Raises:
            SpecError: there is none.
        """
        for table in self.tables:
            if table.name == name:
                return table
        names = [t.name for t in self.tables]
        raise SpecError(f"`name` must be a table of the spec. Received: `{name}`.{did_you_mean(name, names)}")

    def table_of(self, feature: SparseFeature) -> TableConfig:
        """Return the table that `feature` reads."""
        return self.table(feature.table)

    def stored(self, table: str) -> tuple[StoredPart, ...]:
        """Return the arrays that hold a table: its own, and the learned weights of features that read it.

        The weights are one column named `"pooling_weight"`, a row for each row that ids have after hashing, shared by
        all features with `learned_weights` that read the table.

        Raises:
            SpecError: there is no such table.
        """
        config = self.table(table)
        if not any(f.learned_weights for f in self.sparse if f.table == table):
            return config.stored
        hash_rows = None if config.compression is None else config.compression.hash_rows
        return (*config.stored, StoredPart("pooling_weight", hash_rows or config.vocabulary_size, 1, "float32"))

    def refuse_unless_equal(self, other: FeatureSpec, this: str, that: str) -> None:
        """Raise if two specs disagree, naming the first thing that differs.

        Args:
            other: The spec to compare with.
            this: What `self` belongs to, for the message ("the model").
            that: What `other` belongs to ("the data set").

        Raises:
            SpecError: the specs differ. They are never coerced into one another.
        """
        if self == other:
            return
        for field in ("dense", "sparse", "tables"):
            mine: tuple[TableConfig, ...] = getattr(self, field)
            theirs: tuple[TableConfig, ...] = getattr(other, field)
            if [x.name for x in mine] != [x.name for x in theirs]:
                raise SpecError(
                    f"{this} and {that} must have the same {field} names in the same order. "
                    f"Received: {[x.name for x in mine]} and {[x.name for x in theirs]}."
                )
            for x, y in zip(mine, theirs, strict=True):
                for key in type(x).model_fields:
                    if getattr(x, key) != getattr(y, key):
                        raise SpecError(
                            f"`{key}` of {field} `{x.name}` must be the same in {this} and {that}. "
                            f"Received: {getattr(x, key)!r} and {getattr(y, key)!r}."
                        )
