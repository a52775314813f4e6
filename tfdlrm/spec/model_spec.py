"""From the features of prepared data to those of a model: widths, compressed tables, learned weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tfdlrm.spec.budget import BudgetPlan, fit_budget, table_bytes
from tfdlrm.spec.byte_sizes import parse_bytes
from tfdlrm.spec.compression import Compression
from tfdlrm.spec.errors import ConfigError, SpecError, did_you_mean
from tfdlrm.spec.features import FeatureSpec, TableConfig
from tfdlrm.spec.mixed_dimensions import mixed_dimensions
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.table_signal import Counts


def model_spec(
    spec: FeatureSpec,
    config: ModelConfig,
    counts: Mapping[str, Counts | None] | None = None,
    samples: int | None = None,
    linear: bool = False,
) -> FeatureSpec:
    """Return the features and tables that a model is built for.

    Args:
        spec: The features. Where a table of it is compressed already, all tables stay as they are, and `config` adds
            widths and learned weights only: a spec goes through here once for a run, and again as its model is built.
        config: The `[model]` section.
        counts: How often rows are read, for `embedding_budget`; see `tfdlrm.fit_budget`.
        samples: Training samples, likewise.
        linear: Whether the model has linear weights, likewise.

    Raises:
        ConfigError: a table or feature that is named does not exist, or settings do not fit the tables.
    """
    planned = budget_plan(spec, config, counts, samples, linear)
    if planned is not None:
        return planned.spec
    return _with_settings(spec, config, linear)


def budget_plan(
    spec: FeatureSpec,
    config: ModelConfig,
    counts: Mapping[str, Counts | None] | None = None,
    samples: int | None = None,
    linear: bool = False,
) -> BudgetPlan | None:
    """Return the plan behind `model_spec`; `None` where there is no budget, or it has been applied already."""
    if config.embedding_budget is None or _is_compressed(spec):
        return None
    plain = _with_settings(spec, config, linear)
    try:
        return fit_budget(plain, config.embedding_budget, counts=counts, samples=samples, linear=linear)
    except SpecError as error:
        raise ConfigError(f"`model.embedding_budget`: {error}") from None


def refuse_unknown_names(spec: FeatureSpec, config: ModelConfig) -> None:
    """Raise `ConfigError` if `config` names a table or a feature that is not there."""
    _refuse_unknown("tables", config.tables, "table", [table.name for table in spec.tables])
    _refuse_unknown("learned_weights", config.learned_weights, "sparse feature", spec.sparse_names)


def without_compression(config: ModelConfig) -> ModelConfig:
    """Return the settings of the same network over whole tables."""
    dropped: dict[str, Any] = {"embedding_budget": None, "compression": None, "mixed_dimensions": None, "tables": {}}
    return config.model_copy(update=dropped)


def _with_settings(spec: FeatureSpec, config: ModelConfig, linear: bool) -> FeatureSpec:
    """Return the spec with all settings but the budget."""
    refuse_unknown_names(spec, config)
    learned = set(config.learned_weights)
    sparse = tuple(
        f.model_copy(update={"learned_weights": f.learned_weights or f.name in learned}) for f in spec.sparse
    )
    try:
        spec = spec.model_copy(update={"sparse": sparse}).with_embedding_dim(config.embedding_dim)
        if not _is_compressed(spec):
            compressions = _compressions(spec, config)
            tables = tuple(TableConfig(**{**dict(t), "compression": compressions[t.name]}) for t in spec.tables)
            return spec.model_copy(update={"tables": tables})
    except SpecError as error:
        raise ConfigError(f"in `model`: {error}") from None
    if config.embedding_budget is not None:
        _refuse_over(spec, parse_bytes(config.embedding_budget), linear)
    return spec


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


def _refuse_over(spec: FeatureSpec, budget: int, linear: bool) -> None:
    stored = sum(table_bytes(table, linear) for table in spec.tables)
    if stored > budget:
        raise ConfigError(
            f"`model.embedding_budget` must be at least what the compressed tables of the spec take. "
            f"Received: {budget} bytes for {stored}."
        )


def _refuse_unknown(argument: str, names: Iterable[str], kind: str, known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"`model.{argument}` must name a {kind} of the data. Received: `{name}`.{did_you_mean(name, known)}"
            )
