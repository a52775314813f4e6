"""The one tf.data graph: packed shards in, batches out, in an order that is a pure function of (seed, epoch).

An epoch is a permutation of all blocks, cut into windows of `shuffle_blocks`; the rows of a window are permuted and
dealt out in batches. All of it is stock TensorFlow ops, so the graph can be serialised and run anywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfdlrm.data.input_options import input_options
from tfdlrm.data.manifest import Manifest, SplitInfo
from tfdlrm.data.packed import PackedColumn, packed_columns
from tfdlrm.spec.errors import ConfigError

FILE_ORDER_BLOCKS = 4
"""Blocks held together where nothing is shuffled: memory for a few batches, the order does not depend on it."""
PREFETCH_BATCHES = 8
"""Batches ready before they are asked for: a training call takes several at once."""
PARALLEL_READS = 4
"""Blocks read ahead. Enough to keep two cores busy; more only holds more memory."""


def steps_per_epoch(manifest: Manifest, split: str, batch_size: int, drop_remainder: bool = False) -> int:
    """Return the number of batches in one epoch of a split.

    Args:
        manifest: What the data set holds.
        split: Name of the split.
        batch_size: Rows per batch, at least 1.
        drop_remainder: Whether a last short batch is left out.

    Raises:
        DataError: there is no such split.
        ConfigError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be at least 1. Received: {batch_size}.")
    rows = manifest.split(split).rows
    return rows // batch_size if drop_remainder else -(-rows // batch_size)


def packed_dataset(
    directory: Path | str,
    split: str,
    batch_size: int,
    *,
    manifest: Manifest | None = None,
    shuffle: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
    start_epoch: int = 0,
    start_step: int = 0,
    drop_remainder: bool = False,
    shuffle_blocks: int = 16,
) -> tf.data.Dataset:
    """Return the batches of a split, from any step of any epoch on.

    Each row comes once an epoch; a batch never spans two epochs. The order of rows is decided by (seed, epoch) and
    `shuffle_blocks`: beginning at a later step yields exactly the rest, and no window before it is read.

    A window of `shuffle_blocks * rows_per_block` rows is in memory about eight times over (the one being dealt out,
    the one prepared next at each stage): 350 MB for 16 blocks of 16,384 Criteo rows.

    Args:
        directory: Folder of a prepared data set.
        split: Name of the split.
        batch_size: Rows per batch, at least 1.
        manifest: Its manifest; read from `directory` if `None`.
        shuffle: `False` keeps file order.
        seed: Seed of the order, at least 0.
        epochs: Number of the epoch to end before; `None` never ends. Defaults to 1.
        start_epoch: Epoch to begin in, at most `epochs`.
        start_step: Step of that epoch to begin at, at most the steps of an epoch.
        drop_remainder: Whether the last short batch of an epoch is left out; the batch dimension is then static.
        shuffle_blocks: Blocks whose rows are shuffled together, at least 1.

    Returns:
        A dataset of `({"dense": float32 [B, n_dense], "sparse": int32|int64 [B, n_ids]}, label float32 [B, 1])`; with
        `"weights"` float32 `[B, n_ids]` if a feature is weighted, and a third element `sample_weight` float32 `[B, 1]`
        if the manifest says so. Its cardinality is known. A block that cannot be read or differs from the manifest
        raises `tf.errors.InvalidArgumentError`, which names the file, when its window is loaded.

    Raises:
        DataError: `directory` holds no prepared data set or one whose files disagree with the manifest, or `split` is
            unknown.
        ConfigError: a number is out of its range.

    Example:
        >>> import tempfile
        >>> from tfdlrm.data.generators.random_rows import RandomRows
        >>> from tfdlrm.data.generators.write import write_prepared
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> spec = criteo_spec([10] * 26, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = write_prepared(f"{folder}/data", spec, {"train": RandomRows(spec).batches(100)}, {})
        ...     inputs, labels = next(iter(packed_dataset(f"{folder}/data", "train", 32, shuffle=True)))
        >>> inputs["sparse"].shape, labels.shape
        (TensorShape([32, 26]), TensorShape([32, 1]))
    """
    manifest = Manifest.load(directory) if manifest is None else manifest
    manifest.refuse_unless_format("packed")
    steps = steps_per_epoch(manifest, split, batch_size, drop_remainder)
    _check_range("epochs", 0 if epochs is None else epochs, 0)
    _check_range("start_epoch", start_epoch, 0, epochs)
    _check_range("start_step", start_step, 0, steps)
    order = _order(directory, manifest, split, batch_size, shuffle, seed, drop_remainder, shuffle_blocks)
    if start_step == steps:
        start_epoch, start_step = start_epoch + 1, 0
    if steps == 0:
        # An endless repetition of empty epochs would never return.
        batches = order.epoch(tf.constant(0, tf.int64), tf.constant(0, tf.int64)).take(0)
        total = 0
    else:
        batches = order.epochs(start_epoch, start_step, epochs)
        total = tf.data.INFINITE_CARDINALITY
        if epochs is not None:
            total = max(0, (epochs - start_epoch) * steps - start_step)
    return _with_threads(batches.apply(tf.data.experimental.assert_cardinality(total)))


