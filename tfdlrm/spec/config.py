"""Run configuration: one TOML file, `--set section.key=value` on top, every key checked."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from tfdlrm.spec.coding import Expand, TableCoding, TableKind, Unseen, ValueKind
from tfdlrm.spec.distribute import DistributeConfig
from tfdlrm.spec.errors import ConfigError, SpecError, explain
from tfdlrm.spec.features import Combiner, DenseTransform
from tfdlrm.spec.frozen import Frozen
from tfdlrm.spec.growth import Growth
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.overrides import apply_override, resolve_recipe
from tfdlrm.spec.raw import CRITEO_FORMAT, RawFormat, Split
from tfdlrm.spec.report_config import ReportConfig
from tfdlrm.spec.toml_file import read_toml
from tfdlrm.spec.train_config import TrainConfig

TableForm = Literal["float32", "float16", "int8", "int4"]
"""How an exported model stores its tables; `"float32"`: as the trained one does."""


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
    """One numeric feature of a recipe.

    Attributes:
        name: Feature name, and that of the raw column.
        transform: What is done to the numbers; see `tfdlrm.DenseFeature`.
    """

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


class EvaluateConfig(Frozen):
    """`[evaluate]`: how the trained model is judged.

    Attributes:
        batch_size: Rows a step.
        weights: Which checkpoint is judged and exported: `"best"` on validation, or `"last"`.
        baseline: Whether hashed logistic regression on the same rows is judged, too; so is the run gone on from.
    """

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
        tolerance: Largest difference allowed from the trained model's probability; where `tables` is not `"float32"`,
            from what the trained model answers when it reads such tables.
        tables: How embedding tables are stored; see `tfdlrm.export.quantized`.
        max_auc_loss: Most AUC on held-out rows that such tables may cost; beyond, nothing is exported. 1 never refuses.
        rank_candidates: Raw columns that differ by candidate in the signature `rank`; the others are the question's. A
            bag and its weights go together. Without any there is no `rank`.
        warmup_batch_sizes: Rows of the requests that a server replays before it answers. Empty: it replays none; nor
            does it where tensorflow-serving-api, of the extra `serving`, was not installed for the export.
        min_auc: Least AUC on held-out rows, of the model with its tables as they are served. `None` asks for none.
        no_regression: Whether the version in place must not be better in log loss, on the rows that are verified, by
            more than chance explains.
        max_regression: By how much it may be better all the same, beyond that.
    """

    directory: str = "saved_models"
    model_name: str | None = None
    unseen: Unseen | None = None
    correct_sampling: bool = True
    verify_rows: int = Field(default=2048, ge=1)
    tolerance: float = Field(default=1e-5, gt=0)
    tables: TableForm = "float32"
    max_auc_loss: float = Field(default=0.001, ge=0, le=1)
    rank_candidates: tuple[str, ...] = ()
    warmup_batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 32), max_length=100)
    min_auc: float | None = Field(default=None, gt=0, lt=1)
    no_regression: bool = False
    max_regression: float = Field(default=0.0, ge=0)


class RunConfig(Frozen):
    """Everything a run needs.

    Attributes:
        name: Names the run, its work dir and, unless `export.model_name` does, the exported model.
        seed: Seeds weights and the order of samples.
        data, model, train, distribute, evaluate, export, report: The sections.

    Example:
        >>> RunConfig(name="trial", train={"epochs": 2}).train.epochs
        2
    """

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(default=123, ge=0, lt=2**31)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    distribute: DistributeConfig = DistributeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _tables_that_can_be_moved(self) -> RunConfig:
        rule = {} if self.model.compression is None else {"compression": self.model.compression.dtype}
        tables = {f"tables.{name}": table.dtype for name, table in self.model.tables.items()}
        for setting, dtype in {**rule, **tables}.items():
            if dtype != "float32" and not self.train.embedding.rounds:
                raise SpecError(
                    f'`model.{setting}.dtype` must be "float32" where `train.embedding.name` is '
                    f'"{self.train.embedding.name}": "sgd" and "rowwise_adagrad" alone round to half precision. '
                    f'Received: "{dtype}".'
                )
        return self

    @model_validator(mode="after")
    def _rounds_that_end_together(self) -> RunConfig:
        if self.distribute.strategy == "multi_worker_mirrored" and self.train.checkpoint_seconds:
            raise SpecError(
                '`train.checkpoint_seconds` must be 0 where `distribute.strategy` is "multi_worker_mirrored", whose '
                "workers tell the time by clocks of their own: `train.checkpoint_steps` serves. "
                f"Received: {self.train.checkpoint_seconds}."
            )
        return self

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

    Example:
        >>> load_config(overrides=["train.epochs=3"]).train.epochs
        3
    """
    if path is None:
        return checked_config({}, overrides, "--set")
    return checked_config(read_toml(path), overrides, str(path))


def parse_config(text: str, overrides: Iterable[str] = (), where: str = "recipe") -> RunConfig:
    """Return the run configuration that a TOML text states; see `load_config`.

    Args:
        text: The text.
        overrides: As in `load_config`.
        where: What errors call the text. Defaults to `"recipe"`.

    Raises:
        ConfigError: as in `load_config`.

    Example:
        >>> parse_config("train.epochs = 3").train.epochs
        3
    """
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}.") from None
    return checked_config(values, overrides, where)


def checked_config(values: dict[str, Any], overrides: Iterable[str] = (), where: str = "") -> RunConfig:
    """Return the configuration that values, as TOML has them, make; see `load_config`.

    Args:
        values: Sections and keys; changed in place by the overrides.
        overrides: As in `load_config`.
        where: What messages begin with, such as the file. Defaults to nothing.

    Raises:
        ConfigError: as `load_config`.
    """
    prefix = where and f"{where}: "
    for override in overrides:
        apply_override(values, override)
    try:
        resolve_recipe(values)
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{prefix}{_explain_at(error)}") from None
    except SpecError as error:
        raise ConfigError(f"{prefix}{error}") from None


def with_overrides(config: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """Return a configuration changed by `section.key=value` texts; see `load_config`.

    Raises:
        ConfigError: as `load_config`.
    """
    return checked_config(stated_values(config), overrides, "--set")


def stated_values(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as values that TOML can hold, every default stated; what is `None` is left out."""
    stated: dict[str, Any] = _without_none(config.model_dump(mode="json"))
    return stated


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(v) for key, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


def _explain_at(error: ValidationError) -> str:
    """Explain an error with suggestions taken from the section it lies in."""
    location = error.errors(include_url=False)[0]["loc"]
    section: type[BaseModel] | None = RunConfig
    for part in location[:-1]:
        field = section.model_fields.get(str(part)) if section else None
        annotation = field.annotation if field else None
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else section
    return explain(error, section.model_fields if section else ())
