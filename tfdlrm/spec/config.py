"""Run configuration: one TOML file, `--set section.key=value` on top, every key checked."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from tfdlrm.spec.byte_sizes import parse_bytes
from tfdlrm.spec.coding import Expand, TableCoding, TableKind, Unseen, ValueKind
from tfdlrm.spec.compression import Compression
from tfdlrm.spec.errors import ConfigError, SpecError, explain, why_unreadable
from tfdlrm.spec.features import Combiner, DenseTransform
from tfdlrm.spec.frozen import Frozen
from tfdlrm.spec.growth import Growth
from tfdlrm.spec.losses import LossSettings
from tfdlrm.spec.mixed_dimensions import MixedDimensions
from tfdlrm.spec.overrides import apply_override, resolve_recipe
from tfdlrm.spec.raw import CRITEO_FORMAT, RawFormat, Split
from tfdlrm.spec.table_settings import CompressionRule

EmbeddingOptimizer = Literal["sgd", "rowwise_adagrad", "adagrad", "adam", "ftrl"]
DenseOptimizer = Literal["sgd", "adagrad", "adam", "rmsprop", "ftrl"]


class SparseColumn(Frozen):
    """One categorical feature of a recipe.

    Attributes:
        name: Feature name.
        source: Raw column; defaults to `name`.
        table: Table it reads; features that name the same table share it. Defaults to `name`.
        separator: Splits one raw string into a bag of ids.
        hotness: Bag length kept; further values of a longer bag are dropped and counted. Defaults to 1.
        weights: Raw column with the weights of the bag's values, joined by the same separator. Needs `separator`.
        expand: Makes a bag of `hotness` ids of the one id of a row; see `Expand`. Not beside `separator`.
        combiner: `"sum"` or `"mean"`.
        kind, value, min_count, id_modulus, buckets: As in `TableCoding`; default to the `[data.coding]` section.
    """

    name: str
    source: str | None = None
    table: str | None = None
    separator: str | None = None
    hotness: int = Field(default=1, ge=1)
    weights: str | None = None
    expand: Expand | None = None
    combiner: Combiner = "sum"
    kind: TableKind | None = None
    value: ValueKind | None = None
    min_count: int | None = Field(default=None, ge=1)
    id_modulus: int | None = Field(default=None, ge=1)
    buckets: int | None = Field(default=None, ge=1)


class DenseColumn(Frozen):
    """One numeric feature of a recipe: raw column `name` under `transform`."""

    name: str
    transform: DenseTransform = "log1p"


class PlantedData(Frozen):
    """Rows to generate where no raw file is given.

    Attributes:
        rows: Number of rows.
        seed: Seed of the rows. The teacher itself is one fixed default.
    """

    rows: int = Field(default=200_000, ge=1000)
    seed: int = 0


class DataConfig(Frozen):
    """`[data]`: where rows come from and how they are coded.

    In a file, `recipe = "fb"` starts from a published recipe (`tfdlrm.spec.recipes`) for `dataset`, `"kaggle"` unless
    it is said; the other keys change it.

    Attributes:
        raw: Raw files, in order; environment variables are expanded, `.gz` is read as gzip. Empty: planted rows.
        planted: What to generate where `raw` is empty.
        format: How raw rows lie in the files. Defaults to Criteo's.
        dense: Numeric features.
        sparse: Categorical features.
        coding: Default coding of tables.
        vocabulary_rows: Rows that vocabularies are counted on: `"train"`, or `"all"` as several published results have
            it, test rows included.
        split: Which rows train, validate and test.
        drop_negatives: Share of the rows with label 0 that is left out, of every split and before anything is counted.
            Which ones depends on `drop_seed` and on a row's number alone.
        drop_seed: Seed of that choice.
        max_bad_share: Largest share of bad rows that is set aside rather than refused. Defaults to 0.
        rows_per_block: Rows per packed record, the unit of random access.
        rows_per_shard: Rows per shard file.
        shuffle_blocks: Blocks shuffled together in one window.
        growth: Which run this one goes on from, if any, and which of the new values get rows.
    """

    raw: tuple[str, ...] = ()
    planted: PlantedData = PlantedData()
    format: RawFormat = CRITEO_FORMAT
    dense: tuple[DenseColumn, ...] = tuple(DenseColumn(name=f"I{i}") for i in range(1, 14))
    sparse: tuple[SparseColumn, ...] = tuple(SparseColumn(name=f"C{i}") for i in range(1, 27))
    coding: TableCoding = TableCoding()
    vocabulary_rows: Literal["train", "all"] = "train"
    split: Split = Split()
    drop_negatives: float = Field(default=0.0, ge=0, lt=1)
    drop_seed: int = Field(default=0, ge=0, lt=2**63)
    max_bad_share: float = Field(default=0.0, ge=0, le=1)
    rows_per_block: int = Field(default=16_384, ge=1)
    rows_per_shard: int = Field(default=1_048_576, ge=1)
    shuffle_blocks: int = Field(default=16, ge=1)
    growth: Growth = Growth()


class ModelConfig(Frozen):
    """`[model]`: the network.

    A model takes the keys it has a use for and leaves the others alone, so that `--set model.name=deepfm` is enough to
    try another model in any recipe.

    Attributes:
        name: Which model; see `tfdlrm.models.build`.
        embedding_dim: Width d of every table; `bottom_units` must end with it.
        bottom_units: Widths of the bottom MLP, last = `embedding_dim`. DLRM only.
        top_units: Widths of the top (deep) MLP, last = 1.
        interaction: `"dot"` (pairwise dot products) or `"cat"` (concatenation).
        interaction_itself: Whether dot products of a vector with itself are kept.
        dropout: Share of hidden top-MLP units dropped in training.
        embedding_l2: Weight of the mean over the batch of the squared norm of looked-up vectors, added to the loss.
        cross_layers: Number of cross layers of the Deep & Cross models.
        cross_rank: Rank of their kernels; `None` for full rank.
        structure: Whether cross network and MLP follow one another (`"stacked"`) or stand side by side (`"parallel"`).
        cin_units: Feature maps of each layer of xDeepFM's compressed interaction network.
        pair: The two sparse features that matrix factorization multiplies, such as user and item.
        crosses: Combinations of sparse features that Wide & Deep gives weights of their own, hashed.
        cross_rows: Rows of the table that holds the weights of one such combination.
        embedding_budget: Bytes that all tables must fit into, such as `"512MB"`: `tfdlrm.fit_budget` chooses how.
        compression: How tables above a size are stored.
        mixed_dimensions: Gives large tables narrower rows.
        tables: How single tables are stored, by name, whatever the other settings say.
        learned_weights: Sparse features whose ids have learned weights in their bags.
        options: Arguments of a model that this package does not know, passed on as they are.
    """

    name: str = "dlrm"
    embedding_dim: int = Field(default=16, ge=1)
    bottom_units: tuple[int, ...] = (512, 256, 64, 16)
    top_units: tuple[int, ...] = (512, 256, 1)
    interaction: Literal["dot", "cat"] = "dot"
    interaction_itself: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    embedding_l2: float = Field(default=0.0, ge=0)
    cross_layers: int = Field(default=3, ge=1)
    cross_rank: int | None = Field(default=None, ge=1)
    structure: Literal["stacked", "parallel"] = "stacked"
    cin_units: tuple[int, ...] = (128, 128)
    pair: tuple[str, str] | None = None
    crosses: tuple[tuple[str, ...], ...] = ()
    cross_rows: int = Field(default=100_000, ge=1)
    embedding_budget: str | int | None = None
    compression: CompressionRule | None = None
    mixed_dimensions: MixedDimensions | None = None
    tables: dict[str, Compression] = {}
    learned_weights: tuple[str, ...] = ()
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_plan(self) -> ModelConfig:
        if self.embedding_budget is not None:
            parse_bytes(self.embedding_budget, "embedding_budget")
            if self.compression or self.mixed_dimensions:
                other = "compression" if self.compression else "mixed_dimensions"
                raise SpecError(
                    f"`embedding_budget` must not come with `{other}`: it chooses for every table that `tables` does "
                    "not name. Received: both."
                )
        if self.mixed_dimensions and self.compression and self.compression.dim is not None:
            raise SpecError("`compression.dim` must not come with `mixed_dimensions`: both are widths. Received: both.")
        if self.mixed_dimensions and self.name == "dlrm" and self.interaction == "cat":
            raise SpecError(
                '`mixed_dimensions` must go with `interaction` "dot", which needs narrow rows projected to one width; '
                '"cat" would concatenate what the projections repeat. Received: "cat".'
            )
        return self


class OptimizerConfig(Frozen):
    """One half of the optimizer. `weight_decay` is decoupled; on embeddings it reaches touched rows only."""

    learning_rate: float = Field(default=0.1, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    initial_accumulator: float = Field(default=0.0, ge=0)
    epsilon: float | None = Field(default=None, gt=0)


class EmbeddingOptimizerConfig(OptimizerConfig):
    """`[train.embedding]`: the optimizer of the embedding tables. Each moves the rows a batch used, and no other.

    `adam` is LazyAdam: moments of untouched rows do not age. `ftrl` starts its accumulators at 0.1 where
    `initial_accumulator` is 0.
    """

    name: EmbeddingOptimizer = "sgd"

    @model_validator(mode="after")
    def _no_idle_settings(self) -> EmbeddingOptimizerConfig:
        used = {
            "sgd": ("weight_decay",),
            "adam": ("weight_decay", "epsilon"),
            "ftrl": ("initial_accumulator",),
        }.get(self.name, ("weight_decay", "initial_accumulator", "epsilon"))
        for setting in ("weight_decay", "initial_accumulator", "epsilon"):
            if setting not in used and getattr(self, setting):
                raise SpecError(
                    f'`{setting}` must not be given where `name` is "{self.name}", which has none. '
                    f"Received: {getattr(self, setting)}."
                )
        return self


class DenseOptimizerConfig(OptimizerConfig):
    """`[train.dense]`: the optimizer of the MLPs."""

    name: DenseOptimizer = "sgd"


class ScheduleConfig(Frozen):
    """`[train.schedule]`: linear warm-up, hold, polynomial decay; both halves of the optimizer follow it.

    Attributes:
        warmup_steps: Steps over which the rate rises linearly to its base. 0 starts at the base.
        decay_start_step: First step of the decay; must not lie inside the warm-up.
        decay_steps: Length of the decay; 0 for none. Afterwards the rate stays at `end_factor`.
        power: Exponent of the decay. Defaults to 2.
        end_factor: Share of the base rate left at the end.
        reference_batch_size: Batch size that the learning rates are stated for: they are multiplied by
            `batch_size / reference_batch_size` (linear scaling; Goyal et al. 2017, section 2.1), which needs a warm-up
            where it raises them. `None` leaves them alone.
    """

    reference_batch_size: int | None = Field(default=None, ge=1)
    warmup_steps: int = Field(default=0, ge=0)
    decay_start_step: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    power: float = Field(default=2.0, gt=0)
    end_factor: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> ScheduleConfig:
        if self.decay_steps and self.decay_start_step < self.warmup_steps:
            raise SpecError(
                "`decay_start_step` must be at least `warmup_steps`. "
                f"Received: {self.decay_start_step} and {self.warmup_steps}."
            )
        return self


class TrainConfig(LossSettings):
    """`[train]`: how the network learns; the keys of the loss are those of `LossSettings`.

    Attributes:
        batch_size: Samples per step, that is per update of the weights.
        accumulation_steps: Pieces a batch is cut into; each goes forward and backward on its own, gradients are
            summed, the weights are updated once. Same result as one piece, less memory for activations.
        epochs: Passes over the training rows.
        embedding, dense: The two halves of the optimizer.
        schedule: Learning-rate schedule.
        global_clipnorm: Gradients are scaled down to this global norm; `None` for no clipping.
        precision: `"float32"` or `"mixed_bfloat16"` (MLPs and interaction in bfloat16, tables and loss in float32).
        deterministic: Same config and seed, same bits on one machine; slower.
        checkpoint_steps: Steps between checkpoints; 0 writes one at the end of each epoch only.
        keep_checkpoints: How many of the newest checkpoints are kept beside the best.
        early_stopping: Stop after this many validations without a better `monitor`; 0 never stops. Without
            validation rows there is nothing to stop by.
        eval_every_steps: Steps between validations; 0 validates at the end of each epoch.
        monitor: The validation metric that decides which checkpoint is best.
        start_from: With which weights of the run named in `[data.growth]` training begins: `"chosen"` takes those that
            it exports.
        restart_schedule: Whether the schedule begins anew then, or goes on from that run's last step.
    """

    batch_size: int = Field(default=128, ge=1)
    accumulation_steps: int = Field(default=1, ge=1)
    epochs: int = Field(default=1, ge=1)
    embedding: EmbeddingOptimizerConfig = EmbeddingOptimizerConfig()
    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    global_clipnorm: float | None = Field(default=None, gt=0)
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    deterministic: bool = False
    checkpoint_steps: int = Field(default=0, ge=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    early_stopping: int = Field(default=0, ge=0)
    eval_every_steps: int = Field(default=0, ge=0)
    monitor: Literal["log_loss", "auc"] = "log_loss"
    start_from: Literal["chosen", "best", "last"] = "chosen"
    restart_schedule: bool = True

    @property
    def rate_factor(self) -> float:
        """What both learning rates are multiplied by for the size of the batch."""
        return self.batch_size / (self.schedule.reference_batch_size or self.batch_size)

    @model_validator(mode="after")
    def _warm_where_scaled(self) -> TrainConfig:
        if self.rate_factor > 1 and not self.schedule.warmup_steps:
            raise SpecError(
                "`train.schedule.warmup_steps` must be at least 1 where `batch_size` is above `reference_batch_size`: "
                f"rates grow {self.rate_factor:g} times. Received: 0. A few hundred steps serve."
            )
        return self


class EvaluateConfig(Frozen):
    """`[evaluate]`: `weights` says which checkpoint is judged and exported: `"best"` on validation, or `"last"`."""

    batch_size: int = Field(default=8192, ge=1)
    weights: Literal["best", "last"] = "best"
    baseline: bool = True


class ExportConfig(Frozen):
    """`[export]`: where the SavedModel goes (`directory/model_name/version`), and how it is verified.

    Attributes:
        directory, model_name: Parts of the path; the name defaults to that of the run.
        unseen: What the served model takes a value for that it has no row for, in tables whose coding has no `oov_row`:
            `"missing"` (nothing at all in a table where nothing was missing), `"rare"`, `"zeros"` (nothing: a vector of
            zeros), or the number of a row. `None` where every table has one.
        correct_sampling: Where `data.drop_negatives` left rows out, answer and judge probabilities of all rows as they
            were. False: of the rows that are left.
        verify_rows: Rows that the served model is asked about.
        tolerance: Largest difference allowed from the trained model's probability.
    """

    directory: str = "saved_models"
    model_name: str | None = None
    unseen: Unseen | None = None
    correct_sampling: bool = True
    verify_rows: int = Field(default=2048, ge=1)
    tolerance: float = Field(default=1e-5, gt=0)


class RunConfig(Frozen):
    """Everything a run needs. `name` names the run; `seed` seeds weights and the order of samples."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(default=123, ge=0, lt=2**31)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()

    @property
    def logit_shift(self) -> float:
        """What is added to the model's log-odds for the rows without a click that were left out."""
        return math.log1p(-self.data.drop_negatives) if self.export.correct_sampling else 0.0


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a run configuration.

    Args:
        path: TOML file; `None` starts from the defaults.
        overrides: `section.key=value` texts applied in order. A value is read as TOML where it can be, else as text.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown (with the nearest valid one), or a
            value has the wrong type or range.
    """
    values: dict[str, Any] = {}
    where = "--set"
    if path is not None:
        where = str(path)
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {why_unreadable(error)}.") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}.") from None
    for override in overrides:
        apply_override(values, override)
    try:
        resolve_recipe(values)
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain_at(error)}") from None
    except SpecError as error:
        raise ConfigError(f"{where}: {error}") from None


def _explain_at(error: ValidationError) -> str:
    """Explain an error with suggestions taken from the section it lies in."""
    location = error.errors(include_url=False)[0]["loc"]
    section: type[BaseModel] | None = RunConfig
    for part in location[:-1]:
        field = section.model_fields.get(str(part)) if section else None
        annotation = field.annotation if field else None
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else section
    return explain(error, section.model_fields if section else ())