def packed_units(
    directory: Path | str,
    split: str,
    batch_size: int,
    *,
    manifest: Manifest | None = None,
    shuffle: bool = False,
    seed: int = 0,
    shuffle_blocks: int = 16,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.data.Dataset]:
    """Return a function from an epoch, a step of it and a number of steps, int64 scalars, to those batches.

    The batches are those of `packed_dataset`. The function may be called while a graph is made, so that the graph can
    be told later where to begin: this is how work is handed out to machines.

    Args:
        directory: As in `packed_dataset`, like all that follow.
        split: Name of the split.
        batch_size: Rows per batch.
        manifest: The manifest; read if `None`.
        shuffle: `False` keeps file order.
        seed: Seed of the order.
        shuffle_blocks: Blocks whose rows are shuffled together.

    Raises:
        DataError, ConfigError: as in `packed_dataset`.
    """
    manifest = Manifest.load(directory) if manifest is None else manifest
    manifest.refuse_unless_format("packed")
    steps_per_epoch(manifest, split, batch_size)
    order = _order(directory, manifest, split, batch_size, shuffle, seed, False, shuffle_blocks)
    return lambda epoch, step, steps: _with_threads(order.epoch(epoch, step * batch_size).take(steps))


def _order(
    directory: Path | str,
    manifest: Manifest,
    split: str,
    batch_size: int,
    shuffle: bool,
    seed: int,
    drop_remainder: bool,
    shuffle_blocks: int,
) -> _Order:
    _check_range("seed", seed, 0, 2**63 - 1)
    _check_range("shuffle_blocks", shuffle_blocks, 1)
    manifest.check(directory)
    return _Order(
        index=_BlockIndex.make(Path(directory), manifest.split(split)),
        columns=packed_columns(manifest.spec, manifest.has_sample_weight),
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        window_blocks=shuffle_blocks if shuffle else FILE_ORDER_BLOCKS,
        drop_remainder=drop_remainder,
    )


def _with_threads(batches: tf.data.Dataset) -> tf.data.Dataset:
    options = input_options()
    # A thread of its own, and none inside its operations: in the pool of the training step, a window that is gathered
    # takes the threads that the step waits for. Training from disk went from 86% of the rate from memory to 99%.
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    # Rewriting the graph takes longer than it saves: a tenth of a second of the first batch, each time rows are opened.
    options.experimental_optimization.apply_default_optimizations = False
    return batches.prefetch(PREFETCH_BATCHES).with_options(options)


def _check_range(name: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        rule = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"`{name}` must be {rule}. Received: {value}.")


