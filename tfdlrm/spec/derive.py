"""From a recipe's columns to the `Encoding` that codes them and the `FeatureSpec` that names them."""

from __future__ import annotations

from collections.abc import Mapping

from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding
from tfdlrm.spec.config import DataConfig, RunConfig, SparseColumn
from tfdlrm.spec.errors import ConfigError, SpecError
from tfdlrm.spec.features import DenseFeature, FeatureSpec, SparseFeature, TableConfig


def encoding_of(data: DataConfig) -> Encoding:
    """Return the coding rules of a recipe.

    Raises:
        SpecError: features that share a table ask for different codings.
    """
    tables: dict[str, TableCoding] = {}
    for column in data.sparse:
        name = column.table or column.name
        coding = _table_coding(column, data.coding)
        if tables.setdefault(name, coding) != coding:
            raise SpecError(f"features that share table `{name}` must have the same coding. Received: `{column.name}`.")
    features = {
        c.name: FeatureCoding(source=c.source or c.name, separator=c.separator, expand=c.expand, weights=c.weights)
        for c in data.sparse
    }
    return Encoding(features=features, tables=tables)


def spec_of(data: DataConfig, vocabulary_sizes: Mapping[str, int], embedding_dim: int) -> FeatureSpec:
    """Return the feature spec of a recipe.

    Args:
        data: The recipe.
        vocabulary_sizes: Rows of each table, reserved rows included.
        embedding_dim: Row width of every table.
    """
    return FeatureSpec(
        dense=tuple(DenseFeature(name=c.name, transform=c.transform) for c in data.dense),
        sparse=tuple(
            SparseFeature(
                name=c.name,
                table=c.table or c.name,
                hotness=c.hotness,
                combiner=c.combiner,
                weighted=c.weights is not None,
            )
            for c in data.sparse
        ),
        tables=tuple(
            TableConfig(name=name, vocabulary_size=size, embedding_dim=embedding_dim)
            for name, size in vocabulary_sizes.items()
        ),
    )


def refuse_unstated_rows(config: RunConfig) -> None:
    """Raise unless `[export]` says what a value without a row counts as, where a coding has no `oov_row`.

    Raises:
        ConfigError: it does not, or says "rare" where no value is rare.
    """
    for name, coding in encoding_of(config.data).tables.items():
        try:
            coding.serving(config.export.unseen)  # which row it is shows when the vocabulary is there
        except SpecError as error:
            raise ConfigError(f"`export.unseen`, for table `{name}`: {error}") from None


def _table_coding(column: SparseColumn, default: TableCoding) -> TableCoding:
    own = column.model_dump(include={"kind", "value", "min_count", "id_modulus", "buckets"}, exclude_none=True)
    merged = {**default.model_dump(), **own}
    if merged["kind"] == "vocabulary" and "buckets" not in own:
        merged["buckets"] = None  # inherited from a default that hashes
    if merged["kind"] != "vocabulary" and "id_modulus" not in own:
        merged["id_modulus"] = None
    return TableCoding(**merged)
