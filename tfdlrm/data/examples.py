"""One `tf.train.Example` per row with a feature for each column: larger and slower than packed, readable by anyone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from tfdlrm.data.dataset import PARALLEL_READS, PREFETCH_BATCHES, read_record, steps_per_epoch
from tfdlrm.data.input_options import input_options
from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.data.packed import PackedWriter
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.features import FeatureSpec

WEIGHT_SUFFIX = "_weight"
"""What follows a sparse feature's name in the key of its ids' weights."""

_READ_ROWS = 1024
"""Rows of a shard that are counted at a time."""

# Key of the example -> matrix of the batch contract and its half-open column range.
Places = dict[str, tuple[str, int, int]]


def example_places(spec: FeatureSpec, sample_weight: bool = False) -> Places:
    """Return where each feature of an example belongs: key -> (matrix, first column, end column).

    Raises:
        DataError: two columns would have one key.
    """
    keys: list[tuple[str, tuple[str, int, int]]] = [("label", ("label", 0, 1))]
    keys += [(name, ("dense", i, i + 1)) for i, name in enumerate(spec.dense_names)]
    keys += [(name, ("sparse", start, end)) for name, (start, end) in spec.id_columns.items()]
    if spec.has_weights:
        keys += [(name + WEIGHT_SUFFIX, ("weights", start, end)) for name, (start, end) in spec.id_columns.items()]
    if sample_weight:
        keys.append(("sample_weight", ("sample_weight", 0, 1)))
    names = [key for key, _ in keys]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"keys of an example must be unique. Received twice: {', '.join(repeated)}; rename a feature.")
    return dict(keys)


class ExampleWriter(PackedWriter):
    """Writes one split as shards of one example per row; in all else a `PackedWriter`.

    Numbers are float lists, ids int64 lists with one entry for each place of the bag, -1 where it is padded.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from tfdlrm.spec.features import DenseFeature
        >>> spec = FeatureSpec(dense=[DenseFeature(name="price")])
        >>> with ExampleWriter(tempfile.mkdtemp(), "train", spec) as writer:
        ...     writer.add(np.ones([3, 1]), np.zeros([3, 0], np.int32), np.array([1, 0, 1]))
        >>> writer.close().rows
        3
    """

    def __init__(
        self,
        directory: Path | str,
        split: str,
        spec: FeatureSpec,
        rows_per_block: int = 4096,
        rows_per_shard: int = 1_048_576,
        sample_weight: bool = False,
    ) -> None:
        self._places = example_places(spec, sample_weight)
        super().__init__(directory, split, spec, rows_per_block, rows_per_shard, sample_weight)

    def _payloads(self, block: dict[str, npt.NDArray[Any]]) -> list[bytes]:
        # One message for all rows: only the numbers change, and the keys are what takes time to write.
        example = tf.train.Example()
        columns = []
        for key, (matrix, start, end) in self._places.items():
            feature = example.features.feature[key]
            values = feature.int64_list.value if matrix == "sparse" else feature.float_list.value
            columns.append((values, block[matrix][:, start:end].tolist()))
        payloads = []
        for row in range(len(block["label"])):
            for values, numbers in columns:
                values[:] = numbers[row]
            payloads.append(example.SerializeToString(deterministic=True))
        return payloads


def example_dataset(
    directory: Path | str,
    split: str,
    batch_size: int,
    *,
    manifest: Manifest | None = None,
    shuffle: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
    start_epoch: int = 0,
    drop_remainder: bool = False,
    window_rows: int = 262_144,
) -> tf.data.Dataset:
    """Return the batches of a split written by `ExampleWriter`; whole batches are parsed at once.

    The order is a pure function of (seed, epoch), as with `packed_dataset`: shards are permuted, then rows in windows.
    There is no starting inside an epoch: rows of unequal length cannot be counted without reading them.

    Args:
        directory: Folder of the data set.
        split: Name of the split.
        batch_size: Rows per batch, at least 1.
        manifest: Its manifest; read from `directory` if `None`.
        shuffle: `False` keeps file order.
        seed: Seed of the order, at least 0.
        epochs: Number of the epoch to end before; `None` never ends. Defaults to 1.
        start_epoch: Epoch to begin with, at most `epochs`.
        drop_remainder: Whether the last short batch of an epoch is left out.
        window_rows: Rows shuffled together, at least 1. About 1 KB of memory each for Criteo rows, twice over.

    Returns:
        A dataset of the batch contract; see `packed_dataset`. Its cardinality is known. A shard that has other rows
        than the manifest says, or rows that cannot be read, raises `tf.errors.InvalidArgumentError`, which names the
        file, where it ends.

    Raises:
        DataError: `directory` holds no such data set or files disagree with the manifest, or `split` is unknown.
        ConfigError: a number is out of its range.
    """
    manifest = Manifest.load(directory) if manifest is None else manifest
    manifest.refuse_unless_format("example")
    steps = steps_per_epoch(manifest, split, batch_size, drop_remainder)
    for name, value, least in (("seed", seed, 0), ("window_rows", window_rows, 1), ("start_epoch", start_epoch, 0)):
        if value < least:
            raise ConfigError(f"`{name}` must be at least {least}. Received: {value}.")
    if epochs is not None and epochs < start_epoch:
        raise ConfigError(f"`epochs` must be at least `start_epoch`. Received: {epochs} and {start_epoch}.")
    manifest.check(directory)
    shards = manifest.split(split).shards
    files = tf.constant([str(Path(directory) / shard.file) for shard in shards], tf.string, [len(shards)])
    file_rows = tf.constant([shard.rows for shard in shards], tf.int64, [len(shards)])
    parse = example_parser(manifest.spec, manifest.has_sample_weight)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        stream = tf.bitwise.left_shift(epoch, 32)
        order = _permuted(tf.range(len(shards)), seed, stream) if shuffle else tf.range(len(shards))
        rows = tf.data.Dataset.from_tensor_slices((tf.gather(files, order), tf.gather(file_rows, order)))
        rows = rows.flat_map(_rows_of_shard)
        if shuffle:
            windows = rows.rebatch(window_rows).enumerate()
            rows = windows.map(lambda number, rows: _permuted(rows, seed, stream + number + 1)).prefetch(1)
        return rows.rebatch(batch_size, drop_remainder=drop_remainder).map(
            parse, num_parallel_calls=PARALLEL_READS, deterministic=True
        )

    if steps == 0:
        batches, total = epoch_batches(tf.constant(0, tf.int64)).take(0), 0
    else:
        batches = tf.data.Dataset.range(start_epoch, tf.int64.max if epochs is None else epochs).flat_map(epoch_batches)
        total = tf.data.INFINITE_CARDINALITY if epochs is None else (epochs - start_epoch) * steps
    batches = batches.apply(tf.data.experimental.assert_cardinality(total)).prefetch(PREFETCH_BATCHES)
    return batches.with_options(input_options())


def example_parser(spec: FeatureSpec, sample_weight: bool = False) -> Callable[[tf.Tensor], tuple[Any, ...]]:
    """Return the function from serialized examples, strings `[B]`, to a batch of the batch contract.

    Raises:
        DataError: two columns would have one key.
    """
    return _Parser(spec, sample_weight)


def _rows_of_shard(file: tf.Tensor, rows: tf.Tensor) -> tf.data.Dataset:
    """Return the serialized examples of a shard, strings `[n]`; raises in the graph unless there are `rows` of them."""
    # A damaged or cut record is an error that does not name the file, a cut between records none at all. Here either is
    # the end of the shard, where its rows are counted. The first record is read to see that there is a file: a missing
    # one is an error that comes again and again.
    readable = tf.data.Dataset.from_tensors(file).map(lambda name: read_record(name, tf.constant(0, tf.int64)))
    records = readable.ignore_errors(log_warning=True).flat_map(
        lambda _: tf.data.TFRecordDataset(file).ignore_errors(log_warning=True)
    )
    pieces = records.batch(_READ_ROWS).concatenate(tf.data.Dataset.from_tensors(tf.constant([], tf.string)))

    def count(before: tf.Tensor, piece: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = before + tf.size(piece, tf.int64)
        whole = tf.logical_or(tf.size(piece) > 0, tf.equal(found, rows))
        texts = [tf.strings.as_string(number) for number in (found, rows)]
        message = tf.strings.join([file, ": ", texts[0], f" rows can be read, where {MANIFEST} names ", texts[1]])
        with tf.control_dependencies([tf.debugging.Assert(whole, [message])]):
            return found, tf.identity(piece)

    return pieces.scan(tf.constant(0, tf.int64), count).filter(lambda piece: tf.size(piece) > 0)


def _permuted(values: tf.Tensor, seed: int, stream: tf.Tensor) -> tf.Tensor:
    pair = tf.stack([tf.constant(seed, tf.int64), stream])
    return tf.random.experimental.stateless_shuffle(values, pair, alg="philox")


class _Parser:
    """Turns serialized examples `[B]` into a batch."""

    def __init__(self, spec: FeatureSpec, sample_weight: bool) -> None:
        self._spec = spec
        self._places = example_places(spec, sample_weight)
        self._features = {
            key: tf.io.FixedLenFeature([end - start], tf.int64 if matrix == "sparse" else tf.float32)
            for key, (matrix, start, end) in self._places.items()
        }

    def __call__(self, serialized: tf.Tensor) -> tuple[Any, ...]:
        parsed = tf.io.parse_example(serialized, self._features)
        columns: dict[str, list[tf.Tensor]] = {}
        # Places of one matrix come in column order.
        for key, (matrix, _, _) in self._places.items():
            columns.setdefault(matrix, []).append(parsed[key])
        matrices = {name: tf.concat(parts, axis=1) for name, parts in columns.items()}
        rows = tf.shape(serialized)[0]
        dense = matrices.get("dense", tf.zeros([rows, 0]))
        sparse = tf.cast(matrices.get("sparse", tf.zeros([rows, 0], tf.int32)), self._spec.id_dtype)
        features = {"dense": dense, "sparse": sparse}
        if "weights" in matrices:
            features["weights"] = matrices["weights"]
        return (features, matrices["label"], *([matrices["sample_weight"]] if "sample_weight" in matrices else []))