@dataclasses.dataclass(frozen=True)
class _BlockIndex:
    """Where the blocks of a split lie, one entry per block in file order."""

    files: tf.Tensor  # string [shards]
    shard: tf.Tensor  # int32 [blocks]
    number: tf.Tensor  # int32 [blocks], within the shard
    offset: tf.Tensor  # int64 [blocks]
    rows: tf.Tensor  # int64 [blocks]
    fingerprint: tf.Tensor  # uint8 [blocks, 8]
    largest: int  # rows of the largest block

    @classmethod
    def make(cls, directory: Path, split: SplitInfo) -> _BlockIndex:
        blocks = [block for shard in split.shards for block in shard.blocks]
        counts = [len(shard.blocks) for shard in split.shards]
        offsets = [np.cumsum([0, *(block.length for block in shard.blocks)])[:-1] for shard in split.shards]
        fingerprints = np.frombuffer(bytes.fromhex("".join(block.fingerprint for block in blocks)), np.uint8)
        return cls(
            files=tf.constant([str(directory / shard.file) for shard in split.shards], tf.string, [len(counts)]),
            shard=tf.constant(np.repeat(np.arange(len(counts), dtype=np.int32), counts), tf.int32),
            number=tf.constant(np.concatenate([np.arange(count) for count in (*counts, 0)]), tf.int32),
            offset=tf.constant(np.concatenate([*offsets, np.zeros(0, np.int64)]), tf.int64),
            rows=tf.constant([block.rows for block in blocks], tf.int64, [len(blocks)]),
            fingerprint=tf.constant(fingerprints.reshape(-1, 8)),
            largest=max((block.rows for block in blocks), default=1),
        )

    def read(self, block: tf.Tensor) -> tf.Tensor:
        """Return the payload of a block, a scalar string; raises in the graph if it is not what the index says."""
        file = tf.gather(self.files, tf.gather(self.shard, block))
        offset = tf.gather(self.offset, block)
        # An error inside would name the offset but not the file. Turned into an empty payload, it fails the
        # fingerprint below, which names both; the log keeps the cause. Mapping over a single element ends after
        # one failure, where ignoring the errors of the reader itself would retry a missing file for ever.
        attempt = tf.data.Dataset.from_tensors((file, offset)).map(read_record).ignore_errors(log_warning=True)
        payload = attempt.concatenate(tf.data.Dataset.from_tensors("")).take(1).get_single_element()
        matches = tf.reduce_all(tf.equal(tf.fingerprint([payload])[0], tf.gather(self.fingerprint, block)))
        number, byte = (tf.strings.as_string(x) for x in (tf.gather(self.number, block), offset))
        place = tf.strings.join([file, ": block ", number, " at byte ", byte])
        message = tf.strings.join([place, " cannot be read or is not the one manifest.json names"])
        with tf.control_dependencies([tf.debugging.Assert(matches, [message])]):
            return tf.identity(payload)


