"""From a table in memory to data sets, a model and a served model: `tfdlrm.from_dataframe`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.any_frame import polars_frame, raw_frame
from tfdlrm.data.column_choice import ColumnChoice, choose_columns
from tfdlrm.data.columns import raw_columns
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.frame_rows import frame_labels, frame_splits, refuse_absent, refuse_bad_values
from tfdlrm.data.recipe_reader import hex_columns, weight_columns
from tfdlrm.data.row_statistics import RowStatistics, summarize
from tfdlrm.data.splits import SPLIT_NAMES, Codes, in_split
from tfdlrm.data.untouched_rows import untouched_rows_of
from tfdlrm.data.vocabulary_builder import VocabularyBuilder
from tfdlrm.pipelines.table_data import Rows, TableData
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import DataConfig, DenseColumn, RunConfig, SparseColumn, load_config, parse_config
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.features import DenseTransform
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.raw import RawFormat, Split
from tfdlrm.spec.train_config import DenseOptimizerConfig, EmbeddingOptimizerConfig, TrainConfig

_RESERVED = "label"
"""What a frame of raw rows calls its labels."""
_FRACTIONS = (0.8, 0.1, 0.1)


def from_dataframe(
    df: Any,
    label: str | None = None,
    *,
    dense: Sequence[str] | Mapping[str, DenseTransform] = (),
    sparse: Sequence[str] = (),
    drop: Sequence[str] = (),
    split: Literal["random", "order"] | Mapping[str, str] | None = None,
    fractions: tuple[float, float, float] | None = None,
    min_count: int | None = None,
    embedding_dim: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    name: str | None = None,
    recipe: RunConfig | str | Path | None = None,
) -> TableData:
    """Turn a table into encoded rows that train a model, and an encoder for new rows.

    What each column is taken for is decided by the rules of `tfdlrm.data.column_choice.choose_columns`; `print` the
    result to see what was decided, and why. Vocabularies are counted on training rows only. A missing value (null, NaN,
    `""`) gets the row 0 of its table; one that training did not see, or saw fewer than `min_count` times, the row 1.

    The rows are coded by what prepares files: the result's `recipe()` makes of a CSV what this makes of the table.

    Args:
        df: A DataFrame of pandas or Polars (a LazyFrame is collected), or an Arrow table.
        label: The column that holds 0 and 1, or a rule such as `"rating >= 4"`. Its column is no feature.
        dense: Columns that are numbers for the bottom MLP, whatever the rules say; as a mapping, with their transform
            (`"log1p"`, `"standardize"`, `"identity"` ...; see `DenseFeature`).
        sparse: Columns that are categories with an embedding table, whatever the rules say.
        drop: Columns to leave out.
        split: Which rows train, validate and test: `"random"`, drawn for each row by `seed`; `"order"`, the first rows
            train and the last test; `{"time": column}`, the same once ordered by a column, which is then no feature;
            `{"key": column}`, by the hash of a column, so that none of its values falls on two sides. Defaults to
            `"random"`. Times are numbers, dates, or text of numbers or of dates written year first.
        fractions: Shares of the rows that train, validate and test; they add up to 1. Defaults to 0.8, 0.1, 0.1.
        min_count: Values seen fewer times in training rows share a row of their table. At least 1. Defaults to 2, so
            that this row is trained for values to come.
        embedding_dim: Width of every table. Defaults to 16.
        batch_size: Rows per batch of the data sets. Defaults to 256.
        seed: Seed of the random split, the order of training rows and the model's first weights. Defaults to 0.
        name: Name of the run in the recipe, and of the served model. Defaults to `"table"`.
        recipe: Says all of that in place of the arguments: the text that `recipe()` returned, perhaps edited, the path
            of a TOML file, or a `RunConfig`. No other argument may be given beside it.

    Returns:
        The data sets `train`, `validation` and `test`, the `spec`, the `encoder`, and what is made with them.

    Raises:
        DataError: the table has no rows, names a column twice, lacks one that is named, has one of a kind that cannot
            be a feature (dates, for example), has rows without a label or labels of one class only, or rows that the
            recipe's reader of files would call bad.
        ConfigError: arguments or a recipe contradict themselves, or no row would train.

    Example:
        >>> import polars as pl
        >>> df = pl.DataFrame({"city": ["Bern", "Rome"] * 20, "price": [1.5, 20.0] * 20, "clicked": [0, 1] * 20})
        >>> table = from_dataframe(df, label="clicked", split="order")
        >>> table.rows
        {'train': 32, 'validation': 4, 'test': 4}
        >>> table.encode(pl.DataFrame({"city": ["Rome", "Oslo", None], "price": [0.0, 1.0, None]}))["sparse"].tolist()
        [[2], [1], [0]]
    """
    frame = polars_frame(df)
    if not frame.height:
        raise DataError("`df` must have rows. Received: none.")
    if recipe is not None:
        asked: dict[str, Any] = {"label": label, "dense": dense or None, "sparse": sparse or None, "drop": drop or None}
        asked |= {"split": split, "fractions": fractions, "min_count": min_count, "embedding_dim": embedding_dim}
        asked |= {"batch_size": batch_size, "seed": seed, "name": name}
        given = [f"`{argument}`" for argument, value in asked.items() if value is not None]
        if given:
            raise ConfigError(f"{', '.join(given)} must not be given beside `recipe`, which says all of that.")
        config = _given(recipe)
        codes, choices = frame_splits(frame, config.data), _choices_of(config.data)
    else:
        if label is None:
            raise ConfigError(f"`label` must name the column that holds 0 and 1. Columns: {', '.join(frame.columns)}.")
        split = "random" if split is None else split
        fractions = _FRACTIONS if fractions is None else fractions
        min_count = 2 if min_count is None else min_count
        seed = 0 if seed is None else seed
        data = _data(label, split, fractions, seed, min_count)
        codes = frame_splits(frame, data)
        choices = _choose(frame, codes, data, dense, sparse, drop)
        embedding_dim = 16 if embedding_dim is None else embedding_dim
        batch_size = 256 if batch_size is None else batch_size
        config = _config(data, choices, embedding_dim, batch_size, seed, "table" if name is None else name)
    return _encoded(frame, config, codes, choices)


def _given(recipe: RunConfig | str | Path) -> RunConfig:
    """Return a recipe given as text, path or object, if it can be kept to in memory.

    Raises:
        ConfigError: it is none, or asks for what only files have.
    """
    if isinstance(recipe, RunConfig):
        config = recipe
    elif isinstance(recipe, str) and "\n" in recipe:
        config = parse_config(recipe)
    else:
        config = load_config(recipe)
    data = config.data
    for setting, given in {
        "data.format.side_tables": data.format.side_tables,
        "data.format.weight": data.format.weight,
        "data.drop_negatives": data.drop_negatives,
        "data.growth.from_run": data.growth.from_run,
    }.items():
        if given:
            raise ConfigError(f"`{setting}` must be absent from the recipe of a table in memory. Received: {given!r}.")
    if any(column.transform == "log_file_minimum" for column in data.dense):
        raise ConfigError('`transform` must not be "log_file_minimum" for a table in memory, which has no files.')
    return config


def choose_recipe(
    frame: pl.DataFrame,
    raw: Sequence[str],
    label: str,
    split: Literal["random", "order"] | Mapping[str, str],
    drop: Sequence[str],
    delimiter: str,
    name: str,
) -> tuple[RunConfig, list[ColumnChoice]]:
    """Return a recipe for files, by what is seen of their columns; nothing is counted or encoded.

    Args:
        frame: Rows of them, enough to decide by.
        raw: The files.
        label: As `from_dataframe` has it.
        split: As `from_dataframe` has it.
        drop: As `from_dataframe` has it.
        delimiter: What stands between the fields of a row.
        name: Name of the run.

    Raises:
        DataError, ConfigError: as `from_dataframe`.
    """
    data = _data(label, split, _FRACTIONS, seed=0, min_count=2)
    form = data.format.model_copy(update={"delimiter": delimiter})
    data = data.model_copy(update={"raw": tuple(raw), "format": form})
    choices = _choose(frame, frame_splits(frame, data), data, (), (), drop)
    return _config(data, choices, embedding_dim=16, batch_size=256, seed=0, name=name), choices


def _data(label: str, split: Any, fractions: tuple[float, float, float], seed: int, min_count: int) -> DataConfig:
    """Return how rows are read, split and coded, before any column is chosen."""
    return DataConfig(
        raw=("rows.csv",),
        format=_format(label, split),
        split=_split(split, fractions, seed),
        coding=TableCoding(value="string", min_count=min_count),
        dense=(),
        sparse=(),
    )


def _format(label: str, split: str | Mapping[str, str]) -> RawFormat:
    time = split.get("time") if isinstance(split, Mapping) else None
    return RawFormat(delimiter=",", header=True, quote='"', label=label, time=time)


def _split(split: Any, fractions: tuple[float, float, float], seed: int) -> Split:
    if split == "random":
        return Split(by="random", fractions=fractions, seed=seed)
    if split == "order":
        return Split(by="order", fractions=fractions)
    if isinstance(split, Mapping) and len(split) == 1 and set(split) <= {"time", "key"}:
        if "time" in split:
            return Split(by="time", fractions=fractions)
        return Split(by="hash", key=split["key"], fractions=fractions)
    raise ConfigError(
        f'`split` must be "random", "order", {{"time": column}} or {{"key": column}}. Received: {split!r}.'
    )


def _choose(
    frame: pl.DataFrame,
    codes: Codes,
    data: DataConfig,
    dense: Sequence[str] | Mapping[str, DenseTransform],
    sparse: Sequence[str],
    drop: Sequence[str],
) -> list[ColumnChoice]:
    label = data.format.label_rule.column
    refuse_absent(frame, [label], "label")
    for what, names in (("dense", dense), ("sparse", sparse), ("drop", drop)):
        if isinstance(names, str):
            raise ConfigError(f"`{what}` must be a list of columns. Received: the text {names!r}.")
        refuse_absent(frame, list(names), what)
    transforms = dict(dense) if isinstance(dense, Mapping) else dict.fromkeys(dense)
    left_out = {**dict.fromkeys(drop, "dropped"), label: "label"}
    if data.format.time is not None:
        left_out[data.format.time] = "time"
    asked: dict[str, str] = {}
    uses: dict[str, Iterable[str]] = {"dense": transforms, "sparse": sparse, "drop, time or label": left_out}
    for what, columns in uses.items():
        for name in columns:
            if asked.setdefault(name, what) != what:
                raise ConfigError(
                    f"column `{name}` must be asked for as one thing only. Received: {asked[name]}, {what}."
                )
    return choose_columns(frame, in_split(codes, SPLIT_NAMES[0]), transforms, sparse, left_out)


def _config(
    data: DataConfig, choices: Sequence[ColumnChoice], embedding_dim: int, batch_size: int, seed: int, name: str
) -> RunConfig:
    """Return the recipe of the columns chosen, with a network and optimizers that suit most tables."""
    features = [choice.feature for choice in choices if choice.feature is not None]
    columns = {
        "dense": tuple(f for f in features if isinstance(f, DenseColumn)),
        "sparse": tuple(f for f in features if isinstance(f, SparseColumn)),
    }
    return RunConfig(
        name=name,
        seed=seed,
        data=data.model_copy(update=columns),
        model=ModelConfig(
            embedding_dim=embedding_dim, bottom_units=(4 * embedding_dim, embedding_dim), top_units=(64, 32, 1)
        ),
        train=TrainConfig(
            batch_size=batch_size,
            epochs=3,
            # With some ten thousand rows it gets off the ground in the first epoch; row-wise Adagrad takes three.
            embedding=EmbeddingOptimizerConfig(name="adam", learning_rate=0.005),
            dense=DenseOptimizerConfig(name="adam", learning_rate=0.002),
        ),
    )


def _choices_of(data: DataConfig) -> list[ColumnChoice]:
    """Return what a recipe takes columns for."""
    dense = [ColumnChoice(c.name, "dense", c.transform, "the recipe", c) for c in data.dense]
    bags = {c.name: f", up to {c.hotness} values a row" if c.separator else "" for c in data.sparse}
    sparse = [
        ColumnChoice(c.name, "sparse", f"of `{c.source or c.name}`{bags[c.name]}", "the recipe", c) for c in data.sparse
    ]
    return [*dense, *sparse, ColumnChoice(data.format.label_rule.column, "label", "", "the recipe")]


def _encoded(frame: pl.DataFrame, config: RunConfig, codes: Codes, choices: Sequence[ColumnChoice]) -> TableData:
    """Count vocabularies, make the encoder and encode all rows."""
    data, rule = config.data, config.data.format.label_rule
    if not data.sparse:
        raise DataError(
            "`df` must have a sparse column, since every model has embedding tables. Received: dense columns only. "
            f"Name one as a category: sparse=[{(data.dense[0].name if data.dense else '...')!r}]."
        )
    labels = frame_labels(frame, rule)
    trains = in_split(codes, SPLIT_NAMES[0])
    _refuse_one_class(labels, trains)
    encoding = encoding_of(data)
    tables = {column.name: column.table or column.name for column in data.sparse}
    columns = raw_columns(encoding, tables, [column.name for column in data.dense])
    if _RESERVED in (*columns.numbers, *columns.strings):
        raise DataError(f"a feature must not be called `{_RESERVED}`, which stands for the label of a row. Rename it.")
    raw = raw_frame(frame, columns, separators_of(data))
    refuse_bad_values(raw, hex_columns(data), weight_columns(encoding))
    counted = raw if data.vocabulary_rows == "all" else raw.filter(pl.Series(trains))
    builder = VocabularyBuilder(encoding, tables, [c.name for c in data.dense if c.transform == "standardize"])
    builder.add(counted)
    vocabularies, stats = builder.build()
    spec = spec_of(data, {table: v.rows for table, v in vocabularies.items()}, config.model.embedding_dim)
    encoder = FeatureEncoder(spec, encoding, vocabularies, stats)
    encoded = encoder.encode_frame(raw)
    rows, statistics = {}, {}
    for split in SPLIT_NAMES:
        here = np.flatnonzero(in_split(codes, split))
        own = raw[here].with_columns(pl.Series(_RESERVED, labels[here]))
        rows[split] = Rows(here, {key: values[here] for key, values in encoded.items()}, labels[here, np.newaxis])
        statistics[split] = RowStatistics(spec, encoding)
        statistics[split].add(own, rows[split].features["sparse"])
    summary = summarize(statistics)
    return TableData(
        frame, raw, config, encoder, rows, tuple(choices), summary, untouched_rows_of(spec, encoding, summary, {})
    )


def separators_of(data: DataConfig) -> dict[str, str | None]:
    """Return what joins the values of bags, by raw column."""
    joined: dict[str, str | None] = {}
    for column in data.sparse:
        joined[column.source or column.name] = column.separator
        if column.weights is not None:
            joined[column.weights] = column.separator
    return joined


def _refuse_one_class(labels: npt.NDArray[np.float32], trains: npt.NDArray[np.bool_]) -> None:
    if not trains.any():
        raise ConfigError(f"`split` must leave rows to train on. Received: none of {len(labels)}.")
    values = np.unique(labels[trains])
    if len(values) < 2:
        raise DataError(
            f"labels of the training rows must be of two classes, 0 and 1. Received: {values[0]:g} in all "
            f"{int(trains.sum()):,} of them."
        )
