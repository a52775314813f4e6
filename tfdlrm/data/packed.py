"""Blocks of rows in TFRecord files, one `tf.train.Example` of a few byte strings per block."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfdlrm.data.files import TEMPORARY_SUFFIX, publish, temporary_name
from tfdlrm.data.growing_checksum import GrowingChecksum
from tfdlrm.data.manifest import MANIFEST, BlockInfo, ShardInfo, SplitInfo, check_split_name, shard_name
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.features import FeatureSpec

HEADER_BYTES = 12
"""TFRecord framing before a payload: its length (8 bytes) and a CRC of that (4 bytes)."""
FOOTER_BYTES = 4
"""TFRecord framing after a payload: its CRC."""
MAX_BLOCK_BYTES = 2**31 - 2**20
"""Protocol buffers end at 2 GiB; the rest is room for keys and lengths."""


class PackedColumn(NamedTuple):
    """One byte string of a block: a row-major little-endian `[rows, width]` matrix of `dtype`."""

    name: str
    dtype: npt.DTypeLike
    width: int


def packed_columns(spec: FeatureSpec, sample_weight: bool) -> tuple[PackedColumn, ...]:
    """Return the columns of a block, in batch order; those the spec has no use for are left out."""
    columns = [
        PackedColumn("dense", np.float32, spec.n_dense),
        PackedColumn("sparse", np.dtype(spec.id_dtype), spec.n_ids),
        PackedColumn("label", np.float32, 1),
    ]
    if spec.has_weights:
        columns.append(PackedColumn("weights", np.float32, spec.n_ids))
    if sample_weight:
        columns.append(PackedColumn("sample_weight", np.float32, 1))
    return tuple(columns)


def packed_row_bytes(spec: FeatureSpec, sample_weight: bool) -> int:
    """Return how many bytes a row takes in a block."""
    return sum(np.dtype(column.dtype).itemsize * column.width for column in packed_columns(spec, sample_weight))


def refuse_large_blocks(spec: FeatureSpec, rows_per_block: int, rows_per_shard: int, sample_weight: bool) -> None:
    """Raise `ConfigError` where `rows_per_block` or `rows_per_shard` is below 1, or a block would exceed 2 GiB."""
    for name, value in (("rows_per_block", rows_per_block), ("rows_per_shard", rows_per_shard)):
        if value < 1:
            raise ConfigError(f"`{name}` must be at least 1. Received: {value}.")
    row_bytes = packed_row_bytes(spec, sample_weight)
    if min(rows_per_block, rows_per_shard) * row_bytes > MAX_BLOCK_BYTES:
        raise ConfigError(
            f"`rows_per_block` must be at most {MAX_BLOCK_BYTES // row_bytes} for rows of {row_bytes} bytes. "
            f"Received: {min(rows_per_block, rows_per_shard)}."
        )


class PackedWriter:
    """Writes one split as packed shards `<split>-00000.tfrecord`, ...

    Every block but the last of a shard holds `rows_per_block` rows, every shard but the last `rows_per_shard`.
    Shards get their final names together in `close`; until then, and after `abort` or a killed process, there
    are only temporary files, which the next writer of this split removes. A new writer also removes the manifest
    and the shards of this split that an earlier run left: from here on the folder is not a complete data set.

    Args:
        directory: Folder of the data set; made if missing. One writer per folder and split at a time.
        split: Name of the split, a lower-case word.
        spec: Gives the columns and the range of ids.
        rows_per_block: Rows per record, the unit of random access. Defaults to 16,384.
        rows_per_shard: Rows per file. Defaults to 1,048,576.
        sample_weight: Whether rows carry a weight. Defaults to `False`.
        shard: Write the shard of this number and no other, leaving alone what else the folder holds: so several
            writers may fill one split. Defaults to `None`: all shards of the split.

    Raises:
        ConfigError: `rows_per_block` or `rows_per_shard` is below 1, or a block would exceed 2 GiB.
        DataError: `split` is no lower-case word.

    Example:
        >>> import tempfile
        >>> from tfdlrm.spec.features import DenseFeature
        >>> spec = FeatureSpec(dense=[DenseFeature(name="price")])
        >>> with PackedWriter(tempfile.mkdtemp(), "train", spec) as writer:
        ...     writer.add(np.ones([3, 1]), np.zeros([3, 0], np.int32), np.array([1, 0, 1]))
        >>> info = writer.close()
        >>> info.rows, info.positives, info.shards[0].file
        (3, 2, 'train-00000.tfrecord')
    """

    def __init__(
        self,
        directory: Path | str,
        split: str,
        spec: FeatureSpec,
        rows_per_block: int = 16_384,
        rows_per_shard: int = 1_048_576,
        sample_weight: bool = False,
        shard: int | None = None,
    ) -> None:
        check_split_name(split)
        self.columns = packed_columns(spec, sample_weight)
        refuse_large_blocks(spec, rows_per_block, rows_per_shard, sample_weight)
        rows_per_block = min(rows_per_block, rows_per_shard)
        self.directory = Path(directory)
        self.split = split
        self.spec = spec
        self.rows_per_shard = rows_per_shard
        self._only = shard
        self._bounds = _id_bounds(spec)
        self._block = {c.name: np.empty([rows_per_block, c.width], _little_endian(c.dtype)) for c in self.columns}
        self._block_limit = rows_per_block
        self._block_rows = 0
        self._shard_rows = 0
        self._rows = 0
        self._positives = 0
        self._blocks: list[BlockInfo] = []
        self._shards: list[tuple[Path, ShardInfo]] = []
        self._file: Any = None
        self._checksum: GrowingChecksum | None = None
        self._path = Path()
        self._info: SplitInfo | None = None
        self._open = True
        self.directory.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    def add(
        self,
        dense: npt.ArrayLike,
        sparse: npt.ArrayLike,
        label: npt.ArrayLike,
        weights: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> None:
        """Append rows, any number of them.

        Args:
            dense: Numbers `[rows, n_dense]`, finite.
            sparse: Integers `[rows, n_ids]`: -1 pads a bag, else below the rows of the column's table.
            label: Numbers between 0 and 1, `[rows]` or `[rows, 1]`.
            weights: Finite numbers `[rows, n_ids]`; given exactly if a feature of the spec is weighted.
            sample_weight: Finite numbers of at least 0, `[rows]` or `[rows, 1]`; given exactly if the writer was
                made with `sample_weight=True`.

        Raises:
            DataError: a shape or value breaks these rules; nothing of this call was added.
        """
        if not self._open:
            raise ValueError("`add` must come before `close` and `abort`. Received: rows afterwards.")
        arrays = self._checked(
            {"dense": dense, "sparse": sparse, "label": label, "weights": weights, "sample_weight": sample_weight}
        )
        rows = len(arrays["label"])
        start = 0
        while start < rows:
            count = min(rows - start, self._room())
            for name, array in arrays.items():
                self._block[name][self._block_rows : self._block_rows + count] = array[start : start + count]
            self._block_rows += count
            start += count
            if self._room() == 0:
                self._write_block()
        self._rows += rows
        self._positives += int(np.count_nonzero(arrays["label"] > 0.5))

    def close(self) -> SplitInfo:
        """Write what is pending, give all shards their final names and return what the manifest needs.

        Calling it again returns the same.
        """
        if self._info is None:
            if not self._open:
                raise ValueError("`close` must not follow `abort`. Received: an aborted writer.")
            try:
                self._write_block()
                self._end_shard()
                for temporary, shard in self._shards:
                    publish(temporary, self.directory / shard.file)
            except BaseException:
                self.abort()
                raise
            self._open = False
            shards = tuple(shard for _, shard in self._shards)
            self._info = SplitInfo(rows=self._rows, positives=self._positives, shards=shards)
        return self._info

    def abort(self) -> None:
        """Remove all that was written. Without effect after `close`."""
        if self._info is not None:
            return
        self._open = False
        if self._file is not None:
            # Closing flushes, which fails on a full disk; the file goes away either way.
            with suppress(tf.errors.OpError):
                self._file.close()
            self._file = None
        if self._checksum is not None:
            with suppress(OSError):
                self._checksum.finish()
            self._checksum = None
        self._remove_leftovers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _room(self) -> int:
        """Rows that still fit into the block being filled."""
        return min(self._block_limit, self.rows_per_shard - self._shard_rows) - self._block_rows

    def _write_block(self) -> None:
        if self._block_rows == 0:
            return
        payloads = self._payloads({name: array[: self._block_rows] for name, array in self._block.items()})
        if self._file is None or self._checksum is None:
            self._path = temporary_name(self.directory / self._shard_name())
            self._file = tf.io.TFRecordWriter(str(self._path))
            self._file.flush()  # makes the file
            self._checksum = GrowingChecksum(self._path)
        for payload in payloads:
            self._file.write(payload)
        # A reader gets a block by its offset and must know that it is the very block the manifest means. The
        # CRC of the framing only says that a record agrees with itself, and TensorFlow has no public op for it;
        # `tf.fingerprint` is a stock op, so the input graph can repeat this and compare.
        fingerprint = tf.fingerprint(tf.constant([b"".join(payloads)])).numpy().tobytes().hex()
        length = sum(HEADER_BYTES + len(payload) + FOOTER_BYTES for payload in payloads)
        self._blocks.append(BlockInfo(length, self._block_rows, fingerprint))
        self._file.flush()
        self._checksum.go_on()
        self._shard_rows += self._block_rows
        self._block_rows = 0
        if self._shard_rows == self.rows_per_shard:
            self._end_shard()

    def _payloads(self, block: dict[str, npt.NDArray[Any]]) -> list[bytes]:
        """Return the records that hold a block's matrices `[rows, width]`: here one."""
        example = tf.train.Example()
        for name, array in block.items():  # in place: a message made of messages copies them
            example.features.feature[name].bytes_list.value.append(array.tobytes())
        # Map entries have no order of their own; a fixed one makes equal rows equal files.
        return [example.SerializeToString(deterministic=True)]

    def _end_shard(self) -> None:
        if self._file is None or self._checksum is None:
            return
        self._file.close()
        self._file = None
        checksum, self._checksum = self._checksum, None
        shard = ShardInfo(
            file=self._shard_name(),
            rows=self._shard_rows,
            bytes=self._path.stat().st_size,
            sha256=checksum.finish(),
            blocks=tuple(self._blocks),
        )
        self._shards.append((self._path, shard))
        self._blocks = []
        self._shard_rows = 0

    def _shard_name(self) -> str:
        return shard_name(self.split, len(self._shards) + (self._only or 0))

    def _remove_leftovers(self) -> None:
        # The manifest goes first: while it is there, the shards it names must be.
        (self.directory / MANIFEST).unlink(missing_ok=True)
        shards = f"{self.split}-*.tfrecord" if self._only is None else shard_name(self.split, self._only)
        for pattern in (shards, f".{shards}.*{TEMPORARY_SUFFIX}"):
            for path in self.directory.glob(pattern):
                path.unlink(missing_ok=True)

    def _checked(self, given: dict[str, npt.ArrayLike | None]) -> dict[str, npt.NDArray[Any]]:
        wanted = {column.name: column for column in self.columns}
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, value in given.items():
            if (value is not None) != (name in wanted):
                rule = "be given" if name in wanted else "not be given"
                raise DataError(f"`{name}` must {rule} for this spec. Received: {type(value).__name__}.")
            if value is None:
                continue
            array = np.asarray(value)
            if wanted[name].width == 1 and array.ndim == 1:
                array = array[:, np.newaxis]
            if array.ndim != 2 or array.shape[1] != wanted[name].width:
                raise DataError(
                    f"`{name}` must have shape [rows, {wanted[name].width}]. Received: {list(np.shape(value))}."
                )
            arrays[name] = array
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"all arrays must have the same number of rows. Received: {lengths}.")
        self._refuse_bad_values(arrays)
        return arrays

    def _refuse_bad_values(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        sparse = arrays["sparse"]
        if sparse.dtype.kind not in "iu":
            raise DataError(f"`sparse` must hold integers. Received: {sparse.dtype}.")
        self._refuse(
            "sparse", sparse, (sparse < -1) | (sparse >= self._bounds), "hold -1 or ids below the rows of their table"
        )
        for name, array in arrays.items():
            if name != "sparse":
                self._refuse(name, array, ~np.isfinite(array), "be finite")
        label = arrays["label"]
        self._refuse("label", label, (label < 0) | (label > 1), "lie between 0 and 1")
        if "sample_weight" in arrays:
            self._refuse("sample_weight", arrays["sample_weight"], arrays["sample_weight"] < 0, "not be negative")

    def _refuse(self, name: str, array: npt.NDArray[Any], bad: npt.NDArray[np.bool_], rule: str) -> None:
        if not bad.any():
            return
        row, column = (int(i) for i in np.argwhere(bad)[0])
        feature = ""
        if name == "dense":
            feature = f" of feature `{self.spec.dense_names[column]}`"
        elif name in ("sparse", "weights"):
            ranges = self.spec.id_columns.items()
            feature = next(f" of feature `{key}`" for key, (start, end) in ranges if start <= column < end)
        raise DataError(
            f"`{name}`{feature} must {rule}. Received: {array[row, column]} in row {self._rows + row} of {self.split}."
        )


def _little_endian(dtype: npt.DTypeLike) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


def _id_bounds(spec: FeatureSpec) -> npt.NDArray[np.int64]:
    rows = [spec.table_of(feature).vocabulary_size for feature in spec.sparse for _ in range(feature.hotness)]
    # In the type of the ids, or comparing would copy all of them to a wider one.
    return np.array(rows, dtype=spec.id_dtype).reshape(1, -1)
