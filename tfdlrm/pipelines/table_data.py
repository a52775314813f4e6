"""A table as encoded rows: data sets, the encoder of new rows, and the way to a served model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import tensorflow as tf
import tf_keras as keras
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tfdlrm.data.any_frame import polars_frame, raw_frame
from tfdlrm.data.column_choice import ColumnChoice
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.files import atomic_path
from tfdlrm.data.frame_rows import file_columns
from tfdlrm.export.blessing import HeldOut, bless, refuse_low_auc
from tfdlrm.export.saved_model import export_model
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.export.warmup import can_warm_up
from tfdlrm.metrics.binary import auc
from tfdlrm.models.build import build
from tfdlrm.pipelines.parsers import typed_again
from tfdlrm.pipelines.table_export import refuse_unkept, serving_encoder
from tfdlrm.pipelines.work_dir import config_toml
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.training.build_optimizer import build_optimizer
from tfdlrm.training.losses import build_loss

_JUDGED_AT_ONCE = 2048
_WIDTH = 120
_HEAD = ("column", "use", "read as", "why")


class Rows(NamedTuple):
    """The rows of a split.

    Attributes:
        places: int64 `[rows]`, which rows of the table they are.
        features: `dense` float32 `[rows, n_dense]`, `sparse` int32 or int64 `[rows, n_ids]`, perhaps `weights`.
        labels: float32 `[rows, 1]`.
    """

    places: npt.NDArray[np.int64]
    features: dict[str, npt.NDArray[Any]]
    labels: npt.NDArray[np.float32]


class TableData:
    """What `tfdlrm.from_dataframe` makes of a table. `print` it to see what each column was taken for, and why.

    Args:
        frame: The table.
        raw: Its raw columns, as the encoder reads them.
        config: The recipe.
        encoder: The encoder.
        rows: The rows of each split, encoded.
        columns: What each column was taken for.
        statistics: Those of the splits, as manifests have them.
        untouched_rows: Rows that no training row has, by table.

    Attributes:
        config: The recipe as an object: `from_dataframe(df, recipe=changed)` follows a changed one.
        encoder: Maps raw rows to ids; travels in the exported model.
        columns: What each column was taken for.
        statistics: Rows and click rate of each split, shares of missing, rare and unseen values.
        untouched_rows: Rows of missing, rare and unseen values that no training row has, by table: an exported model
            answers for them with the mean of their table.

    Example:
        >>> import tfdlrm
        >>> from tfdlrm.data.generators.small_tables import shop_visits
        >>> table = tfdlrm.from_dataframe(shop_visits(500), label="bought", split={"time": "when"}, embedding_dim=4)
        >>> table.rows, table.spec.dense_names
        ({'train': 400, 'validation': 50, 'test': 50}, ('price', 'visits_before'))
        >>> inputs, labels = next(iter(table.train))
        >>> inputs["sparse"].shape, labels.shape
        (TensorShape([256, 8]), TensorShape([256, 1]))
        >>> table.model("logistic_regression").predict(table.encode(shop_visits(3, seed=1)), verbose=0).tolist()
        [[0.5], [0.5], [0.5]]
    """

    def __init__(
        self,
        frame: pl.DataFrame,
        raw: pl.DataFrame,
        config: RunConfig,
        encoder: FeatureEncoder,
        rows: Mapping[str, Rows],
        columns: tuple[ColumnChoice, ...],
        statistics: Mapping[str, Any],
        untouched_rows: Mapping[str, Sequence[int]],
    ) -> None:
        self._frame, self._raw, self._rows = frame, raw, dict(rows)
        self.config, self.encoder, self.columns = config, encoder, columns
        self.statistics, self.untouched_rows = dict(statistics), dict(untouched_rows)

    @property
    def spec(self) -> FeatureSpec:
        """Features and tables, in the order of the arrays' columns."""
        return self.encoder.spec

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows of each split."""
        return {name: len(rows.labels) for name, rows in self._rows.items()}

    @cached_property
    def train(self) -> tf.data.Dataset:
        """Batches of the training rows, in another order each epoch; the orders follow from the seed."""
        return self.dataset("train", shuffle=True)

    @cached_property
    def validation(self) -> tf.data.Dataset:
        """Batches of the validation rows, in the order of the table."""
        return self.dataset("validation")

    @cached_property
    def test(self) -> tf.data.Dataset:
        """Batches of the test rows, in the order of the table."""
        return self.dataset("test")

    def arrays(self, split: str) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float32]]:
        """Return the features of a split by name, `[rows, ...]`, and its labels, float32 `[rows, 1]`.

        Raises:
            DataError: `split` is not `"train"`, `"validation"` or `"test"`.
        """
        rows = self._split(split)
        return rows.features, rows.labels

    def frame(self, split: str) -> pl.DataFrame:
        """Return the rows of a split as they are in the table, all columns."""
        return self._frame[self._split(split).places]

    def dataset(self, split: str, batch_size: int | None = None, shuffle: bool = False) -> tf.data.Dataset:
        """Return the batches of a split, `({"dense": [B, n_dense], "sparse": [B, n_ids]}, label [B, 1])`.

        Args:
            split: `"train"`, `"validation"` or `"test"`.
            batch_size: Rows per batch; the last may have fewer. Defaults to that of the recipe.
            shuffle: Whether rows come in another order each epoch. Defaults to the order of the table.
        """
        features, labels = self.arrays(split)
        tensors = {name: tf.constant(values) for name, values in features.items()}
        answers = tf.constant(labels)
        places = tf.data.Dataset.range(len(labels))
        if shuffle and len(labels):
            places = places.shuffle(len(labels), seed=self.config.seed)
        return (
            places.batch(batch_size or self.config.train.batch_size)
            .map(lambda at: ({name: tf.gather(of, at) for name, of in tensors.items()}, tf.gather(answers, at)))
            .prefetch(2)
        )

    def as_raw(self, df: Any) -> pl.DataFrame:
        """Return new rows as the served model takes them: numbers, and everything else as text.

        Args:
            df: Rows of the same columns, of any kind that `from_dataframe` takes. The label need not be there.

        Raises:
            DataError: a column that a feature reads is absent or of another kind.
        """
        separators: dict[str, str | None] = {}
        for coding in self.encoder.encoding.features.values():
            separators[coding.source] = coding.separator
            if coding.weights is not None:
                separators[coding.weights] = coding.separator
        return raw_frame(polars_frame(df), self.encoder.columns, separators)

    def encode(self, df: Any) -> dict[str, npt.NDArray[Any]]:
        """Return new rows as `model.predict` takes them: the same mapping that the exported model holds.

        Args:
            df: As in `as_raw`.

        Raises:
            DataError: as `as_raw`.
        """
        return self.encoder.encode_frame(self.as_raw(df))

    def model(self, name: str | None = None, **settings: Any) -> keras.Model:
        """Return a compiled model for these features, with the optimizers, loss and seed of the recipe.

        Args:
            name: Which model, as in `tfdlrm.models.build.build`. Defaults to that of the recipe, `"dlrm"`.
            **settings: Keys of `[model]`, such as `top_units`, in place of the recipe's. Where `embedding_dim` is given
                without `bottom_units`, the last of those follows it.

        Raises:
            UserError: a name, key or value is unknown or does not fit.
        """
        name = name or self.config.model.name
        if "embedding_dim" in settings and "bottom_units" not in settings:
            settings["bottom_units"] = (*self.config.model.bottom_units[:-1], settings["embedding_dim"])
        config = ModelConfig(**{**self.config.model.model_dump(), **settings, "name": name})
        train = self.config.train
        model = build(name, self.spec, config, train.precision, seed=self.config.seed)
        model.compile(
            build_optimizer(train),
            loss=build_loss(train),
            accumulation_steps=train.accumulation_steps,
            metrics=[keras.metrics.AUC(name="auc")],
        )
        return model

    def recipe(self, raw: str | Path = "rows.csv") -> str:
        """Return the recipe, TOML that `python -m tfdlrm.pipelines.tabular` runs, with everything decided here.

        Args:
            raw: The CSV file that it reads. `write_csv` writes one of these rows.
        """
        data = self.config.data.model_copy(update={"raw": (str(raw),)})
        return config_toml(self.config.model_copy(update={"data": data}))

    def write_csv(self, path: str | Path) -> Path:
        """Write the rows of the table, in its order, as the recipe reads them.

        Raises:
            DataError: a text holds the end of a line, which a file of rows cannot.
        """
        form = self.config.data.format
        whole = file_columns(self._frame, self._raw, self.config.data)
        for name, kind in whole.schema.items():
            if kind == pl.String and whole[name].str.contains(r"[\r\n]").any():
                raise DataError(f"column `{name}` must hold no end of a line to be written as CSV.")
        with atomic_path(Path(path)) as temporary:
            whole.write_csv(temporary, separator=form.delimiter, quote_char=form.quote or '"')
        return Path(path)

    def export(
        self,
        model: keras.Model,
        base: str | Path | None = None,
        *,
        rank_candidates: Sequence[str] | None = None,
        verify: bool = True,
        tolerance: float | None = None,
    ) -> Path:
        """Write a trained model as the next version of a SavedModel that answers raw rows; print how to serve it.

        What the pipelines export with does it: a fresh process reloads the version, and every signature must answer
        held-out rows as the model does before the version gets its number. There is no model card: that tells of a run.
        What `[export]` of the recipe says is kept to, but for `tables`, which must be `"float32"`.

        Values that no training row has are answered for by the mean of their table, where the model itself has a row
        that is still as it was drawn; see `untouched_rows`.

        Args:
            model: A trained model of this `spec`; its tables may be of another width.
            base: Folder of the versions. Defaults to `directory` and `model_name` of `[export]`: unless it says
                otherwise, `saved_models/` and the name of the recipe.
            rank_candidates: Columns that differ between the candidates of a question, for the signature `rank`.
                Defaults to those of `[export]`; without any there is no such signature.
            verify: Whether to check it, which takes some ten seconds. Defaults to `True`.
            tolerance: Largest difference allowed from the model's probability. Defaults to that of `[export]`, 1e-5.

        Returns:
            The version's directory.

        Raises:
            VerifyError: an answer is off, or `[export]` asks for a better model; nothing was published.
            SpecError: the model is of another spec.
            ConfigError: `rank_candidates` are not some of the columns that features read, or `[export]` asks for what
                a table in memory does not give.
        """
        given = {"rank_candidates": None if rank_candidates is None else tuple(rank_candidates), "tolerance": tolerance}
        rules = self.config.export.model_copy(update={k: value for k, value in given.items() if value is not None})
        base = self._base(base)
        split = next(name for name in ("test", "validation", "train") if self.rows[name])
        rows = self._split(split)
        refuse_unkept(rules, verify, split)
        if rules.min_auc is not None:
            with serving_rows(model, self.untouched_rows):
                answers = model.predict(rows.features, batch_size=_JUDGED_AT_ONCE, verbose=0)
            refuse_low_auc(base, auc(rows.labels, answers), rules.min_auc, len(rows.labels), f"{split} rows")
        asked = rules.verify_rows
        held_out = self._raw[rows.places[:asked]]
        arrays = {name: _as_array(held_out[name]) for name in held_out.columns}
        features = {name: values[:asked] for name, values in rows.features.items()}
        ids = {name: values for name, values in features.items() if name != "dense" or self.spec.n_dense}
        ids["sparse"] = ids["sparse"].astype(np.int64)

        def check(directory: Path) -> None:
            with serving_rows(model, self.untouched_rows):
                expected = model({name: tf.constant(values) for name, values in features.items()}, training=False)
            sample = HeldOut(arrays, ids, expected.numpy()[:, 0], rows.labels[:asked, 0])
            bless(directory, base, sample, rules.tolerance, rules.max_regression if rules.no_regression else None)

        path = export_model(
            model,
            serving_encoder(self.encoder, rules.unseen),
            base,
            untouched_rows=self.untouched_rows,
            config=self.config.model_copy(update={"export": rules}),
            rank_candidates=rules.rank_candidates,
            warmup=arrays if can_warm_up() and rules.warmup_batch_sizes else None,
            warmup_batch_sizes=rules.warmup_batch_sizes,
            bless=check if verify else None,
        )
        print(f"Exported {path}. Serve it:\n  {self.serve_command(base)}")
        return path

    def serve_command(self, base: str | Path | None = None, port: int = 8501) -> str:
        """Return the command that serves what `export` wrote under `base`."""
        base = self._base(base)
        flags = ["--model_name", base.name, "--model_base_path", str(base), "--rest_api_port", str(port)]
        return typed_again("tfdlrm.serving", flags)

    def __repr__(self) -> str:
        shown = Table(box=SIMPLE_HEAD)
        for head in _HEAD:
            shown.add_column(head, overflow="fold")
        for cells in self._cells():
            shown.add_row(*cells)
        text = StringIO()
        # A notebook would be shown the table at once, and the text would lack it.
        Console(file=text, width=_WIDTH, color_system=None, force_jupyter=False).print(shown)
        lines = [line.rstrip() for line in text.getvalue().strip("\n").splitlines()]
        return "\n".join([*lines, *self._sentences()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in _HEAD)
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>" for cells in self._cells())
        sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in self._sentences())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{sentences}"

    def _cells(self) -> list[tuple[str, ...]]:
        sizes = {feature.name: self.spec.table_of(feature).vocabulary_size for feature in self.spec.sparse}
        cells: list[tuple[str, ...]] = []
        for column in self.columns:
            table = f"; table of {sizes[column.name]:,} rows" if column.use == "sparse" else ""
            cells.append((column.name, column.use, column.detail + table, column.why))
        return cells

    def _sentences(self) -> list[str]:
        rates, data, spec = self.statistics["click_rate"], self.config.data, self.spec
        splits = ", ".join(f"{n} {count:,} ({rates[n]:.1%} ones)" for n, count in self.rows.items() if count)
        rule = {"random": "drawn at random", "order": "in their order", "time": f"in the order of {data.format.time}"}
        rule["hash"] = f"by the hash of {data.split.key}"
        return [
            f"Rows: {splits}; split {rule.get(data.split.by, data.split.by)}.",
            f"Tables: {len(spec.tables)}, {spec.table_rows:,} rows, width {spec.tables[0].embedding_dim}."
            f"{self._reserved_rows()}",
        ]

    def _reserved_rows(self) -> str:
        """Say what the first rows are for, if that is the same in all tables and nothing else falls there."""
        least = self.config.data.coding.min_count
        ours = TableCoding(min_count=least)
        for coding in self.encoder.encoding.tables.values():
            if coding.model_copy(update={"value": ours.value, "id_order": ours.id_order, "modulus": None}) != ours:
                return ""
        return (
            f" In each, row 0 is for missing values, row 1 for those that training rows have fewer than {least} times."
        )

    def _base(self, base: str | Path | None) -> Path:
        export = self.config.export
        return Path(export.directory) / (export.model_name or self.config.name) if base is None else Path(base)

    def _split(self, name: str) -> Rows:
        if name not in self._rows:
            raise DataError(f"`split` must be one of {', '.join(self._rows)}. Received: {name!r}.")
        return self._rows[name]


def _as_array(values: pl.Series) -> npt.NDArray[Any]:
    if values.dtype == pl.String:
        return np.array(values.to_list(), object)
    return values.cast(pl.Float32).to_numpy()
