"""All embedding tables of a spec: few variables, few gathers, cost per step independent of the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.bags import Ids, id_matrix
from tfdlrm.layers.initial_rows import chunks, draw_projection, draw_rows
from tfdlrm.layers.placement import current_placement
from tfdlrm.layers.pooling import pool, runs_of
from tfdlrm.layers.registry import serializable
from tfdlrm.layers.stacking import POOLING_WEIGHT, Stack, plan_stacks
from tfdlrm.layers.stored_rows import Lookups, compose, hashed_rows, take_columns
from tfdlrm.layers.striped_rows import StripedRows
from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.features import FeatureSpec, TableConfig


class StoredTable(NamedTuple):
    """Rows of a stack that belong to one table.

    Attributes:
        number: Place of the table in the spec.
        part: Which of the table's parts: `"rows"`, or `"quotient"` and `"remainder"`; `"pooling_weight"`.
        stack: The rows of the whole stack.
        first: First row in it.
        rows: Number of rows.
    """

    number: int
    part: str
    stack: StripedRows
    first: int
    rows: int


@serializable
class EmbeddingCollection(keras.layers.Layer):
    """The embedding tables of a spec (paper, section 2.1.1).

    Tables that are stored alike are stacked into a few variables, so that a step is a few gathers and sparse updates
    whatever the number of tables. The layer always computes in float32: under mixed precision a table must never be
    cast; what the layer returns is cast where it is used.

    A compressed table (`tfdlrm.spec.compression`) goes the way below. The two rows of a quotient-remainder table are
    composed id by id before the bag is pooled, so that each id has a vector of its own, as in the paper;
    facebookresearch/dlrm pools both and multiplies the sums, which mixes the ids of a bag. A projection is applied
    after pooling, which is the same as before and costs less. See `tfdlrm.layers.initial_rows` for how they start.

    ::

        id -> hash -> stored rows, one or two -> composed -> weighted and pooled -> projected

    Id -1 pads a bag and adds nothing; an empty bag is zeros under `sum` and `mean`. Any other id outside
    its table is an error that names feature and id.

    Args:
        spec: Features and tables, or the mapping that `FeatureSpec.model_dump` gives.
        l2: Weight of the mean over the batch of the summed squares of looked-up rows, added to the loss. For a table in
            two parts, of the rows composed of them; not of learned weights. Defaults to 0.
        seed: Seed of the initial rows; `None` draws one from NumPy's global generator. Defaults to `None`.

    Inputs: ids, an integer tensor `[B, n_ids]` with columns in spec order, or a mapping from feature name to a
        `[B, h]` Tensor, RaggedTensor or SparseTensor; and, where the spec has weighted features, `weights`, float32
        `[B, n_ids]`.
    Output shape: `[B, n_features, d]` float32 where every table has width d, else a list of `[B, d_f]`.

    Raises:
        ValueError: the spec has no sparse feature, or the ids do not have `n_ids` columns.
        SpecError: a table's compression does not fit its width.
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
        for table in self.spec.tables:
            if table.compression is not None:
                table.compression.refuse_misfit(table.name, table.vocabulary_size, table.embedding_dim)
        self._placement = current_placement()
        servers_of = None if self._placement is None else self._placement.servers_of
        self.plan: list[Stack] = plan_stacks(self.spec, servers_of=servers_of)
        self._lookups = Lookups(self.spec, self.plan)
        self._runs = [runs_of([self.spec.sparse[index] for index in stack.features]) for stack in self.plan]
        # The stacks of the plan, then the pooling weights of those that have any; several variables each where striped.
        self.stacks: list[tf.Variable] = []
        self._stripes: list[int] = []
        self.projections: dict[str, tf.Variable] = {}
        # What batches are read from instead of `row_stacks`: the same rows in the same order, stored in another way.
        self.stand_in: Callable[[], Sequence[Any]] | None = None
        self._rows_by_column = np.concatenate(
            [[self.spec.table_of(f).vocabulary_size] * f.hotness for f in self.spec.sparse]
        )
        self._feature_by_column = np.concatenate([[f.name] * f.hotness for f in self.spec.sparse])
        # Read order of the stacks is not feature order where stacks interleave; this permutation undoes it.
        read_order = [index for stack in self.plan for index in stack.features]
        self._feature_order = None if read_order == sorted(read_order) else np.argsort(read_order)

    @property
    def reads_stand_in(self) -> bool:
        """Whether batches are read from `stand_in` where there is one."""
        return True

    def build(self, input_shape: Any) -> None:
        """Create one variable a stack and draw the initial rows."""
        if self.built:
            return
        seed = int(np.random.randint(2**31)) if self.seed is None else self.seed
        for index, stack in enumerate(self.plan):
            shape = (stack.rows, stack.form.width)
            rows = self._add_stack(f"stack_{index}", shape, stack.form.dtype, stack.servers, "zeros")
            with tf.init_scope():
                for table in stack.tables if self._placement is None or self._placement.draws else ():
                    for part in stack.form.parts:
                        number = self.spec.tables.index(table)
                        draw_rows(rows, stack.first_rows[table.name, part], table, part, seed=(seed, number))
        for index, stack in enumerate(self.plan):
            if stack.weight_rows:
                shape = (stack.weight_rows, 1)
                rows = self._add_stack(f"pooling_weights_{index}", shape, "float32", stack.servers, "ones")
                with tf.init_scope():
                    rows.write(stack.weight_rows - 1, np.zeros([1, 1], np.float32))
        for number, table in enumerate(self.spec.tables):
            if table.stored[-1].part == "projection":
                initial = keras.initializers.Constant(draw_projection(table, (seed, number)))
                kernel = self.add_weight(f"projection_{number}", table.stored[-1][1:3], initializer=initial)
                self.projections[table.name] = kernel
        super().build(input_shape)

    def _add_stack(
        self, name: str, shape: tuple[int, int], dtype: str, servers: tuple[int, ...] | None, initializer: str
    ) -> StripedRows:
        if servers is None or self._placement is None:
            self.stacks.append(self.add_weight(name, shape, dtype, initializer))
            self._stripes.append(1)
        else:
            for number, server in enumerate(servers):
                size = (StripedRows.stripe(shape[0], len(servers), number), shape[1])
                with self._placement.on(server):
                    self.stacks.append(self.add_weight(f"{name}_stripe_{number}", size, dtype, initializer))
            self._stripes.append(len(servers))
        return self.row_stacks()[-1]

    def row_stacks(self) -> list[StripedRows]:
        """Return the rows of each stack of the plan, then those of the pooling weights of the stacks that have any."""
        ends = np.cumsum(self._stripes)
        remote = self._placement is not None
        return [
            StripedRows(tuple(self.stacks[end - count : end]), remote)
            for end, count in zip(ends, self._stripes, strict=True)
        ]

    def call(self, inputs: Ids, weights: tf.Tensor | None = None) -> tf.Tensor | list[tf.Tensor]:
        """Look up and pool the bags; see the class for shapes."""
        ids = self._id_matrix(inputs, weights)
        ids, padded = self._checked(ids)
        present = ids >= 0
        rows = self._lookups(ids, present, padded)
        pooled: list[tf.Tensor] = []
        squares = []
        striped = self.row_stacks() if self.stand_in is None else self.stand_in()
        pooling_weights = iter(striped[len(self.plan) :])
        for index, (stack, stack_rows) in enumerate(zip(self.plan, striped, strict=False)):
            vectors = stack_rows.look_up(take_columns(rows, self._lookups.of_stack[index]))
            if stack.form.operation is not None:
                vectors = compose(stack.form.operation, *tf.split(vectors, 2, axis=1))
            stack_present = take_columns(present, stack.columns)
            # Padding reads a row of zeros; the mask keeps its gradient zero too, so that the row stays so.
            vectors = tf.cond(
                padded,
                lambda v=vectors, m=stack_present: v * tf.cast(m, v.dtype)[:, :, tf.newaxis],
                lambda v=vectors: v,
            )
            if self.l2:
                squares.append(tf.reduce_sum(tf.square(vectors)))
            stack_weights = None if weights is None else take_columns(weights, stack.columns)
            learned = None
            if stack.weight_rows:
                learned = next(pooling_weights).look_up(take_columns(rows, self._lookups.of_weights[index]))[:, :, 0]
            bags = pool(self._runs[index], vectors, stack_present, stack_weights, learned)
            pooled.extend(self._projected(stack, bags) if stack.form.projected else bags)
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
        """Return table `name` as float32 `[vocabulary_size, embedding_dim]`: the vector of each id, without its weight.

        Raises:
            SpecError: there is no such table.
        """
        table = self.spec.table(name)
        self.build(None)
        rows = np.empty([table.vocabulary_size, table.embedding_dim], np.float32)
        for lo, hi in chunks(*rows.shape):
            rows[lo:hi] = self._vectors(table, tf.range(lo, hi, dtype=tf.int64))
        return rows

    def set_table(self, name: str, rows: np.ndarray) -> None:
        """Overwrite table `name`, which must be stored as one row an id; in half precision it is rounded.

        Args:
            name: Table of the spec.
            rows: `[vocabulary_size, embedding_dim]`, cast to float32; may be a memory map.

        Raises:
            SpecError: there is no such table, or several ids share its stored rows.
            ValueError: the shape is another.
        """
        table = self.spec.table(name)
        if [part[:3] for part in table.stored] != [("rows", table.vocabulary_size, table.embedding_dim)]:
            held = ", ".join(f"{part.part} [{part.rows}, {part.dim}]" for part in table.stored)
            raise SpecError(
                f"`name` must be a table that stores one row of `embedding_dim` an id; `set_part` sets the parts of "
                f"another. Received: `{name}`, stored as {held}."
            )
        self.set_part(name, "rows", rows)

    def get_part(self, name: str, part: str) -> np.ndarray:
        """Return one of the arrays that hold table `name`, see `FeatureSpec.stored`, as float32 `[rows, dim]`.

        Raises:
            SpecError: there is no such table or part.
        """
        stored = self._part(name, part)
        if part == "projection":
            kernel: np.ndarray = self.projections[name].numpy()
            return kernel
        rows = np.empty([stored.rows, stored.stack.shape[1]], np.float32)
        for lo, hi in chunks(*rows.shape):
            rows[lo:hi] = stored.stack.gather(tf.range(stored.first + lo, stored.first + hi, dtype=tf.int64))
        return rows

    def set_part(self, name: str, part: str, rows: np.ndarray) -> None:
        """Overwrite one of the arrays that hold table `name`.

        Args:
            name: Table of the spec.
            part: One of its parts, see `FeatureSpec.stored`.
            rows: `[rows, dim]`, cast to float32 and rounded to the nearest value of the part's type; may be a memory
                map.

        Raises:
            SpecError: there is no such table or part.
            ValueError: the shape is another.
        """
        stored = self._part(name, part)
        shape = (stored.rows, stored.stack.shape[1])
        if tuple(rows.shape) != shape:
            whole = f"`{name}`" if part == "rows" else f"`{name}`, part `{part}`,"
            raise ValueError(f"`rows` of table {whole} must have shape {shape}. Received: {tuple(rows.shape)}.")
        for lo, hi in chunks(*shape):
            stored.stack.write(stored.first + lo, np.asarray(rows[lo:hi], np.float32))

    def stored_tables(self) -> Iterator[StoredTable]:
        """Yield where each row-wise part of each table lies, in the order of the spec: all parts but projections."""
        for table in self.spec.tables:
            for part in self.spec.stored(table.name):
                if part.part != "projection":
                    yield self._part(table.name, part.part)

    def save_own_variables(self, store: Any) -> None:
        """Write the weights; bfloat16, which HDF5 does not know, as its bits."""
        for index, variable in enumerate(self.weights):
            value = variable.numpy()
            store[str(index)] = value.view(np.uint16) if variable.dtype == tf.bfloat16 else value

    def load_own_variables(self, store: Any) -> None:
        """Read back what `save_own_variables` wrote."""
        for index, variable in enumerate(self.weights):
            value = np.asarray(store[str(index)])
            variable.assign(value.view(variable.dtype.as_numpy_dtype) if variable.dtype == tf.bfloat16 else value)

    def _part(self, name: str, part: str) -> StoredTable:
        """Return where a part lies; a projection as rows of the variable that it is."""
        number = self.spec.tables.index(self.spec.table(name))
        parts = {stored.part: stored for stored in self.spec.stored(name)}
        if part not in parts:
            raise SpecError(f"`part` of table `{name}` must be one of {list(parts)}. Received: `{part}`.")
        self.build(None)
        if part == "projection":
            return StoredTable(number, part, StripedRows((self.projections[name],)), 0, parts[part].rows)
        holders = self.plan if part != POOLING_WEIGHT else [stack for stack in self.plan if stack.weight_rows]
        first = 0 if part != POOLING_WEIGHT else len(self.plan)
        rows, stack = next(
            (rows, stack)
            for rows, stack in zip(self.row_stacks()[first:], holders, strict=False)
            if (name, part) in stack.first_rows
        )
        return StoredTable(number, part, rows, stack.first_rows[name, part], parts[part].rows)

    def _vectors(self, table: TableConfig, ids: tf.Tensor) -> tf.Tensor:
        """Return the vectors of some ids of one table, `[ids, embedding_dim]`, as a batch would compose them."""

        def read(part: str, rows: tf.Tensor) -> tf.Tensor:
            stored = self._part(table.name, part)
            # A slice `variable[a:b]` would copy the whole stack first.
            return stored.stack.look_up(rows + stored.first)

        settings = table.compression
        if settings is None:
            return read("rows", ids)
        if settings.hash_rows is not None:
            ids = hashed_rows(ids, settings.exact_rows, settings.hash_rows)
        if (split := settings.quotient_remainder) is None:
            vectors = read("rows", ids)
        else:
            parts = read("quotient", ids // split.collisions), read("remainder", ids % split.collisions)
            vectors = compose(split.operation, *parts)
        return vectors if settings.dim is None else tf.matmul(vectors, self.projections[table.name])

    def _projected(self, stack: Stack, bags: list[tf.Tensor]) -> list[tf.Tensor]:
        """Bring the pooled vectors `[B, run, width]` of a stack to `embedding_dim`, all at once."""
        joined = bags[0] if len(bags) == 1 else tf.concat(bags, axis=1)
        kernels = tf.stack([self.projections[self.spec.sparse[index].table] for index in stack.features])
        return [tf.einsum("bfw,fwd->bfd", joined, kernels)]

    def _id_matrix(self, inputs: Ids, weights: tf.Tensor | None) -> tf.Tensor:
        """Return the ids as a matrix `[B, n_ids]`; raise `ValueError` where inputs are not as the class says."""
        ids = id_matrix(self.spec, inputs) if isinstance(inputs, Mapping) else inputs
        if ids.shape[1] != self.spec.n_ids:
            raise ValueError(f"`inputs` must have {self.spec.n_ids} id columns. Received: shape {ids.shape}.")
        if (weights is not None) != self.spec.has_weights:
            raise ValueError(
                "`weights` must be given exactly where the spec has weighted features. "
                f"Received: weights={'given' if weights is not None else None}."
            )
        return ids

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

    def _in_feature_order(self, pooled: list[tf.Tensor]) -> tf.Tensor | list[tf.Tensor]:
        if len({stack.form.embedding_dim for stack in self.plan}) == 1:
            joined = pooled[0] if len(pooled) == 1 else tf.concat(pooled, axis=1)
            return joined if self._feature_order is None else tf.gather(joined, self._feature_order, axis=1)
        vectors = [vector for run in pooled for vector in tf.unstack(run, axis=1)]
        order = range(len(vectors)) if self._feature_order is None else self._feature_order
        return [vectors[i] for i in order]
