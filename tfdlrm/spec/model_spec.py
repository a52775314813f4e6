"""From the features of prepared data to those of a model: widths, compressed tables, learned weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfdlrm.spec.budget import METHODS, BudgetPlan, fit_budget, in_words, table_bytes, weights_beside
from tfdlrm.spec.byte_sizes import parse_bytes
from tfdlrm.spec.compression import Compression
from tfdlrm.spec.errors import ConfigError, SpecError, did_you_mean
from tfdlrm.spec.features import FeatureSpec, TableConfig
from tfdlrm.spec.mixed_dimensions import mixed_dimensions
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.storage import Storage
from tfdlrm.spec.table_signal import Counts
from tfdlrm.spec.train_config import EmbeddingOptimizerConfig

_ALL = Storage()


def model_spec(
    spec: FeatureSpec,
    config: ModelConfig,
    counts: Mapping[str, Counts | None] | None = None,
    samples: int | None = None,
    storage: Storage = _ALL,
    methods: Sequence[str] = METHODS,
) -> FeatureSpec:
    """Return the features and tables that a model is built for.

    What it returns may go through here again with the same `config`, and stays as it is: a run makes the spec with what
    it knows of the rows, and the model is built from that.

    Args:
        spec: The features. A table that is compressed already stays so, whatever rule `config` has.
        config: The `[model]` section.
        counts: How often rows are read, for `embedding_budget`; see `tfdlrm.fit_budget`.
        samples: Training samples, likewise.
        storage: What the model keeps of the tables, likewise. Defaults to a vector for each row.
        methods: What may be used to fit the budget, likewise; `methods_of` says what an optimizer can train.

    Raises:
        ConfigError: a table or feature that is named does not exist, or settings do not fit the tables or the model, or
            change nothing, since all tables they are for are compressed otherwise already.
    """
    planned = budget_plan(spec, config, counts, samples, storage, methods)
    return planned.spec if planned is not None else _with_settings(spec, config, storage)


def budget_plan(
    spec: FeatureSpec,
    config: ModelConfig,
    counts: Mapping[str, Counts | None] | None = None,
    samples: int | None = None,
    storage: Storage = _ALL,
    methods: Sequence[str] = METHODS,
) -> BudgetPlan | None:
    """Return the plan behind `model_spec`; `None` without a budget, or where compressed tables are within it already.

    It has the tables that the model makes, and the spec all of them.
    """
    if config.embedding_budget is None:
        return None
    full = _with_settings(spec, config, storage)
    kept = storage.tables_of(full)
    if _is_compressed(spec) and _bytes(kept, storage) <= parse_bytes(config.embedding_budget):
        return None
    usable = [m for m in methods if (storage.vectors or m == "hash") and (storage.narrow or m != "dim")]
    try:
        plan = fit_budget(
            kept,
            config.embedding_budget,
            counts={t.name: counts[t.name] for t in kept.tables if t.name in counts} if counts else None,
            samples=samples,
            methods=usable,
            linear=storage.beside,
            other_bytes=storage.other_bytes,
        )
    except SpecError as error:
        raise ConfigError(f"`model.embedding_budget`: {error}") from None
    chosen = {choice.table: choice.compression for choice in plan.choices}
    return plan.model_copy(
        update={"spec": _compressed(full, {t.name: t.compression or chosen.get(t.name) for t in full.tables})}
    )


def methods_of(optimizer: EmbeddingOptimizerConfig) -> tuple[str, ...]:
    """Return what a budget may use where an optimizer trains the tables: not all can round to half precision."""
    return tuple(method for method in METHODS if method != "bfloat16" or optimizer.rounds)


def refuse_unfit(spec: FeatureSpec, config: ModelConfig, storage: Storage = _ALL) -> None:
    """Raise `ConfigError` if settings of tables fit neither data nor model; rows need not be known.

    Raises:
        ConfigError: a table or a feature that is named is not there, or rows are to be narrower than the model takes.
    """
    _refuse_unknown("tables", config.tables, "table", [table.name for table in spec.tables])
    _refuse_unknown("learned_weights", config.learned_weights, "sparse feature", spec.sparse_names)
    if not storage.narrow and config.narrow_rows:
        raise ConfigError(
            f'`model.{config.narrow_rows}` must go with `interaction` "dot", which needs narrow rows projected to one '
            'width; "cat" would concatenate what the projections repeat. Received: "cat".'
        )


def refuse_hopeless_budget(spec: FeatureSpec, config: ModelConfig, storage: Storage = _ALL) -> None:
    """Raise `ConfigError` if a budget is too small whatever the rows of the tables; those of `spec` have one each.

    Narrow or shared rows never take less: their projections, and the fewest rows that are shared, take more.
    """
    # A setting of a single table may be smaller still.
    if config.embedding_budget is None or config.tables:
        return
    least = _bytes(storage.tables_of(_with_settings(spec, without_compression(config), storage)), storage)
    if parse_bytes(config.embedding_budget) < least:
        raise ConfigError(
            f"`model.embedding_budget` must be at least {least} bytes, which tables of a single row take. "
            f"Received: {config.embedding_budget!r}."
        )


def without_compression(config: ModelConfig) -> ModelConfig:
    """Return the settings of the same network over whole tables."""
    dropped: dict[str, Any] = {"embedding_budget": None, "compression": None, "mixed_dimensions": None, "tables": {}}
    return config.model_copy(update=dropped)


def _with_settings(spec: FeatureSpec, config: ModelConfig, storage: Storage) -> FeatureSpec:
    """Return the spec with all settings but the budget."""
    refuse_unfit(spec, config, storage)
    learned = set(config.learned_weights)
    sparse = tuple(
        f.model_copy(update={"learned_weights": f.learned_weights or f.name in learned}) for f in spec.sparse
    )
    try:
        wide = spec.model_copy(update={"sparse": sparse}).with_embedding_dim(config.embedding_dim)
        return _compressed(wide, _beside_own(wide, config, _compressions(wide, config)))
    except ConfigError:
        raise
    except SpecError as error:
        raise ConfigError(f"in `model`: {error}") from None


def _beside_own(
    spec: FeatureSpec, config: ModelConfig, wanted: Mapping[str, Compression | None]
) -> dict[str, Compression | None]:
    """Return how tables are stored: as they are already, else as wanted; refuse what would change nothing."""
    own = {table.name: table.compression for table in spec.tables if table.compression is not None}
    for name in config.tables:
        if own.get(name, wanted[name]) != wanted[name]:
            raise ConfigError(
                f"`model.tables.{name}` must be how the spec has the table already, {in_words(own[name])}. "
                f"Received: {in_words(wanted[name])}."
            )
    ruled = [name for name, compression in wanted.items() if compression is not None and name not in config.tables]
    if ruled and all(own.get(name, wanted[name]) != wanted[name] for name in ruled):
        rule = "compression" if config.compression else "mixed_dimensions"
        raise ConfigError(
            f"`model.{rule}` must change some table. Received: a spec in which all that it is for "
            f"({', '.join(ruled[:3])}{', ...' if len(ruled) > 3 else ''}) are stored otherwise already."
        )
    return {name: own.get(name, compression) for name, compression in wanted.items()}


def _compressed(spec: FeatureSpec, compressions: Mapping[str, Compression | None]) -> FeatureSpec:
    tables = tuple(TableConfig(**{**dict(table), "compression": compressions[table.name]}) for table in spec.tables)
    return spec.model_copy(update={"tables": tables})


def _compressions(spec: FeatureSpec, config: ModelConfig) -> dict[str, Compression | None]:
    """Return what the rule, the mixed dimensions and the tables' own settings make of each table."""
    rows = {table.name: table.vocabulary_size for table in spec.tables}
    found = {name: config.compression.of(count) if config.compression else None for name, count in rows.items()}
    if config.mixed_dimensions:
        rule = config.mixed_dimensions
        dims = mixed_dimensions(rows, config.embedding_dim, rule.alpha, rule.threshold, rule.round)
        for name, dim in dims.items():
            if dim < config.embedding_dim:
                found[name] = (found[name] or Compression()).model_copy(update={"dim": dim})
    return {name: config.tables.get(name, compression) for name, compression in found.items()}


def _is_compressed(spec: FeatureSpec) -> bool:
    return any(table.compression is not None for table in spec.tables)


def _bytes(kept: FeatureSpec, storage: Storage) -> int:
    """Return what the tables take that a model makes."""
    return storage.other_bytes + sum(
        table_bytes(table, weights_beside(kept, table.name, storage.beside)) for table in kept.tables
    )


def _refuse_unknown(argument: str, names: Iterable[str], kind: str, known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"`model.{argument}` must name a {kind} of the data. Received: `{name}`.{did_you_mean(name, known)}"
            )
