"""All embedding tables of a spec: few variables, few gathers, cost per step independent of the number of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.registry import serializable
from tfdlrm.layers.stacking import Stack, plan_stacks
from tfdlrm.spec.features import FeatureSpec, TableConfig

# Rows are initialised and exchanged in pieces of this many elements, so that memory never holds a table twice.
_CHUNK_ELEMENTS = 1 << 24


class StoredTable(NamedTuple):
    """Rows of a variable that belong to one table.

    Attributes:
        number: Place of the table in the spec.
        part: Which of the table's parts: `"rows"`.
        variable: The stack.
        first: First row in it.
        rows: Number of rows.
    """

    number: int
    part: str
    variable: tf.Variable
    first: int
    rows: int


Ids: TypeAlias = tf.Tensor | Mapping[str, tf.Tensor | tf.RaggedTensor | tf.SparseTensor]


@serializable
class EmbeddingCollection(keras.layers.Layer):
    """The embedding tables of a spec (paper, section 2.1.1).

    Tables of one width are stacked into a few variables, so that a step is a few gathers and sparse updates whatever
    the number of tables. The layer always computes in float32: under mixed precision a table must never be
    cast; what the layer returns is cast where it is used.

    Id -1 pads a bag and adds nothing; an empty bag is zeros under `sum` and `mean`. Any other id outside
    its table is an error that names feature and id.

    Args:
        spec: Features and tables, or the mapping that `FeatureSpec.model_dump` gives.
        l2: Weight of the mean over the batch of the summed squares of looked-up rows, added to the loss. Defaults to 0.
        seed: Seed of the initial rows; `None` draws one from NumPy's global generator. Defaults to `None`.

    Inputs: ids, an integer tensor `[B, n_ids]` with columns in spec order, or a mapping from feature name to a
        `[B, h]` Tensor, RaggedTensor or SparseTensor; and, where the spec has weighted features, `weights`, float32
        `[B, n_ids]`.
    Output shape: `[B, n_features, d]` float32 where every table has width d, else a list of `[B, d_f]`.

    Raises:
        ValueError: the spec has no sparse feature, or the ids do not have `n_ids` columns.
        tf.errors.InvalidArgumentError: an id is outside its table.

    Example:
        >>> spec = FeatureSpec(
        ...     sparse=[{"name": "user", "table": "user"}],
        ...     tables=[{"name": "user", "vocabulary_size": 10, "embedding_dim": 4}],
        ... )
        >>> EmbeddingCollection(spec)(tf.constant([[3], [-1]])).shape
        TensorShape([2, 1, 4])
    """

    def __init__(
        self, spec: FeatureSpec | Mapping[str, Any], l2: float = 0.0, seed: int | None = None, **kwargs: Any
    ) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)
        self.spec = spec if isinstance(spec, FeatureSpec) else FeatureSpec(**spec)
        if not self.spec.sparse:
            raise ValueError("`spec` must have at least one sparse feature. Received: none.")
        if l2 < 0:
            raise ValueError(f"`l2` must be at least 0. Received: {l2}.")
        self.l2 = float(l2)
        self.seed = seed
        self.plan: list[Stack] = plan_stacks(self.spec)
        self.stacks: list[tf.Variable] = []
        self._rows_by_column = np.concatenate(
            [[self.spec.table_of(f).vocabulary_size] * f.hotness for f in self.spec.sparse]
        )
        self._first_row_by_column = np.zeros(self.spec.n_ids, np.int64)
        self._zero_row_by_column = np.zeros(self.spec.n_ids, np.int64)
        for stack in self.plan:
            self._first_row_by_column[stack.columns] = stack.row_offsets
            self._zero_row_by_column[stack.columns] = stack.rows - 1
        self._feature_by_column = np.concatenate([[f.name] * f.hotness for f in self.spec.sparse])
        # Read order of the stacks is not feature order where stacks interleave; this permutation undoes it.
        read_order = [index for stack in self.plan for index in stack.features]
        self._feature_order = None if read_order == sorted(read_order) else np.argsort(read_order)

    def build(self, input_shape: Any) -> None:
        """Create one variable a stack and draw the initial rows."""
        if self.built:
            return
        seed = int(np.random.randint(2**31)) if self.seed is None else self.seed
        for index, stack in enumerate(self.plan):
            variable = self.add_weight(f"stack_{index}", [stack.rows, stack.embedding_dim], initializer="zeros")
            self.stacks.append(variable)
            with tf.init_scope():
                for table in stack.tables:
                    number = self.spec.tables.index(table)
                    _draw_rows(variable, stack.first_rows[table.name], table, seed=(seed, number))
        super().build(input_shape)

    def call(self, inputs: Ids, weights: tf.Tensor | None = None) -> tf.Tensor | list[tf.Tensor]:
        """Look up and pool the bags; see the class for shapes."""
        ids = self._matrix(inputs) if isinstance(inputs, Mapping) else inputs
        if ids.shape[1] != self.spec.n_ids:
            raise ValueError(f"`inputs` must have {self.spec.n_ids} id columns. Received: shape {ids.shape}.")
        if (weights is not None) != self.spec.has_weights:
            raise ValueError(
                "`weights` must be given exactly where the spec has weighted features. "
                f"Received: weights={'given' if weights is not None else None}."
            )
        ids, padded = self._checked(ids)
        present = ids >= 0
        rows = ids + self._first_row_by_column.astype(ids.dtype.as_numpy_dtype)
        zero_rows = self._zero_row_by_column.astype(ids.dtype.as_numpy_dtype)
        rows = tf.cond(padded, lambda: tf.where(present, rows, zero_rows), lambda: rows)
        pooled: list[tf.Tensor] = []
        squares = []
        for stack, variable in zip(self.plan, self.stacks, strict=True):
            vectors = tf.gather(variable, _columns(rows, stack.columns))
            stack_present = _columns(present, stack.columns)
            # Padding reads a row of zeros; the mask keeps its gradient zero too, so that the row stays so.
            vectors = tf.cond(
                padded,
                lambda v=vectors, m=stack_present: v * tf.cast(m, v.dtype)[:, :, tf.newaxis],
                lambda v=vectors: v,
            )
            if self.l2:
                squares.append(tf.reduce_sum(tf.square(vectors)))
            stack_weights = None if weights is None else _columns(weights, stack.columns)
            pooled.extend(self._pool(stack, vectors, stack_present, stack_weights))
        if self.l2:
            self.add_loss(self.l2 * tf.add_n(squares) / tf.cast(tf.shape(ids)[0], tf.float32))
        return self._in_feature_order(pooled)

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape | list[tf.TensorShape]:
        """Return `[B, n_features, d]`, or one `[B, d_f]` a feature where widths differ."""
        batch = None if isinstance(input_shape, Mapping) else tf.TensorShape(input_shape)[0]
        dims = [self.spec.table_of(f).embedding_dim for f in self.spec.sparse]
        if len(set(dims)) == 1:
            return tf.TensorShape([batch, len(dims), dims[0]])
        return [tf.TensorShape([batch, dim]) for dim in dims]

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; the spec as JSON values."""
        config = super().get_config()
        config.pop("dtype")
        return {**config, "spec": self.spec.model_dump(mode="json"), "l2": self.l2, "seed": self.seed}

    def get_table(self, name: str) -> np.ndarray:
        """Return table `name` as float32 `[vocabulary_size, embedding_dim]`.

        Raises:
            SpecError: there is no such table.
        """
        variable, start, table = self._locate(name)
        rows = np.empty([table.vocabulary_size, table.embedding_dim], np.float32)
        for lo, hi in _chunks(table):
            # A slice `variable[a:b]` would copy the whole stack first.
            rows[lo:hi] = tf.gather(variable, tf.range(start + lo, start + hi))
        return rows

    def set_table(self, name: str, rows: np.ndarray) -> None:
        """Overwrite table `name`.

        Args:
            name: Table of the spec.
            rows: `[vocabulary_size, embedding_dim]`, cast to float32; may be a memory map.

        Raises:
            SpecError: there is no such table.
            ValueError: the shape is another.
        """
        variable, start, table = self._locate(name)
        if tuple(rows.shape) != (table.vocabulary_size, table.embedding_dim):
            raise ValueError(
                f"`rows` of table `{name}` must have shape {(table.vocabulary_size, table.embedding_dim)}. "
                f"Received: {tuple(rows.shape)}."
            )
        for lo, hi in _chunks(table):
            _write_rows(variable, start + lo, np.asarray(rows[lo:hi], np.float32))

    def locate(self, name: str) -> tuple[int, int]:
        """Return the index of the stack that holds table `name`, and the table's first row in it."""
        for index, stack in enumerate(self.plan):
            if name in stack.first_rows:
                return index, stack.first_rows[name]
        self.spec.table(name)
        raise AssertionError("every table of a spec lies in a stack")

    def stored_tables(self) -> Iterator[StoredTable]:
        """Yield where each table lies, in the order of the spec."""
        self.build(None)
        for number, table in enumerate(self.spec.tables):
            stack, first = self.locate(table.name)
            yield StoredTable(number, "rows", self.stacks[stack], first, table.vocabulary_size)

    def _locate(self, name: str) -> tuple[tf.Variable, int, TableConfig]:
        index, start = self.locate(name)
        self.build(None)
        return self.stacks[index], start, self.spec.table(name)

    def _checked(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the ids and whether any is padding.

        An id outside its table is an error that names feature and id: in a stack it would read a neighbour's row.
        """
        rows = tf.constant(self._rows_by_column, ids.dtype)
        lowest = tf.reduce_min(ids)

        def refuse() -> tf.Tensor:
            place = tf.where(tf.logical_or(ids < -1, ids >= rows))[0]
            feature = tf.gather(tf.constant(self._feature_by_column), place[1])
            message = "ids must be -1 or a row of their table. Received feature, id, rows of the table:"
            failed = tf.debugging.Assert(False, [message, feature, tf.gather_nd(ids, place), tf.gather(rows, place[1])])
            with tf.control_dependencies([] if failed is None else [failed]):
                return tf.identity(ids)

        valid = tf.logical_and(lowest >= -1, tf.reduce_all(ids < rows))
        return tf.cond(valid, lambda: ids, refuse), lowest < 0

    def _pool(self, stack: Stack, vectors: tf.Tensor, present: tf.Tensor, weights: tf.Tensor | None) -> list[tf.Tensor]:
        """Turn `[B, columns, d]` into one `[B, run, d]` for each run of features pooled alike."""
        runs: list[tuple[int, str, bool, int]] = []  # hotness, combiner, weighted, number of features
        for index in stack.features:
            feature = self.spec.sparse[index]
            key = (feature.hotness, feature.combiner, feature.weighted)
            if runs and runs[-1][:3] == key:
                runs[-1] = (*key, runs[-1][3] + 1)
            else:
                runs.append((*key, 1))
        pooled, start = [], 0
        for hotness, combiner, weighted, count in runs:
            stop = start + hotness * count
            # The gradient of a slice fills a tensor with zeros first: none is taken where the run is the whole stack.
            bag = vectors if len(runs) == 1 else vectors[:, start:stop]
            share = tf.cast(present[:, start:stop], vectors.dtype)
            if weighted and weights is not None:
                share *= weights[:, start:stop]
                bag *= share[:, :, tf.newaxis]
            if hotness > 1:
                bag = tf.reduce_sum(tf.reshape(bag, [-1, count, hotness, stack.embedding_dim]), axis=2)
            if combiner == "mean" and (hotness > 1 or weighted):
                total = tf.reduce_sum(tf.reshape(share, [-1, count, hotness]), axis=2)
                bag = tf.math.divide_no_nan(bag, total[:, :, tf.newaxis])
            pooled.append(bag)
            start = stop
        return pooled

    def _in_feature_order(self, pooled: list[tf.Tensor]) -> tf.Tensor | list[tf.Tensor]:
        if len({stack.embedding_dim for stack in self.plan}) == 1:
            joined = pooled[0] if len(pooled) == 1 else tf.concat(pooled, axis=1)
            return joined if self._feature_order is None else tf.gather(joined, self._feature_order, axis=1)
        vectors = [vector for run in pooled for vector in tf.unstack(run, axis=1)]
        order = range(len(vectors)) if self._feature_order is None else self._feature_order
        return [vectors[i] for i in order]

    def _matrix(self, bags: Mapping[str, Any]) -> tf.Tensor:
        """Turn a mapping of bags into the id matrix, padded with -1."""
        if set(bags) != set(self.spec.sparse_names):
            raise ValueError(
                f"`inputs` must have the features {list(self.spec.sparse_names)}. Received: {sorted(bags)}."
            )
        columns = []
        for feature in self.spec.sparse:
            bag = bags[feature.name]
            if isinstance(bag, tf.SparseTensor):
                bag = tf.RaggedTensor.from_sparse(bag)
            if isinstance(bag, tf.RaggedTensor):
                message = f"bags of feature `{feature.name}` must hold at most {feature.hotness} ids."
                longest = tf.reduce_max(tf.concat([[0], tf.cast(bag.row_lengths(), tf.int32)], axis=0))
                tf.debugging.assert_less_equal(longest, feature.hotness, message)
                bag = bag.to_tensor(tf.constant(-1, bag.dtype), shape=[None, feature.hotness])
            bag = tf.convert_to_tensor(bag)
            if bag.shape.rank == 1:
                bag = bag[:, tf.newaxis]
            if bag.shape.rank != 2 or bag.shape[1] != feature.hotness:
                raise ValueError(
                    f"bags of feature `{feature.name}` must have shape [B, {feature.hotness}]. Received: {bag.shape}."
                )
            columns.append(bag)
        return tf.concat(columns, axis=1)


def _columns(matrix: tf.Tensor, columns: np.ndarray) -> tf.Tensor:
    """Take columns of a matrix: by a slice where they are consecutive, which costs least."""
    first, last = int(columns[0]), int(columns[-1])
    if last - first + 1 == columns.size:
        return matrix[:, first : last + 1]
    return tf.gather(matrix, columns, axis=1)


def _chunks(table: TableConfig) -> list[tuple[int, int]]:
    size = max(1, _CHUNK_ELEMENTS // table.embedding_dim)
    return [(lo, min(lo + size, table.vocabulary_size)) for lo in range(0, table.vocabulary_size, size)]


def _write_rows(variable: tf.Variable, start: int, rows: np.ndarray) -> None:
    """Overwrite rows in place. `variable[a:b].assign` reads the variable first, so that the write copies all of it."""
    indices = tf.range(start, start + rows.shape[0], dtype=tf.int64)
    variable.scatter_update(tf.IndexedSlices(tf.constant(rows), indices))


def _draw_rows(variable: tf.Variable, start: int, table: TableConfig, seed: tuple[int, int]) -> None:
    """Draw the initial rows of one table; they depend on the seed and the table, not on how tables are stacked."""
    if table.initializer == "zeros":
        return
    generator = np.random.default_rng(seed)
    for lo, hi in _chunks(table):
        shape = (hi - lo, table.embedding_dim)
        if table.initializer == "normal":
            rows = generator.standard_normal(shape, np.float32)
            rows *= 0.05
        else:
            bound = table.vocabulary_size**-0.5 if table.initializer == "uniform_rows" else 0.05
            rows = generator.random(shape, np.float32)
            rows -= 0.5
            rows *= 2 * bound
        _write_rows(variable, start + lo, rows)