def read_record(file: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Return the record that begins at a byte of a TFRecord file, its CRC checked."""
    # This op seeks. FixedLengthRecordDataset(header_bytes=offset) reads and drops all bytes before the offset, which
    # takes 20 times as long with shards of 330 MB. Unbuffered, bytes go straight from the page cache to the payload.
    record = tf.raw_ops.TFRecordDatasetV2(
        filenames=[file], compression_type="", buffer_size=0, byte_offsets=tf.expand_dims(offset, 0)
    )
    dataset = tf.data.experimental.from_variant(record, tf.TensorSpec([], tf.string))
    return dataset.take(1).get_single_element()


@dataclasses.dataclass(frozen=True)
class _Order:
    """The order of rows in an epoch, and the graph that yields them from any row on.

    AutoGraph is off: it has nothing to convert here, and takes longer than all else before the first batch.
    """

    index: _BlockIndex
    columns: tuple[PackedColumn, ...]
    batch_size: int
    shuffle: bool
    seed: int
    window_blocks: int
    drop_remainder: bool

    @tf.autograph.experimental.do_not_convert
    def epochs(self, start_epoch: int, start_step: int, end: int | None) -> tf.data.Dataset:
        """Return the batches from a step of an epoch on, up to epoch `end` or without end."""

        def from_start(epoch: tf.Tensor) -> tf.data.Dataset:
            first_row = tf.where(tf.equal(epoch, start_epoch), tf.constant(start_step * self.batch_size, tf.int64), 0)
            return self.epoch(epoch, first_row)

        if end == start_epoch + 1:
            # Its order is found here and now: a graph for it would double the time until the first batch.
            with tf.device("/CPU:0"):
                return from_start(tf.constant(start_epoch, tf.int64))
        return tf.data.Dataset.range(start_epoch, tf.int64.max if end is None else end).flat_map(from_start)

    @tf.autograph.experimental.do_not_convert
    def epoch(self, epoch: tf.Tensor, first_row: tf.Tensor) -> tf.data.Dataset:
        """Return the batches of one epoch from its row `first_row`, the first of a batch, on."""
        blocks = self._permute(tf.range(tf.size(self.index.rows)), epoch, tf.constant(0, tf.int64))
        ends = tf.cumsum(tf.gather(self.index.rows, blocks))
        # Block `i` of the order belongs to window `i // window_blocks`; start with the window of `first_row`.
        skipped_blocks = tf.searchsorted(ends, tf.expand_dims(first_row, 0), side="right")[0]
        first_window = skipped_blocks // self.window_blocks
        first_block = first_window * self.window_blocks
        window_row = tf.concat([tf.zeros([1], tf.int64), ends], 0)[first_block :: self.window_blocks]

        windows = tf.data.Dataset.from_tensor_slices(blocks[first_block:])
        # Blocks are decoded one by one, on several threads, while they lie in the processor's cache.
        windows = windows.map(
            lambda block: (self._decode(self.index.read(block)), tf.gather(self.index.rows, block)),
            num_parallel_calls=PARALLEL_READS,
            deterministic=True,
        ).batch(self.window_blocks)
        numbers = tf.data.Dataset.counter(tf.cast(first_window, tf.int64))
        starts = tf.data.Dataset.from_tensor_slices(window_row)

        def load(number: tf.Tensor, start: tf.Tensor, window: tuple[dict[str, tf.Tensor], tf.Tensor]) -> dict[str, Any]:
            blocks, block_rows = window
            rows = self._permute(_row_positions(block_rows, self.index.largest), epoch, number + 1)
            rows = rows[tf.maximum(first_row - start, 0) :]
            return {column.name: self._take(column, blocks, rows) for column in self.columns}

        windows = tf.data.Dataset.zip((numbers, starts, windows)).map(load, num_parallel_calls=1).prefetch(1)
        # One gather for a window, then slices of it: two thirds of the time that gathering batch by batch takes.
        return windows.rebatch(self.batch_size, drop_remainder=self.drop_remainder).map(_as_batch)

    def _permute(self, values: tf.Tensor, epoch: tf.Tensor, stream: tf.Tensor) -> tf.Tensor:
        """Shuffle a vector by (seed, epoch, stream); stream 0 orders blocks, `w + 1` the rows of window `w`."""
        if not self.shuffle:
            return values
        seed = tf.stack([tf.constant(self.seed, tf.int64), tf.bitwise.left_shift(epoch, 32) + stream])
        # Named, because "auto_select" may pick another generator on another device.
        return tf.random.experimental.stateless_shuffle(values, seed, alg="philox")

    def _decode(self, payload: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn the payload of a block into matrices `[largest, width]`; a short block fills fewer rows."""
        features = {column.name: tf.io.FixedLenFeature([], tf.string) for column in self.columns if column.width}
        strings = tf.io.parse_single_example(payload, features)
        matrices = {}
        for column in self.columns:
            if column.width:
                dtype = tf.as_dtype(column.dtype)
                length = self.index.largest * column.width * dtype.size
                flat = tf.io.decode_raw(strings[column.name], dtype, fixed_length=length)
                matrices[column.name] = tf.reshape(flat, [self.index.largest, column.width])
        return matrices

    def _take(self, column: PackedColumn, blocks: dict[str, tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        """Return the given rows of a window, whose columns are `[blocks, largest, width]`."""
        if not column.width:
            return tf.zeros([tf.size(rows), 0], tf.as_dtype(column.dtype))
        return tf.gather(tf.reshape(blocks[column.name], [-1, column.width]), rows)


def _as_batch(columns: dict[str, tf.Tensor]) -> tuple[Any, ...]:
    features = {name: columns[name] for name in ("dense", "sparse", "weights") if name in columns}
    return (features, *(columns[name] for name in ("label", "sample_weight") if name in columns))


def _row_positions(block_rows: tf.Tensor, largest: int) -> tf.Tensor:
    """Return where the rows of `[blocks]` blocks lie when each takes `largest` places, int32 `[sum(block_rows)]`."""
    used = tf.reshape(tf.sequence_mask(block_rows, largest), [-1])
    return tf.cast(tf.squeeze(tf.where(used), 1), tf.int32)
