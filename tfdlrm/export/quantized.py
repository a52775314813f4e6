"""Embedding tables in fewer bytes for serving: rows of int8 or int4 with a scale and an offset each, or float16.

A row of d columns takes:

=========  =====================  ===============  ===============
form       bytes                  d 16, of 64      d 64, of 256
=========  =====================  ===============  ===============
float16    2 d                    32 (0.5)         128 (0.5)
int8       d + 4                  20 (0.3125)      68 (0.2656)
int4       ceil(d / 2) + 4        12 (0.1875)      36 (0.1406)
=========  =====================  ===============  ===============

A stored row is the codes of its columns, then scale and offset in half precision, all bytes of one row of one variable:
a lookup gathers those rows and no others, in one operation, and computes unit * (scale * code + offset). The unit is a
power of two for a whole stack, which gives half precision the range of the stack's values. Everything is done by
operations of stock TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.layers.striped_rows import StripedRows
from tfdlrm.spec.config import TableForm
from tfdlrm.spec.errors import ConfigError, DataError

Floats = npt.NDArray[np.float32]
Packing = Literal["int8", "int4"]

_TOP = {"int8": 255, "int4": 15}
_PARAMETER_BYTES = 4  # scale and offset, float16 each
_CHUNK_ELEMENTS = 1 << 20  # few enough for a processor's cache
_REFITS = 2
# The largest magnitude of a stack lies just below 2^14 units: an eighth of what float16 holds, so that the span of a
# row and the offset of a refit are in range too.
_EXPONENT = 14
_LEAST_EXPONENT = -100  # 2^-100 is an ordinary float32, and so are its multiples by float16


class TableBytes(NamedTuple):
    """Bytes of a model's tables.

    Attributes:
        float32: Were every value a float32.
        stored: As the tables are stored.
    """

    float32: int
    stored: int


def packed_width(form: Packing, width: int) -> int:
    """Return the bytes of a packed row of `width` columns.

    Example:
        >>> packed_width("int8", 16), packed_width("int4", 16), packed_width("int4", 3)
        (20, 12, 6)
    """
    return (width if form == "int8" else (width + 1) // 2) + _PARAMETER_BYTES


def pack_rows(rows: Floats, form: Packing) -> npt.NDArray[np.uint8]:
    """Pack rows: the nearest codes under a scale and an offset that are fitted to them by least squares.

    A row starts from the codes between its least and its greatest value, whose offset is rounded down and whose scale
    is rounded up to half precision, so that no value is cut off. Then scale and offset are those of the straight line
    of least squares through codes and values, and codes are the nearest ones again; it is kept where the sum of
    squared errors falls. Two such rounds take 15 to 18% off that sum at 16 columns, and 6 to 9% at 64. A row of equal
    values, zeros say, has scale 0 where half precision holds the value.

    Args:
        rows: `[n, width]`, magnitudes up to 2^14.
        form: `"int8"` or `"int4"`. Of the two int4 codes in a byte, the low one is of the first half of the columns.

    Returns:
        `[n, packed_width(form, width)]`.
    """
    top = _TOP[form]
    least = rows.min(axis=1, keepdims=True)
    offset = _half(least, -np.inf)
    scale = _half((rows.max(axis=1, keepdims=True) - offset) / top, np.inf)
    codes = _codes(rows, scale, offset, top)
    error = _squares(rows, scale, offset, codes)
    for _ in range(_REFITS):
        means = codes.mean(axis=1, keepdims=True), rows.mean(axis=1, keepdims=True)
        spread = codes - means[0]
        variation = np.square(spread).sum(axis=1, keepdims=True)
        slope = (spread * (rows - means[1])).sum(axis=1, keepdims=True) / np.where(variation > 0, variation, 1)
        refitted = _half(slope), _half(means[1] - slope * means[0])
        refitted_codes = _codes(rows, *refitted, top)
        refitted_error = _squares(rows, *refitted, refitted_codes)
        better = refitted_error < error
        scale, offset = (np.where(better, new, old) for new, old in zip(refitted, (scale, offset), strict=True))
        codes, error = np.where(better, refitted_codes, codes), np.minimum(refitted_error, error)
    packed = codes.astype(np.uint8)
    if form == "int4":
        half = (rows.shape[1] + 1) // 2
        low, high = packed[:, :half], np.zeros_like(packed[:, :half])
        high[:, : rows.shape[1] - half] = packed[:, half:]
        packed = low | (high << np.uint8(4))
    line = np.concatenate([scale, offset], axis=1).astype("<f2").view(np.uint8)
    return np.concatenate([packed, line], axis=1)


def bits_to_half(line: tf.Tensor) -> tf.Tensor:
    """Return four bytes, uint8 `[n, ..., 4]`, as the two float16 numbers that they are, float32 `[n, ..., 2]`.

    All sizes but the first must be known.
    """
    # Not by way of int32: the graph optimizer makes one cast of bits out of two, and that one does not exist.
    pairs = tf.reshape(line, [-1, *line.shape[1:-1], 2, 2])
    return tf.cast(tf.bitcast(pairs, tf.float16), tf.float32)


class PackedRows:
    """Rows packed by `pack_rows`, looked up as float32.

    Args:
        variable: uint8 `[rows, packed_width(form, width)]`.
        form: How they are packed.
        width: Columns of a row.
        unit: What stored numbers are multiples of.
    """

    def __init__(self, variable: tf.Variable, form: Packing, width: int, unit: float) -> None:
        self.variables = (variable,)
        self._form = form
        self._width = width
        self._unit = unit

    def look_up(self, rows: tf.Tensor) -> tf.Tensor:
        """Return rows as float32 `[*rows.shape, width]`."""
        return self.decode(tf.gather(self.variables[0], rows))

    def decode(self, packed: tf.Tensor, to_half: Callable[[tf.Tensor], tf.Tensor] = bits_to_half) -> tf.Tensor:
        """Return packed rows `[n, ..., packed_width]` as float32 `[n, ..., width]`."""
        codes, line = tf.split(packed, [packed.shape[-1] - _PARAMETER_BYTES, _PARAMETER_BYTES], axis=-1)
        if self._form == "int4":
            halves = [tf.bitwise.bitwise_and(codes, np.uint8(15)), tf.bitwise.right_shift(codes, np.uint8(4))]
            codes = tf.concat(halves, axis=-1)
            codes = codes if codes.shape[-1] == self._width else codes[..., : self._width]
        scale, offset = tf.split(to_half(line) * self._unit, 2, axis=-1)
        vectors = tf.cast(codes, tf.float32) * scale + offset
        return tf.ensure_shape(vectors, [*packed.shape[:-1], self._width])


class HalfRows:
    """Rows in float16, looked up as float32.

    Args:
        variable: float16 `[rows, width]`.
        unit: What stored numbers are multiples of.
    """

    def __init__(self, variable: tf.Variable, unit: float) -> None:
        self.variables = (variable,)
        self._unit = unit

    def look_up(self, rows: tf.Tensor) -> tf.Tensor:
        """Return rows as float32 `[*rows.shape, width]`."""
        return self.decode(tf.gather(self.variables[0], rows))

    def decode(self, stored: tf.Tensor) -> tf.Tensor:
        """Return stored rows as float32, of the same shape."""
        return tf.cast(stored, tf.float32) * self._unit


Source = StripedRows | PackedRows | HalfRows


class _StandIn:
    """The stacks of a collection in another form; see `EmbeddingCollection.stand_in`."""

    def __init__(self, collection: EmbeddingCollection, form: TableForm) -> None:
        self.form = form
        names = [[table.name for table in stack.tables] for stack in collection.plan]
        names += [[table.name for table in stack.tables] for stack in collection.plan if stack.weight_rows]
        self._sources = [
            _stored(stack, form, tables) for stack, tables in zip(collection.row_stacks(), names, strict=True)
        ]

    def __call__(self) -> list[Source]:
        return self._sources


@contextmanager
def quantized_tables(model: keras.Model, form: TableForm) -> Iterator[TableBytes]:
    """Let a model answer from tables in another form inside the block; its own stay as they are.

    What the model computes inside the block is what an export of that form answers. A function that was traced outside
    reads what it read then: trace anew. Rows are packed chunk by chunk, so that memory holds the model's tables, the
    packed ones and a chunk. Inside a block of the same form nothing is packed anew.

    Each stack gets the smallest row of three, the most exact of those that are equally small: the form asked for,
    float16, and as it is. So rows of one to three columns, learned pooling weights among them, become float16 where
    scale and offset would weigh more than the codes, and tables stored in half precision stay as they are unless the
    form is smaller. Projections, a matrix for a whole table, stay float32. Zeros, as padding reads them, stay zeros.

    Args:
        model: A built `ClickModel`.
        form: `"float32"` leaves all tables as they are.

    Yields:
        Bytes of the tables, the rows of zeros for padding included, projections not.

    Raises:
        DataError: a table holds a value that is not finite.
        ConfigError: a collection looks up its own tables whatever stands in for them, as those of `TPUEmbedding` do.
    """
    collections = list(model.collections.values())
    if form != "float32" and not all(collection.reads_stand_in for collection in collections):
        raise ConfigError(
            f'`tables` must be "float32" of a model whose tables `TPUEmbedding` looks up. Received: "{form}". Tables '
            "trained that way can be exported in fewer bytes by a model built for one device."
        )
    before = [collection.stand_in for collection in collections]
    try:
        for collection in collections:
            if form == "float32":
                collection.stand_in = None
            elif getattr(collection.stand_in, "form", None) != form:
                collection.stand_in = _StandIn(collection, form)
        yield _table_bytes(collections)
    finally:
        for collection, stand_in in zip(collections, before, strict=True):
            collection.stand_in = stand_in


def _table_bytes(collections: list[EmbeddingCollection]) -> TableBytes:
    float32 = stored = 0
    for collection in collections:
        float32 += sum(4 * rows * width for rows, width in (stack.shape for stack in collection.row_stacks()))
        variables = [variable for source in stored_rows(collection) for variable in source.variables]
        stored += sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)
    return TableBytes(float32, stored)


def stored_rows(collection: EmbeddingCollection) -> list[Source]:
    """Return what a collection reads at present: its own stacks, or those that stand in for them."""
    return list(collection.row_stacks() if collection.stand_in is None else collection.stand_in())


def _stored(stack: StripedRows, form: TableForm, tables: list[str]) -> Source:
    """Return the rows of a stack in whichever form is smallest."""
    rows, width = stack.shape
    sizes: dict[str, int] = {"own": width * stack.dtype.size, "float16": 2 * width}
    if form == "int8" or form == "int4":
        sizes[form] = packed_width(form, width)
    smallest = min(sizes, key=lambda name: sizes[name])
    if smallest == "own":
        return stack
    unit = _unit(stack, tables)
    if smallest == "float16":
        halves = StripedRows((tf.Variable(tf.zeros([rows, width], tf.float16), trainable=False),))
        for lo, values in _chunks(stack):
            halves.write(lo, values / unit)
        return HalfRows(halves.variables[0], unit)
    packing: Packing = "int8" if smallest == "int8" else "int4"
    packed = StripedRows((tf.Variable(tf.zeros([rows, sizes[smallest]], tf.uint8), trainable=False),))
    for lo, values in _chunks(stack):
        packed.write(lo, pack_rows(values / unit, packing))
    return PackedRows(packed.variables[0], packing, width, unit)


def _chunks(stack: StripedRows) -> Iterator[tuple[int, Floats]]:
    """Yield the rows of a stack as float32, some at a time, with the number of the first."""
    rows, width = stack.shape
    size = max(1, _CHUNK_ELEMENTS // width)
    for lo in range(0, rows, size):
        values: npt.NDArray[Any] = stack.gather(tf.range(lo, min(lo + size, rows), dtype=tf.int64)).numpy()
        yield lo, values.astype(np.float32, copy=False)


def _unit(stack: StripedRows, tables: list[str]) -> float:
    """Return the power of two of which the largest magnitude of a stack is at most 2^14."""
    greatest = np.float32(0)
    for _, values in _chunks(stack):
        greatest = np.maximum(greatest, np.abs(values).max())  # nan if either is
    if not np.isfinite(greatest):
        raise DataError(f"tables must be finite to be stored in fewer bytes. Received: {', '.join(tables)}.")
    exponent = np.frexp(greatest)[1] - _EXPONENT if greatest else 0
    return 2.0 ** max(int(exponent), _LEAST_EXPONENT)


def _half(values: Floats, towards: float | None = None) -> Floats:
    """Round to half precision: to the nearest value, or to the nearest on one side."""
    halves = values.astype(np.float16)
    if towards is not None:
        beyond = halves > values if towards < 0 else halves < values
        halves = np.where(beyond, np.nextafter(halves, np.float16(towards)), halves)
    return halves.astype(np.float32)


def _codes(rows: Floats, scale: Floats, offset: Floats, top: int) -> Floats:
    return np.clip(np.rint((rows - offset) / np.where(scale == 0, 1, scale)), 0, top)


def _squares(rows: Floats, scale: Floats, offset: Floats, codes: Floats) -> Floats:
    total: Floats = np.square(codes * scale + offset - rows).sum(axis=1, keepdims=True)
    return total
