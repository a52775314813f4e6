"""A planner recipe: tables, model, training and machines in one TOML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tfdlrm.distribute.cost_model import CostModel
from tfdlrm.distribute.dense_weights import dlrm_dense_bytes
from tfdlrm.distribute.planner import plan_tables
from tfdlrm.distribute.table_plan import TablePlan
from tfdlrm.distribute.topology import Topology
from tfdlrm.spec.criteo import CARDINALITIES, click_log_spec
from tfdlrm.spec.errors import ConfigError, SpecError, did_you_mean
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.frozen import Frozen
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.model_spec import model_spec
from tfdlrm.spec.overrides import apply_override
from tfdlrm.spec.storage import Storage
from tfdlrm.spec.table_signal import Counts
from tfdlrm.spec.toml_file import read_toml
from tfdlrm.spec.train_config import TrainConfig


class PlannedTables(Frozen):
    """`[tables]`: how large the tables are, where neither prepared rows nor the command line say it.

    Attributes:
        dataset: Published cardinalities: `"kaggle"`, `"terabyte_10m"`, `"terabyte_40m"` or `"mlperf_v2"`.
        rows: Rows of each table, in place of `dataset`.
        hotness: Ids a sample in each table; a single number stands for all. Defaults to 1.
        times: What all rows are multiplied by. Defaults to 1.

    Raises:
        SpecError: there is no such data set, both are given, or there are not as many bag lengths as tables.
    """

    dataset: str | None = None
    rows: tuple[int, ...] = ()
    hotness: tuple[int, ...] = (1,)
    times: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> PlannedTables:
        if self.dataset is not None and self.dataset not in CARDINALITIES:
            raise SpecError(
                f"`dataset` must be one of {', '.join(CARDINALITIES)}. "
                f"Received: {self.dataset!r}.{did_you_mean(self.dataset, CARDINALITIES)}"
            )
        if self.dataset is not None and self.rows:
            raise SpecError("`rows` must not come with `dataset`. Received: both.")
        if min((*self.rows, *self.hotness), default=1) < 1:
            raise SpecError("`rows` and `hotness` must be at least 1 each. Received: a smaller number.")
        if len(self.hotness) not in (1, len(self.sizes)):
            raise SpecError(
                f"`hotness` must be one number, or one for each of {len(self.sizes)} tables. "
                f"Received: {len(self.hotness)}."
            )
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each table."""
        rows = CARDINALITIES[self.dataset] if self.dataset is not None else self.rows
        return tuple(count * self.times for count in rows)

    def spec(self, embedding_dim: int) -> FeatureSpec:
        """Return Criteo's dense features and a sparse one for each table.

        Raises:
            ConfigError: no tables are named.
        """
        if not self.sizes:
            raise ConfigError("`tables.dataset` or `tables.rows` must be given. Received: neither.")
        hotness = self.hotness * len(self.sizes) if len(self.hotness) == 1 else self.hotness
        return click_log_spec(self.sizes, embedding_dim, hotness)


class PlanSettings(Frozen):
    """`[plan]`: what is assumed.

    Attributes:
        skew: `"uniform"`, or the exponent of Zipf's law for ids in order of count. Prepared rows are counted instead.
        distinct_ids: Whether a step reads each row once at most. Defaults to `None`: as training does, see
            `plan_tables`.
        linear: Whether the model has a linear weight for each row too, as DeepFM has. Defaults to `None`: what the
            model says.
        dense_bytes: Bytes of each dense variable of the model. Defaults to `None`: those that it has.
    """

    skew: Literal["uniform"] | float = "uniform"
    distinct_ids: bool | None = None
    linear: bool | None = None
    dense_bytes: tuple[Annotated[int, Field(ge=1)], ...] | None = None


class PlanRecipe(Frozen):
    """Everything that a plan needs. `[model]` and `[train]` are those of a run's recipe; `[cost]` is a `CostModel`."""

    tables: PlannedTables = PlannedTables()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    plan: PlanSettings = PlanSettings()
    topology: Topology
    cost: CostModel = CostModel()

    def make_plan(
        self,
        spec: FeatureSpec | None = None,
        counts: Mapping[str, Counts | None] | None = None,
        storage: Storage | None = None,
        dense_bytes: Sequence[int] | None = None,
    ) -> TablePlan:
        """Return the plan of this recipe.

        Args:
            spec: Features and tables, before the settings of `[model]`. Defaults to those of `[tables]`.
            counts: How often rows are read, in place of `plan.skew`.
            storage: What the model keeps of the tables. Defaults to what DLRM does.
            dense_bytes: Bytes of each dense variable, unless `plan.dense_bytes` says it. Defaults to those of DLRM.

        Raises:
            ConfigError: tables are not known, settings do not fit the tables, or the model is not `"dlrm"` and neither
                the arguments nor `[plan]` say what it has.
            SpecError: no plan fits the machines.
        """
        kept = storage or Storage()
        spec = spec or self.tables.spec(self.model.embedding_dim)
        full = kept.tables_of(model_spec(spec, self.model, counts=counts, storage=kept))
        dense = dense_bytes if self.plan.dense_bytes is None else self.plan.dense_bytes
        if self.model.name != "dlrm" and (dense is None or (self.plan.linear is None and storage is None)):
            raise ConfigError(
                '`plan.dense_bytes` and `plan.linear` must be given for a model other than "dlrm". Received: '
                f"{self.model.name!r} without them."
            )
        return plan_tables(
            full,
            optimizer=self.train.embedding.name,
            batch_size=self.train.batch_size,
            topology=self.topology,
            skew=self.plan.skew
            if counts is None
            else {t.name: counts[t.name] for t in full.tables if t.name in counts},
            dense_bytes=dlrm_dense_bytes(full, self.model) if dense is None else dense,
            dense_optimizer=self.train.dense.name,
            cost=self.cost,
            linear=kept.beside if self.plan.linear is None else self.plan.linear,
            distinct_ids=self.plan.distinct_ids,
        )


def load_plan_recipe(path: str | Path, overrides: Iterable[str] = ()) -> PlanRecipe:
    """Read a planner recipe.

    Args:
        path: TOML file.
        overrides: `section.key=value` texts applied in order.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown (with the nearest valid one), or a value has the
            wrong type or range.
    """
    values = read_toml(path)
    for override in overrides:
        apply_override(values, override)
    try:
        return PlanRecipe(**values)
    except SpecError as error:
        raise ConfigError(f"{path}: {error}") from None
